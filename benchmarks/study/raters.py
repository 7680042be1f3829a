"""Measure the networks of the LIDC study against four radiologists, the one drawn for training, and the majority.

    nnUNet_raw=... python -m benchmarks.study.raters FOLDER    # of the study; writes into results/lidc
    python -m benchmarks.study.report lidc                     # makes the tables

It takes the methods and folds of `results/lidc/methods.json` and needs the `.npz` that nnU-Net leaves of their
validation cases. `raters.csv` has a row for each method, case and kind of label, `raters.json` the ACE of all voxels
pooled. A temperature is fitted on the other folds, to the same kind of label that it is judged by; against the
radiologists each case is also judged by one that was fitted to the drawn labels.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.study import settings
from benchmarks.study.collect import DIGITS, rounded, write_compact, write_rows
from benchmarks.study.plan import dataset_folder
from benchmarks.study.run import Study
from benchmarks.study.tables import changed, decimal, markdown, means_of_folds
from nnunet_calib import CaseStatistics, calibration_errors, fit_temperature
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.metrics.pooled_errors import CaseSums, PooledCases
from nnunet_calib.metrics.significance import paired_difference, pooled_interval, resampling_counts, training_difference
from nnunet_calib.nnunet.saved_probabilities import SavedProbabilities
from nnunet_calib.results.error_tree import mean_of_known

STUDY = "lidc"
RESULTS = Path(__file__).with_name("results") / STUDY
RATERS, DRAWN, MAJORITY = "four radiologists", "the drawn one", "the majority"
AGAINST = (RATERS, DRAWN, MAJORITY)
NODULE = 1
_BITS = 4  # of a picture in raters/, one for each radiologist


class Measured(NamedTuple):
    """A case of a network, measured against each kind of label."""

    case: str
    fold: int
    dice: Mapping[str, float]
    statistics: Mapping[str, CaseStatistics]


def labels_of(dataset: Path, case: str) -> dict[str, NDArray[Any]]:
    """Return the frequencies (2, H, W) among the radiologists and the two label maps (H, W) of a case."""
    from skimage.io import imread

    bits = imread(dataset / "raters" / f"{case}.png")
    nodule = np.mean([(bits >> rater) & 1 for rater in range(_BITS)], axis=0)
    maps = {DRAWN: "labelsTr", MAJORITY: "labelsTr_majority"}
    return {RATERS: np.stack([1 - nodule, nodule])} | {
        against: imread(dataset / folder / f"{case}.png") for against, folder in maps.items()
    }


def dice(segmentation: NDArray[np.bool_], labels: NDArray[Any]) -> float:
    """Return the Dice of the nodule; NaN where neither has one."""
    nodule = labels == NODULE
    voxels = segmentation.sum() + nodule.sum()
    return 2 * float((segmentation & nodule).sum()) / float(voxels) if voxels else float("nan")


def measure(validation: Path, dataset: Path, fold: int) -> list[Measured]:
    """Measure the cases of a fold."""
    measured = []
    for path in sorted(validation.glob("*.npz")):
        probabilities = SavedProbabilities(path, regions=False)[:, 0]  # nnU-Net gives a picture a first axis
        labels = labels_of(dataset, path.stem)
        segmentation = probabilities.argmax(0) == NODULE
        measured.append(
            Measured(
                path.stem,
                fold,
                {against: dice(segmentation, labels[against]) for against in (DRAWN, MAJORITY)},
                {
                    against: CaseStatistics.from_probabilities(
                        probabilities, of_kind, raters=_BITS if against == RATERS else None, case=path.stem
                    )
                    for against, of_kind in labels.items()
                },
            )
        )
    return measured


def fitted(cases: Iterable[Measured], against: str) -> float:
    """Return the temperature of these cases."""
    voxels = VoxelSample.merge([case.statistics[against].sample for case in cases])
    return fit_temperature(voxels.logits, voxels.labels, weights=voxels.weights).temperature


def method_results(
    method: str, cases: Sequence[Measured]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, PooledAce]]]:
    """Return the rows of a method's cases, and for each kind of label and stage the ACE of pooled voxels."""
    folds = sorted({case.fold for case in cases})
    temperatures = {
        (against, fold): fitted((case for case in cases if case.fold != fold), against)
        for against in AGAINST
        for fold in folds
    }
    rows, pooled = [], {}
    for against in AGAINST:
        sums: dict[str, list[CaseSums]] = {}
        for case in cases:
            plain, own = case.statistics[against], temperatures[against, case.fold]
            stages = {"before": plain, "after": plain.with_temperature(own)}
            if against == RATERS:
                stages["drawn"] = plain.with_temperature(temperatures[DRAWN, case.fold])
            row = {"model": method, "case": case.case, "fold": case.fold, "against": against, "temperature": own}
            row["dice"] = case.dice.get(against, "")
            for stage in ("before", "after", "drawn"):
                errors = calibration_errors(stages[stage]) if stage in stages else None
                for name in ("ace", "ace_by_chance", "nll"):
                    value = "" if errors is None else float(errors[name] if name == "nll" else errors[name][NODULE])
                    row[f"{name}_{stage}"] = value
            for stage, statistics in stages.items():
                sums.setdefault(stage, []).append(CaseSums.of(statistics))
            rows.append(rounded(row))
        pooled[against] = {stage: PooledAce.of(of_stage) for stage, of_stage in sums.items()}
    return rows, pooled


