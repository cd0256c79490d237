"""Sums of long vectors, the same to the bit for any number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Numbers that torch sums on one thread, whatever their number (`at::internal::GRAIN_SIZE`).
ONE_THREAD = 32_768
#: Length of a row where there are more.
ROW = 1024


def total(values: Tensor) -> Tensor:
    """Σ values, [n]. On a CPU torch cuts a long sum into one part a thread; rows of a fixed length are summed first instead.

    Differentiable to every order, and made of ordinary operators.
    """
    if values.device.type != "cpu":
        return values.sum()
    while values.shape[0] > ONE_THREAD:
        values = torch.nn.functional.pad(values, (0, -values.shape[0] % ROW)).view(-1, ROW).sum(1)
    return values.sum()


class _TotalOfSquares(torch.autograd.Function):
    """One pass over the numbers each way; autograd's own derivative of a square makes four."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return total(values.square())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        values: Tensor = ctx.saved_tensors[0]
        return values * (2 * grad)


def total_of_squares(values: Tensor) -> Tensor:
    """Σ values², [n], differentiable to every order."""
    if torch.compiler.is_compiling():
        # a compiler fuses the passes itself, and cannot trace the loop of `total` inside of a Function
        return total(values.square())
    found: Tensor = _TotalOfSquares.apply(values)  # type: ignore[no-untyped-call]
    return found
