"""The projected loss as torch operators: one meaning, three backends, derivatives of every order.

The operator ``fastkd::projected_rows`` returns one number a row; its gradient is the operator ``fastkd::projected_rows_backward``,
which computes the residual again, and so does ``fastkd::projected_rows_second``, the gradient of that. The mean over rows, and so the derivative by ``node_weight``, is ordinary torch on [N].

Example:
    >>> loss = projected_loss(student_nodes, weight, bias, teacher_nodes, "mse")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, blas
from ..sums import total
from . import reference
from .kinds import KINDS, Kind, accumulator

Grads = tuple[Tensor, Tensor, Tensor, Tensor]
SecondGrads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


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

    On a CPU, where N · D is less than 2²⁰ and no backend is named, plain torch is as fast, runs instead, and stores both.

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
    if backends.plain_is_faster(backend, target, target.numel(), backends.PLAIN_LOSS_BELOW):
        return reference.projected_loss(x, weight, bias, target, kind, node_weight)
    rows = projected_rows(x, weight, bias, target, kind, backends.resolve(backend, x))
    return weighted_mean(rows, node_weight, target.shape[1])


def weighted_mean(rows: Tensor, node_weight: Tensor | None, elements: int) -> Tensor:
    """Σ_i w_i rows_i / (elements · Σ_i w_i), and 0 rather than 0/0; ``rows`` [N] are sums over ``elements`` numbers each."""
    if node_weight is None:
        return total(rows) / max(rows.shape[0] * elements, 1)
    node_weight = node_weight.to(rows.dtype)
    weights = total(node_weight)
    return total(node_weight * rows) / (elements * torch.where(weights == 0, 1.0, weights))


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


def _second_fake(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, *rest: Any) -> SecondGrads:
    shapes = (x.shape, weight.shape, weight.shape[:1], target.shape, x.shape[:1])
    kinds = (x, x, x, x, upstream)
    grads = [like.new_empty(shape if need else (0,)) for like, shape, need in zip(kinds, shapes, rest[-1], strict=True)]
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def _second_reference(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, *rest: Any) -> SecondGrads:
    *tangents, kind, needs = rest
    dx, dweight, dbias, dtarget = tangents
    grads = reference.row_second_gradients_by_parts(x, weight, bias, target, upstream, kind, (dx, dweight, dbias, dtarget), needs[3])
    kept = [grad if need else x.new_empty(0, dtype=grad.dtype) for grad, need in zip(grads, needs, strict=True)]
    return kept[0], kept[1], kept[2], kept[3], kept[4]


def _rows_numba(*args: Any) -> Tensor:
    from .numba_launch import rows

    return rows(*args)


def _backward_numba(*args: Any) -> Grads:
    from .numba_launch import rows_backward

    return rows_backward(*args)


def _second_numba(*args: Any) -> SecondGrads:
    from .numba_launch import rows_second

    return rows_second(*args)


def _rows_triton(*args: Any) -> Tensor:
    from .triton_launch import rows

    return rows(*args)


def _backward_triton(*args: Any) -> Grads:
    from .triton_launch import rows_backward

    return rows_backward(*args)


def _second_triton(*args: Any) -> SecondGrads:
    from .triton_launch import rows_second

    return rows_second(*args)


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
# its `needs` are five flags, the last for upstream; a tangent that does not exist is None
projected_rows_second = backends.define_op(
    "projected_rows_second",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor upstream, Tensor? dx, Tensor? dweight, Tensor? dbias, "
    "Tensor? dtarget, str kind, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_second_fake,
    reference=_second_reference,
    numba=_second_numba,
    triton=_second_triton,
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
    ctx.kind, ctx.needs, ctx.backend = inputs[5:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if need else None for tangent, need in zip(tangents, ctx.needs, strict=True)]
    needs = ctx.needs_input_grad[:5]
    if all(tangent is None for tangent in wanted):
        return (None,) * 8
    grads = projected_rows_second(*ctx.saved_tensors, *wanted, ctx.kind, list(needs), ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None)


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.kind, ctx.needs, ctx.backend = inputs[9:]
    ctx.set_materialize_grads(False)


def _second_autograd(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Third order: autograd goes through the formulas in plain torch, which can be differentiated again."""
    with blas.steady(ctx.backend):
        return _third(ctx, cotangents)


def _third(ctx: Any, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    create_graph, needs = torch.is_grad_enabled(), ctx.needs_input_grad[:9]
    with torch.enable_grad():
        # views of their own, so that one input's dependence on another is left to autograd outside
        tensors: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        x, weight, bias, target, upstream, dx, dweight, dbias, dtarget = tensors
        outputs = reference.row_second_gradients(x, weight, bias, target, upstream, ctx.kind, (dx, dweight, dbias, dtarget))
        used = [
            (output.to(cotangent.dtype), cotangent)
            for output, cotangent, need in zip(outputs, cotangents, ctx.needs, strict=True)
            if need and cotangent is not None and output.requires_grad
        ]
    wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    if not used or not wanted:
        return (None,) * 12
    grads = iter(
        torch.autograd.grad([output for output, _ in used], wanted, [c for _, c in used], create_graph=create_graph, allow_unused=True)
    )
    return (*(next(grads) if need else None for need in needs), None, None, None)


projected_rows.register_autograd(_rows_autograd, setup_context=_rows_setup)
projected_rows_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
projected_rows_second.register_autograd(_second_autograd, setup_context=_second_setup)
