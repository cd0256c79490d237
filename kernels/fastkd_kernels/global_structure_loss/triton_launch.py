"""Launches of the Triton kernels; names and arguments as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..segment_reduce.launch import check_ptr
from ..segment_reduce.reference import segment_index
from . import triton_kernels as kernels
from .reference import accumulator
from .tiles import pull_tile, rows_tile


def structure_rows(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """[N, C], [N, D] → [N]."""
    return _rows((x, x, x, x), y, ptr, square=True)


def structure_pull(x: Tensor, h: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """[N, C], [N], [N, D] → [N, C]."""
    return _pull((x, x, x), h, y, ptr, same=True)


def pair_rows(a: Tensor, b: Tensor, c: Tensor, d: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Four times [N, C], [N, D] or None → [N]."""
    return _rows((a, b, c, d), y, ptr, square=False)


def pair_pull(a: Tensor, b: Tensor, c: Tensor, h: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Three times [N, C], [N], [N, D] or None → [N, C]."""
    return _pull((a, b, c), h, y, ptr, same=a is b)


def _rows(features: tuple[Tensor, ...], y: Tensor | None, ptr: Tensor, *, square: bool) -> Tensor:
    x = _some_width(features[0])
    out = x.new_empty(x.shape[0], dtype=accumulator(x))
    if out.numel():
        arguments, widths = _prepare(features, y, ptr, ())
        tile = rows_tile(max(widths))
        kernels.pair_rows_kernel[(triton.cdiv(x.shape[0], tile["BLOCK_I"]),)](
            *arguments, out, x.shape[0], *widths, SQUARE=square, WITH_Y=y is not None, **tile
        )
    return out


def _pull(features: tuple[Tensor, ...], h: Tensor, y: Tensor | None, ptr: Tensor, *, same: bool) -> Tensor:
    atoms, width = features[0].shape
    out = features[0].new_empty(atoms, width)
    if out.numel():
        arguments, widths = _prepare(features, y, ptr, (h.contiguous(),))
        tile = pull_tile(max(widths), out.dtype == torch.float64)
        grid = (triton.cdiv(atoms, tile["BLOCK_I"]), triton.cdiv(width, tile["BLOCK_F"]))
        kernels.pair_pull_kernel[grid](*arguments, out, atoms, *widths, SAME=same, WITH_Y=y is not None, **tile)
    return out


def _prepare(
    features: tuple[Tensor, ...], y: Tensor | None, ptr: Tensor, more: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    features = tuple(_some_width(tensor.contiguous()) for tensor in features)
    x = features[0]
    if ptr.device.type == "cpu":
        check_ptr(ptr, x.shape[0])
    # without a teacher its pointer is not read
    teacher = x if y is None else _some_width(y.contiguous())
    tensors = (*features, *more, teacher, segment_index(ptr, x.shape[0]), ptr.contiguous())
    return tensors, (x.shape[1], teacher.shape[1])


def _some_width(x: Tensor) -> Tensor:
    # features of no width have no distances; a column of zeros says the same, and the mean over it exists
    return x if x.shape[1] else x.new_zeros(x.shape[0], 1)
