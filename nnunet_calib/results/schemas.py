"""The forms of the JSON files of this package, as far as they are read (see `json_forms`), and what they warn of."""

from __future__ import annotations

from typing import Any

from nnunet_calib.io.json_forms import NAME
from nnunet_calib.io.wording import one_line
from nnunet_calib.metrics.catalogue import HEAD_ERRORS, SCORES

# The errors of a case or fold at T = 1, and with temperature.
UNCALIBRATED, CALIBRATED = STAGES = ("uncalibrated", "calibrated")

UNTRAINED = "not_trained_with"  # among the hyperparameters: promised losses that the training did without

_NUMBER = (float, None)  # null where a value is undefined
_WORD = (str, int, None)
_ERRORS = dict.fromkeys(HEAD_ERRORS, _NUMBER)
_LIMITS = [_NUMBER, _NUMBER]
_IMAGE = {"per_class": {str: _ERRORS}, "top_label": _ERRORS, **dict.fromkeys(SCORES, _NUMBER)}
_MEANS = {"image": _IMAGE | {"foreground_mean": _ERRORS}}
_INTERVALS = {"image": {"foreground_mean": dict.fromkeys(HEAD_ERRORS, _LIMITS), **dict.fromkeys(SCORES, _LIMITS)}}

HEADS: dict[str, Any] = {"keys": [str], "names": [str], "regions": (None, [[int]]), "ignore_label": (int, None)}

# Which cases a fold was trained on and which it held out.
SPLIT: dict[str, Any] = {"training": [NAME], "validation": [NAME]}

# What folds are merged by.
FOLD: dict[str, Any] = {
    "model": {
        "dataset": NAME,
        "trainer": NAME,
        "plans": NAME,
        "configuration": NAME,
        "fold": (int, str),
        "weights_sha256": str,
        "hyperparameters?": {f"{UNTRAINED}?": [NAME]},
        "checkpoint?": (str, None),
        "plans_sha256?": str,
    },
    "nnunet_calib?": str,
    "heads": HEADS,
    "split?": (None, SPLIT),
    "metric_per_case": [{"case": NAME}],
    "missing_cases": [NAME],
}

# A deployed temperature.
TEMPERATURE: dict[str, Any] = {
    "kind?": str,  # of a calibrator, whose own form is checked too; none is a temperature
    "standard_error?": _NUMBER,
    "at_bound?": (bool, None),
    "in_sample?": (bool, None),
    "seen_in_training?": (None, [str]),
    "folds?": ([(int, str)], None),
    "cases?": ([str], None),
    "model?": (
        {
            "dataset?": _WORD,
            "trainer?": _WORD,
            "plans?": _WORD,
            "configuration?": _WORD,
            "weights_sha256?": (str, None, {str: str}),
        },
        None,
    ),
}

# What a report says and draws.
SUMMARY: dict[str, Any] = {
    "nnunet_calib": str,
    "model": dict,
    "heads": HEADS,
    "definitions": {str: (str, int, {str: str})},
    "temperature": {
        "temperature": float,
        "standard_error?": _NUMBER,
        "at_bound?": (bool, None),
        "in_sample?": (bool, None),
        "seen_in_training?": (None, [str]),
        "note?": str,
    },
    "missing_cases": [str],
    "notes?": [str],
    "metrics": dict.fromkeys(STAGES, _MEANS),
    "intervals?": dict.fromkeys(STAGES, _INTERVALS),
    "metric_per_case": [
        {
            "case": NAME,
            "fold?": int,
            "voxels": int,
            "temperature": _NUMBER,
            **{stage: {"image": _IMAGE} for stage in STAGES},
        }
    ],
}


def untrained_note(model: dict[str, Any], name: str) -> str | None:
    """Return what must be said of results of a model that was trained without a calibration loss it promises.

    Args:
        model: the "model" of a summary.json.
        name: of the model, for the sentence.
    """
    terms = (model.get("hyperparameters") or {}).get(UNTRAINED)
    if not terms:
        return None
    return (
        f"{name} was trained without {', '.join(map(one_line, terms))}, at least in its last epochs, though its "
        f"trainer promises it: see the training log."
    )


def in_sample_note(fit: dict[str, Any]) -> str | None:
    """What must be said wherever a temperature is used that is not of new cases.

    Args:
        fit: the "temperature" of a summary.json, or the content of a temperature.json.
    """
    if not fit.get("in_sample"):
        return None
    seen = len(fit.get("seen_in_training") or ())
    # a given temperature may also be in sample because it was fitted on the cases of an evaluation
    if seen or fit.get("cross_fitted", True) or "all" in (fit.get("folds") or ()):
        what = f"{seen} case{'s' * (seen > 1)}" if seen else "cases"
        return f"T was fitted on {what} that the network was trained on: expect larger errors on others."
    return "T was fitted on cases that it is judged by: expect larger errors on others."
