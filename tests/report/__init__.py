"""Tests of figures and pages."""

FIGURES = (
    "confidence", "dataset_reliability_histogram", "nll", "reliability", "reliability_boxes", "reliability_of_cases",
    "worst_cases",
)  # fmt: skip
PICTURES = tuple(f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg", "pdf"))