class PooledAce(NamedTuple):
    """The ACE of all voxels of all cases, and of resamples of the cases, which all methods share."""

    value: float
    resampled: NDArray[np.float64]
    cases: int

    @classmethod
    def of(cls, sums: Sequence[CaseSums]) -> PooledAce:
        """Pool the voxels of cases."""
        pool = PooledCases(sums)
        of_all, of_resamples = (errors["image"]["ace"][:, NODULE] for errors in (pool.errors(), pool.resampled()))
        return cls(float(of_all[0]), of_resamples, pool.cases("image"))

    def compared(self, first: PooledAce) -> dict[str, list[float]]:
        """Return the ACE and its difference from that of another method, each with its interval over cases."""
        difference, resampled = self.value - first.value, self.resampled - first.resampled
        return {
            name: [round(x, DIGITS) for x in (value, *limits)]
            for name, value, limits in (
                ("ace", self.value, pooled_interval(self.resampled, self.value, self.cases)),
                ("difference", difference, pooled_interval(resampled, difference, self.cases, lowest=-np.inf)),
            )
        }


def compared_pools(pools: Mapping[str, dict[str, dict[str, PooledAce]]], first: str) -> dict[str, Any]:
    """Return the content of raters.json: the pooled ACE of each method, kind of label and stage, beside the first's."""
    return {
        method: {
            against: {stage: ace.compared(pools[first][against][stage]) for stage, ace in stages.items()}
            for against, stages in of_method.items()
        }
        for method, of_method in pools.items()
    }


def _values(rows: Sequence[dict[str, str]], column: str) -> NDArray[np.float64]:
    return np.array([float(row[column] or "nan") for row in rows])


def _mean(rows: Sequence[dict[str, str]], column: str, digits: int) -> str:
    return decimal(mean_of_known(_values(rows, column)), digits)


def _of(rows: Sequence[dict[str, str]], model: str, against: str) -> list[dict[str, str]]:
    found = [row for row in rows if (row["model"], row["against"]) == (model, against)]
    return sorted(found, key=lambda row: row["case"])


def raters_table(rows: Sequence[dict[str, str]], pooled: dict[str, Any]) -> str:
    """Return a row for each method and kind of label: means over the cases, and the ACE of pooled voxels."""
    head = ["method", "measured against", "T", "Dice", "ACE", "by chance", "ACE, T", "by chance, T"]
    lines = [[*head, "ACE, pooled", "ACE, pooled, T", "NLL", "NLL, T"]]
    columns = ("dice", *(f"{name}_{stage}" for stage in ("before", "after") for name in ("ace", "ace_by_chance")))
    for model in dict.fromkeys(row["model"] for row in rows):
        for against in AGAINST:
            found = _of(rows, model, against)
            cells = [model if against == AGAINST[0] else "", against, _mean(found, "temperature", 2)]
            cells += [_mean(found, column, 3) for column in columns]
            for stage in ("before", "after"):
                value, low, high = pooled[model][against][stage]["ace"]
                cells.append(f"{decimal(value, 3)} ({decimal(low, 3)} to {decimal(high, 3)})")
            lines.append([*cells, *(_mean(found, f"nll_{stage}", 4) for stage in ("before", "after"))])
    return markdown(lines)


