"""The picture at the top of the README: a fold of LIDC before and after its temperature.

    nnUNet_raw=... python -m benchmarks.study.picture .../fold_0/validation/calibration docs/images/before_after.png

The case is the one with the largest structure in the fold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_calib.figures.case_figures import draw_case
from nnunet_calib.figures.case_pictures import CasePicture
from nnunet_calib.figures.diagrams import draw_reliability
from nnunet_calib.figures.drawn_results import Results
from nnunet_calib.figures.fold_figures import frequency_interval
from nnunet_calib.figures.style import in_style
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.metrics.errors import calibration_errors, reliability_curve
from nnunet_calib.nnunet.raw_images import raw_images

HEAD = 1  # nodule


@in_style
def picture(folder: Path) -> Any:
    """Draw the case with the largest structure, and its pooled reliability, before and after calibration."""
    from matplotlib.figure import Figure

    results = Results.read(folder)
    largest = max(results.cases, key=lambda case: case.before.histograms.positives[0, HEAD].sum())
    shown = largest.shown
    if shown is None:
        raise SystemExit(f"expected a slice of case {largest.name}, found none: measure the fold again")
    heads = results.summary["heads"]
    image = raw_images(folder.parents[2])(largest.name)
    drawn = CasePicture.of(
        shown, largest.calibrator, regions=heads["regions"], ignore_label=heads["ignore_label"], image=image
    )
    figure = Figure(figsize=(9.6, 2.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.5, 1])
    axes, diagrams = left.subplots(1, 3), right.subplots(1, 2)
    colours = draw_case(axes, drawn)
    calibrator = results.calibrator.words(".1f")
    for ax, title in zip(axes, ("image", "nodule, as trained", f"nodule, {calibrator}"), strict=True):
        ax.set_title(title)
    left.colorbar(colours, ax=axes, shrink=0.7, label="probability")
    for ax, cases, when in zip(diagrams, (results.before, results.after), ("as trained", calibrator), strict=True):
        ace = calibration_errors(cases.pooled)["ace"][HEAD]
        curve = reliability_curve(cases.pooled)
        draw_reliability(ax, curve, HEAD, f"{when}\nACE {ace:.3f}", frequency_interval(cases.curves))
        ax.set(xlabel="predicted probability", ylabel="")
    diagrams[0].set_ylabel("observed frequency")
    return figure


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="calibration folder of the fold")
    parser.add_argument("file", type=Path, help="PNG to write")
    args = parser.parse_args()
    with replaced_when_complete(args.file) as temporary:
        picture(args.folder).savefig(temporary, dpi=200, format="png")


if __name__ == "__main__":
    main()
