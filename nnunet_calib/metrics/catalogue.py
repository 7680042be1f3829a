"""The calibration metrics: one row each, from which files, tables, pages and the table in the docs follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A calibration metric: its definition, and where it is shown.

    Attributes:
        name: name in files and in Python.
        label: name in tables.
        definition: in words. e_m: mean probability of the n_m voxels of bin m, o_m: the frequency of the class among
            them, N: voxels of the scope.
        of_heads: one value for each class and one for the top label; otherwise one for the scope.
        binned: the value depends on the number of bins.
        counted: the value depends on `min_count`.
        brier_term: `brier_NAME`, summed over the classes, is a term of the Brier score.
        in_summary: summary.json has its mean over the cases.
        headline: rows of cases, tables, comparisons and pages show it too.
        ranking: it tells how well confidence or entropy separates wrong from right voxels of a scope; it is shown like
            a headline metric, but has no value for the pooled voxels of several cases.
        higher_is_better: whether a larger value is better.
        chance_of: the metric whose value for a perfectly calibrated model this is; it is written and shown beside it.
        title: name in running text, if longer than the label.
        meaning: explanation in the report: {points} is 100 times the value, {change} its change by the temperature in
            percent.
    """

    name: str
    label: str
    definition: str
    of_heads: bool
    binned: bool = False
    counted: bool = False
    brier_term: bool = False
    in_summary: bool = False
    headline: bool = False
    ranking: bool = False
    higher_is_better: bool = False
    chance_of: str = ""
    title: str = ""
    meaning: str = ""


