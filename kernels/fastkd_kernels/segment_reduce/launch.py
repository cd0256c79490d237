"""From tensors to kernels: rows flattened to [n, F], outputs allocated, grids chosen. Nothing here waits for a GPU.

numba and Triton are imported where they are used, so that ``import fastkd_kernels`` needs torch alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def check_ptr(ptr: Tensor, rows: int) -> None:
    """Raise ValueError unless ``ptr`` (on a CPU) rises from 0 to ``rows``: kernels follow it blindly."""
    array = ptr.numpy()
    if array[0] != 0 or array[-1] != rows or (array[1:] < array[:-1]).any():
        steps = "and rises" if (array[1:] >= array[:-1]).all() else "and falls in between"
        raise ValueError(f"ptr must rise from 0 to the number of rows, {rows}; it starts at {array[0]}, ends at {array[-1]} {steps}")


def _width(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:])


def _rows(tensor: Tensor) -> Any:
    # explicit numbers: -1 is ambiguous where there are no rows
    return tensor.detach().contiguous().view(tensor.shape[0], _width(tensor)).numpy()


def _grouping(ptr: Tensor, order: Tensor | None, rows: int) -> tuple[Any, Any]:
    """Both as arrays; the order is empty where there is none. The kernels follow ``ptr`` blindly, so a user's is looked at first."""
    from .numba_kernels import rises

    array = ptr.contiguous().numpy()
    if order is not None:
        return array, order.contiguous().numpy()
    if not rises(array, rows):
        check_ptr(ptr, rows)
    return array, _EMPTY


_EMPTY = torch.empty(0, dtype=torch.int64).numpy()


def sum_numba(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, mean: bool) -> Tensor:
    """[n, …] → [m, …]."""
    from ..cpu import shares
    from . import numba_kernels

    out = torch.empty((ptr.shape[0] - 1, *values.shape[1:]), dtype=values.dtype)
    grouping = _grouping(ptr, order, values.shape[0])
    if _width(values) == 1:
        column, sums = _rows(values).reshape(-1), _rows(out).reshape(-1)
        numba_kernels.column_sum(column, *grouping, mean, sums, work=values.numel())
        return out
    source, sums = _rows(values), _rows(out)
    lying = _lying(grouping, index, source, sums) if not mean else None
    longest = (grouping[0][1:] - grouping[0][:-1]).max(initial=0)
    if lying is not None and longest <= numba_kernels.BLOCK:
        numba_kernels.segment_sum_streamed(source, lying, shares(grouping[0], values.numel()), sums, work=values.numel())
    else:
        numba_kernels.segment_sum(source, *grouping, mean, sums, work=values.numel())
    return out


def _lying(grouping: tuple[Any, Any], index: Tensor | None, rows: Any, segments: Any) -> Any:
    """The index as an array where going through the rows as they lie is faster than segment by segment, else None."""
    from ..cpu import streams

    if index is None or not grouping[1].size or not streams(grouping[1], rows, segments):
        return None
    return index.contiguous().numpy()


def gather_numba(rows: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, n: int, mean: bool) -> Tensor:
    """[m, …] → [n, …]."""
    from . import numba_kernels

    out = torch.empty((n, *rows.shape[1:]), dtype=rows.dtype)
    grouping = _grouping(ptr, order, n)
    source, gathered = _rows(rows), _rows(out)
    lying = _lying(grouping, index, gathered, source) if not mean else None
    if lying is not None:
        numba_kernels.segment_gather_streamed(source, lying, gathered, work=out.numel())
    else:
        numba_kernels.segment_gather(source, *grouping, mean, gathered, work=out.numel())
    return out


def extremum_numba(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    """[n, …] → [m, …] twice: values and their rows."""
    from . import numba_kernels

    out = torch.empty((ptr.shape[0] - 1, *values.shape[1:]), dtype=values.dtype)
    arg = torch.empty(out.shape, dtype=torch.int64)
    grouping = _grouping(ptr, order, values.shape[0])
    numba_kernels.segment_extremum(_rows(values), *grouping, largest, _rows(out), _rows(arg), work=values.numel())
    return out, arg


def arg_gather_numba(values: Tensor, arg: Tensor) -> Tensor:
    """[n, …], [m, …] → [m, …]."""
    from . import numba_kernels

    out = torch.empty(arg.shape, dtype=values.dtype)
    numba_kernels.arg_gather(_rows(values), _rows(arg), _rows(out), work=out.numel())
    return out


def arg_scatter_numba(grad: Tensor, arg: Tensor, n: int) -> Tensor:
    """[m, …], [m, …] → [n, …]."""
    from . import numba_kernels

    out = torch.zeros((n, *grad.shape[1:]), dtype=grad.dtype)
    numba_kernels.arg_scatter(_rows(grad), _rows(arg), _rows(out), work=grad.numel())
    return out


def sum_triton(*args: Any) -> Tensor:
    """As `sum_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.segment_sum(*args)


def gather_triton(*args: Any) -> Tensor:
    """As `gather_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.segment_gather(*args)


def extremum_triton(*args: Any) -> tuple[Tensor, Tensor]:
    """As `extremum_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.segment_extremum(*args)


def arg_gather_triton(*args: Any) -> Tensor:
    """As `arg_gather_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.arg_gather(*args)


def arg_scatter_triton(*args: Any) -> Tensor:
    """As `arg_scatter_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.arg_scatter(*args)
