"""Launches of the Triton kernels; names as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .tiles import ONE_TILE, pair_tile, reduce_tile

Pair = tuple[Tensor, Tensor]


def triplet_reduce(
    x: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_in, D], [T, S] → [E_out, S, D]."""
    count, width, edges = a.shape[1], x.shape[1], out_ptr.shape[0] - 1
    out = x.new_empty(edges, count, width)
    if out.numel():
        blocks = reduce_tile(count, width, double=x.dtype == torch.float64)
        grid = (edges, triton.cdiv(count, blocks["BLOCK_S"]), triton.cdiv(width, blocks["BLOCK_F"]))
        kernels.triplet_reduce_kernel[grid](x.contiguous(), a.contiguous(), edge_in, out_ptr, out_order, out, width, count, **blocks)
    return out


def triplet_pull(
    g: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_out, S, D], [T, S] → [E_in, D]."""
    return _pull(g, None, a, edge_out, in_ptr, in_order)[0]


def triplet_dot(
    g: Tensor, x: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_out, S, D], [E_in, D] → [T, S]."""
    count, width, triplets = g.shape[1], g.shape[2], edge_in.shape[0]
    out = g.new_empty(triplets, count)
    if out.numel():
        blocks = pair_tile(width, double=g.dtype == torch.float64)
        grid = (triton.cdiv(triplets * count, blocks["BLOCK_P"]),)
        kernels.triplet_dot_kernel[grid](
            g.contiguous(), x.contiguous(), edge_in, edge_out, out_order, out, triplets, width, count, **blocks
        )
    return out


def triplet_gradients(
    g: Tensor, x: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Pair:
    """[E_out, S, D], [E_in, D], [T, S] → [E_in, D], [T, S]."""
    if 0 < x.shape[1] <= ONE_TILE:
        return _pull(g, x, a, edge_out, in_ptr, in_order)
    index = (edge_in, edge_out, out_ptr, out_order, in_ptr, in_order)
    return triplet_pull(g, a, *index), triplet_dot(g, x, *index)


def _pull(g: Tensor, x: Tensor | None, a: Tensor, edge_out: Tensor, in_ptr: Tensor, in_order: Tensor) -> Pair:
    """By x, and by a where x is given; without it the second result is a stand-in."""
    g, a, count, width, edges = g.contiguous(), a.contiguous(), g.shape[1], g.shape[2], in_ptr.shape[0] - 1
    by_x, by_a = g.new_empty(edges, width), a if x is None else a.new_empty(a.shape)
    if count == 0:
        return by_x.zero_(), by_a
    if by_x.numel():
        blocks = pair_tile(width, double=g.dtype == torch.float64)
        grid = (edges, triton.cdiv(width, blocks["BLOCK_F"]))
        kernels.triplet_pull_kernel[grid](
            g, g if x is None else x.contiguous(), a, edge_out, in_ptr, in_order, by_x, by_a, width, count, BY_A=x is not None, **blocks
        )
    return by_x, by_a
