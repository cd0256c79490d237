"""The filtered sum over triplets as torch operators: one meaning, three backends, derivatives of every order.

``fastkd::triplet_filter`` is the sum, ``fastkd::triplet_filter_gradients`` its derivative by edges, radial rows, weight and angular part in
one pass, ``fastkd::triplet_filter_second`` the derivative of that. What lies beyond is plain torch.

Example:
    >>> edge_out = triplet_filter(edge_features, radial_rows, weight, legendre_polynomials, triplets)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import backends
from ..blas import steady
from ..higher import through_reference
from ..triplet_reduce.triplets import TRIPLET_SCHEMA, TripletIndex
from . import reference
from .reference import Five

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Grads = tuple[Tensor | None, ...]


def triplet_filter(
    edge: Tensor, radial: Tensor, weight: Tensor, angular: Tensor, triplets: TripletIndex, *, backend: str | None = None
) -> Tensor:
    """Sum over the triplets into each output edge the input edge's features, filtered by (Σ_s angular_s radial_s) · weight.

    Args:
        edge: features of the input edges, [E_in, D], any floating dtype.
        radial: rows of the input edges, one for each angular function, [E_in, S, B].
        weight: from rows to filters, [B, D].
        angular: basis of each triplet, in the order the index was made from, [T, S].
        triplets: input edge → output edge.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [E_out, D]; 0 for edges that no triplet enters; differentiable to every order in all four tensors. No [T, D] tensor is made at any
        order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or not the index, or ``backend`` is unknown.

    Source: interaction block of DimeNet++, Gasteiger, Giri, Margraf and Günnemann 2020 (arXiv:2011.14115), fig. 1.
    """
    tensors = (("edge", edge), ("radial", radial), ("weight", weight), ("angular", angular))
    fits = (
        edge.dim() == 2
        and radial.dim() == 3
        and edge.shape[0] == radial.shape[0] == triplets.num_in
        and weight.shape == (radial.shape[2], edge.shape[1])
        and angular.shape == (triplets.num_triplets, radial.shape[1])
        and all(tensor.dtype == edge.dtype and tensor.device == triplets.edge_in.device for _, tensor in tensors)
        and edge.is_floating_point()
    )
    if not fits:
        got = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}" for name, tensor in tensors)
        raise ValueError(
            f"triplet_filter needs edge [{triplets.num_in}, D], radial [{triplets.num_in}, S, B], weight [B, D] and angular "
            f"[{triplets.num_triplets}, S] of one floating dtype on {triplets.edge_in.device}, got {got}"
        )
    total: Tensor = _sum(edge, radial, weight, angular, *triplets.tensors, backends.resolve(backend, edge))
    return total


# The operators. Names: x edge [E_in, D], r radial [E_in, S, B], w weight [B, D], a angular [T, S], g on output edges [E_out, D]; the index
# is six tensors, in the order of `TripletIndex.tensors`. What is not needed comes back empty.


def _sum_fake(x: Tensor, r: Tensor, w: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return x.new_empty(index[2].shape[0] - 1, x.shape[1])


def _sum_reference(x: Tensor, r: Tensor, w: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    return reference.triplet_filter(x, r, w, a, reference.plain_sums(*index))


def _gradients_fake(g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Any) -> Four:
    by_w, by_a = rest[-2:]
    return (
        x.new_empty(x.shape),
        r.new_empty(r.shape),
        w.new_empty(w.shape if by_w else (0,)),
        a.new_empty(a.shape if by_a else (0,)),
    )


def _gradients_reference(g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *index, by_w, by_a = rest
    return reference.gradients(g, x, r, w, a, reference.plain_sums(*index), by_w=by_w, by_a=by_a)


def _second_fake(hx: Tensor, hr: Tensor, ha: Tensor, g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Any) -> Five:
    return (g.new_empty(g.shape), *_gradients_fake(g, x, r, w, a, *rest))


def _second_reference(hx: Tensor, hr: Tensor, ha: Tensor, g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Any) -> Five:
    *index, by_w, by_a = rest
    return reference.second(hx, hr, ha, g, x, r, w, a, reference.plain_sums(*index), by_w=by_w, by_a=by_a)


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


def _define(name: str, schema: str, launcher: str, *, fake: Callable[..., Any], plain: Callable[..., Any]) -> backends.Operator:
    return backends.define_op(name, schema, fake=fake, reference=plain, numba=_numba(launcher), triton=_triton(launcher))


_FORM, _NEEDS = "Tensor x, Tensor r, Tensor w, Tensor a", "bool by_w, bool by_a"

_sum = _define("triplet_filter", f"({_FORM}, {TRIPLET_SCHEMA}) -> Tensor", "triplet_filter", fake=_sum_fake, plain=_sum_reference)
_gradients = _define(
    "triplet_filter_gradients",
    f"(Tensor g, {_FORM}, {TRIPLET_SCHEMA}, {_NEEDS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "gradients",
    fake=_gradients_fake,
    plain=_gradients_reference,
)
_second = _define(
    "triplet_filter_second",
    f"(Tensor hx, Tensor hr, Tensor ha, Tensor g, {_FORM}, {TRIPLET_SCHEMA}, {_NEEDS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "second",
    fake=_second_fake,
    plain=_second_reference,
)


# Derivatives. A cotangent that autograd does not have is None.


def _setup(tensors: int) -> Callable[..., None]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest, ctx.backend = inputs[tensors:-1], inputs[-1]
        ctx.set_materialize_grads(False)

    return setup


def _sum_backward(ctx: Any, g: Tensor | None) -> Grads:
    if g is None:
        return (None,) * 11
    need_x, need_r, need_w, need_a = (ctx.needs_input_grad[i] and backends.wanted(ctx, i) for i in range(4))
    if not (need_x or need_r or need_w or need_a):
        return (None,) * 11
    found = _gradients(g, *ctx.saved_tensors, need_w, need_a, ctx.backend)
    grads = (grad if need else None for grad, need in zip(found, (need_x, need_r, need_w, need_a), strict=True))
    return (*grads, *(None,) * 7)


def _gradients_backward(ctx: Any, hx: Tensor | None, hr: Tensor | None, hw: Tensor | None, ha: Tensor | None) -> Grads:
    g, x, r, w, a, *index = ctx.saved_tensors
    given_w, given_a = ctx.rest
    # what was not needed is empty, and so is whatever may have been sent back through it
    hw, ha = hw if given_w else None, ha if given_a else None
    needs = [ctx.needs_input_grad[i] and backends.wanted(ctx, i) for i in range(5)]
    none = (None,) * 9
    if (hx is None and hr is None and hw is None and ha is None) or not any(needs):
        return (*(None,) * 5, *none)
    if hw is not None:
        # whoever trains by gradients of weights, as in meta-learning
        plain = reference.plain_sums(*index)
        with steady(ctx.backend):
            grads = through_reference(
                lambda g, x, r, w, a: reference.gradients(g, x, r, w, a, plain, by_w=True, by_a=given_a),
                (g, x, r, w, a),
                (hx, hr, hw, ha),
                needs,
            )
        return (*grads, *none)
    hx, hr = x.new_zeros(x.shape) if hx is None else hx, r.new_zeros(r.shape) if hr is None else hr
    found = _second(hx, hr, a.new_empty(0) if ha is None else ha, g, x, r, w, a, *index, needs[3], needs[4], ctx.backend)
    return (*(grad if need else None for grad, need in zip(found, needs, strict=True)), *none)


def _second_backward(ctx: Any, *cotangents: Tensor | None) -> Grads:
    *tensors, _, _, _, _, _, _ = ctx.saved_tensors
    plain, (by_w, by_a) = reference.plain_sums(*ctx.saved_tensors[8:]), ctx.rest
    given = [*cotangents[:3], cotangents[3] if by_w else None, cotangents[4] if by_a else None]
    needs = list(ctx.needs_input_grad[:8])

    def specification(hx: Tensor, hr: Tensor, ha: Tensor, g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor) -> Five:
        return reference.second(hx, hr, ha, g, x, r, w, a, plain, by_w=by_w, by_a=by_a)

    with steady(ctx.backend):
        grads = through_reference(specification, tensors, given, needs)
    return (*grads, *(None,) * 9)


_sum.register_autograd(_sum_backward, setup_context=_setup(10))
_gradients.register_autograd(_gradients_backward, setup_context=_setup(11))
_second.register_autograd(_second_backward, setup_context=_setup(14))
