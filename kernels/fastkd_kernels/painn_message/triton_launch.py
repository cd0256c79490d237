"""Allocate, choose tiles, launch. Nothing here reads a tensor's values, so nothing waits for the device.

Kernels know from constants which tensors are there; the pointer of one that is not is that of another tensor and is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels
from .op import allocate

#: Elements of a tile of [edges, features]: small, because up to fifteen such tiles live in registers at once.
TILE = 512
NUM_WARPS = 4


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
    scalar, out_vector = phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)
    if scalar.numel():
        inputs = _contiguous((phi, vector, weight, direction), phi)
        triton_kernels.message_kernel[_grid(nodes, width)](
            *inputs,
            edge_src,
            edge_ptr,
            edge_order,
            scalar,
            out_vector,
            width,
            HAS_VECTOR=vector is not None,
            **tile_of(width),
            num_warps=NUM_WARPS,
        )
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
    nodes, width, edges = phi.shape[0], phi.shape[1] // 3, edge_src.shape[0]
    needs = [need and tensor is not None for need, tensor in zip(needs, (phi, vector, weight, direction), strict=True)]
    by_phi, by_vector, by_weight, by_direction = allocate(phi, (phi, vector, weight, direction), needs)
    if grad_scalar.numel():
        partial = _partial(by_direction, width, needs[3])
        triton_kernels.backward_kernel[_grid(nodes, width)](
            *_contiguous((grad_scalar, grad_vector, phi, vector, weight, direction), phi),
            edge_dst,
            src_ptr,
            src_order,
            *(by_phi, by_vector, by_weight, partial),
            edges,
            width,
            HAS_VECTOR=vector is not None,
            **_flags(needs),
            **tile_of(width),
            num_warps=NUM_WARPS,
        )
        by_direction = _total(partial, by_direction)
    elif needs[3]:
        by_direction = torch.zeros_like(direction)
    return by_phi, by_vector, by_weight, by_direction


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
    nodes, width, edges = phi.shape[0], phi.shape[1] // 3, edge_src.shape[0]
    primals = (grad_scalar, grad_vector, phi, vector, weight, direction)
    needs = [need and tensor is not None for need, tensor in zip(needs, primals, strict=True)]
    by_scalar, by_grad, by_phi, by_vector, by_weight, by_direction = allocate(phi, primals, needs)
    if not grad_scalar.numel():
        return by_scalar, by_grad, by_phi, by_vector, by_weight, torch.zeros_like(direction) if needs[5] else by_direction
    tangents = (tangent_phi, tangent_vector, tangent_weight, tangent_direction)
    given = _contiguous(tangents, phi)
    present: dict[str, Any] = {
        "HAS_VECTOR": vector is not None,
        **{f"HAS_T_{name}": t is not None for name, t in zip(("PHI", "VECTOR", "WEIGHT", "DIRECTION"), tangents, strict=True)},
        **tile_of(width),
        "num_warps": NUM_WARPS,
    }
    grads, inputs = _contiguous(primals[:2], phi), _contiguous(primals[2:], phi)
    if needs[0] or needs[1]:
        # both sums share all that is read; whichever was not asked for is written to memory of its own
        sums = (by_scalar if needs[0] else torch.empty_like(grads[0]), by_grad if needs[1] else torch.empty_like(grads[1]))
        triton_kernels.tangent_kernel[_grid(nodes, width)](*given, *inputs, edge_src, edge_ptr, edge_order, *sums, width, **present)
    if any(needs[2:]):
        partial = _partial(by_direction, width, needs[5])
        outputs = (by_phi, by_vector, by_weight, partial)
        triton_kernels.double_backward_kernel[_grid(nodes, width)](
            *given, *grads, *inputs, edge_dst, src_ptr, src_order, *outputs, edges, width, **_flags(needs[2:]), **present
        )
        by_direction = _total(partial, by_direction)
    return by_scalar, by_grad, by_phi, by_vector, by_weight, by_direction


def tile_of(width: int) -> dict[str, int]:
    """Tile of edges and features for a width."""
    block_f = _block_f(width)
    return {"BLOCK_E": min(16, TILE // block_f), "BLOCK_F": block_f}


def _block_f(width: int) -> int:
    return int(min(128, triton.next_power_of_2(width)))


def _grid(nodes: int, width: int) -> tuple[int, int]:
    return nodes, triton.cdiv(width, _block_f(width))


def _contiguous(tensors: Sequence[Tensor | None], stand_in: Tensor) -> list[Tensor]:
    return [stand_in if tensor is None else tensor.contiguous() for tensor in tensors]


def _flags(needs: list[bool]) -> dict[str, bool]:
    return {f"NEEDS_{name}": need for name, need in zip(("PHI", "VECTOR", "WEIGHT", "DIRECTION"), needs, strict=True)}


def _partial(by_direction: Tensor, width: int, need: bool) -> Tensor:
    """Where each tile of features writes its share of the gradient by direction, [tiles, E, 3]; the output itself if there is one tile."""
    tiles = _grid(1, width)[1]
    if tiles == 1 or not need:
        return by_direction
    dtype = torch.float64 if by_direction.dtype == torch.float64 else torch.float32
    return torch.empty(tiles, *by_direction.shape, dtype=dtype, device=by_direction.device)


def _total(partial: Tensor, by_direction: Tensor) -> Tensor:
    return by_direction if partial is by_direction else partial.sum(0).to(by_direction.dtype)
