"""Launches of the CPU kernels; names and arguments as in ``op.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from ..segment_reduce.launch import check_ptr
from . import numba_kernels as kernels


def structure_rows(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """[N, C], [N, D] → [N]."""
    check_ptr(ptr, x.shape[0])
    out = torch.empty(x.shape[0], dtype=x.dtype)
    kernels.structure_rows(*arrays(x, y, ptr, out), work=_pairs(ptr) * (x.shape[1] + y.shape[1]))
    return out


def structure_pull(x: Tensor, h: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """[N, C], [N], [N, D] → [N, C]."""
    check_ptr(ptr, x.shape[0])
    out = torch.empty(x.shape, dtype=x.dtype)
    kernels.structure_pull(*arrays(x, h, y, ptr, out), work=_pairs(ptr) * (2 * x.shape[1] + y.shape[1]))
    return out


def pair_rows(a: Tensor, b: Tensor, c: Tensor, d: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Four times [N, C], [N, D] or None → [N]."""
    check_ptr(ptr, a.shape[0])
    y = a.new_empty(a.shape[0], 0) if y is None else y
    out = torch.empty(a.shape[0], dtype=a.dtype)
    kernels.pair_rows(*arrays(a, b, c, d, y, ptr, out), work=_pairs(ptr) * (2 * a.shape[1] + y.shape[1]))
    return out


def pair_pull(a: Tensor, b: Tensor, c: Tensor, h: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Three times [N, C], [N], [N, D] or None → [N, C]."""
    check_ptr(ptr, a.shape[0])
    y = a.new_empty(a.shape[0], 0) if y is None else y
    out = torch.empty(c.shape, dtype=c.dtype)
    kernels.pair_pull(*arrays(a, b, c, h, y, ptr, out), work=_pairs(ptr) * (2 * a.shape[1] + y.shape[1]))
    return out


def _pairs(ptr: Tensor) -> int:
    counts = ptr.diff()
    return int((counts * counts).sum()) // 2
