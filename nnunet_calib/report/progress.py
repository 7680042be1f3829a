"""The figure of a running training, from logged values alone; matplotlib is imported only when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_calib.files import replaced_when_complete

FILE = "progress_calibration.png"


def draw_progress(
    output_folder: Path, mean: Sequence[float], per_class: Sequence[Sequence[float]], names: Sequence[str]
) -> None:
    """Write progress_calibration.png: the pseudo ACE of every epoch, beside nnU-Net's progress.png.

    Args:
        output_folder: nnU-Net's, of the fold.
        mean: over the foreground classes, of every epoch from 0; NaN where it was not measured.
        per_class: of every epoch, one value per class.
        names: of the classes.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # nnU-Net's logger leaves seaborn's settings with fonts 2.5 times as large in the training process
    with style.context("default"):
        figure = Figure(figsize=(8, 5), layout="constrained")
        ax = figure.subplots()
        # markers, since a line does not show an epoch between two without a value
        for name, values in zip(names, zip(*per_class, strict=True), strict=True):
            ax.plot(values, linewidth=1, marker=".", markersize=3, label=name)
        ax.plot(mean, color="black", linewidth=2, marker=".", label="mean")
        ax.set(xlabel="epoch", ylabel="pseudo ACE", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title("Average calibration error of the validation patches, all voxels pooled", fontsize=10)
        ax.legend(ncols=4, fontsize=8)
        with replaced_when_complete(output_folder / FILE) as temporary:
            figure.savefig(temporary, dpi=100)
