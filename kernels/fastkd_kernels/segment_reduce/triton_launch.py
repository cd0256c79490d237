"""Launches of the Triton kernels: tiles by width, pieces by length, nothing that depends on values or waits for the GPU."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .tiles import FLAT_TILE, piece_length, piece_tile, row_tile, segment_tile


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _width(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:])


def _order(order: Tensor | None, ptr: Tensor) -> Tensor:
    # never read where there is no order
    return ptr if order is None else order.contiguous()


def segment_sum(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, mean: bool) -> Tensor:
    """[n, …] → [m, …]."""
    values, ptr = values.contiguous(), ptr.contiguous()
    rows, segments, width = values.shape[0], ptr.shape[0] - 1, _width(values)
    out = torch.empty((segments, *values.shape[1:]), dtype=values.dtype, device=values.device)
    if not out.numel():
        return out
    rising, piece = _order(order, ptr), piece_length(rows)
    # a segment covers a whole piece only if there are as many positions
    count = rows // piece
    pieces = torch.empty((count, width), dtype=accumulator(values.dtype), device=values.device) if count else values
    flags = {"ORDERED": order is not None}
    if count:
        tile = piece_tile(width)
        grid = (count, triton.cdiv(width, tile["BLOCK_F"]))
        steps = segments.bit_length()
        kernels.segment_sum_pieces_kernel[grid](values, ptr, rising, pieces, segments, steps, width, piece, **flags, **tile)
    tile = segment_tile(width)
    grid = (segments, triton.cdiv(width, tile["BLOCK_F"]))
    kernels.segment_sum_kernel[grid](values, ptr, rising, pieces, out, width, piece, MEAN=mean, SPLIT=count > 0, **flags, **tile)
    return out


def segment_gather(rows: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, n: int, mean: bool) -> Tensor:
    """[m, …] → [n, …]."""
    rows, ptr = rows.contiguous(), ptr.contiguous()
    segments, width = rows.shape[0], _width(rows)
    out = torch.empty((n, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    if out.numel() and segments:
        tile = row_tile(width)
        grid = (triton.cdiv(n, tile["BLOCK_E"]), triton.cdiv(width, tile["BLOCK_F"]))
        flags = {"INDEXED": index is not None, "MEAN": mean}
        segment = ptr if index is None else index.contiguous()
        kernels.segment_gather_kernel[grid](rows, ptr, segment, out, n, segments, segments.bit_length(), width, **flags, **tile)
    return out


def segment_extremum(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    """[n, …] → [m, …] twice: values and their rows."""
    values, ptr = values.contiguous(), ptr.contiguous()
    rows, segments, width = values.shape[0], ptr.shape[0] - 1, _width(values)
    out = torch.empty((segments, *values.shape[1:]), dtype=values.dtype, device=values.device)
    arg = torch.empty(out.shape, dtype=torch.int64, device=values.device)
    if not out.numel():
        return out, arg
    rising, piece = _order(order, ptr), piece_length(rows)
    count = rows // piece
    pieces, piece_arg = values, arg
    if count:
        pieces = torch.empty((count, width), dtype=accumulator(values.dtype), device=values.device)
        piece_arg = torch.empty((count, width), dtype=torch.int64, device=values.device)
    flags = {"SIGN": 1 if largest else -1, "ORDERED": order is not None}
    if count:
        tile = piece_tile(width)
        grid = (count, triton.cdiv(width, tile["BLOCK_F"]))
        steps = segments.bit_length()
        kernels.segment_extremum_pieces_kernel[grid](values, ptr, rising, pieces, piece_arg, segments, steps, width, piece, **flags, **tile)
    tile = segment_tile(width)
    grid = (segments, triton.cdiv(width, tile["BLOCK_F"]))
    kernels.segment_extremum_kernel[grid](values, ptr, rising, pieces, piece_arg, out, arg, width, piece, SPLIT=count > 0, **flags, **tile)
    return out, arg


def arg_gather(values: Tensor, arg: Tensor) -> Tensor:
    """[n, …], [m, …] → [m, …]."""
    values, arg = values.contiguous(), arg.contiguous()
    out = torch.empty(arg.shape, dtype=values.dtype, device=values.device)
    if out.numel():
        grid = (triton.cdiv(out.numel(), FLAT_TILE),)
        kernels.arg_gather_kernel[grid](values, arg, out, out.numel(), _width(values), BLOCK=FLAT_TILE)
    return out


def arg_scatter(grad: Tensor, arg: Tensor, n: int) -> Tensor:
    """[m, …], [m, …] → [n, …]."""
    grad, arg = grad.contiguous(), arg.contiguous()
    out = torch.zeros((n, *grad.shape[1:]), dtype=grad.dtype, device=grad.device)
    if out.numel() and grad.numel():
        grid = (triton.cdiv(grad.numel(), FLAT_TILE),)
        kernels.arg_scatter_kernel[grid](grad, arg, out, grad.numel(), _width(grad), BLOCK=FLAT_TILE)
    return out
