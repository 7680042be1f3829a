"""Test on the demo's data whether binned errors tell how near probabilities are to the true ones, known there.

Usage, in the root of the repository:

    nnunet_calib demo -o FOLDER -tr nnUNetTrainerCalib nnUNetTrainerNACL ... -f 0 1 2
    python -m benchmarks.study.truth FOLDER      # brings its truth.json into results/hippocampus
    python -m benchmarks.study.report hippocampus    # makes the tables
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from benchmarks.study.tables import markdown
from nnunet_calib.metrics.catalogue import LABELS
from nnunet_calib.metrics.significance import mean_interval
from nnunet_calib.results.schemas import STAGES

FILE = "truth.json"
ERRORS = {name: LABELS[name] for name in ("ece", "ace", "mce", "nll")}
DISTANCES = {"kl_to_truth": "KL to truth", "distance_to_truth": "distance to truth"}


def truth_table(told: dict[str, Any]) -> str:
    """Return a row for each trainer as trained and with temperature, and one for the true probabilities."""
    rows = [["trainer", "T", "Dice", *ERRORS.values(), *DISTANCES.values()]]

    def values(means: dict[str, float]) -> list[str]:
        return [f"{means[column]:.4f}" for column in (*ERRORS, *DISTANCES)]

    for name, model in told["models"].items():
        for stage, temperature in zip(STAGES, (1, model["temperature"]), strict=True):
            short = name.removeprefix("nnUNetTrainer")
            rows.append([short, f"{temperature:.2f}", f"{model['dice']:.3f}", *values(model[stage])])
    rows.append(["true probabilities", "-", "-", *values(told["true_probabilities"])])
    return markdown(rows)


def case_values(told: dict[str, Any], column: str, stages: tuple[str, ...]) -> NDArray[np.float64]:
    """(cases, variants): a trainer at one stage is a variant; all trainers measured the same cases."""
    variants = [
        {case["case"]: case[stage][column] for case in model["cases"]}
        for model in told["models"].values()
        for stage in stages
    ]
    return np.array([[values[case] for values in variants] for case in sorted(variants[0])])


def agreement_table(told: dict[str, Any]) -> str:
    """Return Kendall's tau over the trainers of each error with each distance: mean over cases, 95 % interval."""
    rows = [["error", *(f"{name}, {when}" for name in DISTANCES.values() for when in ("as trained", "with T"))]]
    for error, name in ERRORS.items():
        cells = [name]
        for distance in DISTANCES:
            for stage in STAGES:
                pairs = zip(case_values(told, error, (stage,)), case_values(told, distance, (stage,)), strict=True)
                taus = np.array([kendalltau(a, b).statistic for a, b in pairs])
                low, high = mean_interval(taus)
                cells.append(f"{taus.mean():+.2f} ({low:+.2f} to {high:+.2f})")
        rows.append(cells)
    return markdown(rows)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.truth", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a demo")
    shutil.copyfile(parser.parse_args().folder / FILE, Path(__file__).with_name("results") / "hippocampus" / FILE)


if __name__ == "__main__":
    main()
