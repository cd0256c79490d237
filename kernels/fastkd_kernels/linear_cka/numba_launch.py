"""The operators on a CPU: numba centres tiles of rows, BLAS multiplies them, float64 sums the tiles in order.

Scratch is one centred tile of each side and the three matrices; nothing of size [N, C] is made but the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..cpu import arrays
from .numba_kernels import column_means_kernel, subtract_means_kernel

#: Numbers of a centred tile: 1 MB of float32. BLAS sums its rows one after the other, and wants many.
TILE_ELEMENTS = 262_144
TILE_ROWS = 2048


def grams(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q and K in float64, see `reference.grams`."""
    (channels, width), double = (x.shape[1], y.shape[1]), torch.float64
    p, q, k = (x.new_zeros(size, dtype=double) for size in ((channels, channels), (width, width), (channels, width)))
    for _, left, right in _tiles(x, y):
        p += left.T @ left
        q += right.T @ right
        k += left.T @ right
    return p, q, k


def gram_gradients(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """X (p + pᵀ) + Y kᵀ and Y (q + qᵀ) + X k of the centred features; what is not needed is empty."""
    p, q, k = ((p + p.T).to(x.dtype), (q + q.T).to(x.dtype), k.to(x.dtype))
    by_x, by_y = x.new_empty(x.shape if needs[0] else (0,)), y.new_empty(y.shape if needs[1] else (0,))
    for part, left, right in _tiles(x, y):
        if needs[0]:
            torch.mm(left, p, out=by_x[part]).addmm_(right, k.T)
        if needs[1]:
            torch.mm(right, q, out=by_y[part]).addmm_(left, k)
    return by_x, by_y


def _tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, and those rows of x and y less their means over all rows, in buffers that the next tile overwrites."""
    count, widest = x.shape[0], max(x.shape[1], y.shape[1], 1)
    tile = max(1, min(count, TILE_ROWS, TILE_ELEMENTS // widest))
    sides = []
    for features in (x, y):
        (numbers,) = arrays(features)
        means = torch.empty(features.shape[1], dtype=torch.float64).numpy()
        column_means_kernel(numbers, means, work=2 * numbers.size)
        sides.append((numbers, means, features.new_empty(tile, features.shape[1])))
    for first in range(0, count, tile):
        part = slice(first, min(first + tile, count))
        centred = []
        for numbers, means, buffer in sides:
            rows = buffer[: part.stop - first]
            subtract_means_kernel(numbers[part], means, rows.numpy(), work=rows.numel())
            centred.append(rows)
        yield part, centred[0], centred[1]
