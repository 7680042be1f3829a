"""Which bin holds a probability: checked against exact fractions, for NumPy and PyTorch."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch

from nnunet_calib.binning import bin_index


@pytest.fixture(params=[np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def array(request):
    """Makes an array of either library from a NumPy array."""
    return request.param


def edge_neighbourhoods(num_bins: int) -> np.ndarray:
    """Every edge m / M as float32, and the float32 numbers on either side of it that lie in [0, 1]."""
    edges = (np.arange(num_bins + 1) / num_bins).astype(np.float32)
    near = np.concatenate([np.nextafter(edges, np.float32(-1)), edges, np.nextafter(edges, np.float32(2))])
    return near[(near >= 0) & (near <= 1)]


def test_by_hand(array):
    """Bins [a, b), the last one closed."""
    probabilities = array(np.array([[0.0, 0.24, 0.25, 0.49], [0.5, 0.74, 0.75, 1.0]]))
    assert bin_index(probabilities, 4).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize("num_bins", [1, 2, 5, 10, 15, 20])
def test_edges_belong_to_the_bin_above(array, num_bins):
    """In float64 m / M lies in bin m, and 1 in the last bin."""
    edges = array(np.arange(num_bins + 1) / num_bins)
    assert bin_index(edges, num_bins).tolist() == [*range(num_bins), num_bins - 1]


@pytest.mark.parametrize("num_bins", [1, 3, 20, 49, 100, 1200, 2**29])
def test_exact_for_float32_numbers(array, num_bins):
    """float32 probabilities are binned as exact fractions would be, next to edges too."""
    random = np.random.default_rng(0).random(500, dtype=np.float32)
    probabilities = np.concatenate([edge_neighbourhoods(min(num_bins, 100)), random, random**8])
    expected = [min(floor(Fraction(float(p)) * num_bins), num_bins - 1) for p in probabilities]
    assert bin_index(array(probabilities), num_bins).tolist() == expected


@pytest.mark.parametrize(("fine", "coarse"), [(1200, 20), (1200, 15), (1200, 10), (1200, 1)])
def test_coarse_bins_are_unions_of_fine_ones(array, fine, coarse):
    """float32 probabilities: bin m of M is exactly k bins of k M."""
    random = np.random.default_rng(1).random(20_000, dtype=np.float32)
    probabilities = array(np.concatenate([edge_neighbourhoods(fine), random]))
    index = bin_index(probabilities, fine)
    assert np.array_equal(np.asarray(index) // (fine // coarse), np.asarray(bin_index(probabilities, coarse)))
    assert len(np.unique(np.asarray(index))) == fine


def test_values_outside_go_to_the_end_bins(array):
    """Rounding may put a probability just outside [0, 1]."""
    probabilities = array(np.array([-0.5, -1e-7, 1 + 1e-7, 1.5]))
    assert bin_index(probabilities, 20).tolist() == [0, 0, 19, 19]


def test_nan_goes_to_bin_0():
    """PyTorch: an index that can be scattered to; the sums there then show the NaN."""
    assert bin_index(torch.tensor([0.92, torch.nan]), 20).tolist() == [18, 0]


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_empty(array, shape):
    """Nothing in, nothing out."""
    index = bin_index(array(np.zeros(shape)), 20)
    assert tuple(index.shape) == shape
    assert "int64" in str(index.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_type_and_shape(array, dtype):
    """int64 indices in the shape of the input, which stays as it was."""
    probabilities = array(np.random.default_rng(2).random((2, 3, 4)).astype(dtype))
    before = probabilities.tolist()
    index = bin_index(probabilities, 20)
    assert isinstance(index, type(probabilities))
    assert tuple(index.shape) == (2, 3, 4)
    assert "int64" in str(index.dtype)
    assert probabilities.tolist() == before


def test_no_gradient():
    """Indices carry no gradient, and asking for them does not disturb that of the probabilities."""
    probabilities = torch.rand(5, requires_grad=True)
    assert not bin_index(probabilities, 20).requires_grad
    probabilities.sum().backward()
    assert probabilities.grad.tolist() == [1.0] * 5
