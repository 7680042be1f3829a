"""One slice of a case: the image, where the segmentation is right and wrong, and its probabilities."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.report.results import ReportedCase, case_error, worst_cases
from nnunet_calib.slices import RepresentativeSlice
from nnunet_calib.temperature import apply_temperature

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Regions = Sequence[Sequence[int]] | None
# Takes a case's name, gives its image (channels, *spatial) on the grid of its label map, or None.
ImageOf = Callable[[str], NDArray | None]

# Right, wrongly found, missed: apart for colour-blind readers by hue, in grey print by brightness and line style.
OUTLINES: tuple[tuple[str, str, Literal["solid", "dashed", "dotted"]], ...] = (
    ("true positive", "#56B4E9", "solid"), ("false positive", "#D55E00", "dashed"),
    ("false negative", "#F0E442", "dotted"),
)  # fmt: skip
COLOUR_MAP = "magma"
_SMALL = 20_000  # bytes of a PNG that need not become less exact
_TILE = 180  # pixels that the shorter side of a tile has at least in a web page, in whole multiples of its own


@dataclass(frozen=True)
class CasePicture:
    """A slice of one head.

    Attributes:
        background: (rows, columns) float in [0, 1]: the image, or where there is none the label map.
        before: (rows, columns) probabilities at T = 1.
        after: the same with temperature.
        outcome: (3, rows, columns) bool: true positive, false positive, false negative.
        head: which head it is of.
        aspect: height of a pixel, with a width of 1.
    """

    background: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    outcome: NDArray[np.bool_]
    head: int
    aspect: float

    @classmethod
    def of(
        cls, shown: RepresentativeSlice, temperature: float, *, regions: Regions, ignore_label: int | None,
        image: NDArray | None = None,
    ) -> CasePicture:
        """The picture of the head that has the most foreground, true or predicted, in the slice.

        Args:
            shown: the slice.
            temperature: T > 0.
            regions: the label values of each head, None for classes (of which 0 is the background).
            ignore_label: voxels with it are neither right nor wrong.
            image: (channels, *spatial) of the whole case, on the grid of the label map; the first channel is shown.

        Raises:
            ValueError: if the image has another size than the label map must have had.
        """
        p = shown.probabilities.astype(np.float32) / 255
        if regions is None:
            predicted = p.argmax(0) == np.arange(len(p))[:, None, None]
            true = shown.labels == np.arange(len(p))[:, None, None]
        else:
            predicted = p > 0.5
            true = np.stack([np.isin(shown.labels, list(region)) for region in regions])
        valid = True if ignore_label is None else shown.labels != ignore_label
        area = ((true | predicted) & valid).sum((1, 2))
        if regions is None:
            area[0] = -1
        head = int(area.argmax())
        t, s = true[head] & valid, predicted[head] & valid
        return cls(
            _background(shown, image), p[head],
            apply_temperature(p, temperature, regions=regions is not None)[head].astype(np.float32),
            np.stack([t & s, s & ~true[head], t & ~s]), head, float(shown.spacing[0] / shown.spacing[1]),
        )  # fmt: skip


def _background(shown: RepresentativeSlice, image: NDArray | None) -> NDArray[np.float32]:
    if image is not None:
        dimensions = len(shown.where)
        if image.ndim != dimensions + 1 or any(
            n < stop for n, stop in zip(image.shape[1:], shown.where[:, 1], strict=True)
        ):
            raise ValueError(
                f"expected an image on the grid of the label map, of at least {tuple(map(int, shown.where[:, 1]))} "
                f"voxels, got {image.shape[1:]}: is it of the same case?"
            )
        pixels = np.asarray(image[0][shown.index], np.float32)
    elif len(shown.image):
        pixels = shown.image[0].astype(np.float32)
    else:
        pixels = shown.labels.astype(np.float32)
    low, high = np.nanpercentile(pixels, (1, 99)) if len(shown.image) or image is not None else (0, pixels.max())
    grey: NDArray[np.float32] = np.nan_to_num((pixels - low) / max(high - low, 1e-6)).clip(0, 1)
    return grey


def draw_case(axes: Sequence[Axes], picture: CasePicture) -> AxesImage:
    """The image with outlines, the probability at T = 1, and that with temperature, on three axes.

    Returns:
        The image of a probability, for a colour bar.
    """
    panels = ((picture.background, "gray"), (picture.before, COLOUR_MAP), (picture.after, COLOUR_MAP))
    for ax, (pixels, colours) in zip(axes, panels, strict=True):
        drawn = ax.imshow(pixels, cmap=colours, vmin=0, vmax=1, aspect=picture.aspect, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        width = 1.2 if ax is axes[0] else 0.7
        for mask, (_, colour, line) in zip(picture.outcome, OUTLINES, strict=True):
            if mask.any() and min(mask.shape) > 1:
                ax.contour(mask, levels=[0.5], colors=colour, linestyles=line, linewidths=width)
    return drawn


def worst_cases_figure(
    cases: Sequence[ReportedCase], names: Sequence[str], *, regions: Regions, ignore_label: int | None,
    image_of: ImageOf, number: int = 4,
) -> Figure:
    """A row for each of the cases with the largest ACE: image with outlines, probability before and after.

    Args:
        cases: of a fold or of merged folds.
        names: of the heads.
        regions: the label values of each head, None for classes.
        ignore_label: of voxels without annotation, or None.
        image_of: gives a case's image.
        number: of rows; cases without a slice have none.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chosen = [case for case in worst_cases(cases) if case.shown is not None][:number]
    figure = Figure(figsize=(7, 2.5 * max(len(chosen), 1) + 0.6), layout="constrained")
    axes = figure.subplots(max(len(chosen), 1), 3, squeeze=False)
    drawn = None
    for line, case in zip(axes, chosen, strict=False):
        assert case.shown is not None
        picture = CasePicture.of(
            case.shown, case.temperature, regions=regions, ignore_label=ignore_label, image=image_of(case.name)
        )
        drawn = draw_case(line, picture)
        name = names[picture.head]
        line[0].set_title(case.name, fontsize=8)
        for ax, stage, t in zip(line[1:], ("uncalibrated", "calibrated"), (1, case.temperature), strict=True):
            ax.set_title(f"p({name}), T = {t:.3g}, ACE {case_error(case.row, stage, 'ace'):.3f}", fontsize=8)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes[:, 1:], shrink=0.5, label="probability")
    handles = [Line2D([], [], color=colour, linestyle=line, label=name) for name, colour, line in OUTLINES]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    legend.get_frame().set_facecolor("0.5")  # yellow is not seen on white
    return figure


