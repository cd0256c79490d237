"""Launches of the CPU kernels; names and arguments as in ``op.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels as kernels

#: An exponential costs about as much as this many multiply-adds.
EXPONENTIAL = 20


def edge_distance(x: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """[N, C] → [E]."""
    out = torch.empty(src.shape[0], dtype=x.dtype)
    kernels.edge_distance(*arrays(x, src, ptr, order, out), work=src.shape[0] * x.shape[1])
    return out


def edge_dot(a: Tensor, b: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """[N, C], [N, C] → [E]."""
    out = torch.empty(src.shape[0], dtype=a.dtype)
    kernels.edge_dot(*arrays(a, b, src, ptr, order, out), work=src.shape[0] * a.shape[1])
    return out


def edge_laplacian(
    w: Tensor, x: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor
) -> Tensor:
    """[E], [N, C] → [N, C]."""
    out = torch.empty(x.shape, dtype=x.dtype)
    tensors = (w, x, src, dst, ptr, order, src_ptr, src_order, out)
    kernels.edge_laplacian(*arrays(*tensors), work=2 * src.shape[0] * x.shape[1])
    return out


def divergence(student: Tensor, teacher: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E], [E] → [N]."""
    out = torch.empty(ptr.shape[0] - 1, dtype=student.dtype)
    kernels.divergence(*arrays(student, teacher, ptr, order, out), work=EXPONENTIAL * 4 * student.numel())
    return out


def divergence_gradient(student: Tensor, teacher: Tensor, upstream: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E], [E], [N] → [E]."""
    out = torch.empty(student.shape, dtype=student.dtype)
    kernels.divergence_gradient(*arrays(student, teacher, upstream, ptr, order, out), work=EXPONENTIAL * 4 * student.numel())
    return out
