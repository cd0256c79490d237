"""triplet_reduce as torch operators: one meaning, three backends, derivatives of every order.

Everything is a derivative of one form, linear in each of its factors, Q = Σ_t Σ_s a_ts g_out,s · x_in: by g the reduction onto output
edges, by x ``fastkd::triplet_pull`` onto input edges, by a ``fastkd::triplet_dot``; ``fastkd::triplet_gradients`` makes the last two in
one pass. A derivative of such an operator is again one of them, so every order exists.

Example:
    >>> triplets = TripletIndex.from_triplets(edge_in, edge_out, num_edges)
    >>> y = triplet_reduce(edge_features, spherical_basis, triplets)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import backends
from . import reference
from .triplets import TRIPLET_SCHEMA, TripletIndex

Pair = tuple[Tensor, Tensor]
Grads = tuple[Tensor | None, ...]


def triplet_reduce(edge: Tensor, angular: Tensor, triplets: TripletIndex, *, backend: str | None = None) -> Tensor:
    """Sum over the triplets into each output edge the outer product of the triplet's angular basis and its input edge's features.

    Args:
        edge: features of the input edges, [E_in, D], any floating dtype.
        angular: basis of each triplet, in the order the index was made from, [T, S]; S need not be a power of two.
        triplets: input edge → output edge.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E_out, S, D]; 0 for edges that no triplet enters; differentiable to every order in ``edge`` and ``angular``. No [T, S, D]
        tensor and no padding to the largest number of triplets is made at any order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or not the index, or ``backend`` is unknown.

    Source: efficient bilinear layer of GemNet, Gasteiger, Becker and Günnemann, NeurIPS 2021, section 4.
    """
    fits = (
        edge.dim() == 2
        and angular.dim() == 2
        and edge.shape[0] == triplets.num_in
        and angular.shape[0] == triplets.num_triplets
        and edge.dtype == angular.dtype
        and edge.device == angular.device == triplets.edge_in.device
        and edge.is_floating_point()
    )
    if not fits:
        got = ", ".join(f"{name} {list(t.shape)} {t.dtype} on {t.device}" for name, t in (("edge", edge), ("angular", angular)))
        raise ValueError(
            f"triplet_reduce needs edge [{triplets.num_in}, D] and angular [{triplets.num_triplets}, S] of one floating dtype "
            f"on {triplets.edge_in.device}, got {got}"
        )
    total: Tensor = _reduce(edge, angular, *triplets.tensors, backends.resolve(backend, edge))
    return total


def triplet_contract(edge: Tensor, angular: Tensor, triplets: TripletIndex, *, backend: str | None = None) -> Tensor:
    """Sum over the triplets into each output edge the input edge's S rows, each weighted by the triplet's angular basis.

    The other half of `triplet_reduce`: there a sum has S rows for each output edge, here each input edge brings S rows of its own. DimeNet's
    spherical basis, a product of a part of the input edge and an angular part, is of this kind.

    Args:
        edge: rows of the input edges, [E_in, S, D], any floating dtype.
        angular: basis of each triplet, in the order the index was made from, [T, S].
        triplets: input edge → output edge.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E_out, D]; 0 for edges that no triplet enters; differentiable to every order in ``edge`` and ``angular``. No [T, D] tensor is
        made at any order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or not the index, or ``backend`` is unknown.
    """
    fits = (
        edge.dim() == 3
        and angular.shape == (triplets.num_triplets, edge.shape[1])
        and edge.shape[0] == triplets.num_in
        and edge.dtype == angular.dtype
        and edge.device == angular.device == triplets.edge_in.device
        and edge.is_floating_point()
    )
    if not fits:
        got = ", ".join(f"{name} {list(t.shape)} {t.dtype} on {t.device}" for name, t in (("edge", edge), ("angular", angular)))
        raise ValueError(
            f"triplet_contract needs edge [{triplets.num_in}, S, D] and angular [{triplets.num_triplets}, S] of one floating dtype "
            f"on {triplets.edge_in.device}, got {got}"
        )
    # the reduction's derivative, read against the direction of the triplets
    total: Tensor = _pull(edge, angular, *triplets.transpose.tensors, backends.resolve(backend, edge))
    return total


# The operators. Names: x input edges [E_in, D], a angular [T, S], g on output edges [E_out, S, D]; the index is six tensors, in the
# order of `TripletIndex.tensors`.


def _reduce_fake(x: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return x.new_empty(index[2].shape[0] - 1, a.shape[1], x.shape[1])


def _pull_fake(g: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return g.new_empty(index[4].shape[0] - 1, g.shape[2])


def _dot_fake(g: Tensor, x: Tensor, *index: Tensor) -> Tensor:
    return g.new_empty(index[0].shape[0], g.shape[1])


def _gradients_fake(g: Tensor, x: Tensor, a: Tensor, *index: Tensor) -> Pair:
    return x.new_empty(x.shape), a.new_empty(a.shape)


def _reduce_reference(x: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return reference.triplet_reduce(x, a, index[0], index[1], index[2].shape[0] - 1)


def _pull_reference(g: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return reference.triplet_pull(g, a, index[0], index[1], index[4].shape[0] - 1)


def _dot_reference(g: Tensor, x: Tensor, *index: Tensor) -> Tensor:
    return reference.triplet_dot(g, x, index[0], index[1])


def _gradients_reference(g: Tensor, x: Tensor, a: Tensor, *index: Tensor) -> Pair:
    return _pull_reference(g, a, *index), _dot_reference(g, x, *index)


def _numba(name: str) -> backends.Body:
    def launch(*args: Any) -> Any:
        from . import numba_launch

        return getattr(numba_launch, name)(*args)

    return launch


def _triton(name: str) -> backends.Body:
    def launch(*args: Any) -> Any:
        from . import triton_launch

        return getattr(triton_launch, name)(*args)

    return launch


#: Σ a ⊗ x onto output edges
_reduce = backends.define_op(
    "triplet_reduce",
    f"(Tensor x, Tensor a, {TRIPLET_SCHEMA}) -> Tensor",
    fake=_reduce_fake,
    reference=_reduce_reference,
    numba=_numba("triplet_reduce"),
    triton=_triton("triplet_reduce"),
)
#: Σ a · g onto input edges, the derivative by x
_pull = backends.define_op(
    "triplet_pull",
    f"(Tensor g, Tensor a, {TRIPLET_SCHEMA}) -> Tensor",
    fake=_pull_fake,
    reference=_pull_reference,
    numba=_numba("triplet_pull"),
    triton=_triton("triplet_pull"),
)
#: g · x on each triplet, the derivative by a
_dot = backends.define_op(
    "triplet_dot",
    f"(Tensor g, Tensor x, {TRIPLET_SCHEMA}) -> Tensor",
    fake=_dot_fake,
    reference=_dot_reference,
    numba=_numba("triplet_dot"),
    triton=_triton("triplet_dot"),
)
#: the last two in one pass over g
_gradients = backends.define_op(
    "triplet_gradients",
    f"(Tensor g, Tensor x, Tensor a, {TRIPLET_SCHEMA}) -> (Tensor, Tensor)",
    fake=_gradients_fake,
    reference=_gradients_reference,
    numba=_numba("triplet_gradients"),
    triton=_triton("triplet_gradients"),
)


# Derivatives. A cotangent that autograd does not have is None and costs nothing.


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _by_x_and_a(g: Tensor, x: Tensor, a: Tensor, needs: tuple[bool, ...], index: list[Tensor], backend: str) -> Grads:
    """Q's derivatives by x and a: what is needed of them, in as few passes as possible."""
    need_x, need_a = needs
    if need_x and need_a:
        by_x, by_a = _gradients(g, x, a, *index, backend)
        return by_x, by_a
    return _pull(g, a, *index, backend) if need_x else None, _dot(g, x, *index, backend) if need_a else None


