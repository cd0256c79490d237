"""Allocate, hand over arrays, say how much work there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..cpu import arrays
from . import numba_kernels
from .spline import pieces

_POLYNOMIALS = np.array([pieces(0), pieces(1)])


def place(length: Tensor, step: float, knots: int) -> tuple[Tensor, Tensor, Tensor]:
    units = length.shape[0]
    knot, fraction, weights = torch.empty(units, dtype=torch.int32), torch.empty_like(length), length.new_empty(units, 16)
    (source,) = arrays(length)
    numba_kernels.place(source, 1 / step, knots - 1, _POLYNOMIALS, *arrays(knot, fraction, weights), work=128 * units)
    return knot, fraction, weights


def groups(unit_dst: Tensor, unit_src: Tensor, number: int) -> Tensor:
    group_ptr, reach = torch.empty(number + 1, dtype=torch.int64), torch.empty_like(unit_dst)
    numba_kernels.groups(*arrays(unit_dst, unit_src, group_ptr, reach), work=0)
    return group_ptr


class Units:
    """The index as arrays, with the weights of one order of derivative."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        dst, src, *_, knot, fraction, weights, _, _, group_ptr, self.paired, self.step = arguments
        self.dst, self.src, self.knot, self.fraction, self.both, self.group_ptr = arrays(dst, src, knot, fraction, weights, group_ptr)
        self.size = int(self.dst.size)

    def weights(self, order: int) -> np.ndarray[Any, Any]:
        """[U, 8 or more], the eight rows first."""
        if order < 2:
            return self.both[:, 8 * order :] if order else self.both
        weighed = np.empty((self.size, 8), self.fraction.dtype)
        numba_kernels.weights_of_order(self.knot, self.fraction, np.array(pieces(order)), self.step**-order, weighed, work=64 * self.size)
        return weighed


# every layer and order asks for the same arrays; they live as long as the index's weights. Reversed units have dst and src exchanged.
_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def units_of(arguments: tuple[Any, ...]) -> Units:
    """The index as arrays, made once."""
    known: dict[int, tuple[Tensor, Units]] = _KNOWN.setdefault(arguments[10], {})  # type: ignore[no-untyped-call]
    key = id(arguments[0])
    if key not in known:
        known[key] = (arguments[0], Units(arguments))
    return known[key][1]


def conv(c: Tensor | None, x: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *index, order, _ = rest
    units, out = units_of(tuple(index)), torch.zeros(x.shape, dtype=x.dtype)
    factor, source, rows, result = arrays(edge_length if c is None else c, x, table, out)
    shared = (units.dst, units.src, units.knot, units.weights(order), units.group_ptr, units.paired)
    numba_kernels.conv(factor, source, rows, *shared, c is not None, result, work=10 * units.size * x.shape[1])
    return out


def dot(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *index, order = rest
    units, out = units_of(tuple(index)), torch.empty_like(edge_length, memory_format=torch.contiguous_format)
    shared = (units.dst, units.src, units.knot, units.weights(order), units.paired)
    numba_kernels.dot(*arrays(x, g, table), *shared, *arrays(out), work=10 * units.size * x.shape[1])
    return out


def knots(c: Tensor | None, x: Tensor, g: Tensor, edge_length: Tensor, *rest: Any) -> Tensor:
    *index, rows, order = rest
    units, partial = units_of(tuple(index)), _partial(x, rows, index[-3])
    factor, left, right, sums = arrays(edge_length if c is None else c, x, g, partial)
    shared = (units.dst, units.src, units.knot, units.weights(order), units.group_ptr, units.paired)
    numba_kernels.knots(factor, left, right, *shared, c is not None, sums, work=10 * units.size * x.shape[1])
    return partial.sum(0)


def backward(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *index, need_length, need_table = rest
    units, grad_x = units_of(tuple(index)), torch.zeros(x.shape, dtype=x.dtype)
    shared = (*arrays(x, g, table), units.dst, units.src, units.knot, units.both, units.group_ptr, units.paired, *arrays(grad_x))
    grad_length, partial, work = edge_length.new_empty(0), None, 20 * units.size * x.shape[1]
    if need_length:
        grad_length = torch.empty_like(edge_length, memory_format=torch.contiguous_format)
        numba_kernels.backward_length(*shared, *arrays(grad_length), work=work)
        grad_table = knots(None, x, g, edge_length, *index, table.shape[0], 0) if need_table else table.new_empty(0, 0)
        return grad_x, grad_length, grad_table
    partial = _partial(x, table.shape[0], index[-3])
    numba_kernels.backward_table(*shared, *arrays(partial), work=work)
    return grad_x, grad_length, partial.sum(0)


def double_backward(
    x: Tensor, g: Tensor, tangent: Tensor, rate: Tensor, edge_length: Tensor, table: Tensor, *index: Any
) -> tuple[Tensor, Tensor, Tensor]:
    units = units_of(index)
    grad_x, grad_g, partial = (
        torch.zeros(x.shape, dtype=x.dtype),
        torch.zeros(x.shape, dtype=x.dtype),
        _partial(x, table.shape[0], index[-3]),
    )
    shared = (units.dst, units.src, units.knot, units.both, units.group_ptr, units.paired)
    numba_kernels.double_backward(
        *arrays(x, g, tangent, rate, table), *shared, *arrays(grad_x, grad_g, partial), work=40 * units.size * x.shape[1]
    )
    return grad_x, grad_g, partial.sum(0)


def _partial(x: Tensor, rows: int, group_ptr: Tensor) -> Tensor:
    return x.new_empty(group_ptr.shape[0] - 1, rows, x.shape[1])
