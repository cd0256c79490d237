"""Allocate, hand over arrays, say how much work there is. A missing tensor becomes an array without rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cpu import arrays
from ..radial_conv.numba_launch import Units, units_of
from . import numba_kernels

#: Multiply-adds of a unit per feature of the table, for one filter mixed and used.
_MIX = 12


def message(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, table: Tensor, index: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    nodes, width = phi.shape[0], phi.shape[1] // 3
    scalar, out_vector = torch.zeros(nodes, width, dtype=phi.dtype), torch.zeros(nodes, 3, width, dtype=phi.dtype)
    units, inputs = units_of(index), arrays(phi, _or_absent(vector, phi, 3), direction, table)
    numba_kernels.message(*inputs, *_of(units), *arrays(scalar, out_vector), work=_MIX * units.size * phi.shape[1])
    return scalar, out_vector


def backward(
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    index: tuple[Any, ...],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    units = units_of(index)
    by = [_zeros(t, need, phi.dtype) for t, need in zip((phi, vector, edge_length, direction), needs, strict=False)]
    partial = _partial(table, index, needs[4])
    inputs = arrays(grad_scalar, grad_vector, phi, _or_absent(vector, phi, 3), direction, table)
    numba_kernels.backward(*inputs, *_of(units), *arrays(*by, partial), work=2 * _MIX * units.size * phi.shape[1])
    return *by, partial.sum(0) if needs[4] else table.new_empty(0, 0)


def double_backward(
    tangent_phi: Tensor | None,
    tangent_vector: Tensor | None,
    rate: Tensor | None,
    tangent_direction: Tensor | None,
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    index: tuple[Any, ...],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    units = units_of(index)
    # both gradients by cotangents share all that is read; whichever was not asked for is dropped after
    either, primals = needs[0] or needs[1], (grad_scalar, grad_vector, phi, vector, edge_length, direction)
    by = [_zeros(t, need, phi.dtype) for t, need in zip(primals, [either, either, *needs[2:6]], strict=True)]
    partial = _partial(table, index, needs[6])
    curvature = units.weights(2) if needs[4] and rate is not None else units.both[:0]
    tangents = zip((tangent_phi, tangent_vector, rate, tangent_direction), (2, 3, 1, 2), strict=True)
    inputs = (*(_or_absent(t, phi, dimensions) for t, dimensions in tangents), grad_scalar, grad_vector, phi, _or_absent(vector, phi, 3))
    places = (units.dst, units.src, units.knot, units.both, curvature, units.group_ptr, units.paired)
    numba_kernels.double_backward(
        *arrays(*inputs, direction, table), *places, *arrays(*by, partial), work=4 * _MIX * units.size * phi.shape[1]
    )
    by = [out if need else out.new_empty((0,) * out.dim()) for out, need in zip(by, needs, strict=False)]
    return *by, partial.sum(0) if needs[6] else table.new_empty(0, 0)


def _of(units: Units) -> tuple[Any, ...]:
    return units.dst, units.src, units.knot, units.both, units.group_ptr, units.paired


def _or_absent(tensor: Tensor | None, like: Tensor, dimensions: int) -> Tensor:
    return like.new_empty((0,) * dimensions) if tensor is None else tensor


def _zeros(like: Tensor | None, need: bool, dtype: torch.dtype) -> Tensor:
    if like is None:
        return torch.zeros(0, 0, 0, dtype=dtype)
    return torch.zeros(like.shape if need else (0,) * like.dim(), dtype=like.dtype)


def _partial(table: Tensor, index: tuple[Any, ...], need: bool) -> Tensor:
    """One sum of the table's gradient for each group of units."""
    groups = index[-3].shape[0] - 1
    return table.new_empty(groups if need else 0, *table.shape)
