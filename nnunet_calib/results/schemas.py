"""Types of the JSON files of this package, the forms that check them, and the warnings derived from them.

Entries that files of earlier versions lack are declared in classes with `total=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from nnunet_calib.io.json_forms import NAME, form_of
from nnunet_calib.io.wording import one_line
from nnunet_calib.metrics.catalogue import BY_CHANCE, HEAD_ERRORS, RANKINGS, SCORES
from nnunet_calib.posthoc import kind_of

# Errors of a case or fold before calibration, as the network predicts, and after it.
UNCALIBRATED: Literal["uncalibrated"] = "uncalibrated"
CALIBRATED: Literal["calibrated"] = "calibrated"
Stage = Literal["uncalibrated", "calibrated"]
STAGES: tuple[Stage, Stage] = (UNCALIBRATED, CALIBRATED)

Name = Annotated[str, NAME]
Tree = dict[str, Any]  # numbers by name: scope -> per_class, top_label, ... -> metric

UNTRAINED = "not_trained_with"  # hyperparameter: the promised losses that the training went without

_NUMBER = (float, None)  # null where a value is undefined
_ERRORS = dict.fromkeys([*HEAD_ERRORS, *(f"{name}?" for name in BY_CHANCE.values())], _NUMBER)
_LIMITS = [_NUMBER, _NUMBER]
_RANKINGS = {f"{name}?": _NUMBER for name in RANKINGS}
_IMAGE = {"per_class": {str: _ERRORS}, "top_label": _ERRORS, **dict.fromkeys(SCORES, _NUMBER), **_RANKINGS}
_MEANS = {"image": _IMAGE | {"foreground_mean": _ERRORS}, "boundary?": _RANKINGS}
_POOLED = {"image": {"foreground_mean": _ERRORS, **dict.fromkeys(SCORES, _NUMBER)}}
_POOLED_INTERVALS = {
    "image": {"foreground_mean": dict.fromkeys(HEAD_ERRORS, _LIMITS), **dict.fromkeys(SCORES, _LIMITS)}
}
_INTERVALS = {"image": _POOLED_INTERVALS["image"] | {f"{name}?": _LIMITS for name in RANKINGS}}


class HeadsContent(TypedDict):
    """Heads of a network, in the order of its channels."""

    keys: list[str]
    names: list[str]
    regions: list[list[int]] | None
    ignore_label: int | None


class SplitContent(TypedDict):
    """Training and validation cases of a fold."""

    training: list[Name]
    validation: list[Name]


class _FoldModelLater(TypedDict, total=False):
    hyperparameters: Annotated[dict[str, Any], {f"{UNTRAINED}?": [NAME]}]
    checkpoint: str | None
    plans_sha256: str


class FoldModel(_FoldModelLater):
    """Identity of a fold's network."""

    dataset: Name
    trainer: Name
    plans: Name
    configuration: Name
    fold: int | str
    weights_sha256: str


class _Row(TypedDict):
    case: Name


class _FoldContentLater(TypedDict, total=False):
    nnunet_calib: str
    split: SplitContent | None


class FoldContent(_FoldContentLater):
    """Part of a fold's summary.json that merging folds needs."""

    model: FoldModel
    heads: HeadsContent
    metric_per_case: list[_Row]
    missing_cases: list[Name]


class _RecordedModel(TypedDict, total=False):
    dataset: str | int | None
    trainer: str | int | None
    plans: str | int | None
    configuration: str | int | None
    weights_sha256: str | dict[str, str] | None


class TemperatureContent(TypedDict, total=False):
    """Content of temperature.json, apart from the calibrator's own values."""

    kind: str  # absent for a temperature
    standard_error: float | None
    at_bound: bool | None
    in_sample: bool | None
    seen_in_training: list[str] | None
    folds: list[int | str] | None
    cases: list[str] | None
    model: _RecordedModel | None
    note: str


class _ReportedRowLater(TypedDict, total=False):
    fold: int


class ReportedRow(_ReportedRowLater):
    """Row of a case in summary.json, apart from the values of its calibrator."""

    case: Name
    voxels: int
    uncalibrated: Annotated[Tree, {"image": _IMAGE}]
    calibrated: Annotated[Tree, {"image": _IMAGE}]


class _SummaryLater(TypedDict, total=False):
    notes: list[str]
    intervals: Annotated[dict[str, Tree], dict.fromkeys(STAGES, _INTERVALS)]
    pooled: Annotated[dict[str, Tree], dict.fromkeys(STAGES, _POOLED)]
    pooled_intervals: Annotated[dict[str, Tree], dict.fromkeys(STAGES, _POOLED_INTERVALS)]


