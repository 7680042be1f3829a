"""What reads a changed file as the commands do, each with the valid file that is changed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.decisions.froc import froc_of_cases, read_lesions
from nnunet_calib.figures.drawn_results import ReportedCase, worst_cases
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.nnunet.pickled_properties import image_spacing
from nnunet_calib.nnunet.prediction_folder import find_predictions
from nnunet_calib.nnunet.saved_probabilities import SavedProbabilities
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.classwise import Classwise
from nnunet_calib.report.fold_words import case_table, facts, headline, notes
from nnunet_calib.report.page import definitions
from nnunet_calib.results.compared_models import dice_per_case
from nnunet_calib.results.deployed_temperature import Deployed, given_temperature
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import is_calibrated
from nnunet_calib.results.layout import IDENTITY, ModelFolder
from nnunet_calib.results.measured_folds import find_folds
from nnunet_calib.results.schemas import STAGES, SUMMARY
from nnunet_calib.synthetic import synthetic_case

HEADS = Heads(("0", "1", "2"), ("background", "bright", "dark"), None, None)
MODEL = {
    "dataset": "Dataset004_Fuzz",
    "trainer": "nnUNetTrainerCalib",
    "plans": "nnUNetPlans",
    "configuration": "2d",
    "hyperparameters": {},
    "weights_sha256": "w",
}
SHAPE = (4, 5)


@dataclass(frozen=True)
class Reader:
    """A reader, and the file that is put before it.

    Attributes:
        file: where the changed content is written.
        valid: its valid content.
        read: reads it; what comes back has been looked at.
        arrays: of an .npz, by name.
        is_json: whether it is JSON. What is neither is changed as bytes.
    """

    file: Path
    valid: bytes
    read: Callable[[], object]
    arrays: dict[str, np.ndarray] | None = None
    is_json: bool = False


def make_readers(root: Path) -> dict[str, Reader]:
    """All readers by name, with valid files in a new folder."""
    model = ModelFolder.below(root, *(MODEL[name] for name in IDENTITY))
    for fold in range(2):
        case = synthetic_case(fold, SHAPE)
        own = MODEL | {"fold": fold, "weights_sha256": str(fold)}
        statistics = CaseStatistics.from_probabilities(case.probabilities, case.labels, case=f"case{fold}", model=own)
        folder = model.calibration(fold)
        (folder / "cases").mkdir(parents=True)
        statistics.save(folder / "cases" / f"case{fold}.npz")
        summary = write_fold(folder, [f"case{fold}"], HEADS, statistics.model)
        write_json(_reported(summary), folder / "reported.json")
        needed = ("format_version", "model", "heads", "metric_per_case", "missing_cases")
        write_json({name: summary[name] for name in needed}, folder / "summary.json")
    os.environ["nnUNet_preprocessed"] = str(root / "preprocessed")
    splits = [{"train": ["case1"], "val": ["case0"]}, {"train": ["case0"], "val": ["case1"]}]
    (root / "preprocessed" / MODEL["dataset"]).mkdir(parents=True)
    predictions = _write_predictions(root / "predictions")
    folder = model.calibration(0)
    known = CaseStatistics.load(folder / "cases" / "case0.npz")
    theirs = [
        {"prediction_file": f"/x/case{i}.nii.gz", "metrics": {key: {"Dice": i / 2, "IoU": 0.5} for key in HEADS.keys}}
        for i in range(2)
    ]

    def folds() -> None:
        for fold in find_folds(model, [0, 1]):
            assert all(Path(case).name == case for case in fold.cases)

    return {
        "statistics": _arrays(folder / "cases" / "case0.npz", lambda: _use(folder / "cases" / "case0.npz", known)),
        "probabilities": _arrays(predictions / "case0.npz", lambda: _measure(predictions / "case0.npz")),
        "predictions": _arrays(predictions / "case1.npz", lambda: find_predictions(predictions, None)),
        "fold": _json(folder / "summary.json", folds),
        "splits": _json(root / "preprocessed" / MODEL["dataset"] / "splits_final.json", folds, splits),
        "report": _json(folder / "reported.json", lambda: _report(folder / "reported.json")),
        "temperature": _json(
            folder / "temperature.json",
            lambda: _deploy(folder / "temperature.json", model),
            _content(folder / "temperature.json") | {"at_bound": False},
        ),
        "calibrators": _json(
            folder / "calibrators.json",
            lambda: _deploy(folder / "calibrators.json", model, "classwise"),
            {
                **{name: _content(folder / "temperature.json")[name] for name in ("model", "cases", "folds")},
                "calibrators": {"classwise": {"fit": Classwise(1.2, (1.1, 1.2, 1.3), regions=False).to_json()}},
            },
        ),
        "dice": _json(
            root / "theirs.json",
            lambda: dice_per_case(root / "theirs.json", ".nii.gz", HEADS),
            {"metric_per_case": theirs},
        ),
        "lesions": _json(folder / "lesions.json", lambda: _lesions(folder), {"metric_per_case": [_found_lesions()]}),
        "dataset": _json(predictions / "dataset.json", lambda: find_predictions(predictions, None)),
        "plans": _json(predictions / "plans.json", lambda: find_predictions(predictions, None)),
        "spacing": _file(predictions / "case0.pkl", lambda: image_spacing(predictions / "case0.npz")),
    }


def _write_predictions(folder: Path) -> Path:
    folder.mkdir()
    for i in range(2):
        p = synthetic_case(i, SHAPE).probabilities[:, None]
        np.savez_compressed(folder / f"case{i}.npz", probabilities=p.astype(np.float32))
        properties = {"spacing": [1.0, np.float64(2), 3], "box": np.zeros((3, 2))}
        (folder / f"case{i}.pkl").write_bytes(pickle.dumps(properties))
        (folder / f"case{i}.nii.gz").touch()
    labels = {"background": 0, "bright": 1, "dark": 2}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 2}
    plans = {
        "dataset_name": MODEL["dataset"],
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {},
    }
    for name, content in (("dataset", dataset), ("plans", plans)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _reported(summary: dict[str, Any]) -> dict[str, Any]:
    """What a report says of a summary, with entries that only merged folds have."""
    stages = ("uncalibrated", "calibrated")
    kept = {
        name: {stage: {"image": summary[name][stage]["image"]} for stage in stages} for name in ("metrics", "intervals")
    }
    (row,) = summary["metric_per_case"]
    row = row | {"fold": 0} | {stage: {"image": row[stage]["image"]} for stage in stages}
    names = ("nnunet_calib", "model", "heads", "missing_cases")
    definitions = {name: summary["definitions"][name] for name in ("ece", "bins", "scopes")}
    temperature = summary["temperature"] | {"note": "n", "standard_error": None}
    return (
        {name: summary[name] for name in names}
        | kept
        | {"metric_per_case": [row], "definitions": definitions, "temperature": temperature}
    )


def _use(path: Path, known: CaseStatistics) -> None:
    """Whatever is read is a case like others: its errors are numbers in their range, and it can be merged."""
    found = CaseStatistics.load(path)
    errors = calibration_errors(found)
    for name in ("ece", "ace", "mce", "top_label_ece", "top_label_mce"):
        values = errors[name][~np.isnan(errors[name])]
        assert ((values >= 0) & (values <= 1)).all(), name
    assert errors["nll"] >= -1e-3 or np.isnan(errors["nll"])
    if len(found.sample):
        scaled = calibration_errors(found.with_temperature(1.5))
        assert np.isfinite(scaled["nll"])
    same = (found.num_heads, found.regions, found.boundary_mm) == (known.num_heads, known.regions, known.boundary_mm)
    if same:
        assert (known + found).histograms.voxels.sum() == known.histograms.voxels.sum() + found.histograms.voxels.sum()


def _measure(path: Path) -> None:
    labels = synthetic_case(0, SHAPE).labels[None]
    found = CaseStatistics.from_probabilities(SavedProbabilities(path, regions=False), labels)
    assert found.histograms.voxels.sum() == labels.size


def _report(path: Path) -> None:
    summary = read_json(path, SUMMARY)
    Heads.of_summary(summary["heads"])
    fitted = from_json(summary["temperature"])
    used = [from_json(row) if is_calibrated(row) else fitted for row in summary["metric_per_case"]]
    cases = [ReportedCase(row, t, lambda: None) for row, t in zip(summary["metric_per_case"], used, strict=True)]
    worst_cases(cases)
    case_table(cases, {}, {})
    [*headline(summary), *notes(summary), *definitions(summary["definitions"]), *facts("", [summary["model"]])]


def _deploy(path: Path, model: ModelFolder, kind: str | None = None) -> None:
    found = Deployed(given_temperature(str(path), kind), path.name)
    assert found.calibrator.to_json()["temperature"] > 0
    found.describe()
    found.origin()
    found.check(model, 0, "0")


def _found_lesions() -> dict[str, Any]:
    """A case with two predicted lesions, one of which is false, and a missed true one."""
    predicted, true = ({s: {"mean_p": v, "max_p": v} for s in STAGES} for v in ([0.5, 0.9], [0.9, None]))
    lesions = {"predicted": {"voxels": [3, 4], "meets": [0, 1], **predicted}, "true": {"voxels": [5, 1], **true}}
    return {"case": "case0", "structures": {"1": lesions}}


def _lesions(folder: Path) -> None:
    rows = read_lesions(folder)
    for stage in STAGES:
        curve = froc_of_cases(rows, "1", stage, "mean_p")
        assert (np.diff(curve.false_per_case) >= 0).all()


def _content(file: Path) -> Any:
    return json.loads(file.read_text())


def _arrays(file: Path, read: Callable[[], object]) -> Reader:
    with np.load(file) as arrays:
        return replace(_file(file, read), arrays={name: arrays[name] for name in arrays.files})


def _json(file: Path, read: Callable[[], object], content: Any = None) -> Reader:
    if content is not None:
        file.write_text(json.dumps(content))
    return replace(_file(file, read), is_json=True)


def _file(file: Path, read: Callable[[], object]) -> Reader:
    return Reader(file, file.read_bytes(), read)
