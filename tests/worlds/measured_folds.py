"""Folds of a model as nnU-Net and the validation hook leave them, from statistics made here."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunet_calib import fit_temperature
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import ModelFolder, case_file
from tests.worlds.measured_cases import make_case

DATASET = "Dataset004_Synthetic"
TRAINER = "nnUNetTrainerCalib"
CROSSVAL = ["crossval", "-d", "4", "-c", "3d_fullres", "-tr", TRAINER]
LABELS = Heads(("0", "1", "2"), ("background", "bright", "dark"), None, None)
# what was written into a new folder -> its files: intervals take seconds, and most tests begin with the same folds
_WRITTEN: dict[bytes, dict[str, bytes]] = {}


def made(seed, sure=1.0, without=None, mode="labels"):
    """A case of three heads; `sure` is the power of its probabilities, `without` a label that background replaces."""
    case = make_case(mode, (9, 9, 6), seed=seed)
    if without is not None:
        case.labels[case.labels == without] = 0
    if mode == "labels":
        p = case.probabilities.astype("float64") ** sure
        case = replace(case, probabilities=(p / p.sum(0)).astype("float32"))
    return case


def fit_cases(cases):
    """One temperature for the statistics of cases, from all their voxels at once."""
    sample = VoxelSample.merge([case.sample for case in cases])
    groups = np.repeat(np.arange(len(cases)), [len(case.sample) for case in cases])
    return fit_temperature(
        sample.logits, sample.labels, weights=sample.weights, regions=cases[0].regions, groups=groups
    )


def _measure(folder: Path, cases: dict, heads: Heads, also: tuple, options: dict, split, model: dict) -> None:
    for name, case in cases.items():
        path = case_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        case.measure(case=name, model=model, **options).save(path)
    write_fold(folder, [*cases, *also], heads, model, options.get("boundary_mm", BOUNDARY_MM), split)


class Model:
    """A folder of results with folds of two cases, and the splits that belong to them.

    Models of one root share a dataset; `weights` tells their networks apart.
    """

    def __init__(
        self,
        root: Path,
        *,
        splits: bool = True,
        trainer: str = TRAINER,
        configuration: str = "3d_fullres",
        plans: str = "nnUNetPlans",
        weights: str = "weights",
    ) -> None:
        self.results, self.preprocessed = root / "results", root / "preprocessed"
        self.named = {"trainer": trainer, "plans": plans, "configuration": configuration}
        self.weights = weights
        self.model_folder = ModelFolder.below(self.results, DATASET, **self.named)
        self.folder = self.model_folder.path
        self.splits = self.preprocessed / DATASET / "splits_final.json" if splits else None
        self.cases: dict[int, dict] = {}

    def calibration(self, fold: int) -> Path:
        """The calibration folder of a fold."""
        return self.folder / f"fold_{fold}" / "validation" / "calibration"

    def identity(self, fold: int, /, **changed) -> dict:
        """What identifies the network of a fold."""
        return {
            "dataset": DATASET,
            **self.named,
            "fold": fold,
            "hyperparameters": {},
            "weights_sha256": f"{self.weights} of {fold}",
        } | changed

    def write(
        self, fold: int, cases: dict, /, heads: Heads = LABELS, also: tuple = (), options=None, split=None, **changed
    ) -> None:
        """Measure and merge the cases of a fold; `also` are validation cases that could not be measured."""
        model = self.identity(fold, **changed)
        folder = self.calibration(fold)
        key = pickle.dumps((cases, heads, also, options, split, model))
        if folder.exists():
            _measure(folder, cases, heads, also, options or {}, split, model)
        elif key in _WRITTEN:
            for name, content in _WRITTEN[key].items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        else:
            _measure(folder, cases, heads, also, options or {}, split, model)
            written = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
            _WRITTEN[key] = {str(path.relative_to(folder)): path.read_bytes() for path in written}
        self.cases[fold] = cases
        self.write_splits()

    def write_splits(self, **changed) -> None:
        """The splits of all folds written so far; `changed` takes a list in place of a fold's "val" or "train"."""
        if self.splits is None:
            return
        everything = [name for cases in self.cases.values() for name in cases]
        splits = []
        for fold in range(max(self.cases) + 1):
            own = [*self.cases.get(fold, {})]
            splits.append({"train": [name for name in everything if name not in own], "val": own})
        for key, value in changed.items():
            splits[int(key[-1])][key[:-1]] = value
        self.splits.parent.mkdir(parents=True, exist_ok=True)
        self.splits.write_text(json.dumps(splits))

    def environment(self) -> dict[str, str]:
        """nnU-Net's variables."""
        return {"nnUNet_results": str(self.results), "nnUNet_preprocessed": str(self.preprocessed)}


def three_folds(root: Path, **options) -> Model:
    """Folds of two cases each, ever more over-confident."""
    model = Model(root, **options)
    for fold in range(3):
        names = (f"case.{2 * fold}", f"case.{2 * fold + 1}")
        model.write(fold, {name: made(2 * fold + i, 1.2 + 0.3 * fold) for i, name in enumerate(names)})
    return model
