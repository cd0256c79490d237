"""Allocate, choose tiles, launch. Nothing here reads a tensor's values, so nothing waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..needed import allocate
from ..radial_conv import tiles
from ..radial_conv.reference import working_dtype
from ..radial_conv.spline import DEGREE, ROWS
from ..radial_conv.triton_kernels import rows_kernel
from ..radial_conv.triton_launch import Index, order_weights
from . import triton_kernels as kernels
from .tiles import GRADIENT_TILE, node_tile
from .triton_knots import knots_kernel


def message(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, table: Tensor, values: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    index, nodes, width = Index(*values), phi.shape[0], phi.shape[1] // 3
    scalar, out_vector = phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)
    if nodes and width:
        inputs = _given(phi, vector, direction, table)
        tile = node_tile(width, table.shape[0], phi.element_size())
        shared = (index.in_ptr, index.in_unit, index.in_other, index.dst, index.knot, index.weights, scalar, out_vector, width)
        flags = {"HAS_VECTOR": vector is not None, "PAIRED": index.paired}
        kernels.message_kernel[(nodes, triton.cdiv(width, tile["BLOCK_F"]))](*inputs, *shared, **flags, **tile, num_warps=tiles.NODE_WARPS)
    return scalar, out_vector


def backward(
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    values: tuple[Any, ...],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    index, nodes, width = Index(*values), phi.shape[0], phi.shape[1] // 3
    out = list(allocate((phi, vector, edge_length, direction, table), needs, phi))
    if not (nodes and width):
        return tuple(tensor.zero_() for tensor in out)
    need_phi, need_vector, need_length, need_direction, need_table = needs
    need_vector = need_vector and vector is not None
    inputs = _given(grad_scalar, grad_vector, phi, vector, direction, table)
    if need_phi or need_vector or need_length or need_direction:
        wanted = {"PHI": need_phi, "VECTOR": need_vector, "LENGTH": need_length, "DIRECTION": need_direction}
        by_length, by_direction = _walk_back(inputs, index, index.weights, out[0], out[1], wanted, has_vector=vector is not None)
        if need_length:
            out[2] = by_length.to(edge_length.dtype)
        if need_direction:
            out[3] = by_direction.to(direction.dtype)
    if need_table:
        out[4] = _knots((None, None, None, None), (grad_scalar, grad_vector, phi, vector, direction), table, index, tangent=False)
    return tuple(out)


def _walk_back(
    inputs: list[Tensor],
    index: Index,
    weights: Tensor,
    by_phi: Tensor,
    by_vector: Tensor,
    wanted: dict[str, bool],
    *,
    has_vector: bool,
) -> tuple[Tensor, Tensor]:
    """Over the edges that leave each node. Gradients by phi and vector are written, those by length [U] and direction [U, 3] returned.

    ``weights`` [U, 16] mix the filter first and its slope last.
    """
    phi, table, units = inputs[2], inputs[5], index.dst.shape[0]
    nodes, width = phi.shape[0], phi.shape[1] // 3
    tile = node_tile(width, table.shape[0], phi.element_size(), GRADIENT_TILE)
    grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
    sums = grid[1] * (1 + index.paired)
    shape = (sums, units, 4) if wanted["LENGTH"] or wanted["DIRECTION"] else (0, 0, 4)
    partial = torch.empty(shape, dtype=working_dtype(phi), device=phi.device)
    shared = (index.out_ptr, index.out_unit, index.out_other, index.dst, index.knot, weights, by_phi, by_vector, partial, units, width)
    flags = {"HAS_VECTOR": has_vector, "PAIRED": index.paired, **{f"NEEDS_{name}": need for name, need in wanted.items()}}
    kernels.backward_kernel[grid](*inputs, *shared, **flags, **tile, num_warps=tiles.NODE_WARPS)
    return partial[:, :, 0].sum(0), partial[:, :, 1:].sum(0)


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
    values: tuple[Any, ...],
    needs: list[bool],
) -> tuple[Tensor, ...]:
    index, nodes, width = Index(*values), phi.shape[0], phi.shape[1] // 3
    # the two gradients of a walk share all that is read; whichever was not asked for is dropped after
    into, out_of = needs[0] or needs[1], needs[2] or needs[3]
    made = [into, into, out_of, out_of, *needs[4:]]
    out = list(allocate((grad_scalar, grad_vector, phi, vector, edge_length, direction, table), made, phi))
    if not (nodes and width):
        return _asked([tensor.zero_() for tensor in out], needs)
    tangents = (tangent_phi, None if vector is None else tangent_vector, rate, tangent_direction)
    inputs = _given(*tangents, grad_scalar, grad_vector, phi, vector, direction, table, like=phi)
    tile = node_tile(width, table.shape[0], phi.element_size(), GRADIENT_TILE)
    grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
    flags = _flags(tangents) | {"HAS_VECTOR": vector is not None, "PAIRED": index.paired}
    ins, outs = (index.in_ptr, index.in_unit, index.in_other), (index.out_ptr, index.out_unit, index.out_other)
    # the edges that enter a node are those that leave it, if they come in pairs
    walks = [(ins, into, out_of)] if index.paired else [(ins, into, False), (outs, False, out_of)]
    for edges, one, other in walks:
        if one or other:
            shared = (*edges, index.dst, index.knot, index.weights, *out[:4], width)
            kernels.double_backward_kernel[grid](*inputs, *shared, **flags, INTO=one, OUT_OF=other, **tile, num_warps=tiles.NODE_WARPS)
    primals = (grad_scalar, grad_vector, phi, vector, direction)
    if needs[4] or needs[5]:
        by_length, by_direction = _places(tangents, primals, table, index, out, needs[4], needs[5])
        out[4] = by_length.to(edge_length.dtype) if needs[4] else out[4]
        out[5] = by_direction.to(direction.dtype) if needs[5] else out[5]
    if needs[6]:
        out[6] = _knots(tangents, primals, table, index, tangent=True)
    return _asked(out, needs)


def _places(
    tangents: tuple[Tensor | None, ...],
    primals: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor],
    table: Tensor,
    index: Index,
    out: list[Tensor],
    need_length: bool,
    need_direction: bool,
) -> tuple[Tensor, Tensor]:
    """Second derivatives by lengths and directions: the first ones with each factor replaced by its tangent in turn.

    Nobody who trains on forces asks for them (`places_once`), so that they are three passes of a kernel that is there.
    """
    (t_phi, t_vector, rate, t_direction), (grad_scalar, grad_vector, phi, vector, direction) = tangents, primals
    wanted = {"PHI": False, "VECTOR": False, "LENGTH": need_length, "DIRECTION": need_direction}
    units, dtype = index.dst.shape[0], working_dtype(phi)
    by_length, by_direction = (torch.zeros(shape, dtype=dtype, device=phi.device) for shape in ((units,), (units, 3)))
    if t_phi is not None:
        inputs = _given(grad_scalar, grad_vector, t_phi, vector, direction, table)
        length, turned = _walk_back(inputs, index, index.weights, out[2], out[3], wanted, has_vector=vector is not None)
        by_length, by_direction = by_length + length, by_direction + turned
    if need_length and (t_vector is not None or t_direction is not None):
        still = torch.zeros_like(direction) if t_direction is None else t_direction
        inputs = _given(torch.zeros_like(grad_scalar), grad_vector, phi, t_vector, still, table)
        alone = wanted | {"DIRECTION": False}
        by_length = by_length + _walk_back(inputs, index, index.weights, out[2], out[3], alone, has_vector=t_vector is not None)[0]
    if rate is not None:
        inputs = _given(grad_scalar, grad_vector, phi, vector, direction, table)
        # the filter's slope in place of the filter, and its curvature in place of the slope
        steeper = torch.cat([order_weights(index, 1)[:, :ROWS], order_weights(index, 2)[:, :ROWS]], 1)
        length, turned = _walk_back(inputs, index, steeper, out[2], out[3], wanted, has_vector=vector is not None)
        by_length, by_direction = by_length + rate * length, by_direction + rate.unsqueeze(1) * turned
    return by_length, by_direction


def _knots(
    tangents: tuple[Tensor | None, ...], primals: tuple[Tensor | None, ...], table: Tensor, index: Index, *, tangent: bool
) -> Tensor:
    """The gradient of the table, [rows, 3F]."""
    rows, width, has_vector = table.shape[0], table.shape[1] // 3, primals[3] is not None
    intervals, number, tile = rows - DEGREE, tiles.pieces(index.dst.shape[0], rows - DEGREE), tiles.bucket_tile(width)
    # the last block stays zero without vectors
    make = torch.empty if has_vector else torch.zeros
    partial = make((intervals, number, ROWS, 3 * width), dtype=working_dtype(table), device=table.device)
    inputs = _given(*tangents, *primals, like=table)
    shared = (index.dst, index.src, index.weights, index.bucket_ptr, index.bucket_order, partial, width, number)
    flags = _flags(tangents) | {"TANGENT": tangent, "PAIRED": index.paired}
    for which in range(3 if has_vector else 2):
        grid = (intervals * number, triton.cdiv(width, tile["BLOCK_F"]))
        knots_kernel[grid](*inputs, *shared, WHICH=which, **flags, **tile, num_warps=tiles.BUCKET_WARPS)
    out, block = torch.empty(table.shape, dtype=table.dtype, device=table.device), tile["BLOCK_F"]
    rows_kernel[(rows, triton.cdiv(3 * width, block))](partial, out, intervals, number, 3 * width, BLOCK_F=block, num_warps=1)
    return out


def _flags(tangents: tuple[Tensor | None, ...]) -> dict[str, bool]:
    return {
        name: tangent is not None
        for name, tangent in zip(("HAS_T_PHI", "HAS_T_VECTOR", "HAS_RATE", "HAS_T_DIRECTION"), tangents, strict=True)
    }


def _given(*tensors: Tensor | None, like: Tensor | None = None) -> list[Tensor]:
    """Contiguous; another tensor stands in for what is missing, and is not read."""
    stand_in = next(tensor for tensor in tensors if tensor is not None) if like is None else like
    return [stand_in if tensor is None else tensor.contiguous() for tensor in tensors]


def _asked(out: list[Tensor], needs: list[bool]) -> tuple[Tensor, ...]:
    return tuple(tensor if need else tensor.new_empty((0,) * tensor.dim()) for tensor, need in zip(out, needs, strict=True))