def picture_bytes(picture: CasePicture) -> tuple[bytes, str, tuple[int, int]]:
    """The three panels side by side as a small image, several hundred times as fast as a figure.

    Returns:
        The file's content (PNG, or WebP where that is much smaller), its media type, and its width and height.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    rows, columns = picture.background.shape
    times = max(1, -(-_TILE // max(min(rows, columns), 1)))
    size = max(1, round(rows * times * picture.aspect)), columns * times

    def enlarged(pixels: NDArray) -> NDArray:
        at = [np.arange(n) * of // n for n, of in zip(size, (rows, columns), strict=True)]
        return pixels[np.ix_(*at)]

    tiles = []
    for pixels, colours in ((picture.background, "gray"), (picture.before, COLOUR_MAP), (picture.after, COLOUR_MAP)):
        tile = colormaps[colours](enlarged(pixels))[..., :3]
        for mask, (_, colour, _) in zip(picture.outcome, OUTLINES, strict=True):
            inside = np.pad(enlarged(mask), 1)
            core = inside[1:-1, 1:-1]
            edge = core & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
            tile[edge] = to_rgb(colour)
        tiles += [tile, np.ones((size[0], 4, 3))]
    whole = Image.fromarray(np.rint(255 * np.concatenate(tiles[:-1], 1)).astype(np.uint8))
    png, webp = io.BytesIO(), io.BytesIO()
    whole.quantize(160, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    if png.tell() <= _SMALL:
        return png.getvalue(), "image/png", whole.size
    whole.save(webp, "WEBP", quality=80)
    return webp.getvalue(), "image/webp", whole.size
