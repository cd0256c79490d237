"""paired_cfconv and pair_product: cfconv where both directions of an undirected pair share one row of filter.

An invariant filter depends on the length of an edge alone, so half of its rows are enough; and since the two edges of a pair are
each other's reverse, both operators are symmetric, and closed under differentiation on the graph as it is.

Example:
    >>> pairs = PairIndex.from_pair(neighbors.pair, neighbors.csr)
    >>> pair_weight = filter_network(edge_length[neighbors.pair_edge])  # [n_pairs, F]
    >>> y = paired_cfconv(x, pair_weight, pairs, neighbors.csr)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import backends
from ..graph import CSRGraph
from . import reference
from .op import Grads, describe
from .pairs import PAIR_SCHEMA, PairIndex


def paired_cfconv(x: Tensor, pair_weight: Tensor, pairs: PairIndex, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """Sum over the edges into each node of the filter of the edge's pair times the source's features.

    Args:
        x: node features, [n_nodes, F].
        pair_weight: filter of each undirected pair, [n_pairs, F].
        pairs: which edges belong together; made from the same graph.
        graph: the directed edges, each pair in both directions.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_nodes, F], equal to ``cfconv(x, pair_weight[pairs.pair], graph)``, differentiable to every order in both inputs.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: SchNet, Schütt et al. 2017, eq. 2, with w(r_ij) = w(r_ji).
    """
    _check_pairs("paired_cfconv", pairs, graph)
    fits = x.dim() == 2 and x.shape[0] == graph.num_nodes and pair_weight.shape == (pairs.num_pairs, x.shape[1])
    if not fits or x.dtype != pair_weight.dtype or x.device != pair_weight.device or not x.is_floating_point():
        raise ValueError(
            f"paired_cfconv needs x [{graph.num_nodes}, F] and pair_weight [{pairs.num_pairs}, F] of one floating dtype on one device, "
            f"got {describe(x)} and {describe(pair_weight)}"
        )
    output: Tensor = _paired_cfconv(x, pair_weight, *pairs.tensors(graph), backends.resolve(backend, x))
    return output


def pair_product(a: Tensor, b: Tensor, pairs: PairIndex, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
    """a_i ∘ b_j + a_j ∘ b_i for each pair {i, j}; with `paired_cfconv` closed under differentiation.

    Args:
        a: node features, [n_nodes, F].
        b: node features, [n_nodes, F].
        pairs: which edges belong together; made from the same graph.
        graph: the directed edges, each pair in both directions.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_pairs, F]: the sum of ``edge_product(a, b, graph)`` over the two edges of each pair.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.
    """
    _check_pairs("pair_product", pairs, graph)
    fits = a.dim() == 2 and a.shape == b.shape and a.shape[0] == graph.num_nodes
    if not fits or a.dtype != b.dtype or a.device != b.device or not a.is_floating_point():
        raise ValueError(
            f"pair_product needs a and b [{graph.num_nodes}, F] of one floating dtype on one device, got {describe(a)} and {describe(b)}"
        )
    output: Tensor = _pair_product(a, b, *pairs.tensors(graph), backends.resolve(backend, a))
    return output


def _check_pairs(function: str, pairs: PairIndex, graph: CSRGraph) -> None:
    if pairs.pair.shape != graph.edge_src.shape:
        raise ValueError(
            f"{function}: pairs were made from another graph: they cover {pairs.pair.shape[0]} edges, the graph has {graph.num_edges}"
        )


# The operators


def _paired_cfconv_fake(x: Tensor, pair_weight: Tensor, *pairs: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _paired_cfconv_reference(
    x: Tensor, pair_weight: Tensor, edge_src: Tensor, edge_dst: Tensor, edge_ptr: Tensor, edge_order: Tensor, pair: Tensor, *rest: Tensor
) -> Tensor:
    return reference.paired_cfconv(x, pair_weight, edge_src, edge_dst, pair)


def _paired_cfconv_numba(*args: Tensor) -> Tensor:
    from .numba_launch import paired_cfconv as launch

    return launch(*args)


def _paired_cfconv_triton(*args: Tensor) -> Tensor:
    from .triton_launch import paired_cfconv as launch

    return launch(*args)


def _pair_product_fake(a: Tensor, b: Tensor, *pairs: Tensor) -> Tensor:
    return a.new_empty(pairs[-1].shape[0], a.shape[1])


def _pair_product_reference(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor, *rest: Tensor) -> Tensor:
    return reference.pair_product(a, b, edge_src, edge_dst, rest[-1])


def _pair_product_numba(*args: Tensor) -> Tensor:
    from .numba_launch import pair_product as launch

    return launch(*args)


def _pair_product_triton(*args: Tensor) -> Tensor:
    from .triton_launch import pair_product as launch

    return launch(*args)


_paired_cfconv = backends.define_op(
    "paired_cfconv",
    f"(Tensor x, Tensor pair_weight, {PAIR_SCHEMA}) -> Tensor",
    fake=_paired_cfconv_fake,
    reference=_paired_cfconv_reference,
    numba=_paired_cfconv_numba,
    triton=_paired_cfconv_triton,
)
_pair_product = backends.define_op(
    "pair_product",
    f"(Tensor a, Tensor b, {PAIR_SCHEMA}) -> Tensor",
    fake=_pair_product_fake,
    reference=_pair_product_reference,
    numba=_pair_product_numba,
    triton=_pair_product_triton,
)


# Derivatives. Reversing every edge maps each pair onto itself, so no transposed graph is needed.


def _paired_cfconv_backward(ctx: Any, grad: Tensor) -> Grads:
    x, pair_weight, *pairs = ctx.saved_tensors
    grad_x = _paired_cfconv(grad, pair_weight, *pairs, *ctx.rest) if ctx.needs_input_grad[0] else None
    grad_weight = _pair_product(grad, x, *pairs, *ctx.rest) if ctx.needs_input_grad[1] else None
    return (grad_x, grad_weight, *(None,) * 7)


def _pair_product_backward(ctx: Any, grad: Tensor) -> Grads:
    a, b, *pairs = ctx.saved_tensors
    grad_a = _paired_cfconv(b, grad, *pairs, *ctx.rest) if ctx.needs_input_grad[0] else None
    grad_b = _paired_cfconv(a, grad, *pairs, *ctx.rest) if ctx.needs_input_grad[1] else None
    return (grad_a, grad_b, *(None,) * 7)


_paired_cfconv.register_autograd(_paired_cfconv_backward, setup_context=backends.save_inputs)
_pair_product.register_autograd(_pair_product_backward, setup_context=backends.save_inputs)
