"""Launches of the Triton kernels: tiles by width, pieces by length, nothing that depends on values or waits for the GPU."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..segment_reduce.tiles import piece_length
from . import triton_kernels as kernels
from .tiles import piece_tile, segment_tile


def softmax(x: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    """[n, …] → [n, …]."""
    return _launch(1 if log else 0, (x,), ptr, order, 1)[0]


def softmax_backward(y: Tensor, g: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    """[n, …], [n, …] → [n, …]."""
    return _launch(3 if log else 2, (y, g), ptr, order, 1)[0]


def softmax_double_backward(
    y: Tensor, g: Tensor, h: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[n, …] three times → [n, …] twice."""
    by_y, by_g = _launch(4, (y, g, h), ptr, order, 2)
    return by_y, by_g


def _launch(mode: int, tensors: tuple[Tensor, ...], ptr: Tensor, order: Tensor | None, count: int) -> list[Tensor]:
    ptr = ptr.contiguous()
    inputs = [tensor.contiguous() for tensor in tensors]
    like = inputs[0]
    rows, segments, width = like.shape[0], ptr.shape[0] - 1, math.prod(like.shape[1:])
    outputs = [torch.empty(like.shape, dtype=like.dtype, device=like.device) for _ in range(count)]
    if not like.numel() or not segments:
        return outputs
    # what a mode does not read or write is not there
    arguments = [*inputs, *[like] * (3 - len(inputs)), ptr, ptr if order is None else order.contiguous()]
    targets = outputs * 2 if count == 1 else outputs
    piece = piece_length(rows)
    # a segment covers a whole piece only if there are as many positions
    pieces = rows // piece
    sums = [torch.empty((pieces, width), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device) for _ in range(2)]
    flags = {"MODE": mode, "ORDERED": order is not None}
    tile, steps = piece_tile(width), segments.bit_length()
    grid = (pieces, triton.cdiv(width, tile["BLOCK_F"]))
    if pieces:
        kernels.piece_sums_kernel[grid](*arguments, *sums, segments, steps, width, piece, **flags, **tile)
    one = segment_tile(width)
    kernels.segment_kernel[(segments, triton.cdiv(width, one["BLOCK_F"]))](
        *arguments, *sums, *targets, width, piece, SPLIT=pieces > 0, **flags, **one
    )
    if pieces:
        kernels.piece_rows_kernel[grid](*arguments, *sums, *targets, segments, steps, width, piece, **flags, **tile)
    return outputs
