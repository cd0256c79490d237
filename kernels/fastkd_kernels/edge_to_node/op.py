"""Edge features onto nodes as torch operators: one meaning, three backends, derivatives of every order.

Everything is a derivative of one trilinear form, L = Σ_e m_e · (g_dst + Σ_k r_e,k G_dst,k), by its factors: by g and G these are the
sums onto nodes, by m and r the operators ``fastkd::node_to_edge`` and ``fastkd::node_dot_edge``. A derivative of such an operator is
again one of them, so every order exists. ``edge_to_node`` is ``fastkd::segment_sum`` over the graph's edges.

Example:
    >>> node, vector = edge_to_node_both(edge_features, edge_vector / edge_length[:, None], graph)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import backends
from ..graph import CSRGraph
from ..segment_reduce.op import plain_sum, segment_gather, segment_sum
from . import launch, reference

Pair = tuple[Tensor, Tensor]


def edge_to_node(edge: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """Sum the features of the edges into each node.

    Args:
        edge: features of each edge, in the caller's order of edges, [E, D], any floating dtype.
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [N, D]; 0 for nodes that no edge enters; differentiable to every order.

    Raises:
        ValueError: if shape, dtype or device does not fit the graph, or ``backend`` is unknown.

    Source: edge-to-node distillation in Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge
    distillation, NeurIPS 2023.
    """
    _check("edge_to_node", edge, None, graph)
    if backends.plain_is_faster(backend, edge, edge.numel()):
        return plain_sum(edge, graph.edge_dst, graph.num_nodes)
    total: Tensor = segment_sum(edge, graph.edge_ptr, graph.edge_order, graph.edge_dst, False, backends.resolve(backend, edge))
    return total


def edge_to_node_vector(edge: Tensor, direction: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """Sum the features of the edges into each node as vectors along the edges, V_i,k = Σ_e r_e,k m_e, without an [E, 3, D] tensor.

    Args:
        edge: features of each edge, in the caller's order of edges, [E, D], any floating dtype.
        direction: of each edge, usually the unit vector; used as it is, [E, 3].
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [N, 3, D]; 0 for nodes that no edge enters; differentiable to every order in ``edge`` and ``direction``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or ``backend`` is unknown.

    Source: edge-to-vector distillation in Ekström Kelvinius et al., NeurIPS 2023.
    """
    _check("edge_to_node_vector", edge, direction, graph)
    vector: Tensor = sum_vector(edge, direction, *_incoming(graph), backends.resolve(backend, edge))
    return vector


def edge_to_node_both(edge: Tensor, direction: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Pair:
    """`edge_to_node` and `edge_to_node_vector` in one pass that reads ``edge`` once.

    Args:
        edge: features of each edge, in the caller's order of edges, [E, D], any floating dtype.
        direction: of each edge, usually the unit vector; used as it is, [E, 3].
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [N, D] and [N, 3, D]; 0 for nodes that no edge enters; differentiable to every order in ``edge`` and ``direction``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or ``backend`` is unknown.
    """
    _check("edge_to_node_both", edge, direction, graph)
    scalar, vector = sum_both(edge, direction, *_incoming(graph), backends.resolve(backend, edge))
    return scalar, vector


def _incoming(graph: CSRGraph) -> tuple[Tensor, Tensor, Tensor]:
    return graph.edge_dst, graph.edge_ptr, graph.edge_order


def _check(function: str, edge: Tensor, direction: Tensor | None, graph: CSRGraph) -> None:
    fits = edge.dim() == 2 and edge.shape[0] == graph.num_edges and edge.is_floating_point() and edge.device == graph.edge_dst.device
    if direction is not None:
        same = direction.dtype == edge.dtype and direction.device == edge.device
        fits = fits and same and direction.shape == (graph.num_edges, 3)
    if not fits:
        given = (("edge", "D", edge), ("direction", "3", direction))
        pairs = [(name, width, tensor) for name, width, tensor in given if tensor is not None]
        needs = " and ".join(f"{name} [{graph.num_edges}, {width}]" for name, width, _ in pairs)
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, _, tensor in pairs)
        raise ValueError(f"{function} needs {needs} of one floating dtype on {graph.edge_dst.device}, got {got}")


# The operators. Names: m edge features [E, D], r directions [E, 3], g [N, D] and G [N, 3, D] on nodes.

_GRAPH = "Tensor dst, Tensor ptr, Tensor order"


def _vector_fake(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    return m.new_empty(ptr.shape[0] - 1, 3, m.shape[1])


def _both_fake(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    return m.new_empty(ptr.shape[0] - 1, m.shape[1]), m.new_empty(ptr.shape[0] - 1, 3, m.shape[1])


def _edges_fake(m: Tensor, r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    return m.new_empty(m.shape), m.new_empty(m.shape[0], 3)


def _edges_reference(m: Tensor, r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    return reference.node_to_edge(r, vector, scalar, dst), reference.node_dot_edge(m, vector, dst)


#: V = Σ r ⊗ m
sum_vector = backends.define_op(
    "edge_to_node_vector",
    f"(Tensor m, Tensor r, {_GRAPH}) -> Tensor",
    fake=_vector_fake,
    reference=lambda m, r, dst, ptr, order: reference.edge_to_node_vector(m, r, dst, ptr.shape[0] - 1),
    numba=launch.vector_numba,
    triton=launch.vector_triton,
)
#: Σ m and Σ r ⊗ m
sum_both = backends.define_op(
    "edge_to_node_both",
    f"(Tensor m, Tensor r, {_GRAPH}) -> (Tensor, Tensor)",
    fake=_both_fake,
    reference=lambda m, r, dst, ptr, order: reference.edge_to_node_both(m, r, dst, ptr.shape[0] - 1),
    numba=launch.both_numba,
    triton=launch.both_triton,
)
#: g_dst + Σ_k r_k G_dst,k, the derivative by m
node_to_edge = backends.define_op(
    "node_to_edge",
    f"(Tensor r, Tensor vector, Tensor? scalar, {_GRAPH}) -> Tensor",
    fake=lambda r, vector, scalar, dst, ptr, order: vector.new_empty(r.shape[0], vector.shape[2]),
    reference=lambda r, vector, scalar, dst, ptr, order: reference.node_to_edge(r, vector, scalar, dst),
    numba=launch.to_edge_numba,
    triton=launch.to_edge_triton,
)
#: m · G_dst,k, the derivative by r
node_dot_edge = backends.define_op(
    "node_dot_edge",
    f"(Tensor m, Tensor vector, {_GRAPH}) -> Tensor",
    fake=lambda m, vector, dst, ptr, order: m.new_empty(m.shape[0], 3),
    reference=lambda m, vector, dst, ptr, order: reference.node_dot_edge(m, vector, dst),
    numba=launch.dot_numba,
    triton=launch.dot_triton,
)
#: the last two in one pass
edge_gradients = backends.define_op(
    "edge_to_node_backward",
    f"(Tensor m, Tensor r, Tensor vector, Tensor? scalar, {_GRAPH}) -> (Tensor, Tensor)",
    fake=_edges_fake,
    reference=_edges_reference,
    numba=launch.edges_numba,
    triton=launch.edges_triton,
)


# Derivatives. A cotangent that autograd does not have is None and costs nothing.


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _by_edge(ctx: Any, m: Tensor, r: Tensor, vector: Tensor | None, scalar: Tensor | None, graph: list[Tensor]) -> tuple[Any, Any]:
    """L's derivatives by m and r: what ctx needs of them, in as few passes as possible."""
    need_m, need_r = ctx.needs_input_grad[:2]
    if vector is None:
        # no cotangent of the vectors: L is linear in m alone
        dst, ptr, order = graph
        by_m = segment_gather(scalar, ptr, order, dst, m.shape[0], False, ctx.backend) if need_m and scalar is not None else None
        return by_m, None
    if need_m and need_r:
        by_m, by_r = edge_gradients(m, r, vector, scalar, *graph, ctx.backend)
        return by_m, by_r
    return (
        node_to_edge(r, vector, scalar, *graph, ctx.backend) if need_m else None,
        node_dot_edge(m, vector, *graph, ctx.backend) if need_r else None,
    )


