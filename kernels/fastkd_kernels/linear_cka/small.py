"""Linear CKA of few nodes on a CPU, where the matrices to square are no smaller than the features: float32 throughout, and the smaller matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sums import total, total_of_squares
from .reference import centred, quotient


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """`reference.linear_cka` for float32 and float64, from [N, N] matrices where there are `few_nodes`, or from [C, C], [D, D] and [C, D]."""
    x, y = _scaled(centred(x)), _scaled(centred(y))
    if few_nodes(x, y):
        of_x, of_y = _gram(x), _gram(y)
        norms = total_of_squares(of_x), total_of_squares(of_y), total(of_x * of_y)
    else:
        norms = total_of_squares(_gram(x.T)), total_of_squares(_gram(y.T)), total_of_squares((x.T @ y).flatten())
    return quotient(*(norm.double() for norm in norms)).to(x.dtype)


def few_nodes(x: Tensor, y: Tensor) -> bool:
    """Whether [N, N] matrices are less work: multiply-adds forward, and backward to x."""
    (count, channels), width = x.shape, y.shape[1]
    return count * (2 * channels + width) < 2 * channels * (channels + width) + width * width


def _scaled(x: Tensor) -> Tensor:
    """Largest number 1, so that fourth powers neither overflow nor vanish; CKA does not change with it, nor does any derivative."""
    largest = x.detach().abs().amax() if x.numel() else x.new_zeros(())
    return x / torch.where(largest > 0, largest, 1.0)


def _gram(x: Tensor) -> Tensor:
    found: Tensor = _Gram.apply(x)  # type: ignore[no-untyped-call]
    return found.flatten()


class _Gram(torch.autograd.Function):
    """x xᵀ, whose derivative is one product where autograd's makes two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return (grad + grad.T) @ x