class Summary(_SummaryLater):
    """Part of summary.json that a report needs."""

    nnunet_calib: str
    model: dict[str, Any]
    heads: HeadsContent
    definitions: Annotated[dict[str, Any], {str: (str, int, {str: str})}]
    temperature: TemperatureContent
    missing_cases: list[str]
    metrics: Annotated[dict[str, Tree], dict.fromkeys(STAGES, _MEANS)]
    metric_per_case: list[ReportedRow]


HEADS = form_of(HeadsContent)
SPLIT = form_of(SplitContent)
FOLD = form_of(FoldContent)
TEMPERATURE = form_of(TemperatureContent)
SUMMARY = form_of(Summary)
_RESIDUALS: dict[str, Any] = {"cases": int, **dict.fromkeys(("mean", "low", "high", "covered"), _NUMBER)}
_RANKED: dict[str, Any] = dict.fromkeys(("spearman", "worst"), _NUMBER)
_JUDGED: dict[str, Any] = {"error": _NUMBER, **_RANKED, "mean_entropy": _RANKED}
_EXPECTED: dict[str, Any] = dict.fromkeys(("expected_voxels", "expected_dice", "mean_entropy"), _NUMBER)
_VOLUMES: dict[str, Any] = dict.fromkeys(("segmented", *STAGES), _RESIDUALS)
_DICE: dict[str, Any] = {"cases": int, "dice": _NUMBER, **{stage: _JUDGED for stage in STAGES}}
_EXPECTED_OF_CASE: dict[str, Any] = {
    "true_voxels": int,
    "segmented_voxels": float,
    "dice": _NUMBER,
    **{stage: _EXPECTED for stage in STAGES},
}
EXPECTED = {  # form of expected.json
    "level": float,
    "promise": str,
    "notes": [str],
    "volumes": {str: _VOLUMES},
    "dice": {str: _DICE},
    "metric_per_case": [{"case": NAME, "structures": {str: _EXPECTED_OF_CASE}}],
}
_CONFIDENCES: dict[str, Any] = {stage: {name: [_NUMBER] for name in ("mean_p", "max_p")} for stage in STAGES}
_LESIONS: dict[str, Any] = {
    "predicted": {"voxels": [int], "meets": [int], **_CONFIDENCES},
    "true": {"voxels": [int], **_CONFIDENCES},
}
LESIONS = {"metric_per_case": [{"case": NAME, "structures": {str: _LESIONS}}]}  # form of lesions.json
THRESHOLDS = {  # form of thresholds.json
    "model": form_of(_RecordedModel),
    "heads": HEADS,
    "promise": str,
    "definitions": {str: str},
    "levels": [{"of": NAME, "level": float, "structures": {str: {"threshold": _NUMBER, "cases": int}}}],
}
CALIBRATOR_FITS = TEMPERATURE | {"calibrators": {str: {"fit": dict}}}  # form of calibrators.json
CALIBRATORS_OF_FOLDS = CALIBRATOR_FITS | {  # form of that of merged folds
    "model": {"weights_sha256": dict},
    "cases": [NAME],
    "calibrators": {str: {"fit": dict, "without_fold": {str: dict}, "dice": {"before": _NUMBER, "after": _NUMBER}}},
}


def in_sample_note(fit: Mapping[str, Any]) -> str | None:
    """Return the warning for a calibrator that was fitted in sample, or None; it begins with the calibrator's name.

    Args:
        fit: the entry `temperature` of a summary.json, or the content of a temperature.json.
    """
    if not fit.get("in_sample"):
        return None
    name = kind_of(fit).short
    seen = len(fit.get("seen_in_training") or ())
    # a given temperature may also be in sample because it was fitted on the cases of an evaluation
    if seen or fit.get("cross_fitted", True) or "all" in (fit.get("folds") or ()):
        what = f"{seen} case{'s' * (seen > 1)}" if seen else "cases"
        return f"{name} was fitted on {what} that the network was trained on: expect larger errors on others."
    return f"{name} was fitted on cases that it is judged by: expect larger errors on others."


def untrained_note(model: dict[str, Any], name: str) -> str | None:
    """Return the warning for a model that was trained without a calibration loss its trainer promises, or None.

    Args:
        model: the entry `model` of a summary.json.
        name: the model's name for the sentence.
    """
    terms = (model.get("hyperparameters") or {}).get(UNTRAINED)
    if not terms:
        return None
    return (
        f"{name} was trained without {', '.join(map(one_line, terms))}, at least in its last epochs, though its "
        f"trainer promises it: see the training log."
    )