def _by_node(m: Tensor, r: Tensor, need_vector: bool, need_scalar: bool, graph: list[Tensor], backend: str) -> tuple[Any, Any]:
    """L's derivatives by G and g."""
    if need_vector and need_scalar:
        scalar, vector = sum_both(m, r, *graph, backend)
        return vector, scalar
    dst, ptr, order = graph
    return (
        sum_vector(m, r, *graph, backend) if need_vector else None,
        segment_sum(m, ptr, order, dst, False, backend) if need_scalar else None,
    )


def _vector_backward(ctx: Any, vector: Tensor | None) -> tuple[Any, ...]:
    m, r, *graph = ctx.saved_tensors
    return *_by_edge(ctx, m, r, vector, None, graph), None, None, None, None


def _both_backward(ctx: Any, scalar: Tensor | None, vector: Tensor | None) -> tuple[Any, ...]:
    m, r, *graph = ctx.saved_tensors
    return *_by_edge(ctx, m, r, vector, scalar, graph), None, None, None, None


def _to_edge_backward(ctx: Any, h: Tensor | None) -> tuple[Any, ...]:
    if h is None:
        return (None,) * 7
    r, vector, _, *graph = ctx.saved_tensors
    need_r, need_vector, need_scalar = ctx.needs_input_grad[:3]
    by_r = node_dot_edge(h, vector, *graph, ctx.backend) if need_r else None
    return by_r, *_by_node(h, r, need_vector, need_scalar, graph, ctx.backend), None, None, None, None


