"""The geometric loss of vectors as torch operators: one meaning, three backends, derivatives of every order.

The operator ``fastkd::geometric_nodes`` returns one number a node; its gradient is the operator ``fastkd::geometric_nodes_backward``,
which computes the projection again. Means over images and nodes, and so the derivative by ``node_weight``, are ordinary torch on [N].

Example:
    >>> loss = vector_geometric_loss(student_vectors, weight, teacher_vectors, graph_ptr=batch.graph_ptr)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends, blas
from ..projected_loss.kinds import accumulator
from ..projected_loss.op import weighted_mean
from ..segment_reduce.op import segment_reduce
from ..sums import total
from . import reference

Grads = tuple[Tensor, Tensor, Tensor]


def vector_geometric_loss(
    v: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    mix: float = 0.5,
    eps: float = reference.DEFAULT_EPS,
    graph_ptr: Tensor | None = None,
    node_weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean of (1 − g) · | ‖u‖ − ‖t‖ | + g · (1 − cos(u, t)) with u = v · weightᵀ; neither the projection nor a difference is stored.

    Norms and cosines are over the three axes, for each node and channel, so the loss is invariant under a common rotation of ``v`` and
    ``target``. The mean is over channels, then over nodes; with ``graph_ptr`` over channels, the nodes of an image, then images.

    A vector shorter than ``eps`` has no direction: its cosine with anything is 0, so 1 − cos is 1, and the loss does not pull on it
    through either term. All derivatives are therefore finite, at zero vectors too; they are of the size 1 / ``eps`` per order at most.

    Args:
        v: vector features, [N, 3, C].
        weight: of the projection, [D, C]; it mixes channels only and has no bias, so it commutes with rotations.
        target: what the projection should be, [N, 3, D].
        mix: g in [0, 1], the share of the cosine.
        eps: length below which a vector counts as zero, 1e-18 to 1e18, in the unit of ``target``.
        graph_ptr: first node of each image, [n_graphs + 1] int64, or None. An image without nodes, or of weight 0, takes no part.
        node_weight: weight of each node, ≥ 0, [N], in the mean over nodes; None for equal weights.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 if there is nothing to average. All floating inputs are
        differentiable to every order; where two lengths are equal the slope of their difference is sign(0) = 0.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, if ``mix`` or ``eps`` is out of range, or ``backend`` is unknown.

    Source: the geometric variant of vector-to-vector distillation in the code of Ekström Kelvinius et al., Accelerating molecular
    graph neural networks via knowledge distillation, NeurIPS 2023; the convention for short vectors is ours.
    """
    _check(v, weight, target, mix, eps, graph_ptr, node_weight)
    chosen, width = backends.resolve(backend, v), weight.shape[0]
    nodes: Tensor = geometric_nodes(v, weight, target, float(mix), float(eps), chosen)
    if graph_ptr is None:
        return weighted_mean(nodes, node_weight, max(width, 1))
    importance = None if node_weight is None else node_weight.to(nodes.dtype)
    sums = segment_reduce(nodes if importance is None else importance * nodes, graph_ptr, "sum", backend=chosen)
    weights = graph_ptr.diff().to(nodes.dtype) if importance is None else segment_reduce(importance, graph_ptr, "sum", backend=chosen)
    means = sums / (max(width, 1) * torch.where(weights == 0, 1.0, weights))
    return total(means) / (weights != 0).sum().clamp(min=1)


