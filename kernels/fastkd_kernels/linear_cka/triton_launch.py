"""Launches the Triton kernels: grids and parts follow from shapes alone, nothing waits for the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..projected_loss.kinds import accumulator
from . import triton_kernels as kernels
from .tiles import gram_tile, map_tile

#: A part sums its rows in order, and torch the parts in order, in float64. A part has so many rows or more.
ROWS_PER_PART = 512
#: Ceiling on programs, a few per multiprocessor, which bounds the parts by 16 MB of float32 whatever the number of rows is, for widths
#: whose matrices have fewer tiles than that.
MAX_PROGRAMS = 1024


def grams(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q and K in float64, see `reference.grams`."""
    x, y = x.contiguous(), y.contiguous()
    (rows, channels), width, dtype = x.shape, y.shape[1], accumulator(x)
    tile = gram_tile(max(channels, width), double=dtype == torch.float64)
    across, down = triton.cdiv(channels, tile["BLOCK"]), triton.cdiv(width, tile["BLOCK"])
    tiles = across * across + down * down + across * down
    least = max(ROWS_PER_PART, triton.cdiv(rows, max(1, MAX_PROGRAMS // max(tiles, 1))))
    rows_each = max(1, triton.cdiv(min(least, rows), tile["BLOCK_N"])) * tile["BLOCK_N"]
    parts = triton.cdiv(rows, rows_each)
    p, q, k = (x.new_empty(parts, *size, dtype=dtype) for size in ((channels, channels), (width, width), (channels, width)))
    if parts and tiles:
        sides = (x, _means(x), y, _means(y))
        kernels.centred_grams_kernel[(tiles, parts)](*sides, p, q, k, rows, channels, width, rows_each, **tile)
    return p.sum(0, dtype=torch.float64), q.sum(0, dtype=torch.float64), k.sum(0, dtype=torch.float64)


def gram_gradients(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """X (p + pᵀ) + Y kᵀ and Y (q + qᵀ) + X k of the centred features; what is not needed is empty."""
    x, y, dtype = x.contiguous(), y.contiguous(), accumulator(x)
    left, right = (x, _means(x)), (y, _means(y))
    empty = x.new_empty(0)
    by_x = _map(*left, (p + p.T).to(dtype), *right, k.T.to(dtype).contiguous()) if needs[0] else empty
    by_y = _map(*right, (q + q.T).to(dtype), *left, k.to(dtype).contiguous()) if needs[1] else empty
    return by_x, by_y


def _map(x: Tensor, x_mean: Tensor, by_x: Tensor, y: Tensor, y_mean: Tensor, by_y: Tensor) -> Tensor:
    (rows, channels), width, tile = x.shape, y.shape[1], map_tile(double=x.dtype == torch.float64)
    grad = x.new_empty(x.shape)
    if grad.numel():
        grid = (triton.cdiv(rows, tile["BLOCK_N"]) * triton.cdiv(channels, tile["BLOCK_OUT"]),)
        kernels.centred_map_kernel[grid](x, x_mean, by_x.contiguous(), y, y_mean, by_y, grad, rows, channels, width, **tile)
    return grad


def _means(x: Tensor) -> Tensor:
    """Column means, and what rounding them has left, [2, C], in the accumulator's dtype: the two together are the mean in float64 or better."""
    mean = x.mean(0, dtype=torch.float64)
    if x.dtype == torch.float64:
        return torch.stack([mean, (x - mean).mean(0)])
    return torch.stack([mean.float(), (mean - mean.float()).float()])
