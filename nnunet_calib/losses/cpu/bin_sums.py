"""Number and sum of probabilities by class and bin, for pieces of an image on a CPU.

`torch.Tensor.scatter_add_` works on the rows of a matrix in parallel, but adds in one number type, and an addition
waits for the previous one to the same place. Therefore

- each p adds M p + 2^k: in float64 the number and the sum of fewer than 2^k / M such terms can be separated again, and
  rounding loses less than 2^-24 of the largest possible term;
- each row has eight interleaved histograms, so that neighbours, which mostly fall into the same bin, do not wait for
  each other; and a single row is cut into two.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

CHUNK = 2**19  # probabilities that are binned at once: with their intermediate results they fit into the cache
LANES = 8
PER_LANE = 2**14  # terms that are added before their number and sum are separated


@lru_cache(maxsize=16)
def _lanes(length: int, cells: int) -> Tensor:
    """Return the start of each voxel's histogram: 0, cells, ..., (LANES - 1) * cells, 0, cells, ..."""
    return torch.arange(length, dtype=torch.int32).remainder_(LANES).mul_(cells)


class Chunks:
    """Chunks of probabilities (b, R, n), and memory for their bins, which the next chunk uses again."""

    def __init__(self, num_bins: int, size: int) -> None:
        """Reserve memory for M bins and up to `size` probabilities. M = 0 has one bin."""
        self.num_bins = num_bins
        self.size = size = min(CHUNK, size)
        self.scaled, self.index, self.place = (
            torch.empty(size, dtype=d) for d in (torch.float64, torch.int32, torch.int64)
        )

    def of(self, p: Tensor) -> list[slice]:
        """Return the voxels of each chunk."""
        step = max(min(self.size // (p.shape[0] * p.shape[1]), LANES * PER_LANE), 1)
        return [slice(start, start + step) for start in range(0, p.shape[2], step)]

    def bins(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return M p of a chunk, its bins, and room for places in int64.

        M p is computed in float64, which is exact for float32. Its integer part is `binning.bin_index`, except that
        p = 1 has a bin of its own, M.
        """
        if p.numel() > len(self.scaled):  # more rows than a chunk has probabilities
            for room in (self.scaled, self.index, self.place):
                room.resize_(p.numel())
        scaled, index, place = (x[: p.numel()].view(p.shape) for x in (self.scaled, self.index, self.place))
        scaled.copy_(p)
        if self.num_bins:
            index.copy_(scaled.mul_(self.num_bins))
        else:
            index.zero_()
        return scaled, index, place

    def look_up(self, table: Tensor, p: Tensor, row: Tensor | None = None) -> Tensor:
        """Return the entries of a table (b, R, M + 1) for the bins of a chunk.

        With `row` (b, 1, n), which selects a row within each row of the table, this is (b, R, rows (M + 1)).
        """
        _, index, place = self.bins(p)
        if row is not None:
            index.add_(row, alpha=self.num_bins + 1)
        return torch.gather(table, 2, place.copy_(index))


class BinSums:
    """Number and sum of probabilities in tables (B, C, M + 1)."""

    def __init__(self, images: int, classes: int, num_bins: int, dtype: torch.dtype) -> None:
        """Make empty tables for probabilities of this type."""
        self.tables = torch.zeros((2, images, classes, num_bins + 1), dtype=torch.float64)
        self.precise = dtype == torch.float64  # then number and sum are added one by one
        self.largest = max(num_bins, 1)
        self.one = 2.0 ** (self.largest * PER_LANE).bit_length()
        self.images = slice(0)
        self.added = 0

    def add(self, images: slice, p: Tensor, chunks: Chunks, row: Tensor | None = None) -> None:
        """Add p (b, C, n) of some images, or p (b, 1, n) whose classes are `row` (int32)."""
        cells = self.tables[0, 0].numel() // p.shape[1]
        for where in chunks.of(p):
            part = p[..., where]
            length = part.shape[2]
            if images != self.images or self.added + length > LANES * PER_LANE:
                self._unpack()
                self.images, self.rows = images, p.shape[1]
                self.packed = self.tables.new_zeros((1 + self.precise, len(p), max(self.rows, 2), LANES * cells))
            self.added += -(-length // LANES) * LANES
            terms, place, at = chunks.bins(part)
            if row is not None:
                place.add_(row[..., where], alpha=self.tables.shape[3])
            if self.rows == 1 and length % 2 == 0:
                terms, place, at = (x.view(len(p), 2, -1) for x in (terms, place, at))
            torch.add(_lanes(place.shape[2], cells), place, out=at)
            if self.precise:
                self.packed[1, :, : at.shape[1]].scatter_add_(2, at, terms)
            self.packed[0, :, : at.shape[1]].scatter_add_(2, at, terms.add_(self.one))

    def _unpack(self) -> None:
        """Separate number and sum of what was added."""
        if not self.added:
            return
        number = (self.packed[0] / self.one).floor_()
        total = self.packed[1] if self.precise else self.packed[0].sub_(number, alpha=self.one)
        for table, x in zip(self.tables[:, self.images], (number, total), strict=True):
            table += x.view(len(x), self.rows, -1, table[0].numel() // self.rows).sum(2).view(table.shape)
        self.added = 0

    def result(self) -> tuple[Tensor, Tensor]:
        """Return number and sum (B, C, M), with p = 1 in the last bin; (B, C, 1) for M = 0."""
        self._unpack()
        self.tables[..., -2:-1] += self.tables[..., -1:]
        number, total = self.tables[..., : self.largest]
        return number, total / self.largest
