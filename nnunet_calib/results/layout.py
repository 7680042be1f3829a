"""Where the files of a trained model lie, what identifies it, and the commands that make its files."""

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
FIGURES = (
    "reliability",
    "dataset_reliability_histogram",
    "reliability_boxes",
    "reliability_of_cases",
    "confidence",
    "nll",
    "worst_cases",
)
ENDINGS = ("png", "svg", "pdf")  # bitmap, vectors for the web, vectors for LaTeX
_CROSSVAL = "crossval_results_folds_"
_LONGEST_NAME = 200  # of a folder; file systems take 255 bytes

Fold = int | str


@dataclass(frozen=True)
class ModelFolder:
    """nnU-Net's folder of a trained model, and what identifies the model.

    The folder is named TRAINER__PLANS__CONFIGURATION. Each of them may hold two underscores itself, so that the name
    cannot be taken apart: they are known from what was typed, or from a file, and carried along.

    Attributes:
        path: of the folder; with plans.json, dataset.json and the folders `fold_X`.
        dataset: the name in use, which may be another one than that of the training.
        trainer: name of the class.
        plans: name of the plans.
        configuration: as in the plans.
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
        """Return the folder that nnU-Net gives a model in its folder of results."""
        path = results / dataset / f"{trainer}__{plans}__{configuration}"
        return cls(path, dataset, trainer, plans, configuration)

    @property
    def identity(self) -> dict[str, str]:
        """What tells the model from others, by the names of `IDENTITY`."""
        return {name: getattr(self, name) for name in IDENTITY}

    def fold(self, fold: Fold) -> Path:
        """Return nnU-Net's folder of a fold."""
        return self.path / f"fold_{fold}"

    def validation(self, fold: Fold) -> Path:
        """Return where nnU-Net writes the validation of a fold."""
        return self.fold(fold) / "validation"

    def calibration(self, fold: Fold) -> Path:
        """Return where the calibration files of a fold are."""
        return self.validation(fold) / CALIBRATION_FOLDER

    def crossval(self, folds: Sequence[Fold]) -> Path:
        """Return where the calibration files of merged folds are: beside nnU-Net's own cross-validation."""
        return self.path / f"{_CROSSVAL}{'_'.join(map(str, folds))}" / CALIBRATION_FOLDER

    def crossvals(self, file: str) -> Iterator[tuple[tuple[str, ...], Path]]:
        """Yield the folds of each cross-validation that has a file of this name, and the file."""
        for found in sorted(self.path.glob(f"{_CROSSVAL}*/{CALIBRATION_FOLDER}/{file}")):
            yield tuple(found.parents[1].name.removeprefix(_CROSSVAL).split("_")), found

    def results(self) -> Iterator[Path]:
        """Yield each calibration folder that has a summary.json, of folds first."""
        file = "summary.json"
        for found in sorted(self.path.glob(f"fold_*/validation/{CALIBRATION_FOLDER}/{file}")):
            yield found.parent
        for _, found in self.crossvals(file):
            yield found.parent

    def preprocessed(self, *trained_as: str) -> Path | None:
        """Return the dataset's folder in nnUNet_preprocessed; None if that is not set.

        Args:
            trained_as: other names that the dataset had; the first folder that is there is taken.
        """
        root = os.environ.get("nnUNet_preprocessed")
        names = (name for name in (self.dataset, *trained_as) if name)
        folders = [Path(root, name) for name in names] if root else [None]
        return next((folder for folder in folders if folder is not None and folder.is_dir()), folders[0])

    def has_training_data(self) -> bool:
        """Return whether the preprocessed data, which training and `validate` need, are on this machine."""
        try:
            trained_as = str(read_json(self.path / "plans.json", {"dataset_name": NAME})["dataset_name"])
        except (OSError, ValueError):
            trained_as = ""
        folder = self.preprocessed(trained_as)
        return folder is not None and folder.is_dir()

    def train_command(self, fold: Fold) -> str:
        """Return what trains a fold, as the user types it."""
        return f"nnUNetv2_train {self.dataset} {self.configuration} {fold} -tr {self.trainer} -p {self.plans}"

    def command(self, name: str, *folds: Fold) -> str:
        """Return a command of this package for folds of the model, as the user types it."""
        return (
            f"nnunet_calib {name} -d {self.dataset} -c {self.configuration} -tr {self.trainer} -p {self.plans} "
            f"-f {' '.join(map(str, folds))}"
        )

    def validate_command(self, *folds: Fold) -> str:
        """Return what measures trained folds again."""
        return self.command("validate", *folds)


def case_file(calibration_folder: Path, case: str) -> Path:
    """Return where the statistics of a case are kept."""
    return calibration_folder / "cases" / f"{case}.npz"


def calibration_of_fold(merged: Path, fold: Fold) -> Path:
    """Return where the calibration files of a fold are, from where those of merged folds are."""
    return merged.parents[1] / f"fold_{fold}" / "validation" / CALIBRATION_FOLDER


def failure_file(case_path: Path) -> Path:
    """Return where a worker leaves the traceback of a case that it could not measure."""
    return case_path.with_suffix(".failed.txt")


def comparison_folder(models: Sequence[ModelFolder], folds: Sequence[int]) -> Path:
    """Return where a comparison is written by default: beside the models, named after them and the folds."""
    parts = zip(*((model.trainer, model.plans, model.configuration) for model in models), strict=True)
    name = "__".join("_vs_".join(dict.fromkeys(part)) for part in parts) + f"__folds_{'_'.join(map(str, folds))}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return models[0].path.parent / "calibration_comparisons" / name


def find_results(model_folder: ModelFolder, folds: Sequence[Fold]) -> Path:
    """The calibration folder of one fold, or of several that were merged.

    Raises:
        ValueError: if it has no summary.json; the sentence names the command that makes it, and what there is.
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
