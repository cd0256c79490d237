"""The projected loss as torch operators: one meaning, three backends, derivatives of every order.

The operator ``fastkd::projected_rows`` returns one number a row; its gradient is the operator ``fastkd::projected_rows_backward``,
which computes the residual again. The mean over rows, and so the derivative by ``node_weight``, is ordinary torch on [N].

Example:
    >>> loss = projected_loss(student_nodes, weight, bias, teacher_nodes, "mse")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import reference
from .kinds import KINDS, Kind, accumulator

Grads = tuple[Tensor, Tensor, Tensor, Tensor]


def projected_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    kind: Kind = "mse",
    node_weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mean of ρ(x · weightᵀ + bias − target) over all elements; neither the projection nor the residual is stored.

    With ``node_weight`` w the mean over rows is weighted: Σ_i w_i Σ_c ρ(r_ic) / (D · Σ_i w_i). It does not change when w is scaled,
    and a row of weight 0 takes no part, in the loss or in its gradients (as long as its numbers are finite).

    Args:
        x: features to project, [N, C].
        weight: of the projection, as in `torch.nn.Linear`, [D, C].
        bias: of the projection, [D], or None.
        target: what the projection should be, [N, D].
        kind: ρ: ``mse`` r², ``mae`` |r|, ``huber`` with δ = 1.
        node_weight: weight of each row, ≥ 0, [N], or None for equal weights.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 if N = 0 or if the weights sum to 0. All floating
        inputs are differentiable to every order. At the corners ψ = sign(0) = 0 for MAE and ψ′ = 1 at |r| = 1 for Huber.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or ``kind`` or ``backend`` is unknown.

    Source: node-to-node distillation in Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge
    distillation, NeurIPS 2023.
    """
    check("projected_loss", "N", x, weight, bias, target, kind, node_weight)
    rows = projected_rows(x, weight, bias, target, kind, backends.resolve(backend, x))
    return weighted_mean(rows, node_weight, target.shape[1])


def weighted_mean(rows: Tensor, node_weight: Tensor | None, elements: int) -> Tensor:
    """Σ_i w_i rows_i / (elements · Σ_i w_i), and 0 rather than 0/0; ``rows`` [N] are sums over ``elements`` numbers each."""
    if node_weight is None:
        return rows.sum() / max(rows.shape[0] * elements, 1)
    node_weight = node_weight.to(rows.dtype)
    total = node_weight.sum()
    return (node_weight * rows).sum() / (elements * torch.where(total == 0, 1.0, total))


def check(
    function: str, rows: str, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str, node_weight: Tensor | None
) -> None:
    """Raise ValueError, with the shapes, unless the arguments fit together; ``rows`` names the leading axes, e.g. ``N, 3``."""
    if kind not in KINDS:
        raise ValueError(f"{function} knows the kinds {', '.join(KINDS)}, got {kind!r}")
    tensors = [tensor for tensor in (x, weight, bias, target, node_weight) if tensor is not None]
    axes = rows.count(",") + 1
    fits = (
        x.dim() == axes + 1
        and weight.dim() == 2
        and weight.shape[1] == x.shape[-1]
        and target.shape == (*x.shape[:-1], weight.shape[0])
        and (bias is None or bias.shape == weight.shape[:1])
        and (node_weight is None or node_weight.shape == x.shape[:1])
        and (axes == 1 or x.shape[1] == 3)
    )
    same = all(tensor.dtype == x.dtype and tensor.device == x.device for tensor in tensors)
    if not fits or not same or not x.is_floating_point():
        got = ", ".join(
            f"{name} " + ("None" if tensor is None else f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}")
            for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("target", target), ("node_weight", node_weight))
        )
        raise ValueError(
            f"{function} needs x [{rows}, C], weight [D, C], bias [D] or None, target [{rows}, D] and node_weight [N] or None "
            f"of one floating dtype on one device, got {got}"
        )


# The operators. `needs` are four flags, for x, weight, bias and target; what is not needed comes back empty.


def _rows_fake(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape[0], dtype=accumulator(x))


def _backward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str, needs: list[bool]) -> Grads:
    shapes = (x.shape, weight.shape, weight.shape[:1], target.shape)
    grads = [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]
    return grads[0], grads[1], grads[2], grads[3]


def _backward_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str, needs: list[bool]
) -> Grads:
    grads = reference.row_gradients(x, weight, bias, target, upstream, kind)
    kept = [grad if need else x.new_empty(0) for grad, need in zip(grads, needs, strict=True)]
    return kept[0], kept[1], kept[2], kept[3]


def _rows_numba(*args: Any) -> Tensor:
    from .numba_launch import rows

    return rows(*args)


def _backward_numba(*args: Any) -> Grads:
    from .numba_launch import rows_backward

    return rows_backward(*args)


def _rows_triton(*args: Any) -> Tensor:
    from .triton_launch import rows

    return rows(*args)


def _backward_triton(*args: Any) -> Grads:
    from .triton_launch import rows_backward

    return rows_backward(*args)


projected_rows = backends.define_op(
    "projected_rows",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, str kind) -> Tensor",
    fake=_rows_fake,
    reference=reference.row_losses,
    numba=_rows_numba,
    triton=_rows_triton,
)
projected_rows_backward = backends.define_op(
    "projected_rows_backward",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor upstream, str kind, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)


# Derivatives


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.kind, ctx.backend = inputs[4:]


def _rows_autograd(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    grads = projected_rows_backward(*ctx.saved_tensors, upstream, ctx.kind, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.kind, ctx.needs, _ = inputs[5:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if need else None for tangent, need in zip(tangents, ctx.needs, strict=True)]
    needs = ctx.needs_input_grad[:5]
    if all(tangent is None for tangent in wanted):
        return (None,) * 8
    x, weight, bias, target, upstream = tensors = ctx.saved_tensors
    grads = reference.row_second_gradients(x, weight, bias, target, upstream, ctx.kind, (wanted[0], wanted[1], wanted[2], wanted[3]))
    return (*(g.to(t.dtype) if need else None for g, t, need in zip(grads, tensors, needs, strict=True)), None, None, None)


projected_rows.register_autograd(_rows_autograd, setup_context=_rows_setup)
projected_rows_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
