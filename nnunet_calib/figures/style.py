"""Shared width, fonts, colours and files of all figures; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.names import in_figure
from nnunet_calib.results.layout import ENDINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_P = ParamSpec("_P")

COLUMN = 3.46  # inches: 88 mm, the width of a column in most journals

# Hues that colour-blind readers can tell apart, most of them also in grey print (Okabe and Ito).
BARS, GAP, LINE = "#56B4E9", "#D55E00", "#0072B2"
COLOURS = ("#000000", GAP, LINE, "#009E73", "#CC79A7", "#E69F00", BARS)
FILLED = "0.6"

_SIZE, _TICKS, _THIN = 8, 7, 0.6  # points
_STYLE: Any = {
    "font.size": _SIZE,
    "axes.titlesize": _SIZE,
    "axes.labelsize": _SIZE,
    "figure.titlesize": _SIZE,
    "legend.fontsize": _TICKS,
    "xtick.labelsize": _TICKS,
    "ytick.labelsize": _TICKS,
    "axes.linewidth": _THIN,
    "xtick.major.width": _THIN,
    "ytick.major.width": _THIN,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.labelpad": 2,
    "axes.titlepad": 4,
    "hatch.linewidth": 0.5,
    # equal numbers give equal bytes; publishers reject Type 3 fonts
    "svg.hashsalt": "nnunet_calib",
    "pdf.fonttype": 42,
}
_DPI, _LARGEST = 300, 60_000  # pixels: matplotlib cannot draw a side of 65536


@contextmanager
def styled() -> Iterator[None]:
    """Set fonts and lines for the width of a column, whatever the previous settings."""
    from matplotlib import rc_context, style

    # in the training process, nnU-Net's logger leaves seaborn's settings, with fonts 2.5 times as large
    with style.context("default"), rc_context(_STYLE):
        yield


def in_style(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Decorate a function that draws a figure, to draw it in this style."""

    @wraps(draw)
    def drawn(*args: _P.args, **options: _P.kwargs) -> Figure:
        with styled():
            return draw(*args, **options)

    return drawn


def new_figure(
    height: float, rows: int = 1, columns: int = 1, height_ratios: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """Return a figure one column wide and its panels, without a window or pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    for ax in axes.flat:
        _fix_ticks(ax)
    return figure, axes


def _fix_ticks(ax: Axes) -> None:
    """Set the size of ticks now, since matplotlib creates them at drawing time, perhaps in another style."""
    ax.tick_params(labelsize=_TICKS, width=_THIN, length=2.5)


def colour_bar(figure: Figure, image: AxesImage, axes: np.ndarray, label: str) -> None:
    """Draw the colour bar of all panels below them."""
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(label)
    _fix_ticks(bar.ax)


def outer_labels(axes: np.ndarray) -> None:
    """Remove axis labels except those of the leftmost and lowest panels."""
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")


def make_room(figure: Figure, axes: np.ndarray, lines: int) -> None:
    """Grow the figure for panel titles longer than `lines`."""
    more = (max(ax.get_title().count("\n") + 1 for ax in row) - lines for row in axes)
    figure.set_figheight(figure.get_figheight() + sum(max(n, 0) for n in more) * _SIZE * 1.3 / 72)


def in_lines(text: str, width: int = 20) -> str:
    """Wrap a text for a title or a legend, by default to half a column."""
    return in_figure("\n".join(line for part in text.split("\n") for line in wrap(part, width)))


def figure_bytes(draw: Callable[[], Figure], *endings: str) -> dict[str, bytes]:
    """Draw a figure once, and return the content of its file for each ending."""
    contents = {}
    with styled():
        figure = draw()
        figure.draw_without_rendering()
        # freeze the layout, to be equal in all files; with any engine, each is drawn twice
        figure.set_layout_engine(None)
        dpi = min(_DPI, _LARGEST / max(figure.get_size_inches()))
        for ending in endings:
            # a date would change the file each time
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending, {})
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=dpi, metadata=metadata)
            contents[ending] = buffer.getvalue()
    return contents


def save_figure(draw: Callable[[], Figure], folder: Path, name: str, endings: tuple[str, ...] = ENDINGS) -> None:
    """Write a figure to files of this name, each of them atomically."""
    for ending, content in figure_bytes(draw, *endings).items():
        with replaced_when_complete(folder / f"{name}.{ending}") as temporary:
            temporary.write_bytes(content)
