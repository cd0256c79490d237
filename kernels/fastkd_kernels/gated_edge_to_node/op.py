"""The gated sum of edges onto nodes as torch operators: one meaning, three backends, derivatives of every order.

Everything is a derivative of one form, linear in each of its four factors, L = Σ_e g_dst · (m ∘ (W b)). The operator
``fastkd::gated_edge_to_node`` is its derivative by g; ``fastkd::gated_edge_gradients`` makes those by m, b and W, any of them, in one
pass. A derivative of either is made of the two again, so every order exists, and no gate [E, D] at any of them.

Example:
    >>> node = gated_edge_to_node(edge_features, radial_basis, linear.weight, graph)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..graph import CSRGraph
from . import reference

Triple = tuple[Tensor, Tensor, Tensor]
Grads = tuple[Tensor | None, ...]


def gated_edge_to_node(edge: Tensor, basis: Tensor, weight: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """Sum over the edges into each node of edge ∘ (basis · weightᵀ); the gate, basis · weightᵀ, is never stored.

    Args:
        edge: features of each edge, in the caller's order of edges, [E, D], any floating dtype.
        basis: radial basis of each edge, or any other features that the gate is a linear map of, [E, R].
        weight: of that map, as in `torch.nn.Linear` without bias, [D, R].
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [N, D]; 0 for nodes that no edge enters; differentiable to every order in ``edge``, ``basis`` and ``weight``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or not the graph, or ``backend`` is unknown.

    Source: atom update block of GemNet, Gasteiger, Becker and Günnemann, NeurIPS 2021, and of GemNet-OC, TMLR 2022.
    """
    _check(edge, basis, weight, graph)
    if backends.plain_is_faster(backend, edge, edge.numel()):
        return reference.gated_edge_to_node(edge, basis, weight, graph.edge_dst, graph.num_nodes)
    total: Tensor = _sum(edge, basis, weight, graph.edge_dst, graph.edge_ptr, graph.edge_order, backends.resolve(backend, edge))
    return total


def _check(edge: Tensor, basis: Tensor, weight: Tensor, graph: CSRGraph) -> None:
    edges, tensors = graph.num_edges, (("edge", edge), ("basis", basis), ("weight", weight))
    fits = (
        all(tensor.dim() == 2 and tensor.dtype == edge.dtype and tensor.device == graph.edge_dst.device for _, tensor in tensors)
        and edge.shape[0] == edges
        and basis.shape[0] == edges
        and weight.shape == (edge.shape[1], basis.shape[1])
        and edge.is_floating_point()
    )
    if not fits:
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in tensors)
        raise ValueError(
            f"gated_edge_to_node needs edge [{edges}, D], basis [{edges}, R] and weight [D, R] of one floating dtype "
            f"on {graph.edge_dst.device}, got {got}"
        )


# The operators. Names: m edge [E, D], b basis [E, R], w weight [D, R], g on nodes [N, D]. `needs` are three flags, for the derivatives
# by m, b and w; what is not needed comes back empty.

_GRAPH = "Tensor dst, Tensor ptr, Tensor order"


def _sum_fake(m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    return m.new_empty(ptr.shape[0] - 1, m.shape[1])


def _sum_reference(m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    return reference.gated_edge_to_node(m, b, w, dst, ptr.shape[0] - 1)


def _sum_numba(*args: Any) -> Tensor:
    from .numba_launch import gated_sum

    return gated_sum(*args)


def _sum_triton(*args: Any) -> Tensor:
    from .triton_launch import gated_sum

    return gated_sum(*args)


def _gradients_fake(g: Tensor, m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, needs: list[bool]) -> Triple:
    by_m, by_b, by_w = (like.new_empty(like.shape if need else (0,)) for like, need in zip((m, b, w), needs, strict=True))
    return by_m, by_b, by_w


def _gradients_reference(g: Tensor, m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, needs: list[bool]) -> Triple:
    return reference.gradients(g, m, b, w, dst, needs)


def _gradients_numba(*args: Any) -> Triple:
    from .numba_launch import gradients

    return gradients(*args)


def _gradients_triton(*args: Any) -> Triple:
    from .triton_launch import gradients

    return gradients(*args)


_sum = backends.define_op(
    "gated_edge_to_node",
    f"(Tensor m, Tensor b, Tensor w, {_GRAPH}) -> Tensor",
    fake=_sum_fake,
    reference=_sum_reference,
    numba=_sum_numba,
    triton=_sum_triton,
)
_gradients = backends.define_op(
    "gated_edge_gradients",
    f"(Tensor g, Tensor m, Tensor b, Tensor w, {_GRAPH}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    fake=_gradients_fake,
    reference=_gradients_reference,
    numba=_gradients_numba,
    triton=_gradients_triton,
)


# Derivatives. A cotangent that autograd does not have is None and costs nothing.


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.backend = inputs[6]


def _sum_backward(ctx: Any, g: Tensor) -> Grads:
    # while forces are taken, the engine would throw the weight's gradient away
    needs = [ctx.needs_input_grad[position] and backends.wanted(ctx, position) for position in range(3)]
    grads = _wanted(ctx.backend, g, *ctx.saved_tensors, needs=needs)
    return (*grads, None, None, None, None)


def _gradients_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.needs, ctx.backend = inputs[7:]
    ctx.set_materialize_grads(False)


def _gradients_backward(ctx: Any, *cotangents: Tensor | None) -> Grads:
    """With h, q, v the cotangents by m, b, w: derivatives of L(g, h, b, w) + L(g, m, q, w) + L(g, m, b, v).

    The last two are one form, because W q + V b = [W | V] · [q ; b]: one pass, and one result [E, D], for both.
    """
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    h, q, v = (cotangent if need else None for cotangent, need in zip(cotangents, ctx.needs, strict=True))
    g, m, b, w, *graph = ctx.saved_tensors
    need_g, need_m, need_b, need_w = ctx.needs_input_grad[:4]
    by_g: list[Tensor] = []
    by_m: Tensor | None = None
    by_b: list[Tensor] = []
    by_w: list[Tensor] = []
    if h is not None:
        if need_g:
            by_g.append(_sum(h, b, w, *graph, ctx.backend))
        _, along_b, along_w = _wanted(ctx.backend, g, h, b, w, *graph, needs=[False, need_b, need_w])
        by_b += [] if along_b is None else [along_b]
        by_w += [] if along_w is None else [along_w]
    if q is not None or v is not None:
        wide_b, wide_w = _joined(q, b, w, v)
        if need_g:
            by_g.append(_sum(m, wide_b, wide_w, *graph, ctx.backend))
        needs = [need_m, need_b and v is not None, need_w and q is not None]
        by_m, along_b, along_w = _wanted(ctx.backend, g, m, wide_b, wide_w, *graph, needs=needs)
        # the halves next to V and to q; the others are the gradient itself, which nobody asked for
        by_b += [] if along_b is None else [along_b[:, -b.shape[1] :] if b.shape[1] else along_b]
        by_w += [] if along_w is None else [along_w[:, : w.shape[1]]]
    return (_total(by_g), by_m, _total(by_b), _total(by_w), *(None,) * 5)


def _joined(q: Tensor | None, b: Tensor, w: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """[q | b] and [W | V], without the pair whose cotangent does not exist."""
    if q is None:
        assert v is not None
        return b, v
    return (q, w) if v is None else (torch.cat([q, b], 1), torch.cat([w, v], 1))


def _wanted(backend: str, g: Tensor, m: Tensor, b: Tensor, w: Tensor, *graph: Tensor, needs: list[bool]) -> Grads:
    """The operator's three results, None where not needed; not called at all if none is."""
    if not any(needs):
        return None, None, None
    found: Triple = _gradients(g, m, b, w, *graph, needs, backend)
    return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))


def _total(parts: list[Tensor]) -> Tensor | None:
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


_sum.register_autograd(_sum_backward, setup_context=_sum_setup)
_gradients.register_autograd(_gradients_backward, setup_context=_gradients_setup)