def raters_differences_table(rows: Sequence[dict[str, str]], pooled: dict[str, Any], ratio: float) -> str:
    """Return the differences from the first method against the radiologists, over cases and over trainings.

    Args:
        rows: of raters.csv.
        pooled: of raters.json; its differences have intervals over cases alone.
        ratio: validated cases of a fold for each case it trains on.
    """
    first, *others = dict.fromkeys(row["model"] for row in rows)
    columns = {
        "Dice, majority": (MAJORITY, "dice", 3),
        "ACE": (RATERS, "ace_before", 3),
        "ACE, T": (RATERS, "ace_after", 3),
        "NLL": (RATERS, "nll_before", 4),
        "NLL, T": (RATERS, "nll_after", 4),
    }
    lines = [["method", "intervals over", *columns, "ACE, pooled", "ACE, pooled, T"]]
    folds = sorted({int(row["fold"]) for row in rows})
    for model in others:
        over_cases, over_trainings = [model, "cases"], ["", "trainings"]
        for against, column, digits in columns.values():
            mine, base = (_of(rows, name, against) for name in (model, first))
            change = paired_difference(_values(mine, column), _values(base, column), resampling_counts(len(mine)))
            over_cases.append(changed(change.mean, change.low, change.high, digits))
            means = means_of_folds([*mine, *base], column)
            trained = training_difference([means[model, k] - means[first, k] for k in folds], ratio)
            over_trainings.append(changed(trained.mean, trained.low, trained.high, digits))
        over_cases += [changed(*pooled[model][RATERS][stage]["difference"], 3) for stage in ("before", "after")]
        lines += [over_cases, [*over_trainings, "-", "-"]]
    return markdown(lines)


def raters_temperature_table(rows: Sequence[dict[str, str]]) -> str:
    """Return what a temperature fitted to the drawn labels does against the radiologists, beside one fitted to them."""
    lines = [["method", "T, drawn", "T, radiologists", "ACE after each", "difference", "NLL after each", "difference"]]
    for model in dict.fromkeys(row["model"] for row in rows):
        found = _of(rows, model, RATERS)
        cells = [model, *(_mean(_of(rows, model, against), "temperature", 2) for against in (DRAWN, RATERS))]
        for name, digits in (("ace", 3), ("nll", 4)):
            drawn, own = (_values(found, f"{name}_{stage}") for stage in ("drawn", "after"))
            change = paired_difference(drawn, own, resampling_counts(len(found)))
            cells.append(", ".join(_mean(found, f"{name}_{stage}", digits) for stage in ("drawn", "after")))
            cells.append(changed(change.mean, change.low, change.high, digits + 1))
        lines.append(cells)
    return markdown(lines)


def tables(rows: Sequence[dict[str, str]], pooled: dict[str, Any], ratio: float) -> dict[str, str]:
    """Return the tables by the names of their markers, from the content of raters.csv and raters.json."""
    return {
        "raters": raters_table(rows, pooled),
        "raters differences": raters_differences_table(rows, pooled, ratio),
        "raters temperatures": raters_temperature_table(rows),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.raters", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the study")
    args = parser.parse_args()
    os.environ[settings.CHOSEN] = STUDY
    compared = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))
    dataset = dataset_folder(Path(os.environ["nnUNet_raw"]))
    study = Study(args.folder)
    rows, pools = [], {}
    for method in (model["name"] for model in compared["models"]):
        folder = study.model_folder(method)
        cases = [case for fold in compared["folds"] for case in measure(folder.validation(fold), dataset, fold)]
        of_method, pools[method] = method_results(method, cases)
        rows += of_method
    write_rows(rows, RESULTS / "raters.csv")
    write_compact(compared_pools(pools, compared["first_model"]), RESULTS / "raters.json")


if __name__ == "__main__":
    main()
