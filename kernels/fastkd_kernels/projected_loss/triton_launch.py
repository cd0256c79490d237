"""Launches the Triton kernels: grids, tiles, and the fixed-order sum of per-program parts."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .kinds import KINDS, accumulator

#: The weight's gradient is made in parts of so many rows or more: a part sums its rows in order, and torch the parts in order.
ROWS_PER_PART = 256
#: Ceiling on programs, a few per multiprocessor, which bounds the scratch by 8 MB of float32 whatever N is.
MAX_PROGRAMS = 512
#: Tiles of rows, projected channels, input channels and output channels. A float32 product in `ieee` precision runs on the ordinary
#: units, whose operands fill registers: with these tiles and warps they fit on sm_80, sm_90, sm_100 and gfx942.
TILES = {"BLOCK_N": 32, "BLOCK_D": 32, "BLOCK_C": 16, "num_warps": 8}
TILES_FLOAT64 = {"BLOCK_N": 16, "BLOCK_D": 32, "BLOCK_C": 16, "num_warps": 4}
MOST_OUT, MOST_OUT_FLOAT64 = 128, 32
#: The second derivative holds a residual and its tangent at once.
TILES_TWICE = {"BLOCK_N": 16, "BLOCK_D": 32, "BLOCK_C": 32, "num_warps": 8}
TILES_TWICE_FLOAT64 = TILES_TWICE | {"BLOCK_C": 16}
MOST_OUT_TWICE, MOST_OUT_TWICE_FLOAT64 = 64, 32


def rows(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str) -> Tensor:
    """ℓ [N], see `reference.row_losses`."""
    operands, sizes, options = _prepare(x, weight, bias, target, kind)
    losses = x.new_empty(x.shape[0], dtype=accumulator(x))
    if x.shape[0]:
        grid = (triton.cdiv(x.shape[0], options["BLOCK_N"]),)
        kernels.projected_rows_fwd_kernel[grid](*operands, losses, *sizes, **options)
    return losses


def rows_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i, see `reference.row_gradients`; what is not needed is empty."""
    need_x, need_weight, need_bias, need_target = needs
    operands, sizes, options = _prepare(x, weight, bias, target, kind)
    operands = (*operands, upstream.contiguous())
    (count, channels, width), block_n, block_out = sizes, options["BLOCK_N"], _out_tile(x)
    grad_x, grad_target = x.new_empty(x.shape if need_x else (0,)), x.new_empty(target.shape if need_target else (0,))
    if grad_x.numel():
        grid = (triton.cdiv(count, block_n), triton.cdiv(channels, block_out))
        kernels.projected_rows_bwd_input_kernel[grid](*operands, grad_x, *sizes, BLOCK_OUT=block_out, **options)
    if grad_target.numel():
        grid = (triton.cdiv(count, block_n), triton.cdiv(width, options["BLOCK_D"]))
        kernels.projected_rows_bwd_target_kernel[grid](*operands, grad_target, *sizes, **options)
    grad_weight, grad_bias = x.new_empty(0), x.new_empty(0)
    if need_weight or need_bias:
        grad_weight, grad_bias = _weight_gradients(kernels.projected_rows_bwd_weight_kernel, operands, sizes, block_out, options)
    return grad_x, grad_weight if need_weight else x.new_empty(0), grad_bias if need_bias else x.new_empty(0), grad_target


def rows_second(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    upstream: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dtarget: Tensor | None,
    kind: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gradients, see `reference.row_second_gradients`; what is not needed is empty."""
    need_x, need_weight, need_bias, need_target, need_upstream = needs
    operands, sizes, options = _prepare(x, weight, bias, target, kind)
    tangents = {"HAS_DX": dx, "HAS_DWEIGHT": dweight, "HAS_DBIAS": dbias, "HAS_DTARGET": dtarget}
    options |= TILES_TWICE_FLOAT64 if x.dtype == torch.float64 else TILES_TWICE
    options |= {flag: tangent is not None for flag, tangent in tangents.items()}
    # what a flag turns off is not read
    operands = (*operands, upstream.contiguous(), *(x if tangent is None else tangent.contiguous() for tangent in tangents.values()))
    (count, channels, width), block_n, block_out = sizes, options["BLOCK_N"], _out_tile(x, twice=True)
    grad_x, grad_target = x.new_empty(x.shape if need_x else (0,)), x.new_empty(target.shape if need_target else (0,))
    slopes = x.new_empty(count, dtype=accumulator(x))
    if count and (need_x or need_upstream):
        # at least one tile of channels, because the first one writes the slopes
        grid = (triton.cdiv(count, block_n), max(1, triton.cdiv(channels, block_out)) if need_x else 1)
        kernels.projected_rows_bwd2_input_kernel[grid](*operands, grad_x, slopes, *sizes, NEED_X=need_x, BLOCK_OUT=block_out, **options)
    if grad_target.numel():
        grid = (triton.cdiv(count, block_n), triton.cdiv(width, options["BLOCK_D"]))
        kernels.projected_rows_bwd2_target_kernel[grid](*operands, grad_target, *sizes, **options)
    grad_weight, grad_bias = x.new_empty(0), x.new_empty(0)
    if need_weight or need_bias:
        grad_weight, grad_bias = _weight_gradients(kernels.projected_rows_bwd2_weight_kernel, operands, sizes, block_out, options)
    return (
        grad_x,
        grad_weight if need_weight else x.new_empty(0),
        grad_bias if need_bias else x.new_empty(0),
        grad_target,
        slopes if need_upstream else slopes.new_empty(0),
    )


def _weight_gradients(
    kernel: Any, operands: tuple[Tensor, ...], sizes: tuple[int, int, int], block_out: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    (count, channels, width), x = sizes, operands[0]
    # at least one tile of channels, because the first one writes the bias
    tiles = triton.cdiv(width, options["BLOCK_D"]), max(1, triton.cdiv(channels, block_out))
    rows_least = max(ROWS_PER_PART, triton.cdiv(count, max(1, MAX_PROGRAMS // (tiles[0] * tiles[1] or 1))))
    rows_each = triton.cdiv(min(rows_least, count), options["BLOCK_N"]) * options["BLOCK_N"]
    parts, dtype = triton.cdiv(count, max(rows_each, 1)), accumulator(x)
    weight_parts = x.new_empty(parts, width, channels, dtype=dtype)
    bias_parts = x.new_empty(parts, width, dtype=dtype)
    if parts and width:
        kernel[(*tiles, parts)](*operands, weight_parts, bias_parts, *sizes, rows_each, BLOCK_OUT=block_out, **options)
    return weight_parts.sum(0).to(x.dtype), bias_parts.sum(0).to(x.dtype)


def _prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str
) -> tuple[tuple[Tensor, ...], tuple[int, int, int], dict[str, Any]]:
    operands = (x.contiguous(), weight.contiguous(), x if bias is None else bias.contiguous(), target.contiguous())
    (count, channels), width = x.shape, weight.shape[0]
    options = {
        "KIND": KINDS.index(kind),
        "HAS_BIAS": bias is not None,
        **(TILES_FLOAT64 if x.dtype == torch.float64 else TILES),
        "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
    }
    return operands, (count, channels, width), options


def _out_tile(x: Tensor, *, twice: bool = False) -> int:
    # a power of two, and at least the 16 that tl.dot wants
    most, most_float64 = (MOST_OUT_TWICE, MOST_OUT_TWICE_FLOAT64) if twice else (MOST_OUT, MOST_OUT_FLOAT64)
    return max(16, min(most_float64 if x.dtype == torch.float64 else most, int(triton.next_power_of_2(max(x.shape[1], 1)))))
