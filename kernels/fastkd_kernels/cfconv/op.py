"""cfconv and edge_product as torch operators: one meaning, three backends, derivatives of every order.

Example:
    >>> graph = CSRGraph.from_edges(edge_src, edge_dst, num_nodes)
    >>> y = cfconv(x, weight, graph)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..graph import GRAPH_SCHEMA, CSRGraph, transpose
from . import reference

Grads = tuple[Tensor | None, ...]


def cfconv(x: Tensor, weight: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """Sum over the edges into each node of the edge's filter times its source's features.

    Args:
        x: node features, [n_nodes, F].
        weight: filter of each edge, in the order the graph was made from, [n_edges, F].
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_nodes, F]; nodes without incoming edges get zero. Differentiable to every order in ``x`` and ``weight``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: SchNet, Schütt et al. 2017, eq. 2.
    """
    if x.dim() != 2 or x.shape[0] != graph.num_nodes or weight.shape != (graph.num_edges, x.shape[1]) or not _alike(x, weight):
        raise ValueError(
            f"cfconv needs x [{graph.num_nodes}, F] and weight [{graph.num_edges}, F] of one floating dtype on one device, "
            f"got {describe(x)} and {describe(weight)}"
        )
    output: Tensor = _cfconv(x, weight, *graph.tensors, backends.resolve(backend, x))
    return output


def edge_product(a: Tensor, b: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """a[dst] ∘ b[src] on each edge; with `cfconv` closed under differentiation.

    Args:
        a: features taken at each edge's destination, [n_nodes, F].
        b: features taken at each edge's source, [n_nodes, F].
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_edges, F], in the order the graph was made from. Differentiable to every order in ``a`` and ``b``.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.
    """
    if a.dim() != 2 or a.shape != b.shape or a.shape[0] != graph.num_nodes or not _alike(a, b):
        raise ValueError(
            f"edge_product needs a and b [{graph.num_nodes}, F] of one floating dtype on one device, got {describe(a)} and {describe(b)}"
        )
    output: Tensor = _edge_product(a, b, *graph.tensors, backends.resolve(backend, a))
    return output


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for messages."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and a.is_floating_point()


# The operators


def _cfconv_fake(x: Tensor, weight: Tensor, *graph: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _cfconv_reference(x: Tensor, weight: Tensor, edge_src: Tensor, edge_dst: Tensor, *rest: Tensor) -> Tensor:
    return reference.cfconv(x, weight, edge_src, edge_dst)


def _cfconv_numba(*args: Tensor) -> Tensor:
    from .numba_launch import cfconv as launch

    return launch(*args)


def _cfconv_triton(*args: Tensor) -> Tensor:
    from .triton_launch import cfconv as launch

    return launch(*args)


def _edge_product_fake(a: Tensor, b: Tensor, edge_src: Tensor, *graph: Tensor) -> Tensor:
    return a.new_empty(edge_src.shape[0], a.shape[1])


def _edge_product_reference(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor, *rest: Tensor) -> Tensor:
    return reference.edge_product(a, b, edge_src, edge_dst)


def _edge_product_numba(*args: Tensor) -> Tensor:
    from .numba_launch import edge_product as launch

    return launch(*args)


def _edge_product_triton(*args: Tensor) -> Tensor:
    from .triton_launch import edge_product as launch

    return launch(*args)


_cfconv = backends.define_op(
    "cfconv",
    f"(Tensor x, Tensor weight, {GRAPH_SCHEMA}) -> Tensor",
    fake=_cfconv_fake,
    reference=_cfconv_reference,
    numba=_cfconv_numba,
    triton=_cfconv_triton,
)
_edge_product = backends.define_op(
    "edge_product",
    f"(Tensor a, Tensor b, {GRAPH_SCHEMA}) -> Tensor",
    fake=_edge_product_fake,
    reference=_edge_product_reference,
    numba=_edge_product_numba,
    triton=_edge_product_triton,
)


# Derivatives: each operator's gradient is made of the two operators, so autograd can go on differentiating.


def _cfconv_backward(ctx: Any, grad: Tensor) -> Grads:
    x, weight, *graph = ctx.saved_tensors
    once = ctx.rest == ("numba",) and all(ctx.needs_input_grad[:2]) and not torch.is_grad_enabled()
    if once and backends.runs_directly((grad, x, weight)):
        # nothing is recorded, so that the two may be made in one pass
        from .numba_launch import gradients

        both = gradients(grad, x, weight, *graph)
        if both is not None:
            return (*both, *(None,) * 7)
    grad_x = _cfconv(grad, weight, *transpose(*graph), *ctx.rest) if ctx.needs_input_grad[0] else None
    grad_weight = _edge_product(grad, x, *graph, *ctx.rest) if ctx.needs_input_grad[1] else None
    return (grad_x, grad_weight, *(None,) * 7)


def _edge_product_backward(ctx: Any, grad: Tensor) -> Grads:
    a, b, *graph = ctx.saved_tensors
    grad_a = _cfconv(b, grad, *graph, *ctx.rest) if ctx.needs_input_grad[0] else None
    grad_b = _cfconv(a, grad, *transpose(*graph), *ctx.rest) if ctx.needs_input_grad[1] else None
    return (grad_a, grad_b, *(None,) * 7)


_cfconv.register_autograd(_cfconv_backward, setup_context=backends.save_inputs)
_edge_product.register_autograd(_edge_product_backward, setup_context=backends.save_inputs)