def _check(v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float, graph_ptr: Tensor | None, node_weight: Tensor | None) -> None:
    # 1 / eps² must be a float32 number, because second derivatives are of that size
    if not 0 <= mix <= 1 or not 1e-18 <= eps <= 1e18:
        raise ValueError(f"vector_geometric_loss needs 0 ≤ mix ≤ 1 and 1e-18 ≤ eps ≤ 1e18, got mix {mix} and eps {eps}")
    given = {"v": v, "weight": weight, "target": target, "node_weight": node_weight}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    fits = (
        v.dim() == 3
        and v.shape[1] == 3
        and weight.dim() == 2
        and weight.shape[1] == v.shape[2]
        and target.shape == (*v.shape[:2], weight.shape[0])
        and (node_weight is None or node_weight.shape == v.shape[:1])
    )
    same = all(tensor.dtype == v.dtype and tensor.device == v.device for tensor in tensors.values())
    if graph_ptr is not None:
        tensors["graph_ptr"] = graph_ptr
        fits = fits and graph_ptr.dim() == 1 and graph_ptr.shape[0] > 0 and graph_ptr.dtype == torch.int64 and graph_ptr.device == v.device
    if not fits or not same or not v.is_floating_point():
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(
            "vector_geometric_loss needs v [N, 3, C], weight [D, C], target [N, 3, D] and node_weight [N] or None of one floating dtype, "
            f"and graph_ptr [n_graphs + 1] int64 or None, all on one device, got {got}"
        )


# The operators. `needs` are three flags, for v, weight and target; what is not needed comes back empty.


def _nodes_fake(v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float) -> Tensor:
    return v.new_empty(v.shape[0], dtype=accumulator(v))


def _backward_fake(v: Tensor, weight: Tensor, target: Tensor, upstream: Tensor, mix: float, eps: float, needs: list[bool]) -> Grads:
    shapes = (v.shape, weight.shape, target.shape)
    grads = [v.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]
    return grads[0], grads[1], grads[2]


def _backward_reference(v: Tensor, weight: Tensor, target: Tensor, upstream: Tensor, mix: float, eps: float, needs: list[bool]) -> Grads:
    grads = reference.node_gradients(v, weight, target, upstream, mix, eps)
    kept = [grad if need else v.new_empty(0) for grad, need in zip(grads, needs, strict=True)]
    return kept[0], kept[1], kept[2]


def _nodes_numba(*args: Any) -> Tensor:
    from .numba_launch import nodes

    return nodes(*args)


def _backward_numba(*args: Any) -> Grads:
    from .numba_launch import nodes_backward

    return nodes_backward(*args)


def _nodes_triton(*args: Any) -> Tensor:
    from .triton_launch import nodes

    return nodes(*args)


def _backward_triton(*args: Any) -> Grads:
    from .triton_launch import nodes_backward

    return nodes_backward(*args)


geometric_nodes = backends.define_op(
    "geometric_nodes",
    "(Tensor v, Tensor weight, Tensor target, float mix, float eps) -> Tensor",
    fake=_nodes_fake,
    reference=reference.node_losses,
    numba=_nodes_numba,
    triton=_nodes_triton,
)
geometric_nodes_backward = backends.define_op(
    "geometric_nodes_backward",
    "(Tensor v, Tensor weight, Tensor target, Tensor upstream, float mix, float eps, bool[] needs) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)


# Derivatives


def _nodes_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.mix, ctx.eps, ctx.backend = inputs[3:]


def _nodes_autograd(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    grads = geometric_nodes_backward(*ctx.saved_tensors, upstream, ctx.mix, ctx.eps, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None, None)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.mix, ctx.eps, ctx.needs, ctx.backend = inputs[4:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if need else None for tangent, need in zip(tangents, ctx.needs, strict=True)]
    if all(tangent is None for tangent in wanted):
        return (None,) * 8
    v, weight, target, upstream = tensors = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    with blas.steady(ctx.backend):
        grads = reference.node_second_gradients(v, weight, target, upstream, ctx.mix, ctx.eps, (wanted[0], wanted[1], wanted[2]))
    return (*(g.to(t.dtype) if need else None for g, t, need in zip(grads, tensors, needs, strict=True)), None, None, None, None)


geometric_nodes.register_autograd(_nodes_autograd, setup_context=_nodes_setup)
geometric_nodes_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
