"""How thresholds keep their promises on the cases of one measured fold, dealt into five groups.

    python -m benchmarks.promises MODEL/fold_0/validation/calibration [more folders] --recall .8 .9 --precision .8

Each group is judged with the threshold that the others give. Since one network predicted all of them, this shows how
thresholds from a labelled hold-out do; how they carry over to another network of the model, only folds can show.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from nnunet_calib.decisions.thresholds import goals_of, thresholds
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.wording import number
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import cross_fitting_groups, read_cases
from nnunet_calib.results.schemas import SUMMARY


def main() -> None:
    """Print a row for each folder, structure and promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--recall", nargs="+", type=float, default=[])
    parser.add_argument("--precision", nargs="+", type=float, default=[])
    args = parser.parse_args()
    print("| model | structure | promised | cases | threshold | found | 95 % interval | mask / structure | groups |")
    print("|---|---|---|---|---|---|---|---|---|")
    for folder in args.folders:
        summary = read_json(folder / "summary.json", SUMMARY)
        heads, names = Heads.of_summary(summary["heads"]), [row["case"] for row in summary["metric_per_case"]]
        width = summary["metrics"]["uncalibrated"]["boundary"]["definition"]["boundary_mm"]
        cases, _ = read_cases(folder, names, heads, summary["model"], width)
        groups = cross_fitting_groups([case.kept for case in cases])
        cases = [replace(case, fold=group) for case, group in zip(cases, groups, strict=True) if group is not None]
        for row in thresholds(cases, heads, goals_of(args.recall, args.precision)):
            for key, chosen in row["structures"].items():
                found = row["by_other_folds"][key]
                low, high = found["interval"]
                each = [number(group["structures"][key]["found"]["mean"], 3) for group in row["per_fold"]]
                print(
                    f"| {summary['model']['trainer']} | {key} | {row['of']} {row['level']:g} | {chosen['cases']} "
                    f"| {number(chosen['threshold'])} | {number(found['mean'], 3)} | {number(low, 3)} to "
                    f"{number(high, 3)} | {number(chosen['relative_size']['mean'], 2)} | {' '.join(each)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
