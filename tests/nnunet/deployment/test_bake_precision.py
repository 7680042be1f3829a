"""How far a baked checkpoint's probabilities may be from the temperature's: the rounding of nnU-Net's sum over tiles.

nnU-Net weights the logits of a tile by a Gaussian, 10 in its middle and 6e-8 in the corners, and sums them in half
precision, whose numbers are 2^-24 = 6e-8 apart there: a logit in a corner is kept as a whole number. The original's
logits are rounded so and then divided by T, the baked network's are divided and then rounded.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib import apply_temperature
from nnunet_calib.nnunet.deployment.bake import CALIBRATED
from nnunet_calib.results.layout import FINAL
from tests.worlds.baked import Untrained

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

T = 2.7
STEP = 2.0**-24  # between the smallest numbers in half precision
PRECISION = 2.0**-11  # half a step between larger ones, relative
TILES = 4  # that overlap at most, in an image of 12 x 26 x 24 and a patch of 8 x 24 x 24


@dataclass
class Sums:
    """PyTorch as nnU-Net's predictor sees it: keeps what it divides in the end, and sums in a type of our choice."""

    half: torch.dtype = torch.half
    logits: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)

    def div(self, logits, weights, out):
        """The sum of weighted logits by that of the weights."""
        torch.div(logits, weights, out=out)
        self.logits.append(out.float().numpy().copy())
        self.weights.append(weights.float().numpy().copy())

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def predicted(untrained, monkeypatch):
    """The model, baked, and what it predicts with sums in a type: logits and weights, and probabilities of both."""
    model: Untrained = untrained("3d_fullres")
    folder = Path(model.make().output_folder_base)
    assert model.bake("-f", "0", "--temperature", str(T)) == 0

    def predict(dtype: torch.dtype):
        sums = Sums(dtype)
        monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.torch", sums)
        original, baked = (model.probabilities(folder, name) for name in (FINAL, CALIBRATED))
        return sums, apply_temperature(original, T), baked

    return predict


def largest(sums: Sums) -> np.ndarray:
    """Difference between the baked network's logits and those of the original by T, the largest of a voxel."""
    return np.abs(sums.logits[1] - sums.logits[0] / T).max(0)


def test_bound(predicted):
    """Logits differ by the roundings, of which there is one a tile and one of the quotient; probabilities follow."""
    exact, half = predicted(torch.float32), predicted(torch.half)
    sums = half[0]
    weights = sums.weights[0]
    assert np.array_equal(weights, sums.weights[1])
    size = np.abs(exact[0].logits[0]).max()
    rounding = TILES * STEP / 2 / weights + (TILES + 1) * PRECISION * size
    bound = (1 + 1 / T) * rounding
    difference = largest(sums)
    assert (difference <= bound).all()
    # it is nearly what a corner allows, and next to nothing where a tile has weight
    assert weights.min() == STEP
    assert difference.max() > 0.8 * (1 + 1 / T) / 2
    assert difference[weights > 1e-2].max() < 0.05
    # resampling averages logits; odds change by at most the factor e^(2 difference)
    error = np.abs(half[2] - half[1])
    assert 0.05 < error.max() <= np.tanh(difference.max() / 2) + 1e-6


def test_cause(predicted):
    """With sums in single precision nothing of it is left: the network's own logits are divided to its rounding."""
    sums, expected, baked = predicted(torch.float32)
    assert largest(sums).max() < 1e-5 * np.abs(sums.logits[0]).max()
    assert np.abs(baked - expected).max() < 1e-4
    assert np.array_equal(expected.argmax(0), baked.argmax(0))
