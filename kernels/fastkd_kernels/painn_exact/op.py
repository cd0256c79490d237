"""PaiNN's message from distances as torch operators: value, gradient and gradient of gradient are one fused operator each.

The filter is linear in its parameters, so a cotangent of their gradient is again such parameters: the message and its gradient serve once
more, and no second derivative makes filters in memory. From the third order on, `reference` is differentiated, which does.

Example:
    >>> basis, envelope = BasisSpec("gaussian", 20, cutoff=5.0), EnvelopeSpec("cosine", cutoff=5.0)
    >>> linear = FilterLinear(weight, bias)
    >>> d_scalar, d_vector = painn_message_exact(phi, vector, edge_length, direction, basis, linear, envelope, graph)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..cfconv.pairs import PairIndex
from ..cfconv_exact.codes import UNIT_SCHEMA
from ..graph import CSRGraph
from ..higher import through_reference
from ..needed import Grads, allocate, kept, masked, save_inputs, wants
from ..radial_specs import BasisSpec, EnvelopeSpec, FilterLinear
from . import reference

#: Arguments that say which nodes a unit joins, and what its filter is made of.
UNIT_SIZE, SPEC_SIZE = 7, 3
_NO_INDEX = (None,) * (UNIT_SIZE + SPEC_SIZE)


def painn_message_exact(
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    basis: BasisSpec,
    linear: FilterLinear,
    cutoff: EnvelopeSpec | float,
    graph: CSRGraph,
    *,
    pairs: PairIndex | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What each node receives from its neighbours in PaiNN, from distances: `painn_message` with W(d) = C(d) (φ(d) weightᵀ + bias).

    Filters are made again in every pass, in tiles, so that the only edge-sized tensors are lengths, directions and their gradients. That
    holds for the value, the gradient, and the gradient of the gradient; third and higher derivatives make [n_edges, 3F] tensors in
    plain torch.

    Args:
        phi: node features after the message's perceptron, in blocks (scalar, direction, vector), [n_nodes, 3F].
        vector: vector features, [n_nodes, 3, F], or None for the first layer, where they are zero.
        edge_length: length of each edge, in the order the graph was made from, [n_edges] Å; with ``pairs`` of each pair, [n_pairs]. May
            be of a more precise dtype than the features.
        direction: unit vector of each edge, [n_edges, 3]; with ``pairs`` of the first edge of each pair, [n_pairs, 3], and reversed for
            the second. Not normalised here.
        basis: φ; its centres are constants here.
        linear: the filter layer, weight [3F, K] and bias [3F] in the same blocks; without ``smooth_bias`` the bias stands outside of C.
        cutoff: C, the envelope; a number means a cosine up to there.
        graph: edges src → dst.
        pairs: which edges are each other's reverse. Each filter is then made once (on a CPU) and used in both directions.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        Δscalar [n_nodes, F] and Δvector [n_nodes, 3, F]; zero for nodes without incoming edges. Differentiable to every order in phi,
        vector, edge_length, direction and the tensors of ``linear``. The second derivative in ``edge_length`` is that of the envelope:
        with ``cosine`` it jumps at the cutoff.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 7 and 8.
    """
    envelope = cutoff if isinstance(cutoff, EnvelopeSpec) else EnvelopeSpec("cosine", float(cutoff))
    _check(phi, vector, edge_length, direction, basis, linear, graph, pairs)
    weight = torch.cat([linear.weight, linear.bias.unsqueeze(1)], 1)
    units = (*graph.tensors, None if pairs is None else pairs.pair_edges)
    spec = basis.code, envelope.code, bool(linear.smooth_bias)
    scalar, out_vector = _message(phi, vector, edge_length, direction, weight, *units, *spec, backends.resolve(backend, phi))
    return scalar, out_vector


