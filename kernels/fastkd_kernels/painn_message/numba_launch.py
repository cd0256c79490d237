"""Allocate, hand over arrays, say how much work there is. A missing tensor becomes an array without rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels
from .op import allocate


def message(
    phi: Tensor,
    vector: Tensor | None,
    weight: Tensor,
    direction: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    src_ptr: Tensor,
    src_order: Tensor,
) -> tuple[Tensor, Tensor]:
    nodes, width = phi.shape[0], phi.shape[1] // 3
    scalar, out_vector = torch.empty(nodes, width, dtype=phi.dtype), torch.empty(nodes, 3, width, dtype=phi.dtype)
    inputs = arrays(phi, _or_absent(vector, phi, 3), weight, direction, edge_src, edge_ptr, edge_order, scalar, out_vector)
    numba_kernels.message(*inputs, work=3 * weight.numel())
    return scalar, out_vector


def message_backward(
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    weight: Tensor,
    direction: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    src_ptr: Tensor,
    src_order: Tensor,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    outputs = allocate(phi, (phi, vector, weight, direction), needs)
    inputs = (grad_scalar, grad_vector, phi, _or_absent(vector, phi, 3), weight, direction, edge_dst, src_ptr, src_order)
    numba_kernels.backward(*arrays(*inputs, *outputs), work=6 * weight.numel())
    return outputs


def message_double_backward(
    tangent_phi: Tensor | None,
    tangent_vector: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_direction: Tensor | None,
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    weight: Tensor,
    direction: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    src_ptr: Tensor,
    src_order: Tensor,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    outputs = allocate(phi, (grad_scalar, grad_vector, phi, vector, weight, direction), needs)
    tangents = arrays(
        _or_absent(tangent_phi, phi, 2),
        _or_absent(tangent_vector, phi, 3),
        _or_absent(tangent_weight, phi, 2),
        _or_absent(tangent_direction, phi, 2),
    )
    inputs = arrays(phi, _or_absent(vector, phi, 3), weight, direction)
    by_destination, work = outputs[:2], 6 * weight.numel()
    if any(needs[:2]):
        # both sums share all that is read; whichever was not asked for is written to memory of its own
        sums = [
            out if need else torch.empty_like(g) for out, need, g in zip(by_destination, needs[:2], (grad_scalar, grad_vector), strict=True)
        ]
        numba_kernels.tangent(*tangents, *inputs, *arrays(edge_src, edge_ptr, edge_order, *sums), work=work)
    if any(needs[2:]):
        grads = arrays(grad_scalar, grad_vector)
        numba_kernels.double_backward(*tangents, *grads, *inputs, *arrays(edge_dst, src_ptr, src_order, *outputs[2:]), work=work)
    return outputs


def _or_absent(tensor: Tensor | None, like: Tensor, dimensions: int) -> Tensor:
    return like.new_empty((0,) * dimensions) if tensor is None else tensor
