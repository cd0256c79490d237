"""The edge-to-node losses as torch operators: one meaning, three backends, derivatives of every order.

The operator ``fastkd::edge_to_node_rows`` returns one number a row, one row a node for scalars and three for vectors; its gradient
is the operator ``fastkd::edge_to_node_rows_backward``, which reads the teacher's edges again. What the teacher gave is constant.

Example:
    >>> loss = edge_to_node_loss(student_nodes, weight, bias, teacher_edges, graph, "mse")
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from .. import backends, blas
from ..edge_to_node.op import edge_to_node, edge_to_node_vector, sum_vector
from ..graph import CSRGraph
from ..projected_loss import reference as projection
from ..projected_loss.kinds import KINDS, Kind, accumulator
from ..projected_loss.op import weighted_mean
from ..segment_reduce.op import segment_sum
from . import reference

Grads = tuple[Tensor, Tensor, Tensor]
Reduction = Literal["sum", "mean"]


def edge_to_node_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_edge: Tensor,
    graph: CSRGraph,
    kind: Kind = "mse",
    *,
    node_weight: Tensor | None = None,
    reduce: Reduction = "sum",
    backend: str | None = None,
) -> Tensor:
    """Mean of ρ(x · weightᵀ + bias − Σ_{e → i} teacher_edge_e) over nodes and channels; the teacher's sum [N, D] is never stored.

    The same as `edge_to_node` followed by `projected_loss`. With ``node_weight`` w it is Σ_i w_i Σ_c ρ(r_ic) / (D · Σ_i w_i).
    On a CPU, where N · D is less than 2²⁰ and no backend is named, it is just these two, which are faster, and the sum is stored.

    Args:
        x: the student's node features, [N, C].
        weight: of the projection, as in `torch.nn.Linear`, [D, C].
        bias: of the projection, [D], or None.
        teacher_edge: the teacher's edge features, in the caller's order of edges, [E, D]; a constant.
        graph: the teacher's edges src → dst.
        kind: ρ: ``mse`` r², ``mae`` |r|, ``huber`` with δ = 1.
        node_weight: weight of each node, ≥ 0, [N], or None for equal weights.
        reduce: ``sum`` over the edges into a node, or their ``mean``; both 0 for a node that no edge enters.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 if N = 0 or if the weights sum to 0. ``x``, ``weight``,
        ``bias`` and ``node_weight`` are differentiable to every order. At the corners ψ = sign(0) = 0 for MAE and ψ′ = 1 at |r| = 1.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, if ``teacher_edge`` requires a gradient (detach it), or if
            ``kind``, ``reduce`` or ``backend`` is unknown.

    Source: edge-to-node distillation in Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge
    distillation, NeurIPS 2023.
    """
    _check("edge_to_node_loss", "N", x, weight, bias, teacher_edge, None, graph, kind, node_weight, reduce)
    mean = reduce == "mean"
    if backends.plain_is_faster(backend, x, graph.num_nodes * weight.shape[0], backends.PLAIN_LOSS_BELOW):
        goal = edge_to_node(teacher_edge, graph)
        goal = goal * reference.row_scale(graph.edge_ptr, goal) if mean else goal
        return projection.projected_loss(x, weight, bias, goal, kind, node_weight)
    chosen = backends.resolve(backend, x)
    rows = edge_to_node_rows(x, weight, bias, teacher_edge, None, *_incoming(graph), mean, kind, chosen)
    return weighted_mean(rows, node_weight, weight.shape[0])


def edge_to_node_vector_loss(
    v: Tensor,
    weight: Tensor,
    teacher_edge: Tensor,
    direction: Tensor,
    graph: CSRGraph,
    kind: Kind = "mse",
    *,
    node_weight: Tensor | None = None,
    reduce: Reduction = "sum",
    backend: str | None = None,
) -> Tensor:
    """Mean of ρ(v · weightᵀ − Σ_{e → i} direction_e ⊗ teacher_edge_e) over nodes, axes and channels; nothing [N, 3, D] is stored.

    The same as `edge_to_node_vector` followed by `vector_loss`: the projection mixes channels only and has no bias, so the loss is
    invariant under a common rotation of ``v`` and ``direction`` for ``mse``. As in `edge_to_node_loss`, on a CPU it is just these two where
    3 · N · D is less than 2²⁰.

    Args:
        v: the student's vector features, [N, 3, C].
        weight: of the projection, [D, C].
        teacher_edge: the teacher's edge features, in the caller's order of edges, [E, D]; a constant.
        direction: of each edge, usually the unit vector; used as it is, [E, 3]; a constant.
        graph: the teacher's edges src → dst.
        kind: ρ: ``mse`` r², ``mae`` |r|, ``huber`` with δ = 1.
        node_weight: weight of each node, ≥ 0, [N]: Σ_i w_i Σ_ac ρ(r_iac) / (3 · D · Σ_i w_i). None for equal weights.
        reduce: ``sum`` over the edges into a node, or their ``mean``; both 0 for a node that no edge enters.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 if N = 0 or if the weights sum to 0. ``v``, ``weight`` and
        ``node_weight`` are differentiable to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, if ``teacher_edge`` or ``direction`` requires a gradient (detach
            it), or if ``kind``, ``reduce`` or ``backend`` is unknown.

    Source: vector-to-vector distillation in Ekström Kelvinius et al., NeurIPS 2023.
    """
    _check("edge_to_node_vector_loss", "N, 3", v, weight, None, teacher_edge, direction, graph, kind, node_weight, reduce)
    (nodes, _, channels), width, mean = v.shape, weight.shape[0], reduce == "mean"
    x = v.reshape(3 * nodes, channels)
    if backends.plain_is_faster(backend, v, 3 * nodes * width, backends.PLAIN_LOSS_BELOW):
        goal = edge_to_node_vector(teacher_edge, direction, graph).view(3 * nodes, width)
        goal = goal * reference.row_scale(graph.edge_ptr, goal) if mean else goal
        row_weight = None if node_weight is None else node_weight.repeat_interleave(3)
        return projection.projected_loss(x, weight, None, goal, kind, row_weight)
    chosen = backends.resolve(backend, v)
    rows = edge_to_node_rows(x, weight, None, teacher_edge, direction, *_incoming(graph), mean, kind, chosen)
    return weighted_mean(rows.view(nodes, 3).sum(1), node_weight, 3 * width)


def _incoming(graph: CSRGraph) -> tuple[Tensor, Tensor, Tensor]:
    return graph.edge_dst, graph.edge_ptr, graph.edge_order


def _check(
    function: str,
    rows: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    graph: CSRGraph,
    kind: str,
    node_weight: Tensor | None,
    reduce: str,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"{function} knows the kinds {', '.join(KINDS)}, got {kind!r}")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"{function} reduces edges by sum or mean, got {reduce!r}")
    vector, edges = rows != "N", graph.num_edges
    given = {"v" if vector else "x": x, "weight": weight, "bias": bias, "teacher_edge": edge, "direction": direction}
    tensors = {name: tensor for name, tensor in (given | {"node_weight": node_weight}).items() if tensor is not None}
    fits = (
        x.dim() == (3 if vector else 2)
        and x.shape[0] == graph.num_nodes
        and (not vector or x.shape[1] == 3)
        and weight.dim() == 2
        and weight.shape[1] == x.shape[-1]
        and edge.shape == (edges, weight.shape[0])
        and (bias is None or bias.shape == weight.shape[:1])
        and (direction is None or direction.shape == (edges, 3))
        and (node_weight is None or node_weight.shape == x.shape[:1])
    )
    same = all(tensor.dtype == x.dtype and tensor.device == graph.edge_dst.device for tensor in tensors.values())
    if not fits or not same or not x.is_floating_point():
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in tensors.items())
        names = f"v [{rows}, C], weight [D, C]" if vector else f"x [{rows}, C], weight [D, C], bias [D] or None"
        along = f", direction [{edges}, 3]" if vector else ""
        raise ValueError(
            f"{function} needs {names}, teacher_edge [{edges}, D]{along} and node_weight [N] or None of one floating dtype on "
            f"{graph.edge_dst.device}, with N = {graph.num_nodes}, got {got}"
        )
    moving = [name for name in ("teacher_edge", "direction") if name in tensors and tensors[name].requires_grad]
    if moving:
        raise ValueError(f"{function} takes what the teacher gives as constant, but {' and '.join(moving)} requires grad: detach it")


# The operators. `needs` are three flags, for x, weight and bias; what is not needed comes back empty. Rows are nodes without `direction`,
# and three a node with it.

_TEACHER = "Tensor edge, Tensor? direction, Tensor dst, Tensor ptr, Tensor order"


def _rows_fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=accumulator(x))


def _backward_fake(x: Tensor, weight: Tensor, *args: Any) -> Grads:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    grads = [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, args[-1], strict=True)]
    return grads[0], grads[1], grads[2]


def _rows_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    mean: bool,
    kind: str,
) -> Tensor:
    dtype = accumulator(x)
    goal = reference.target(edge.to(dtype), None if direction is None else direction.to(dtype), dst, ptr, mean)
    return projection.row_losses(x, weight, bias, goal, kind)


def _backward_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    upstream: Tensor,
    mean: bool,
    kind: str,
    needs: list[bool],
) -> Grads:
    dtype = accumulator(x)
    goal = reference.target(edge.to(dtype), None if direction is None else direction.to(dtype), dst, ptr, mean)
    grads = projection.row_gradients(x, weight, bias, goal, upstream, kind)
    kept = [grad if need else x.new_empty(0) for grad, need in zip(grads, needs, strict=False)]
    return kept[0], kept[1], kept[2]


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


edge_to_node_rows = backends.define_op(
    "edge_to_node_rows",
    f"(Tensor x, Tensor weight, Tensor? bias, {_TEACHER}, bool mean, str kind) -> Tensor",
    fake=_rows_fake,
    reference=_rows_reference,
    numba=_rows_numba,
    triton=_rows_triton,
)
edge_to_node_rows_backward = backends.define_op(
    "edge_to_node_rows_backward",
    f"(Tensor x, Tensor weight, Tensor? bias, {_TEACHER}, Tensor upstream, bool mean, str kind, bool[] needs) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)


# Derivatives


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.mean, ctx.kind, ctx.backend = inputs[8:]


def _constant_teacher(ctx: Any) -> None:
    # the public functions refuse such tensors; a call past them must not go without this gradient silently
    if any(ctx.needs_input_grad[3:5]):
        raise RuntimeError("the edge-to-node losses have no gradient by the teacher's edges or directions")


def _rows_autograd(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    _constant_teacher(ctx)
    needs = list(ctx.needs_input_grad[:3])
    grads = edge_to_node_rows_backward(*ctx.saved_tensors, upstream, ctx.mean, ctx.kind, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 8)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.mean, ctx.kind, ctx.needs, ctx.backend = inputs[9:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    _constant_teacher(ctx)
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if need else None for tangent, need in zip(tangents, ctx.needs, strict=True)]
    if all(tangent is None for tangent in wanted):
        return (None,) * 13
    x, weight, bias, edge, direction, dst, ptr, order, upstream = ctx.saved_tensors
    goal = _target(edge.to(accumulator(x)), direction, dst, ptr, order, ctx.mean, ctx.backend)
    tangents = (wanted[0], wanted[1], wanted[2], None)
    with blas.steady(ctx.backend):
        by_x, by_weight, by_bias, _, by_upstream = projection.row_second_gradients(x, weight, bias, goal, upstream, ctx.kind, tangents)
    needs = ctx.needs_input_grad
    by = (
        by_x.to(x.dtype) if needs[0] else None,
        by_weight.to(weight.dtype) if needs[1] else None,
        by_bias.to(bias.dtype) if needs[2] else None,
    )
    return (*by, *(None,) * 5, by_upstream if needs[8] else None, *(None,) * 4)


def _target(edge: Tensor, direction: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor, mean: bool, backend: str) -> Tensor:
    """What the projection is compared with, by the operators of the reduction alone: [N, D] or [3 N, D]."""
    if direction is None:
        total: Tensor = segment_sum(edge, ptr, order, dst, False, backend)
    else:
        total = sum_vector(edge, direction.to(edge.dtype), dst, ptr, order, backend).view(-1, edge.shape[1])
    return total * reference.row_scale(ptr, total) if mean else total


edge_to_node_rows.register_autograd(_rows_autograd, setup_context=_rows_setup)
edge_to_node_rows_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
