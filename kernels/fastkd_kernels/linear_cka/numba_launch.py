"""The operators on a CPU: numba centres tiles of rows, BLAS multiplies them, float64 sums the tiles in order.

Scratch is a centred tile of each side and the three matrices, for each thread; nothing of size [N, C] is made but the gradients. Tiles
follow from the shapes, and a tile's products run on one thread.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..blas import Spare, each_tile
from ..cpu import arrays
from .numba_kernels import column_means_kernel, subtract_means_kernel

#: Numbers of a centred tile: 1 MB of float32. BLAS sums its rows one after the other, and wants many.
TILE_ELEMENTS = 524288
TILE_ROWS = 2048


def grams(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q and K in float64, see `reference.grams`."""
    (channels, width), double = (x.shape[1], y.shape[1]), torch.float64
    totals = tuple(x.new_zeros(size, dtype=double) for size in ((channels, channels), (width, width), (channels, width)))
    tiles = _tiles(x, y)
    left_rows, right_rows = _Centred(x, tiles), _Centred(y, tiles)
    spares = tuple(Spare(x, *total.shape) for total in totals)

    def run(part: slice) -> list[Tensor]:
        left, right = left_rows.take(part), right_rows.take(part)
        pairs = (left, left), (right, right), (left, right)
        products = [torch.mm(a.T, b, out=spare.take()) for (a, b), spare in zip(pairs, spares, strict=True)]
        left_rows.give(left)
        right_rows.give(right)
        return products

    def collect(products: list[Tensor]) -> None:
        for total, product, spare in zip(totals, products, spares, strict=True):
            total.add_(product)
            spare.give(product)

    each_tile(tiles, run, collect, work=x.shape[0] * (channels * (channels + width) + width * width))
    return totals[0], totals[1], totals[2]


def gram_gradients(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """X (p + pᵀ) + Y kᵀ and Y (q + qᵀ) + X k of the centred features; what is not needed is empty."""
    p, q = ((matrix + matrix.T).to(x.dtype) if need else matrix for matrix, need in zip((p, q), needs, strict=True))
    k = k.to(x.dtype)
    by_x, by_y = x.new_empty(x.shape if needs[0] else (0,)), y.new_empty(y.shape if needs[1] else (0,))
    tiles = _tiles(x, y)
    left_rows, right_rows = _Centred(x, tiles), _Centred(y, tiles)

    def run(part: slice) -> None:
        left, right = left_rows.take(part), right_rows.take(part)
        if needs[0]:
            torch.mm(left, p, out=by_x[part]).addmm_(right, k.T)
        if needs[1]:
            torch.mm(right, q, out=by_y[part]).addmm_(left, k)
        left_rows.give(left)
        right_rows.give(right)

    each_tile(tiles, run, work=x.shape[0] * sum(needs) * k.numel() * 2)
    return by_x, by_y


def _tiles(x: Tensor, y: Tensor) -> list[slice]:
    count, widest = x.shape[0], max(x.shape[1], y.shape[1], 1)
    tile = max(1, min(TILE_ROWS, TILE_ELEMENTS // widest))
    return [slice(first, last) for first, last in pairwise([*range(0, count, tile), count])]


class _Centred:
    """Features less their means over all rows, a tile at a time."""

    def __init__(self, features: Tensor, tiles: list[slice]) -> None:
        (self._numbers,) = arrays(features)
        self._means = torch.empty(features.shape[1], dtype=torch.float64).numpy()
        column_means_kernel(self._numbers, self._means, work=2 * self._numbers.size)
        self._spare = Spare(features, tiles[0].stop if tiles else 0, features.shape[1])

    def take(self, part: slice) -> Tensor:
        """Rows of one tile, in a buffer that `give` takes back."""
        buffer = self._spare.take()
        rows = buffer[: part.stop - part.start]
        subtract_means_kernel(self._numbers[part], self._means, rows.numpy(), work=rows.numel())
        return rows

    def give(self, rows: Tensor) -> None:
        """Take back the rows of a tile; a shorter last one is not used again."""
        if rows.shape[0] == self._spare.shape[0]:
            self._spare.give(rows)
