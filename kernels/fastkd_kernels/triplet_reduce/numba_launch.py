"""Allocate, hand over arrays, say how much work there is. Names as in ``op.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels as kernels

Pair = tuple[Tensor, Tensor]


def triplet_reduce(
    x: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_in, D], [T, S] → [E_out, S, D]."""
    out = torch.empty(out_ptr.shape[0] - 1, a.shape[1], x.shape[1], dtype=x.dtype)
    kernels.reduce(*arrays(x, a, edge_in, out_ptr, out_order, out), work=a.numel() * x.shape[1])
    return out


def triplet_pull(
    g: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_out, S, D], [T, S] → [E_in, D]."""
    out = torch.empty(in_ptr.shape[0] - 1, g.shape[2], dtype=g.dtype)
    kernels.pull(*arrays(g, a, edge_out, in_ptr, in_order, out), work=a.numel() * g.shape[2])
    return out


def triplet_dot(
    g: Tensor, x: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Tensor:
    """[E_out, S, D], [E_in, D] → [T, S]."""
    out = torch.empty(edge_in.shape[0], g.shape[1], dtype=g.dtype)
    kernels.dot(*arrays(g, x, edge_in, out_ptr, out_order, out), work=out.numel() * g.shape[2])
    return out


def triplet_gradients(
    g: Tensor, x: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor
) -> Pair:
    """[E_out, S, D], [E_in, D], [T, S] → [E_in, D], [T, S]."""
    by_x, by_a = torch.empty(x.shape, dtype=x.dtype), torch.empty(a.shape, dtype=a.dtype)
    kernels.gradients(*arrays(g, x, a, edge_out, in_ptr, in_order, by_x, by_a), work=2 * a.numel() * x.shape[1])
    return by_x, by_a
