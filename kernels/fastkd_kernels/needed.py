"""Operators of several inputs whose gradients are made only where they are wanted: saving inputs, asking who wants what, leaving out the rest.

Inputs come first, of which some may be None, then an index of tensors, then constants that are no tensors, then what else an operator takes.

Example:
    >>> operator.register_autograd(backward, setup_context=save_inputs(5, index=7, constants=3))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import backends

Grads = tuple[Any, ...]


def allocate(tensors: tuple[Any, ...], needs: list[bool], like: Tensor) -> tuple[Tensor, ...]:
    """One output like each of ``tensors``; without rows where it is not needed or belongs to a vector that is None."""
    return tuple(
        (like if t is None else t).new_empty(t.shape if need and t is not None else (0,) * (3 if t is None else t.dim()))
        for t, need in zip(tensors, needs, strict=True)
    )


def kept(grads: Grads, tensors: tuple[Any, ...], needs: list[bool], like: Tensor) -> tuple[Tensor, ...]:
    """The gradients that are needed, and what `allocate` has in place of the others: an operator returns no None."""
    empty = allocate(tensors, [False] * len(needs), like)
    return tuple(grad if need and grad is not None else none for grad, none, need in zip(grads, empty, needs, strict=True))


def masked(grads: Grads, wants: list[bool]) -> list[Tensor | None]:
    """None in place of gradients that nobody wants, as autograd has it."""
    return [grad if want else None for grad, want in zip(grads, wants, strict=True)]


def save_inputs(differentiable: int, *, index: int, constants: int, materialize: bool = False) -> Callable[..., None]:
    """A ``setup_context`` for an operator with so many differentiable inputs, tensors of an index and constants, in this order.

    It sets ``ctx.saved_tensors`` (inputs and index), ``ctx.constants``, ``ctx.rest`` (what comes after them), and what `wants` reads. With
    ``materialize`` autograd makes zeros of cotangents that are missing; without, they are None.
    """
    tensors = differentiable + index

    def setup(ctx: Any, inputs: Grads, output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.constants = inputs[tensors : tensors + constants]
        ctx.rest = inputs[tensors + constants :]
        # positions among the tensors that were given, for `backends.wanted`
        given = [value is not None for value in inputs[:differentiable]]
        ctx.positions = [sum(given[:number]) if there else -1 for number, there in enumerate(given)]
        ctx.set_materialize_grads(materialize)

    return setup


def wants(ctx: Any) -> list[bool]:
    """For which differentiable inputs the pass under way will use a gradient."""
    needs = zip(ctx.positions, ctx.needs_input_grad, strict=False)
    return [position >= 0 and need and backends.wanted(ctx, position) for position, need in needs]
