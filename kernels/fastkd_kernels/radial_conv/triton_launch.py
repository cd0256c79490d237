"""Allocate, choose tiles, launch. Nothing here reads a tensor's values, so nothing waits for the device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import tiles
from . import triton_kernels as kernels
from .reference import working_dtype
from .spline import DEGREE, ROWS, pieces


class Index(NamedTuple):
    """The arguments of `INDEX_SCHEMA`, by name."""

    dst: Tensor
    src: Tensor
    in_ptr: Tensor
    in_unit: Tensor
    in_other: Tensor
    out_ptr: Tensor
    out_unit: Tensor
    out_other: Tensor
    knot: Tensor
    fraction: Tensor
    weights: Tensor
    bucket_ptr: Tensor
    bucket_order: Tensor
    group_ptr: Tensor
    paired: bool
    step: float


def conv(c: Tensor | None, x: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *values, order, _ = rest
    index = Index(*values)
    return _conv(c, x, table, index, (index.in_ptr, index.in_unit, index.in_other), order)


def dot(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *values, order = rest
    index = Index(*values)
    x, g, table, (units, width) = x.contiguous(), g.contiguous(), table.contiguous(), (index.dst.shape[0], x.shape[1])
    out = torch.empty(units, dtype=edge_length.dtype, device=x.device)
    if units and width:
        tile = tiles.node_tile(width, table.shape[0], x.element_size())
        weights = order_weights(index, order)
        grid = (triton.cdiv(units, tile["BLOCK_E"]),)
        shared = (index.dst, index.src, index.knot, weights, out, units, width, weights.stride(0))
        kernels.dot_kernel[grid](x, g, table, *shared, PAIRED=index.paired, **tile, num_warps=tiles.NODE_WARPS)
        return out
    return out.zero_()


def knots(c: Tensor | None, x: Tensor, g: Tensor, edge_length: Tensor, *rest: Any) -> Tensor:
    *values, rows, order = rest
    index = Index(*values)
    return _knots(c, x, g, None, rows, index, order_weights(index, order))


def backward(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, need_length, need_table = rest
    index, back = Index(*values), values[5:8]
    grad_table = _knots(None, x, g, None, table.shape[0], index, index.weights) if need_table else table.new_empty(0, 0)
    if not need_length:
        return _conv(None, g, table, index, tuple(back), 0), edge_length.new_empty(0), grad_table
    x, g, table, (nodes, width), units = x.contiguous(), g.contiguous(), table.contiguous(), x.shape, index.dst.shape[0]
    grad_x = torch.empty_like(x)
    if not (nodes and width):
        return grad_x, edge_length.new_zeros(units), grad_table
    tile = tiles.node_tile(width, table.shape[0], x.element_size())
    grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
    partial = torch.empty((grid[1] * (1 + index.paired), units), dtype=working_dtype(x), device=x.device)
    shared = (*back, index.dst, index.knot, index.weights, grad_x, partial, units, width)
    kernels.backward_kernel[grid](x, g, table, *shared, PAIRED=index.paired, **tile, num_warps=tiles.NODE_WARPS)
    return grad_x, partial.sum(0).to(edge_length.dtype), grad_table


def double_backward(
    x: Tensor, g: Tensor, tangent: Tensor, rate: Tensor, edge_length: Tensor, table: Tensor, *values: Any
) -> tuple[Tensor, Tensor, Tensor]:
    index = Index(*values)
    x, g, tangent, rate, table = (tensor.contiguous() for tensor in (x, g, tangent, rate, table))
    grad_table = _knots(rate, x, g, tangent, table.shape[0], index, index.weights)
    grad_g, (nodes, width) = torch.empty_like(x), x.shape
    # the edges that enter a node are those that leave it, if they come in pairs
    both = index.paired
    grad_x = torch.empty_like(x) if both else _conv(rate, g, table, index, (index.out_ptr, index.out_unit, index.out_other), 1)
    if nodes and width:
        tile = tiles.node_tile(width, table.shape[0], x.element_size())
        grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
        shared = (index.in_ptr, index.in_unit, index.in_other, index.knot, index.weights, grad_x, grad_g, width)
        kernels.double_backward_kernel[grid](x, g, tangent, rate, table, *shared, BOTH=both, **tile, num_warps=tiles.NODE_WARPS)
    return grad_x, grad_g, grad_table


def _conv(c: Tensor | None, x: Tensor, table: Tensor, index: Index, edges: tuple[Tensor, ...], order: int) -> Tensor:
    """``edges``: CSR pointers, units and other nodes of the edges to sum over."""
    x, table, (nodes, width) = x.contiguous(), table.contiguous(), x.shape
    out = torch.empty_like(x)
    if nodes and width:
        tile = tiles.node_tile(width, table.shape[0], x.element_size())
        weights = order_weights(index, order)
        grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
        # without factors their pointer is not read
        factor = x if c is None else c.contiguous()
        shared = (*edges, index.knot, weights, out, width, weights.stride(0))
        kernels.conv_kernel[grid](factor, x, table, *shared, SCALED=c is not None, **tile, num_warps=tiles.NODE_WARPS)
    return out


def _knots(c: Tensor | None, x: Tensor, g: Tensor, v: Tensor | None, rows: int, index: Index, weights: Tensor) -> Tensor:
    """With ``v`` also the product of v and g, weighed by the value, and that of x and g by ``c`` times the slope."""
    x, g, width, intervals = x.contiguous(), g.contiguous(), x.shape[1], rows - DEGREE
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if out.numel():
        tile, number = tiles.bucket_tile(width), tiles.pieces(index.dst.shape[0], intervals)
        columns = triton.cdiv(width, tile["BLOCK_F"])
        partial = torch.empty((intervals, number, ROWS, width), dtype=working_dtype(x), device=x.device)
        # what a flag turns off is not read
        factor, other = x if c is None else c.contiguous(), x if v is None else v.contiguous()
        shared = (index.dst, index.src, weights, index.bucket_ptr, index.bucket_order, partial, width, weights.stride(0), number)
        flags = {"SCALED": c is not None, "BOTH": v is not None, "PAIRED": index.paired}
        kernels.knots_kernel[(intervals * number, columns)](factor, x, g, other, *shared, **flags, **tile, num_warps=tiles.BUCKET_WARPS)
        kernels.rows_kernel[(rows, columns)](partial, out, intervals, number, width, BLOCK_F=tile["BLOCK_F"], num_warps=1)
    return out


def order_weights(index: Index, order: int) -> Tensor:
    """What the rows weigh in the derivative of this order: [U, 8], rows of 16 for the first two."""
    if order < 2:
        return index.weights[:, ROWS * order : ROWS * (order + 1)]
    units, fraction = index.knot.shape[0], index.fraction
    out = torch.empty((units, ROWS), dtype=fraction.dtype, device=fraction.device)
    if units:
        polynomials = _polynomials(order, index.step, fraction.dtype, fraction.device)
        grid = (triton.cdiv(units, tiles.WEIGHTS_BLOCK),)
        kernels.weights_kernel[grid](index.knot, fraction, polynomials, out, units, BLOCK_E=tiles.WEIGHTS_BLOCK)
    return out


@lru_cache(maxsize=64)
def _polynomials(order: int, step: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(pieces(order), dtype=torch.float64).mul_(step**-order).to(device=device, dtype=dtype)
