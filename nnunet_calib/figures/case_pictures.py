"""Pixels of one slice of a case: the image, right and wrong parts of the segmentation, and the probabilities."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.picture_slice import RepresentativeSlice
from nnunet_calib.posthoc import calibrator_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.logits import calibrated, log_probabilities

Regions = Sequence[Sequence[int]] | None

# Colour-blind readers can tell the outlines apart by hue, readers of a grey print by brightness and line style.
OUTLINES: tuple[tuple[str, str, Literal["solid", "dashed", "dotted"]], ...] = (
    ("true positive", "#56B4E9", "solid"),
    ("false positive", "#D55E00", "dashed"),
    ("false negative", "#F0E442", "dotted"),
)
COLOUR_MAP = "cividis"  # safe for colour-blind readers and in grey; unlike in magma, every outline stays visible
_SMALL = 20_000  # bytes; a lossy WebP replaces a larger PNG
_LINE = 2  # pixels of an outline on a web page, which scales pictures down
_TILE = 180  # smallest shorter side of a tile on a web page, in pixels; slices are enlarged by whole factors


@dataclass(frozen=True)
class CasePicture:
    """A slice of one head.

    Attributes:
        background: (rows, columns) float in [0, 1]: the image, or the label map if there is none.
        before: (rows, columns) probabilities before calibration.
        after: the same after calibration.
        outcome: (3, rows, columns) bool: true positive, false positive, false negative.
        head: index of the head.
        aspect: height of a pixel relative to its width.
    """

    background: NDArray[np.float32]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    outcome: NDArray[np.bool_]
    head: int
    aspect: float

    @classmethod
    def of(
        cls,
        shown: RepresentativeSlice,
        calibrator: Calibrator | float,
        *,
        regions: Regions,
        ignore_label: int | None,
        image: NDArray[Any] | None = None,
    ) -> CasePicture:
        """Return the picture of the head with the most foreground, true or predicted, in the slice.

        Args:
            shown: the slice.
            calibrator: a calibrator of any kind, or a number as a temperature.
            regions: label values of each head; None for classes (0 is the background).
            ignore_label: label of voxels that count as neither right nor wrong.
            image: image of the whole case, (channels, *spatial), on the grid of the label map; its first channel is
                shown.

        Raises:
            ValueError: if the size of the image differs from that of the label map.
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
        of_regions = regions is not None
        after = calibrated(log_probabilities(p, regions=of_regions), calibrator_of(calibrator), regions=of_regions)
        return cls(
            _background(shown, image),
            p[head],
            after[head].astype(np.float32),
            np.stack([t & s, s & ~true[head], t & ~s]),
            head,
            float(shown.spacing[0] / shown.spacing[1]),
        )


def _background(shown: RepresentativeSlice, image: NDArray[Any] | None) -> NDArray[np.float32]:
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


def picture_bytes(picture: CasePicture) -> tuple[bytes, str, tuple[int, int]]:
    """Draw the three panels side by side as a small image, several hundred times faster than a figure.

    Returns:
        The file's content (PNG, or WebP instead of a large PNG), its media type, and its width and height.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from PIL import Image

    rows, columns = picture.background.shape
    times = max(1, -(-_TILE // max(min(rows, columns), 1)))
    size = max(1, round(rows * times * picture.aspect)), columns * times

    def enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
        at = [np.arange(n) * of // n for n, of in zip(size, (rows, columns), strict=True)]
        return pixels[np.ix_(*at)]

    tiles = []
    for pixels, colours in ((picture.background, "gray"), (picture.before, COLOUR_MAP), (picture.after, COLOUR_MAP)):
        tile = colormaps[colours](enlarged(pixels))[..., :3]
        for mask, (_, colour, _) in zip(picture.outcome, OUTLINES, strict=True):
            core = enlarged(mask)
            tile[core & ~_eroded(core, _LINE)] = to_rgb(colour)
        tiles += [tile, np.ones((size[0], 4, 3))]
    whole = Image.fromarray(np.rint(255 * np.concatenate(tiles[:-1], 1)).astype(np.uint8))
    png, webp = io.BytesIO(), io.BytesIO()
    whole.quantize(160, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    if png.tell() <= _SMALL:
        return png.getvalue(), "image/png", whole.size
    whole.save(webp, "WEBP", quality=80)
    return webp.getvalue(), "image/webp", whole.size


def _eroded(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """Return the mask eroded by `times` layers of border pixels."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def colour_bar() -> bytes:
    """Return a PNG of the colours of the probabilities from 0 (left) to 1, as a row of 256 pixels."""
    from matplotlib import colormaps
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(colormaps[COLOUR_MAP](np.arange(256)[None], bytes=True)[..., :3]).save(file, "PNG")
    return file.getvalue()