def _check(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor,
    basis: BasisSpec, linear: FilterLinear, graph: CSRGraph, pairs: PairIndex | None,
) -> None:  # fmt: skip
    if pairs is not None and pairs.pair.shape != (graph.num_edges,):
        raise ValueError(f"painn_message_exact: pairs of {list(pairs.pair.shape)} edges do not fit a graph of {graph.num_edges} edges")
    nodes, width = graph.num_nodes, phi.shape[-1] // 3 if phi.dim() else 0
    units = graph.num_edges if pairs is None else pairs.num_pairs
    fits = (
        phi.shape == (nodes, 3 * width)
        and (vector is None or vector.shape == (nodes, 3, width))
        and edge_length.shape == (units,)
        and direction.shape == (units, 3)
        and linear.weight.shape == (3 * width, basis.size)
        and linear.bias.shape == (3 * width,)
    )
    named = {"phi": phi, "vector": vector, "direction": direction, "weight": linear.weight, "bias": linear.bias, "edge_length": edge_length}
    given = [tensor for name, tensor in named.items() if tensor is not None and name != "edge_length"]
    alike = phi.is_floating_point() and all(t.dtype == phi.dtype and t.device == phi.device for t in given)
    if not fits or not alike or not edge_length.is_floating_point() or edge_length.device != phi.device:
        got = ", ".join(f"{name} {'None' if t is None else f'{list(t.shape)} {t.dtype} on {t.device}'}" for name, t in named.items())
        raise ValueError(
            f"painn_message_exact needs phi [{nodes}, 3F], vector [{nodes}, 3, F] or None, edge_length [{units}], direction [{units}, 3], "
            f"weight [3F, {basis.size}] and bias [3F] on one device, all but the lengths of one floating dtype, got {got}"
        )


# The operators. `weight` ends in the bias; `needs` says which gradients are wanted, in the order of the outputs; the others come back empty.

_INPUTS = "Tensor phi, Tensor? vector, Tensor edge_length, Tensor direction, Tensor weight"
_GRADS = "Tensor grad_scalar, Tensor grad_vector"
_TANGENTS = "Tensor? tangent_phi, Tensor? tangent_vector, Tensor? rate, Tensor? tangent_direction"
_INDEX = f"{UNIT_SCHEMA}, str basis, str envelope, bool smooth_bias"


def _grouped(args: Grads, tensors: int) -> Grads:
    """The arguments of an operator with those of units and of spec as one each, after the differentiable tensors."""
    middle = tensors + UNIT_SIZE
    return *args[:tensors], args[tensors:middle], args[middle : middle + SPEC_SIZE], *args[middle + SPEC_SIZE :]


def second_outputs(args: Grads) -> Grads:
    """What the outputs of the double backward are gradients by: grad_scalar, grad_vector, phi, vector, edge_length, direction, weight."""
    return args[4:11]


def _message_fake(phi: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    nodes, width = phi.shape[0], phi.shape[1] // 3
    return phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)


def _message_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.value(*_grouped(args, 5))


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(args[2:7], args[-1], args[2])


def _backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return kept(reference.gradients(*_grouped(args[:-1], 7)), args[2:7], args[-1], args[2])


def _double_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(second_outputs(args), args[-1], args[6])


def _double_backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return kept(reference.second_gradients(*_grouped(args[:-1], 11)), second_outputs(args), args[-1], args[6])


def _launcher(module: str, name: str, tensors: int) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        # imported when it first runs: numba and triton are optional
        if module == "numba":
            from . import numba_launch as launchers
        else:
            from . import triton_launch as launchers  # type: ignore[no-redef]
        return getattr(launchers, name)(*_grouped(args, tensors))

    return launch


