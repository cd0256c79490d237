"""Allocate, choose tiles, launch; names as in ``op.py``. Nothing here depends on values or waits for the GPU.

Kernels know from constants which tensors are there; the pointer of one that is not is that of another tensor and is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .op import Pair, Quad, allocate, context_shapes, update_shapes
from .tiles import tile


def context(scalar: Tensor, mixed: Tensor, epsilon: float) -> Tensor:
    """[N, F], [N, 3, C] → [N, 2F]."""
    nodes, width = scalar.shape
    out = scalar.new_empty(nodes, 2 * width)
    _launch(kernels.context_kernel, (scalar, mixed, out), nodes, width, mixed.shape[2], EPSILON=epsilon)
    return out


def context_backward(grad: Tensor, mixed: Tensor, epsilon: float, needs: list[bool]) -> Pair:
    """Gradients by scalar and mixed."""
    nodes, width = grad.shape[0], grad.shape[1] // 2
    by_scalar, by_mixed = allocate(grad, context_shapes(grad, mixed), needs)
    flags = _flags("NEEDS", ("SCALAR", "MIXED"), needs)
    tensors = (grad, mixed, by_scalar, by_mixed)
    _launch(kernels.context_backward_kernel, tensors, nodes, width, mixed.shape[2], EPSILON=epsilon, **flags)
    return by_scalar, by_mixed


def context_double_backward(
    tangent_scalar: Tensor | None, tangent_mixed: Tensor | None, grad: Tensor, mixed: Tensor, epsilon: float, needs: list[bool]
) -> Pair:
    """Gradients by grad and mixed."""
    by_grad, by_mixed = allocate(grad, (grad.shape, mixed.shape), needs)
    tangents = (tangent_scalar, tangent_mixed)
    flags = _present(("T_SCALAR", "T_MIXED"), tangents) | _flags("NEEDS", ("GRAD", "MIXED"), needs)
    tensors = (*tangents, grad, mixed, by_grad, by_mixed)
    nodes, width = grad.shape[0], grad.shape[1] // 2
    _launch(kernels.context_double_backward_kernel, tensors, nodes, width, mixed.shape[2], EPSILON=epsilon, **flags)
    return by_grad, by_mixed


def update(gates: Tensor, mixed: Tensor, dot_scale: float, scalar_scale: float) -> Pair:
    """[N, 3F], [N, 3, 2F] → [N, F], [N, 3, F]."""
    scalar, vector = allocate(gates, update_shapes(gates)[:2], (True, True))
    _launch(kernels.update_kernel, (gates, mixed, scalar, vector), *scalar.shape, **_scales(dot_scale, scalar_scale))
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
    grads = (grad_scalar, grad_vector)
    flags = _present(("SCALAR", "VECTOR"), grads) | _flags("NEEDS", ("GATES", "MIXED"), needs) | _scales(dot_scale, scalar_scale)
    tensors = (*grads, gates, mixed, by_gates, by_mixed)
    _launch(kernels.update_backward_kernel, tensors, gates.shape[0], gates.shape[1] // 3, **flags)
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
    by_scalar, by_vector, by_gates, by_mixed = allocate(gates, update_shapes(gates), needs)
    given = (tangent_gates, tangent_mixed, grad_scalar, grad_vector)
    flags = _present(("T_GATES", "T_MIXED", "SCALAR", "VECTOR"), given) | _scales(dot_scale, scalar_scale)
    flags |= _flags("NEEDS", ("SCALAR", "VECTOR", "GATES", "MIXED"), needs)
    tensors = (*given, gates, mixed, by_scalar, by_vector, by_gates, by_mixed)
    _launch(kernels.update_double_backward_kernel, tensors, gates.shape[0], gates.shape[1] // 3, **flags)
    return by_scalar, by_vector, by_gates, by_mixed


def _launch(kernel: Any, tensors: Sequence[Tensor | None], nodes: int, width: int, *sizes: int, **constants: Any) -> None:
    stand_in = next(tensor for tensor in tensors if tensor is not None)
    if not nodes or not width:
        return
    shape = tile(width, double=stand_in.dtype == torch.float64)
    grid = (triton.cdiv(nodes, shape["BLOCK_N"]), triton.cdiv(width, shape["BLOCK_F"]))
    # outputs are contiguous already
    pointers = [stand_in if tensor is None else tensor.contiguous() for tensor in tensors]
    kernel[grid](*pointers, nodes, width, *sizes, **constants, **shape)


def _flags(group: str, names: Sequence[str], values: Sequence[bool]) -> dict[str, Any]:
    return {f"{group}_{name}": value for name, value in zip(names, values, strict=True)}


def _present(names: Sequence[str], tensors: Sequence[Tensor | None]) -> dict[str, Any]:
    return _flags("HAS", names, [tensor is not None for tensor in tensors])


def _scales(dot_scale: float, scalar_scale: float) -> dict[str, Any]:
    return {"DOT_FACTOR": dot_scale * scalar_scale, "SCALAR_SCALE": scalar_scale}
