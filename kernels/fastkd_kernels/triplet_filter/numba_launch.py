"""Allocate, hand over arrays, say how much work there is. Names as in ``op.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels as kernels
from .reference import Five

#: Edges that a thread takes at a time, whose share of w's gradient is summed together: a constant, so threads change no bit.
EACH = 64


def triplet_filter(
    x: Tensor, r: Tensor, w: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, *_: Tensor
) -> Tensor:
    """[E_in, D], [E_in, S, B], [B, D], [T, S] → [E_out, D]."""
    out = torch.empty(out_ptr.shape[0] - 1, x.shape[1], dtype=x.dtype)
    kernels.sum_onto(*arrays(x, r, w, a, edge_in, out_ptr, out_order), EACH, *arrays(out), work=a.shape[0] * w.numel())
    return out


def gradients(
    g: Tensor,
    x: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    edge_in: Tensor,
    edge_out: Tensor,
    out_ptr: Tensor,
    out_order: Tensor,
    in_ptr: Tensor,
    in_order: Tensor,
    by_w: bool,
    by_a: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By x, r, w and a."""
    along_x, along_r = torch.empty(x.shape, dtype=x.dtype), torch.empty(r.shape, dtype=x.dtype)
    along_a = torch.empty(a.shape if by_a else (0, 0), dtype=x.dtype)
    parts = _parts(x, w)
    kernels.gradients(
        *arrays(g, x, r, w, a, edge_out, in_ptr, in_order), EACH, by_w, by_a, *arrays(along_x, along_r, parts, along_a), work=_work(x, r, a)
    )
    return along_x, along_r, parts.sum(0) if by_w else w.new_empty(0), along_a if by_a else a.new_empty(0)


def second(
    hx: Tensor,
    hr: Tensor,
    ha: Tensor,
    g: Tensor,
    x: Tensor,
    r: Tensor,
    w: Tensor,
    a: Tensor,
    edge_in: Tensor,
    edge_out: Tensor,
    out_ptr: Tensor,
    out_order: Tensor,
    in_ptr: Tensor,
    in_order: Tensor,
    by_w: bool,
    by_a: bool,
) -> Five:
    """By g, x, r, w and a."""
    along = ha.numel() > 0
    by_g = torch.empty(g.shape, dtype=x.dtype)
    along_x, along_r = torch.empty(x.shape, dtype=x.dtype), torch.empty(r.shape, dtype=x.dtype)
    along_a = torch.empty(a.shape if by_a else (0, 0), dtype=x.dtype)
    parts = _parts(x, w)
    turn = ha if along else a.new_empty(0, 0)
    kernels.second(
        *arrays(hx, hr, turn, g, x, r, w, a, edge_out, in_ptr, in_order),
        EACH,
        along,
        by_w,
        by_a,
        *arrays(along_x, along_r, parts, along_a),
        work=2 * _work(x, r, a),
    )
    kernels.change_onto(
        *arrays(hx, hr, turn, x, r, w, a, edge_in, out_ptr, out_order), EACH, along, *arrays(by_g), work=2 * a.shape[0] * w.numel()
    )
    return by_g, along_x, along_r, parts.sum(0) if by_w else w.new_empty(0), along_a if by_a else a.new_empty(0)


def _parts(x: Tensor, w: Tensor) -> Tensor:
    return torch.empty(-(-x.shape[0] // EACH), *w.shape, dtype=x.dtype)


def _work(x: Tensor, r: Tensor, a: Tensor) -> int:
    return 2 * (r.numel() + a.numel()) * x.shape[1]
