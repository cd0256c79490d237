"""Products over groups, exact where factors are zero, differentiable to every order.

    y_s = Π x_k,  k with index_k = s            ∂y_s/∂x_k = Π x_j over the others of the group, j ≠ k

The quotient y_s / x_k fails at zeros. With z zeros in a group and P the product of the rest, the others' product is y_s / x_k if z = 0; P at
the one zero and 0 elsewhere if z = 1; and 0 if z > 1. That is the gradient. Where it is differentiated again, the others' product is a
prefix times a suffix, each by doubling in log₂ n steps over the sorted entries: plain torch with a fixed order, on any device.

A GPU multiplies by doubling too, because its own scatter has no fixed order. An index is [n, 1], or [n, F] where columns differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def group_product(values: Tensor, index: Tensor, number: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Product of the entries of equal index in each column, 1 where there are none.

    Args:
        values: [n, F] of a floating or complex dtype; products run in float32 or wider.
        index: [n, 1] or [n, F] int64.
        number: of groups, m.
        gather: [m, F] → [n, F], the value of each entry's group, differentiable and in a fixed order.

    Returns:
        [m, F].
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    if torch.compiler.is_compiling():
        # differentiable as it stands, and a compiler takes no function that branches on the mode of autograd
        return product_by_doubling(wide, index, number).to(values.dtype)
    product: Tensor = _Product.apply(wide, index, number, gather)  # type: ignore[no-untyped-call]
    return product.to(values.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, number: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        product = _forward(values, index, number)
        ctx.save_for_backward(values, index, product)
        ctx.gather = gather
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, index, product = ctx.saved_tensors
        others = products_of_the_others(values, index) if torch.is_grad_enabled() else _others_by_quotient(values, index, product)
        return ctx.gather(grad) * others.conj(), None, None, None


def _forward(values: Tensor, index: Tensor, number: int) -> Tensor:
    if values.device.type == "cpu":
        # sequential there, so the order is fixed
        return values.new_ones(number, values.shape[1]).scatter_reduce(0, index.expand_as(values), values, "prod")
    return product_by_doubling(values, index, number)


def product_by_doubling(values: Tensor, index: Tensor, number: int) -> Tensor:
    """As torch's ``scatter_reduce`` of ones, in a fixed order on any device."""
    group, order, before, behind = _runs(index)
    running = _running(values.gather(0, order.expand_as(values)), before, _steps(before))
    # the last of a group has it all; the rest is written to a row that is dropped
    target = torch.where(behind == 0, group, number).expand_as(values)
    return values.new_ones(number + 1, values.shape[1]).scatter(0, target, running)[:number]


def _others_by_quotient(values: Tensor, index: Tensor, product: Tensor) -> Tensor:
    index = index.expand_as(values)
    zero = values == 0
    if values.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(zero.any()):
        return product.gather(0, index) / values
    nonzero = values.masked_fill(zero, 1)
    zeros = torch.zeros(product.shape, dtype=torch.int64, device=index.device).scatter_add(0, index, zero.long()).gather(0, index)
    rest = _forward(nonzero, index, product.shape[0]).gather(0, index)
    return torch.where(zeros == zero, rest / nonzero, 0)


def products_of_the_others(values: Tensor, index: Tensor) -> Tensor:
    """Π of the other entries of the group, for each entry, [n, F], as a differentiable expression."""
    _, order, before, behind = _runs(index)
    order, steps = order.expand_as(values), _steps(before)
    ordered = values.gather(0, order)
    prefix, suffix = _running(ordered, before, steps), _running(ordered.flip(0), behind.flip(0), steps).flip(0)
    # exclusive: the neighbour's running product, where there is a neighbour
    one = values.new_ones(1, values.shape[1])
    left = torch.where(before > 0, torch.cat([one, prefix[:-1]]), 1)
    right = torch.where(behind > 0, torch.cat([suffix[1:], one]), 1)
    return torch.zeros_like(values).scatter(0, order, left * right)


def _runs(index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorted index, the order that sorts it, and how many of the same group stand before and behind each; [n, 1] or [n, F]."""
    group, order = torch.sort(index, dim=0, stable=True)
    position = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(group)
    begins = torch.ones_like(group, dtype=torch.bool)
    begins[1:] = group[1:] != group[:-1]
    ends = torch.ones_like(begins)
    ends[:-1] = begins[1:]
    first = torch.where(begins, position, 0).cummax(0).values
    last = torch.where(ends, position, index.shape[0]).flip(0).cummin(0).values.flip(0)
    return group, order, position - first, last - position


def _running(values: Tensor, before: Tensor, steps: int) -> Tensor:
    """Product of each row with those before it in its group, of which there are ``before``."""
    distance = 1
    for _ in range(steps):
        shifted = torch.cat([values.new_ones(distance, values.shape[1]), values[:-distance]])
        values = torch.where(before >= distance, values * shifted, values)
        distance *= 2
    return values


def _steps(before: Tensor) -> int:
    most = before.shape[0] - 1
    if before.device.type == "cpu" and not torch.compiler.is_compiling():
        most = int(before.max())
    # on a GPU from the shape alone, so that nothing waits for it
    return most.bit_length()
