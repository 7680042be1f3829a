"""Bins of pieces: the package's one rule, and sums as exact as in float64."""

from __future__ import annotations

import pytest
import torch

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.cpu import bin_sums as piece_bins
from nnunet_calib.losses.cpu.bin_sums import BinSums, Chunks


@pytest.mark.parametrize("num_bins", [1, 2, 7, 10, 20, 100, 20_000])
def test_the_rule(num_bins):
    """On each edge and one float32 below and above it, a probability is where `bin_index` puts it in float64."""
    edges = (torch.arange(num_bins + 1, dtype=torch.float64) / num_bins).float()
    p = torch.cat([edges, edges.nextafter(torch.tensor(0.0)), edges.nextafter(torch.tensor(1.0))])[None, None]
    place = Chunks(num_bins, p.numel()).bins(p)[1]
    assert torch.equal(place.clamp(max=num_bins - 1).long(), bin_index(p.double(), num_bins))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "value"), [(1, 0.95001), (1, None), (3, 1.0), (3, None)])
def test_number_and_sum(monkeypatch, rows, value, dtype):
    """However many fall into one bin, in chunks of any length, and in turns with another image."""
    monkeypatch.setattr(piece_bins, "CHUNK", 5000)
    monkeypatch.setattr(piece_bins, "PER_LANE", 100)
    p = torch.rand(2, rows, 9001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    p = p if value is None else torch.full_like(p, value)
    y = torch.arange(9001, dtype=torch.int32)[None, None] % 3
    sums, chunks = BinSums(2, 3, 20, dtype), Chunks(20, p.numel())
    for part in (slice(4000), slice(4000, None)):
        for image in (slice(1), slice(1, 2)):
            sums.add(image, p[image, :, part], chunks, y[..., part] if rows == 1 else None)
    number, total = sums.result()
    of = y if rows == 1 else torch.arange(3)[:, None]
    place = bin_index(p.double(), 20) + 20 * of + 60 * torch.arange(2)[:, None, None]
    expected = torch.bincount(place.flatten(), p.double().flatten(), minlength=120)
    assert torch.equal(number.flatten(), torch.bincount(place.flatten(), minlength=120).double())
    torch.testing.assert_close(total.flatten(), expected, rtol=1e-7 if dtype == torch.float32 else 1e-13, atol=0)
