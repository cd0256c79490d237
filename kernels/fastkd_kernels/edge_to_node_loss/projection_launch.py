"""From the gradient of a projection x · weightᵀ + bias to those of its factors, on a GPU, a range of rows at a time.

Shared by the losses that make that gradient, ``pull``, from something else than a stored target. A whole pull has the size of the
projection; a range of at most `PULL_ELEMENTS` numbers bounds the scratch whatever the number of rows is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from ..projected_loss.kinds import accumulator
from . import triton_kernels as kernels

#: Numbers of the pull that exist at a time: 64 MB of float32.
PULL_ELEMENTS = 1 << 24
#: The weight's gradient is made in parts of so many rows or more: a part sums its rows in order, and torch the parts in order.
ROWS_PER_PART = 256
#: Ceiling on programs, a few per multiprocessor, which bounds the parts by 8 MB of float32 whatever the number of rows is.
MAX_PROGRAMS = 512
#: A float32 product in `ieee` precision runs on the ordinary units, whose operands fill registers: with these tiles they fit.
TILES = {"BLOCK_N": 32, "BLOCK_D": 32, "num_warps": 8}
TILES_FLOAT64 = {"BLOCK_N": 16, "BLOCK_D": 32, "num_warps": 4}
MOST_OUT, MOST_OUT_FLOAT64 = 128, 32


class ProjectionGradients:
    """Gradients of x [rows, C], weight [D, C] and bias [D]; what is not needed is empty.

    Call `add` once for every range that `ranges` gives, in that order. Ranges begin at a multiple of ``group`` rows.
    """

    def __init__(self, x: Tensor, weight: Tensor, needs: list[bool], group: int = 1) -> None:
        self._x, self._weight, self._needs = x, weight, needs
        (rows, self._channels), self._width = x.shape, weight.shape[0]
        double = x.dtype == torch.float64
        self._options = TILES_FLOAT64 if double else TILES
        most = MOST_OUT_FLOAT64 if double else MOST_OUT
        # a power of two, and at least the 16 that tl.dot wants
        self._block_out = max(16, min(most, int(triton.next_power_of_2(max(self._channels, 1)))))
        # at least one tile of channels, because the first one writes the bias
        self._tiles = triton.cdiv(self._width, self._options["BLOCK_D"]), max(1, triton.cdiv(self._channels, self._block_out))
        least = max(ROWS_PER_PART, triton.cdiv(rows, max(1, MAX_PROGRAMS // (self._tiles[0] * self._tiles[1] or 1))))
        block = self._options["BLOCK_N"] * group
        self._rows_each = max(block, triton.cdiv(min(least, rows), block) * block)
        self._grad_x = x.new_empty(x.shape if needs[0] else (0,))
        parts, dtype = triton.cdiv(rows, self._rows_each), accumulator(x)
        summed = needs[1] or needs[2]
        self._weight_parts = x.new_empty(parts if summed else 0, self._width, self._channels, dtype=dtype)
        self._bias_parts = x.new_empty(parts if summed else 0, self._width, dtype=dtype)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last row of each range: whole parts."""
        rows, each = self._x.shape[0], self._rows_each
        step = max(1, PULL_ELEMENTS // max(1, each * self._width)) * each
        # without projected channels there is nothing to pull
        for first in range(0, rows if self._width else 0, step):
            yield first, min(first + step, rows)

    def add(self, first: int, last: int, pull: Tensor) -> None:
        """Rows first … last of x, and the gradient of their projection, contiguous in the accumulator's dtype."""
        x, sizes = self._x[first:last], (last - first, self._channels, self._width)
        if self._needs[0] and self._channels:
            grid = (triton.cdiv(last - first, self._options["BLOCK_N"]), self._tiles[1])
            grad = self._grad_x[first:last]
            kernels.projection_bwd_input_kernel[grid](pull, self._weight, grad, *sizes, BLOCK_OUT=self._block_out, **self._options)
        if self._needs[1] or self._needs[2]:
            part, parts = first // self._rows_each, triton.cdiv(last - first, self._rows_each)
            outputs = self._weight_parts[part : part + parts], self._bias_parts[part : part + parts]
            kernels.projection_bwd_weight_kernel[(*self._tiles, parts)](
                pull, x, *outputs, *sizes, self._rows_each, BLOCK_OUT=self._block_out, **self._options
            )

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""
        x, (_, need_weight, need_bias) = self._x, self._needs
        if not self._width and self._needs[0]:
            self._grad_x.zero_()
        return (
            self._grad_x,
            self._weight_parts.sum(0).to(x.dtype) if need_weight else x.new_empty(0),
            self._bias_parts.sum(0).to(x.dtype) if need_bias else x.new_empty(0),
        )