def _dot_backward(ctx: Any, q: Tensor | None) -> tuple[Any, ...]:
    if q is None:
        return (None,) * 6
    m, vector, *graph = ctx.saved_tensors
    by_m = node_to_edge(q, vector, None, *graph, ctx.backend) if ctx.needs_input_grad[0] else None
    return by_m, _by_node(m, q, ctx.needs_input_grad[1], False, graph, ctx.backend)[0], None, None, None, None


def _edges_backward(ctx: Any, h: Tensor | None, q: Tensor | None) -> tuple[Any, ...]:
    # ⟨h, g + Σ r G⟩ is L(m = h), and ⟨q, m · G⟩ is L(r = q) without g
    m, r, vector, _, *graph = ctx.saved_tensors
    need_m, need_r, need_vector, need_scalar = ctx.needs_input_grad[:4]
    by_m = by_r = by_vector = by_scalar = None
    if h is not None and q is not None and need_m and need_r:
        by_m, by_r = edge_gradients(h, q, vector, None, *graph, ctx.backend)
    else:
        by_m = node_to_edge(q, vector, None, *graph, ctx.backend) if q is not None and need_m else None
        by_r = node_dot_edge(h, vector, *graph, ctx.backend) if h is not None and need_r else None
    if h is not None:
        by_vector, by_scalar = _by_node(h, r, need_vector, need_scalar, graph, ctx.backend)
    if q is not None and need_vector:
        more = sum_vector(m, q, *graph, ctx.backend)
        by_vector = more if by_vector is None else by_vector + more
    return by_m, by_r, by_vector, by_scalar, None, None, None, None


sum_vector.register_autograd(_vector_backward, setup_context=_context)
sum_both.register_autograd(_both_backward, setup_context=_context)
node_to_edge.register_autograd(_to_edge_backward, setup_context=_context)
node_dot_edge.register_autograd(_dot_backward, setup_context=_context)
edge_gradients.register_autograd(_edges_backward, setup_context=_context)
