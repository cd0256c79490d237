"""Allocate, hand over arrays, say how much work there is; names as in ``op.py``. A missing tensor becomes an array without rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels
from .op import Pair, Quad, allocate, context_shapes, update_shapes


def context(scalar: Tensor, mixed: Tensor, epsilon: float) -> Tensor:
    """[N, F], [N, 3, C] → [N, 2F]."""
    out = torch.empty(scalar.shape[0], 2 * scalar.shape[1], dtype=scalar.dtype)
    numba_kernels.context(*arrays(scalar, mixed), epsilon, *arrays(out), work=4 * out.numel())
    return out


def context_backward(grad: Tensor, mixed: Tensor, epsilon: float, needs: list[bool]) -> Pair:
    """Gradients by scalar and mixed."""
    by_scalar, by_mixed = allocate(grad, context_shapes(grad, mixed), needs)
    numba_kernels.context_backward(*arrays(grad, mixed), epsilon, *arrays(by_scalar, by_mixed), work=6 * grad.numel())
    return by_scalar, by_mixed


def context_double_backward(
    tangent_scalar: Tensor | None, tangent_mixed: Tensor | None, grad: Tensor, mixed: Tensor, epsilon: float, needs: list[bool]
) -> Pair:
    """Gradients by grad and mixed."""
    by_grad, by_mixed = allocate(grad, (grad.shape, mixed.shape), needs)
    tangent = torch.zeros_like(mixed) if tangent_mixed is None else tangent_mixed
    inputs = arrays(_or_absent(tangent_scalar, grad, 2), tangent, grad, mixed)
    numba_kernels.context_double_backward(*inputs, epsilon, *arrays(by_grad, by_mixed), work=12 * grad.numel())
    return by_grad, by_mixed


def update(gates: Tensor, mixed: Tensor, dot_scale: float, scalar_scale: float) -> Pair:
    """[N, 3F], [N, 3, 2F] → [N, F], [N, 3, F]."""
    scalar, vector = allocate(gates, update_shapes(gates)[:2], (True, True))
    numba_kernels.update(*arrays(gates, mixed), dot_scale, scalar_scale, *arrays(scalar, vector), work=3 * gates.numel())
    return scalar, vector


def update_backward(
    grad_scalar: Tensor | None,
    grad_vector: Tensor | None,
    gates: Tensor,
    mixed: Tensor,
    dot_scale: float,
    scalar_scale: float,
    needs: list[bool],
) -> Pair:
    """Gradients by gates and mixed."""
    by_gates, by_mixed = allocate(gates, update_shapes(gates)[2:], needs)
    inputs = arrays(_or_absent(grad_scalar, gates, 2), _or_absent(grad_vector, gates, 3), gates, mixed)
    numba_kernels.update_backward(*inputs, dot_scale, scalar_scale, *arrays(by_gates, by_mixed), work=6 * gates.numel())
    return by_gates, by_mixed


def update_double_backward(
    tangent_gates: Tensor | None,
    tangent_mixed: Tensor | None,
    grad_scalar: Tensor | None,
    grad_vector: Tensor | None,
    gates: Tensor,
    mixed: Tensor,
    dot_scale: float,
    scalar_scale: float,
    needs: list[bool],
) -> Quad:
    """Gradients by grad_scalar, grad_vector, gates and mixed."""
    by_scalar, by_vector, by_gates, by_mixed = outputs = allocate(gates, update_shapes(gates), needs)
    tangents = (_or_absent(tangent_gates, gates, 2), _or_absent(tangent_mixed, gates, 3))
    inputs = arrays(*tangents, _or_absent(grad_scalar, gates, 2), _or_absent(grad_vector, gates, 3), gates, mixed)
    numba_kernels.update_double_backward(*inputs, dot_scale, scalar_scale, *arrays(*outputs), work=12 * gates.numel())
    return by_scalar, by_vector, by_gates, by_mixed


def _or_absent(tensor: Tensor | None, like: Tensor, dimensions: int) -> Tensor:
    return like.new_empty((0,) * dimensions) if tensor is None else tensor
