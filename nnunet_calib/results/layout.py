"""The paths of a trained model's files, its identity, and the commands that make the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_calib.io.json_forms import NAME, read_json

FINAL = "checkpoint_final.pth"

IDENTITY = ("dataset", "trainer", "plans", "configuration")
CALIBRATION_FOLDER = "calibration"
PAGE = "report.html"
CALIBRATORS = "calibrators.json"
THRESHOLDS_FILE = "thresholds.json"
EXPECTED_FILE = "expected.json"
EXPECTED_FIGURE = "expected"  # of merged folds
LESIONS_FILE = "lesions.json"  # of an evaluation
LESIONS_FIGURE = "lesions"
FIGURES = (
    "reliability",
    "dataset_reliability_histogram",
    "reliability_boxes",
    "reliability_of_cases",
    "confidence",
    "risk_coverage",
    "nll",
    "worst_cases",
)
ENDINGS = ("png", "svg", "pdf")  # bitmap, vector graphics for the web, vector graphics for LaTeX
# Files that are made from summary.json and the cases' files, and go with them.
MADE_FROM_NUMBERS = (
    *(f"{name}.{ending}" for name in (*FIGURES, EXPECTED_FIGURE, LESIONS_FIGURE) for ending in ENDINGS),
    PAGE,
    CALIBRATORS,
    EXPECTED_FILE,
    LESIONS_FILE,
)
_CROSSVAL = "crossval_results_folds_"
_LONGEST_NAME = 200  # of a folder; file systems allow 255 bytes

Fold = int | str


@dataclass(frozen=True)
class ModelFolder:
    """nnU-Net's folder of a trained model, and the model's identity.

    The folder is named TRAINER__PLANS__CONFIGURATION. Since each part may itself hold two underscores, the name cannot
    be split: the parts come from the command line or from a file.

    Attributes:
        path: the folder, with plans.json, dataset.json and the folders `fold_X`.
        dataset: name of the dataset now, which may have changed since the training.
        trainer: name of the trainer class.
        plans: name of the plans.
        configuration: name of the configuration in the plans.
    """

    path: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def below(cls, results: Path, dataset: str, trainer: str, plans: str, configuration: str) -> ModelFolder:
        """Return the folder of a model in nnU-Net's folder of results."""
        path = results / dataset / f"{trainer}__{plans}__{configuration}"
        return cls(path, dataset, trainer, plans, configuration)

    @property
    def identity(self) -> dict[str, str]:
        """The entries that tell the model from others, by the names in `IDENTITY`."""
        return {name: getattr(self, name) for name in IDENTITY}

    def fold(self, fold: Fold) -> Path:
        """Return nnU-Net's folder of a fold."""
        return self.path / f"fold_{fold}"

    def validation(self, fold: Fold) -> Path:
        """Return nnU-Net's validation folder of a fold."""
        return self.fold(fold) / "validation"

    def calibration(self, fold: Fold) -> Path:
        """Return the calibration folder of a fold."""
        return self.validation(fold) / CALIBRATION_FOLDER

    def crossval(self, folds: Sequence[Fold]) -> Path:
        """Return the calibration folder of merged folds, beside nnU-Net's own cross-validation."""
        return self.path / f"{_CROSSVAL}{'_'.join(map(str, folds))}" / CALIBRATION_FOLDER

    def crossvals(self, file: str) -> Iterator[tuple[tuple[str, ...], Path]]:
        """Yield the folds and the file of each cross-validation that has a file of this name."""
        for found in sorted(self.path.glob(f"{_CROSSVAL}*/{CALIBRATION_FOLDER}/{file}")):
            yield tuple(found.parents[1].name.removeprefix(_CROSSVAL).split("_")), found

    def results(self) -> Iterator[Path]:
        """Yield each calibration folder that has a summary.json: first single folds, then merged ones."""
        file = "summary.json"
        for found in sorted(self.path.glob(f"fold_*/validation/{CALIBRATION_FOLDER}/{file}")):
            yield found.parent
        for _, found in self.crossvals(file):
            yield found.parent

    def preprocessed(self, *trained_as: str) -> Path | None:
        """Return the dataset's folder in nnUNet_preprocessed; None if that is not set.

        Args:
            trained_as: former names of the dataset; the first existing folder is returned.
        """
        root = os.environ.get("nnUNet_preprocessed")
        names = (name for name in (self.dataset, *trained_as) if name)
        folders = [Path(root, name) for name in names] if root else [None]
        return next((folder for folder in folders if folder is not None and folder.is_dir()), folders[0])

    def has_training_data(self) -> bool:
        """Return whether this machine has the preprocessed data, which training and `validate` need."""
        try:
            trained_as = str(read_json(self.path / "plans.json", {"dataset_name": NAME})["dataset_name"])
        except (OSError, ValueError):
            trained_as = ""
        folder = self.preprocessed(trained_as)
        return folder is not None and folder.is_dir()

    def train_command(self, fold: Fold) -> str:
        """Return the command that trains a fold."""
        return f"nnUNetv2_train {self.dataset} {self.configuration} {fold} -tr {self.trainer} -p {self.plans}"

    def command(self, name: str, *folds: Fold) -> str:
        """Return a command of this package for folds of the model."""
        return (
            f"nnunet_calib {name} -d {self.dataset} -c {self.configuration} -tr {self.trainer} -p {self.plans} "
            f"-f {' '.join(map(str, folds))}"
        )

    def validate_command(self, *folds: Fold) -> str:
        """Return the command that measures trained folds again."""
        return self.command("validate", *folds)


def case_file(calibration_folder: Path, case: str) -> Path:
    """Return the file with the statistics of a case."""
    return calibration_folder / "cases" / f"{case}.npz"


def calibration_of_fold(merged: Path, fold: Fold) -> Path:
    """Return the calibration folder of a fold, given that of merged folds."""
    return merged.parents[1] / f"fold_{fold}" / "validation" / CALIBRATION_FOLDER


def failure_file(case_path: Path) -> Path:
    """Return the file for the traceback of a worker that could not measure a case."""
    return case_path.with_suffix(".failed.txt")


def comparison_folder(models: Sequence[ModelFolder], folds: Sequence[int]) -> Path:
    """Return the default folder of a comparison, beside the models and named after them and the folds."""
    parts = zip(*((model.trainer, model.plans, model.configuration) for model in models), strict=True)
    name = "__".join("_vs_".join(dict.fromkeys(part)) for part in parts) + f"__folds_{'_'.join(map(str, folds))}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return models[0].path.parent / "calibration_comparisons" / name


def find_results(model_folder: ModelFolder, folds: Sequence[Fold]) -> Path:
    """Return the calibration folder of one fold, or of several merged folds.

    Raises:
        ValueError: if there is no summary.json; the sentence names the command that makes it, and the existing ones.
    """
    if len(folds) == 1:
        folder = model_folder.calibration(folds[0])
        command = "nnunet_calib validate"
    else:
        if not all(str(fold).isdecimal() for fold in folds):
            raise ValueError(
                f"expected one fold or the numbers of several, got {' '.join(map(str, folds))}: fold all is never "
                f"merged, report it by itself"
            )
        folder = model_folder.crossval(sorted(map(int, folds)))
        command = "nnunet_calib crossval"
    if not (folder / "summary.json").is_file():
        there = [str(path.parent.relative_to(model_folder.path)) for path in model_folder.results()]
        raise ValueError(
            f"expected {folder / 'summary.json'}, found none: make it with {command} -f {' '.join(map(str, folds))}, "
            f"or name with -f what there is ({', '.join(there) or 'nothing yet'})"
        )
    return folder