_message = backends.define_op(
    "painn_exact",
    f"({_INPUTS}, {_INDEX}) -> (Tensor, Tensor)",
    fake=_message_fake,
    reference=_message_reference,
    numba=_launcher("numba", "message", 5),
    triton=_launcher("triton", "message", 5),
)
_backward = backends.define_op(
    "painn_exact_backward",
    f"({_GRADS}, {_INPUTS}, {_INDEX}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_launcher("numba", "backward", 7),
    triton=_launcher("triton", "backward", 7),
)
_double_backward = backends.define_op(
    "painn_exact_double_backward",
    f"({_TANGENTS}, {_GRADS}, {_INPUTS}, {_INDEX}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    reference=_double_backward_reference,
    numba=_launcher("numba", "double_backward", 11),
    triton=_launcher("triton", "double_backward", 11),
)


# Derivatives.


def _message_autograd(ctx: Any, grad_scalar: Tensor | None, grad_vector: Tensor | None) -> Grads:
    tensors, (backend,), wanted = ctx.saved_tensors, ctx.rest, wants(ctx)
    if not any(wanted) or (grad_scalar is None and grad_vector is None):
        return *(None,) * 5, *_NO_INDEX, None
    phi = tensors[0]
    nodes, width = phi.shape[0], phi.shape[1] // 3
    grad_scalar = phi.new_zeros(nodes, width) if grad_scalar is None else grad_scalar
    grad_vector = phi.new_zeros(nodes, 3, width) if grad_vector is None else grad_vector
    grads = _backward(grad_scalar, grad_vector, *tensors, *ctx.constants, wanted, backend)
    return *masked(grads, wanted), *_NO_INDEX, None


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> Grads:
    needs, backend = ctx.rest
    tensors, index = ctx.saved_tensors[:7], (*ctx.saved_tensors[7:], *ctx.constants)
    # what was not asked for came back empty, and so did whatever was sent back through it
    *moved, weight_tangent = [tangent if given else None for tangent, given in zip(tangents, needs, strict=True)]
    wanted = wants(ctx)
    total: list[Tensor | None] = [None] * 7
    if any(tangent is not None for tangent in moved) and any(wanted):
        total = masked(_double_backward(*moved, *tensors, *index, wanted, backend), wanted)
    if weight_tangent is not None:
        # ⟨weight_tangent, ∂weight⟩ is the form ⟨cotangents, message⟩ itself, with this weight
        parts = _with_weight(tensors, weight_tangent, index, wanted, backend)
        total[:6] = [b if a is None else a if b is None else a + b for a, b in zip(total[:6], parts, strict=True)]
    return *total, *_NO_INDEX, None, None


def _with_weight(tensors: Grads, weight: Tensor, index: Grads, wanted: list[bool], backend: str) -> list[Tensor | None]:
    by_grads: list[Tensor | None] = [None, None]
    if wanted[0] or wanted[1]:
        by_grads = masked(_message(*tensors[2:6], weight, *index, backend), wanted[:2])
    needs = [*wanted[2:6], False]
    if not any(needs):
        return [*by_grads, None, None, None, None]
    return [*by_grads, *masked(_backward(*tensors[:6], weight, *index, needs, backend), needs)[:4]]


def _double_backward_autograd(ctx: Any, *cotangents: Tensor | None) -> Grads:
    needs, _ = ctx.rest
    tensors = ctx.saved_tensors[:11]
    function = partial(reference.second_gradients, units=ctx.saved_tensors[11:], spec=ctx.constants)
    given = [cotangent if need else None for cotangent, need in zip(cotangents, needs, strict=True)]
    return *through_reference(function, tensors, given, list(ctx.needs_input_grad[:11])), *_NO_INDEX, None, None


_message.register_autograd(_message_autograd, setup_context=save_inputs(5, index=UNIT_SIZE, constants=SPEC_SIZE))
_backward.register_autograd(_backward_autograd, setup_context=save_inputs(7, index=UNIT_SIZE, constants=SPEC_SIZE))
_double_backward.register_autograd(_double_backward_autograd, setup_context=save_inputs(11, index=UNIT_SIZE, constants=SPEC_SIZE))