def _reduce_backward(ctx: Any, g: Tensor | None) -> Grads:
    if g is None:
        return (None,) * 9
    x, a, *index = ctx.saved_tensors
    return (*_by_x_and_a(g, x, a, ctx.needs_input_grad[:2], index, ctx.backend), *(None,) * 7)


def _pull_backward(ctx: Any, h: Tensor | None) -> Grads:
    if h is None:
        return (None,) * 9
    g, a, *index = ctx.saved_tensors
    by_g = _reduce(h, a, *index, ctx.backend) if ctx.needs_input_grad[0] else None
    by_a = _dot(g, h, *index, ctx.backend) if ctx.needs_input_grad[1] else None
    return (by_g, by_a, *(None,) * 7)


def _dot_backward(ctx: Any, q: Tensor | None) -> Grads:
    if q is None:
        return (None,) * 9
    g, x, *index = ctx.saved_tensors
    by_g = _reduce(x, q, *index, ctx.backend) if ctx.needs_input_grad[0] else None
    by_x = _pull(g, q, *index, ctx.backend) if ctx.needs_input_grad[1] else None
    return (by_g, by_x, *(None,) * 7)


def _gradients_backward(ctx: Any, h: Tensor | None, q: Tensor | None) -> Grads:
    """With h, q the cotangents by x, a: derivatives of Q(g, h, a) + Q(g, x, q)."""
    g, x, a, *index = ctx.saved_tensors
    need_g, need_x, need_a = ctx.needs_input_grad[:3]
    by_g: Tensor | None = None
    by_x: Tensor | None = None
    by_a: Tensor | None = None
    if h is not None and q is not None:
        by_x, by_a = _by_x_and_a(g, h, q, (need_x, need_a), index, ctx.backend)
    elif h is not None:
        by_a = _dot(g, h, *index, ctx.backend) if need_a else None
    elif q is not None:
        by_x = _pull(g, q, *index, ctx.backend) if need_x else None
    if need_g and h is not None:
        by_g = _reduce(h, a, *index, ctx.backend)
    if need_g and q is not None:
        more = _reduce(x, q, *index, ctx.backend)
        by_g = more if by_g is None else by_g + more
    return (by_g, by_x, by_a, *(None,) * 7)


_reduce.register_autograd(_reduce_backward, setup_context=_setup)
_pull.register_autograd(_pull_backward, setup_context=_setup)
_dot.register_autograd(_dot_backward, setup_context=_setup)
_gradients.register_autograd(_gradients_backward, setup_context=_setup)