METRICS = (
    Metric(
        "ece",
        "ECE",
        "expected calibration error: sum over bins of n_m / N * |o_m - e_m|",
        of_heads=True,
        binned=True,
        in_summary=True,
        headline=True,
        meaning="A voxel's probability of a class is off by {points} percentage points on average; sure background "
        "dominates.",
    ),
    Metric(
        "ace",
        "ACE",
        "average calibration error: mean of |o_m - e_m| over the bins of at least min_count voxels",
        of_heads=True,
        binned=True,
        counted=True,
        in_summary=True,
        headline=True,
        meaning="The mean over the bins that are not empty: rare probabilities count as much as common ones ({points} "
        "percentage points).",
    ),
    Metric(
        "mce",
        "MCE",
        "maximum calibration error: the largest |o_m - e_m| of a bin of at least min_count voxels",
        of_heads=True,
        binned=True,
        counted=True,
        in_summary=True,
        headline=True,
        meaning="In a case's worst bin the probability is off by {points} percentage points on average over cases.",
    ),
    Metric(
        "ece_by_chance",
        "ECE by chance",
        "what chance alone leaves of ECE for a perfectly calibrated model of these probabilities: ECE with the "
        "expected |o_m - e_m| of n_m independent voxels; a lower bound, since neighbouring labels are dependent",
        of_heads=True,
        binned=True,
        in_summary=True,
        chance_of="ece",
    ),
    Metric(
        "ace_by_chance",
        "ACE by chance",
        "what chance alone leaves of ACE for a perfectly calibrated model of these probabilities: ACE with the "
        "expected |o_m - e_m| of n_m independent voxels; a lower bound, since neighbouring labels are dependent",
        of_heads=True,
        binned=True,
        counted=True,
        in_summary=True,
        chance_of="ace",
    ),
    Metric(
        "adaptive_ece",
        "adaptive ECE",
        "ECE, which here is also ACE, over bins that hold N / bins voxels each, in the "
        "order of p; a fine bin of width 1/1200 in which such a bin ends is divided in proportion",
        of_heads=True,
        binned=True,
        in_summary=True,
    ),
    Metric(
        "ks",
        "KS",
        "Kolmogorov-Smirnov calibration error: the largest |sum of (y - p) over the voxels with p < t| / N "
        "over the thresholds t that are multiples of 1/1200",
        of_heads=True,
        in_summary=True,
    ),
    Metric(
        "squared_error",
        "squared error",
        "Brier score of one class: mean of (p - y)^2, from bins of width 1/1200",
        of_heads=True,
    ),
    Metric(
        "reliability",
        "reliability",
        "sum over bins of n_m / N * (o_m - e_m)^2",
        of_heads=True,
        binned=True,
        brier_term=True,
    ),
    Metric(
        "resolution",
        "resolution",
        "sum over bins of n_m / N * (o_m - o)^2, with the frequency o of the class in all voxels",
        of_heads=True,
        binned=True,
        brier_term=True,
    ),
    Metric("uncertainty", "uncertainty", "o * (1 - o)", of_heads=True, brier_term=True),
    Metric(
        "within_bin",
        "within bin",
        "what remains of the score: score = reliability - resolution + uncertainty + within_bin",
        of_heads=True,
        binned=True,
        brier_term=True,
    ),
    Metric(
        "nll",
        "NLL",
        "negative log-likelihood per voxel in nats; regions: binary cross-entropy, mean over regions",
        of_heads=False,
        in_summary=True,
        headline=True,
        meaning="Smaller is better; it also rewards sharp probabilities. The temperature changes it by {change} %.",
    ),
    Metric(
        "brier",
        "Brier",
        "sum over classes of (p - y)^2 per voxel; regions: mean over regions",
        of_heads=False,
        in_summary=True,
        headline=True,
        title="Brier score",
        meaning="Mean squared error of the probabilities. The temperature changes it by {change} %.",
    ),
    Metric(
        "aurc",
        "AURC",
        "area under the risk-coverage curve: mean over k = 1, ..., N of the share of wrong top labels among the k "
        "voxels of the largest confidence; those of one bin of width 1/1200 in random order",
        of_heads=False,
        in_summary=True,
        ranking=True,
        title="AURC (risk against coverage)",
        meaning="Share of wrong voxels ({points} %) among the most confident ones, mean over all shares kept.",
    ),
    Metric(
        "confidence_auroc",
        "AUROC of 1 - confidence",
        "AUROC of 1 - confidence for wrong top labels: the probability that a wrong voxel has a smaller confidence "
        "than a right one, where a tie in a bin of width 1/1200 counts half; undefined without a wrong or without a "
        "right voxel",
        of_heads=False,
        in_summary=True,
        ranking=True,
        higher_is_better=True,
        meaning="Of all pairs of a wrong and a right voxel, the wrong one is less confident in {points} % (50 % by "
        "chance).",
    ),
    Metric(
        "entropy_auroc",
        "AUROC of entropy",
        "AUROC of the entropy of the probabilities for wrong top labels, as confidence_auroc; regions: equal to it, "
        "since the entropy of a region falls as its confidence rises",
        of_heads=False,
        in_summary=True,
        ranking=True,
        higher_is_better=True,
        meaning="The same by the entropy of all classes: {points} %.",
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
LABELS = {metric.name: metric.label for metric in METRICS}
TITLES = {metric.name: metric.title or metric.label for metric in METRICS}

BRIER_TERMS = tuple(metric.name for metric in METRICS if metric.brier_term)

# Shown in rows of cases, tables, comparisons and pages: errors of each class and the top label, and scores of a scope.
HEAD_ERRORS = tuple(metric.name for metric in METRICS if metric.headline and metric.of_heads)
SCORES = tuple(metric.name for metric in METRICS if metric.headline and not metric.of_heads)
# How well uncertainty orders the voxels of a scope; files of older versions lack them.
RANKINGS = tuple(metric.name for metric in METRICS if metric.ranking)
# What chance leaves of an error, which stands beside it wherever a case has a row.
BY_CHANCE = {metric.chance_of: metric.name for metric in METRICS if metric.chance_of}
CASE_ERRORS = tuple(name for error in HEAD_ERRORS for name in (error, BY_CHANCE.get(error)) if name)
HEAD_LABELS = " and ".join([", ".join(LABELS[name] for name in HEAD_ERRORS[:-1]), LABELS[HEAD_ERRORS[-1]]])

# With means in summary.json: errors of each class and the top label, and scores of a scope.
SUMMARY_ERRORS = tuple(metric.name for metric in METRICS if metric.in_summary and metric.of_heads)
SUMMARY_SCORES = (
    *(metric.name for metric in METRICS if metric.in_summary and not metric.of_heads),
    *(f"brier_{name}" for name in BRIER_TERMS),
)

DEFINITIONS = {metric.name: metric.definition for metric in METRICS} | {
    "per_class": "marginal: the probability of one class against the presence of that class",
    "top_label": "the largest probability against whether its class is the true one; regions: max(p, 1 - p) of each "
    "region against whether p > 1/2 is right, regions pooled",
    "brier_terms": "summed over classes; regions: mean over regions",
}


_PREFIXES = {"top_label_": "top_label", "brier_": "brier_terms", "": "per_class"}


class CalibrationErrors(dict[str, NDArray[np.float64]]):
    """Errors by name, with the options of their computation.

    Attributes:
        options: bins, min_count, scope, boundary_mm (for the boundary scope only), and the number of pooled cases.
    """

    def __init__(self, values: dict[str, NDArray[np.float64]], options: dict[str, Any]) -> None:
        super().__init__(values)
        self.options = options

    def definition(self, name: str) -> dict[str, Any]:
        """Return the definition of one value, as JSON values.

        Args:
            name: a key of this dictionary.

        Returns:
            "metric", "definition" in words, "of" (what p and y are), and the `options` on which the value depends.

        Raises:
            KeyError: for an unknown name.
        """
        if name not in self:
            raise KeyError(f"expected one of {', '.join(self)}, got {name!r}")
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        metric = BY_NAME[name.removeprefix(prefix)]
        unused = {option for option, used in (("bins", metric.binned), ("min_count", metric.counted)) if not used}
        about = {"of": DEFINITIONS[_PREFIXES[prefix]]} if metric.of_heads else {}
        return (
            {"metric": name, "definition": metric.definition}
            | about
            | {option: value for option, value in self.options.items() if option not in unused}
        )
