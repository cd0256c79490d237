"""Linear centred kernel alignment as torch operators: one meaning, three backends, derivatives of every order.

The operator ``fastkd::centred_grams`` makes three small matrices from the features, ``fastkd::centred_grams_backward`` takes cotangents
of these back to the features. What lies between is plain torch on C × D numbers, in float64.

Example:
    >>> loss = 1 - linear_cka(student_nodes, teacher_nodes)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, blas
from ..projected_loss.kinds import accumulator
from . import reference, small

Pair = tuple[Tensor, Tensor]


def linear_cka(x: Tensor, y: Tensor, *, backend: str | None = None) -> Tensor:
    """Linear CKA of two sets of features of the same nodes, ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) with centred columns.

    It lies in [0, 1], is symmetric, and does not change when either side is rotated, mirrored, shifted or scaled as a whole. All nodes
    given are one population: the CKA of a batch is not the mean of the CKA of its images. No N × N matrix is made, but on a CPU where that
    is the smaller one.

    Args:
        x: features, [N, C].
        y: features of the same nodes, [N, D].
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise. Both inputs are differentiable to every order. Where one side
        is constant over the nodes (or N < 2) the similarity is undefined: it is 0, and so are all its gradients.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or ``backend`` is unknown.

    Source: Kornblith et al., Similarity of neural network representations revisited, ICML 2019; as a loss in Ekström Kelvinius et al.,
    Accelerating molecular graph neural networks via knowledge distillation, NeurIPS 2023.
    """
    fits = x.dim() == 2 and y.dim() == 2 and x.shape[0] == y.shape[0] and x.dtype == y.dtype and x.device == y.device
    if not fits or not x.is_floating_point():
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in (("x", x), ("y", y)))
        raise ValueError(f"linear_cka needs x [N, C] and y [N, D] of one floating dtype on one device, got {got}")
    numbers = x.numel() + y.numel()
    plain = backends.plain_is_faster(backend, x, numbers, backends.PLAIN_LOSS_BELOW)
    # last, because a tracer must not see a condition on the number of nodes
    if plain and (numbers < backends.PLAIN_BELOW or small.few_nodes(x, y)):
        return small.linear_cka(x, y)
    p, q, k = centred_grams(x, y, backends.resolve(backend, x))
    # a side without gradient needs none of its D × D numbers; a transform may still ask, unseen by requires_grad
    if backends.runs_directly((x, y)):
        p, q = p if x.requires_grad else p.detach(), q if y.requires_grad else q.detach()
    return reference.alignment(p, q, k).to(accumulator(x))


# The operators. Gram matrices are float64 whatever the features are: their squares then neither overflow nor vanish.


def _grams_fake(x: Tensor, y: Tensor) -> reference.Grams:
    (channels, width), double = (x.shape[1], y.shape[1]), torch.float64
    shapes = ((channels, channels), (width, width), (channels, width))
    p, q, k = (x.new_empty(shape, dtype=double) for shape in shapes)
    return p, q, k


def _backward_fake(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor, needs: list[bool]) -> Pair:
    return x.new_empty(x.shape if needs[0] else (0,)), y.new_empty(y.shape if needs[1] else (0,))


def _backward_reference(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor, needs: list[bool]) -> Pair:
    by_x, by_y = reference.gram_gradients(x, y, p, q, k)
    return by_x if needs[0] else x.new_empty(0), by_y if needs[1] else x.new_empty(0)


def _grams_numba(*args: Any) -> reference.Grams:
    from .numba_launch import grams

    return grams(*args)


def _backward_numba(*args: Any) -> Pair:
    from .numba_launch import gram_gradients

    return gram_gradients(*args)


def _grams_triton(*args: Any) -> reference.Grams:
    from .triton_launch import grams

    return grams(*args)


def _backward_triton(*args: Any) -> Pair:
    from .triton_launch import gram_gradients

    return gram_gradients(*args)


centred_grams = backends.define_op(
    "centred_grams",
    "(Tensor x, Tensor y) -> (Tensor, Tensor, Tensor)",
    fake=_grams_fake,
    reference=reference.grams,
    numba=_grams_numba,
    triton=_grams_triton,
)
centred_grams_backward = backends.define_op(
    "centred_grams_backward",
    "(Tensor x, Tensor y, Tensor p, Tensor q, Tensor k, bool[] needs) -> (Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)


# Derivatives


def _grams_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.backend = inputs[2]


def _grams_autograd(ctx: Any, p: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:2])
    grads = centred_grams_backward(*ctx.saved_tensors, p, q, k, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.needs, ctx.backend = inputs[5:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    dx, dy = dx if ctx.needs[0] else None, dy if ctx.needs[1] else None
    if dx is None and dy is None:
        return (None,) * 7
    x, y, p, q, k = ctx.saved_tensors
    by_x = by_y = by_p = by_q = by_k = None
    if any(ctx.needs_input_grad[:2]):
        # the gradient is linear in (x, y) and symmetric: the same map takes the cotangents back
        along = (torch.zeros_like(x) if dx is None else dx, torch.zeros_like(y) if dy is None else dy)
        by_x, by_y = centred_grams_backward(*along, p, q, k, list(ctx.needs_input_grad[:2]), ctx.backend)
    if any(ctx.needs_input_grad[2:5]):
        with blas.steady(ctx.backend):
            by_p, by_q, by_k = reference.cross_grams(x, y, dx, dy)
    found = (by_x, by_y, by_p, by_q, by_k)
    return (*(grad if need else None for grad, need in zip(found, ctx.needs_input_grad, strict=False)), None, None)


centred_grams.register_autograd(_grams_autograd, setup_context=_grams_setup)
centred_grams_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
