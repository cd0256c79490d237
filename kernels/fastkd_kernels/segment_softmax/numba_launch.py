"""Allocate, flatten rows to [n, F], hand over arrays; names as in ``op.py``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..segment_reduce.launch import check_ptr
from ..segment_reduce.numba_kernels import rises
from . import numba_kernels

#: Operations of an exponential and of the arithmetic around it, as `cpu.Kernel` counts work.
EXP_WORK = 12


def softmax(x: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    """[n, …] → [n, …]."""
    out = torch.empty(x.shape, dtype=x.dtype)
    groups, (source, target) = _groups(ptr, order, x.shape[0]), _rows(x, out)
    work = EXP_WORK * x.numel()
    if source.ndim == 1:
        numba_kernels.column_softmax(source, *groups, log, target, work=work)
    else:
        top, total = torch.empty(ptr.shape[0] - 1, source.shape[1], dtype=x.dtype).numpy(), _sums(ptr, source)
        numba_kernels.softmax(source, *groups, log, top, total, target, work=work)
    return out


def softmax_backward(y: Tensor, g: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    """[n, …], [n, …] → [n, …]."""
    out = torch.empty(y.shape, dtype=y.dtype)
    groups, (here, slope, target) = _groups(ptr, order, y.shape[0]), _rows(y, g, out)
    work = (EXP_WORK if log else 4) * y.numel()
    if here.ndim == 1:
        numba_kernels.column_softmax_backward(here, slope, *groups, log, target, work=work)
    else:
        numba_kernels.softmax_backward(here, slope, *groups, log, _sums(ptr, here), target, work=work)
    return out


def softmax_double_backward(
    y: Tensor, g: Tensor, h: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[n, …] three times → [n, …] twice."""
    by_y, by_g = torch.empty(y.shape, dtype=y.dtype), torch.empty(y.shape, dtype=y.dtype)
    arrays = [rows.reshape(y.shape[0], math.prod(y.shape[1:])) for rows in _rows(y, g, h, by_y, by_g)]
    sums = _sums(ptr, arrays[0]), _sums(ptr, arrays[0])
    numba_kernels.softmax_double_backward(*arrays[:3], *_groups(ptr, order, y.shape[0]), *sums, *arrays[3:], work=9 * y.numel())
    return by_y, by_g


def _groups(ptr: Tensor, order: Tensor | None, rows: int) -> tuple[Any, Any]:
    """Both as arrays; the order is empty where there is none. Kernels follow ``ptr`` blindly, so a user's is looked at first."""
    array = ptr.contiguous().numpy()
    if order is None and not rises(array, rows):
        check_ptr(ptr, rows)
    return array, array[:0] if order is None else order.contiguous().numpy()


def _rows(*tensors: Tensor) -> list[Any]:
    """As [n, F], or [n] where there is one column."""
    rows, width = tensors[0].shape[0], math.prod(tensors[0].shape[1:])
    shape = (rows,) if width == 1 else (rows, width)
    return [tensor.detach().contiguous().view(shape).numpy() for tensor in tensors]


def _sums(ptr: Tensor, rows: Any) -> Any:
    return torch.empty(ptr.shape[0] - 1, rows.shape[1], dtype=torch.float64).numpy()
