"""The local structure loss as torch operators: one meaning, three backends, derivatives of every order.

``fastkd::edge_dot`` and ``fastkd::edge_laplacian`` are a closed pair: each one's derivatives are the other and itself. With them
``fastkd::edge_distance`` has every derivative. The loss on top of the distances is numbers of edges only, never [E, C].

Example:
    >>> loss = local_structure_loss(student_nodes, teacher_nodes, graph)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..graph import GRAPH_SCHEMA, CSRGraph
from ..segment_reduce.op import segment_extremum, segment_gather, segment_sum
from ..sums import total
from . import reference
from .reference import EPS, accumulator


def local_structure_loss(x: Tensor, y: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """How differently two feature spaces see each node's neighbours; no tensor of edges and features is made.

    With distances d_e = ‖f_src − f_dst‖ along edges, each node has a distribution over the edges that end in it, p = softmax(d). The
    loss is Σ_e p_e(y) (log p_e(y) − log p_e(x)) / E, a mean over edges. It sees distances only, so shifting, rotating or mirroring
    either side changes nothing, and the widths need not agree.

    Args:
        x: features of the student, [N, C].
        y: features of the teacher, [N, D], a constant.
        graph: edges, on N nodes.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 without edges. Differentiable by ``x`` to every order; a
        distance of at most `EPS`, as on a self loop, counts as a constant.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``y`` requires a gradient, or ``backend`` is unknown.

    Source: local structure preservation, Yang et al., Distilling knowledge from graph convolutional networks, CVPR 2020, with the
    distances of Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge distillation, NeurIPS 2023.
    """
    _check("local_structure_loss", graph, x, y)
    if y.requires_grad:
        raise ValueError(f"local_structure_loss takes the teacher's features as constants, but y {list(y.shape)} requires a gradient")
    chosen = backends.resolve(backend, x)
    student, teacher = (edge_distance_operator(features, *graph.tensors, chosen) for features in (x, y))
    by_node = softmax_divergence(student, teacher, graph.edge_dst, graph.edge_ptr, graph.edge_order, chosen)
    return total(by_node) / max(graph.num_edges, 1)


def edge_distance(x: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """d_e = ‖x_src − x_dst‖ along edges, without the differences in memory.

    A norm has no derivative at 0: a distance of at most `EPS` has derivatives 0, at every order. The value is exact everywhere.

    Args:
        x: features, [N, C].
        graph: edges, on N nodes.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E], in float64 for float64 input and in float32 otherwise; differentiable to every order.

    Raises:
        ValueError: if shapes or devices do not fit together, or ``backend`` is unknown.
    """
    _check("edge_distance", graph, x, None)
    distance: Tensor = edge_distance_operator(x, *graph.tensors, backends.resolve(backend, x))
    return distance


def _check(function: str, graph: CSRGraph, x: Tensor, y: Tensor | None) -> None:
    given = {"x": x} if y is None else {"x": x, "y": y}
    fits = all(
        tensor.dim() == 2 and tensor.shape[0] == graph.num_nodes and tensor.dtype == x.dtype and tensor.device == graph.edge_src.device
        for tensor in given.values()
    )
    if not fits or not x.is_floating_point():
        needs = " and ".join(f"{name} [{graph.num_nodes}, {width}]" for name, width in zip(given, "CD", strict=False))
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in given.items())
        raise ValueError(f"{function} needs {needs} of one floating dtype on {graph.edge_src.device}, got {got}")


# The operators.


def _distance_fake(x: Tensor, src: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(src.shape[0], dtype=accumulator(x))


def _dot_fake(a: Tensor, b: Tensor, src: Tensor, *_: Tensor) -> Tensor:
    return a.new_empty(src.shape[0], dtype=accumulator(a))


def _laplacian_fake(w: Tensor, x: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _divergence_fake(student: Tensor, teacher: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    return student.new_empty(ptr.shape[0] - 1)


def _gradient_fake(student: Tensor, teacher: Tensor, upstream: Tensor, *_: Tensor) -> Tensor:
    return student.new_empty(student.shape)


def _numba(name: str) -> Any:
    def body(*args: Any) -> Tensor:
        from . import numba_launch

        made: Tensor = getattr(numba_launch, name)(*args)
        return made

    return body


def _triton(name: str) -> Any:
    def body(*args: Any) -> Tensor:
        from . import triton_launch

        made: Tensor = getattr(triton_launch, name)(*args)
        return made

    return body


_SEGMENTS = "Tensor dst, Tensor ptr, Tensor order"

#: ‖x_src − x_dst‖
edge_distance_operator = backends.define_op(
    "edge_distance",
    f"(Tensor x, {GRAPH_SCHEMA}) -> Tensor",
    fake=_distance_fake,
    reference=lambda x, src, dst, *_: reference.edge_distance(x, src, dst),
    numba=_numba("edge_distance"),
    triton=_triton("edge_distance"),
)
#: (a_src − a_dst) · (b_src − b_dst)
edge_dot = backends.define_op(
    "edge_dot",
    f"(Tensor a, Tensor b, {GRAPH_SCHEMA}) -> Tensor",
    fake=_dot_fake,
    reference=lambda a, b, src, dst, *_: reference.edge_dot(a, b, src, dst),
    numba=_numba("edge_dot"),
    triton=_triton("edge_dot"),
)
#: Σ w_e (x_i − x_j) over the edges e between i and any j
edge_laplacian = backends.define_op(
    "edge_laplacian",
    f"(Tensor w, Tensor x, {GRAPH_SCHEMA}) -> Tensor",
    fake=_laplacian_fake,
    reference=lambda w, x, src, dst, *_: reference.edge_laplacian(w, x, src, dst),
    numba=_numba("edge_laplacian"),
    triton=_triton("edge_laplacian"),
)
#: KL_j of softmax(teacher) to softmax(student) over the edges that end in j
softmax_divergence = backends.define_op(
    "softmax_divergence",
    f"(Tensor student, Tensor teacher, {_SEGMENTS}) -> Tensor",
    fake=_divergence_fake,
    reference=lambda student, teacher, dst, ptr, order: reference.divergence(student, teacher, dst, ptr.shape[0] - 1),
    numba=_numba("divergence"),
    triton=_triton("divergence"),
)
#: h_dst (softmax(student) − softmax(teacher))
softmax_divergence_backward = backends.define_op(
    "softmax_divergence_backward",
    f"(Tensor student, Tensor teacher, Tensor upstream, {_SEGMENTS}) -> Tensor",
    fake=_gradient_fake,
    reference=lambda student, teacher, upstream, dst, ptr, order: reference.divergence_gradient(
        student, teacher, upstream, dst, ptr.shape[0] - 1
    ),
    numba=_numba("divergence_gradient"),
    triton=_triton("divergence_gradient"),
)


# Derivatives. The teacher's distances are constants.


def _distance_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *graph, ctx.backend = inputs
    ctx.save_for_backward(x, output, *graph)


def _distance_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    # the distance is the operator's own output, so that autograd differentiates its inverse through the operator again
    x, distance, *graph = ctx.saved_tensors
    close = distance <= EPS
    inverse = torch.where(close, 0, 1 / torch.where(close, 1, distance))
    return edge_laplacian(upstream * inverse, x, *graph, ctx.backend), *(None,) * 7


def _dot_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _dot_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    a, b, *graph = ctx.saved_tensors
    by_a = edge_laplacian(upstream, b, *graph, ctx.backend) if ctx.needs_input_grad[0] else None
    by_b = edge_laplacian(upstream, a, *graph, ctx.backend) if ctx.needs_input_grad[1] else None
    return by_a, by_b, *(None,) * 7


def _laplacian_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    w, x, *graph = ctx.saved_tensors
    by_w = edge_dot(upstream, x, *graph, ctx.backend) if ctx.needs_input_grad[0] else None
    by_x = edge_laplacian(w, upstream, *graph, ctx.backend) if ctx.needs_input_grad[1] else None
    return by_w, by_x, *(None,) * 7


def _divergence_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    student, teacher, *segments = ctx.saved_tensors
    return softmax_divergence_backward(student, teacher, upstream, *segments, ctx.backend), *(None,) * 5


def _gradient_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    student, teacher, upstream, dst, ptr, order = ctx.saved_tensors
    groups = (ptr, order, dst)

    def gather(rows: Tensor) -> Tensor:
        spread: Tensor = segment_gather(rows, *groups, dst.shape[0], False, ctx.backend)
        return spread

    def softmax(d: Tensor) -> Tensor:
        most = segment_extremum(d.detach(), *groups, True, ctx.backend)[0]
        grown = torch.exp(d - gather(most))
        return grown / gather(segment_sum(grown, *groups, False, ctx.backend))

    p = softmax(student)
    by_student = by_upstream = None
    if ctx.needs_input_grad[0]:
        weighted = p * (cotangent * gather(upstream))
        by_student = weighted - p * gather(segment_sum(weighted, *groups, False, ctx.backend))
    if ctx.needs_input_grad[2]:
        by_upstream = segment_sum(cotangent * (p - softmax(teacher)), *groups, False, ctx.backend)
    return by_student, None, by_upstream, *(None,) * 4


edge_distance_operator.register_autograd(_distance_backward, setup_context=_distance_setup)
edge_dot.register_autograd(_dot_backward, setup_context=_dot_setup)
edge_laplacian.register_autograd(_laplacian_backward, setup_context=_dot_setup)
softmax_divergence.register_autograd(_divergence_backward, setup_context=_dot_setup)
softmax_divergence_backward.register_autograd(_gradient_backward, setup_context=_dot_setup)
