"""cfconv_exact as torch operators: value, gradient and second gradient fused, everything beyond in plain torch.

``fastkd::cfconv_exact_backward`` is the gradient of ``fastkd::cfconv_exact``, and ``fastkd::cfconv_exact_double`` that of the former in
the direction of nodes and lengths, which is what a loss on forces asks for. Every other derivative goes through `reference`, which
makes the filters.

Example:
    >>> basis, envelope = BasisSpec("gaussian", 50, cutoff=5.0), EnvelopeSpec("cosine", cutoff=5.0)
    >>> y = cfconv_exact(x, edge_length, basis, FilterMLP(w1, b1, w2, b2), envelope, graph)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, blas
from ..cfconv.op import describe
from ..cfconv.pairs import PairIndex
from ..graph import CSRGraph
from ..radial_specs import BasisSpec, EnvelopeSpec, FilterMLP
from . import reference
from .codes import NETWORK_SCHEMA, SPEC_SCHEMA, UNIT_SCHEMA

#: x, length, weight1, bias1, weight2, bias2: what the value can be differentiated by.
INPUTS = 6

Grads = tuple[Tensor | None, ...]


def cfconv_exact(
    x: Tensor,
    edge_length: Tensor,
    basis: BasisSpec,
    mlp: FilterMLP,
    envelope: EnvelopeSpec,
    graph: CSRGraph,
    *,
    pairs: PairIndex | None = None,
    backend: str | None = None,
) -> Tensor:
    """SchNet's convolution from distances: Σ over the edges into each node of W(d) ∘ x[src], W(d) = C(d) · mlp(φ(d)).

    Basis, network and cutoff are computed again in every pass, in tiles, so that the only edge-sized tensors are scalars: lengths and
    their gradients. That holds for the value, its gradient, and the gradient of that by nodes and lengths (a loss on forces). Third
    and higher derivatives, and derivatives of the network's gradients, make [n_edges, F] tensors in plain torch. So does everything on
    a CPU where these have less than 2¹⁷ numbers and no backend is named.

    Args:
        x: node features, [n_nodes, F].
        edge_length: length of each edge, in the order the graph was made from, [n_edges] Å; with ``pairs`` of each pair, [n_pairs].
        basis: φ; its centres are constants here.
        mlp: the filter network: weight1 [H, K], bias1 [H], weight2 [F, H], bias2 [F], and its activation.
        envelope: C.
        graph: edges src → dst.
        pairs: which edges are each other's reverse. Each filter is then made once and used in both directions.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_nodes, F], differentiable to every order in ``x``, ``edge_length`` and the four tensors of ``mlp``. The second derivative
        in ``edge_length`` is that of the envelope: with ``cosine`` it jumps at the cutoff.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: SchNet, Schütt et al. 2017, eq. 2 and figure 2.
    """
    tensors = (x, edge_length, *mlp[:4])
    _check(tensors, basis, graph, pairs)
    if backends.plain_is_faster(backend, x, graph.num_edges * x.shape[1]):
        return reference.cfconv_exact(x, edge_length, basis, mlp, envelope, graph, None if pairs is None else pairs.pair)
    unit = (*graph.tensors, None if pairs is None else pairs.pair_edges)
    output: Tensor = _value(*tensors, *unit, basis.code, envelope.code, mlp.activation, backends.resolve(backend, x))
    return output


def _check(tensors: tuple[Tensor, ...], basis: BasisSpec, graph: CSRGraph, pairs: PairIndex | None) -> None:
    if pairs is not None and pairs.pair.shape != (graph.num_edges,):
        raise ValueError(f"cfconv_exact: pairs of {list(pairs.pair.shape)} edges do not fit a graph of {graph.num_edges} edges")
    x, _, w1, _, w2, _ = tensors
    count = graph.num_edges if pairs is None else pairs.num_pairs
    hidden, width = w1.shape[:1], x.shape[1:]
    shapes = ((graph.num_nodes, *width), (count,), (*hidden, basis.size), tuple(hidden), (*width, *hidden), tuple(width))
    fits = x.dim() == 2 and w1.dim() == 2 and w2.dim() == 2
    fits = fits and all(tuple(tensor.shape) == shape for tensor, shape in zip(tensors, shapes, strict=True))
    same = all(tensor.dtype == x.dtype and tensor.device == x.device for tensor in tensors)
    if not fits or not same or not x.is_floating_point():
        names = ("x", "edge_length", "weight1", "bias1", "weight2", "bias2")
        got = ", ".join(f"{name} {describe(tensor)}" for name, tensor in zip(names, tensors, strict=True))
        raise ValueError(
            f"cfconv_exact needs x [{graph.num_nodes}, F], edge_length [{count}], weight1 [H, {basis.size}], bias1 [H], weight2 [F, H] "
            f"and bias2 [F] of one floating dtype on one device, got {got}"
        )


# The operators. `needs` are flags for x, length, the network's four tensors and, in the second gradient, grad.


def _only(found: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(tensor if need else tensor.new_empty(0) for tensor, need in zip(found, needs, strict=True))


def _value_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _gradients_fake(*args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape if need else (0,)) for t, need in zip(args[:INPUTS], args[-1], strict=True))


def _second_fake(*args: Any) -> tuple[Tensor, ...]:
    tensors = (*args[:INPUTS], args[INPUTS + 7])
    return tuple(t.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, args[-1], strict=True))


def _gradients_reference(*args: Any) -> tuple[Tensor, ...]:
    return _only(reference.gradients(*args[:-1]), args[-1])


def _second_reference(*args: Any) -> tuple[Tensor, ...]:
    return _only(reference.second_gradients(*args[:-1]), args[-1])


def _launcher(module: str, name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        # imported when it first runs: numba and triton are optional
        if module == "numba":
            from . import numba_launch as launchers
        else:
            from . import triton_launch as launchers  # type: ignore[no-redef]
        return getattr(launchers, name)(*args)

    return launch


_TENSORS = f"Tensor x, Tensor edge_length, {NETWORK_SCHEMA}, {UNIT_SCHEMA}"

_value = backends.define_op(
    "cfconv_exact",
    f"({_TENSORS}, {SPEC_SCHEMA}) -> Tensor",
    fake=_value_fake,
    reference=reference.value,
    numba=_launcher("numba", "value"),
    triton=_launcher("triton", "value"),
)
_gradients = backends.define_op(
    "cfconv_exact_backward",
    f"({_TENSORS}, Tensor grad, {SPEC_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_gradients_fake,
    reference=_gradients_reference,
    numba=_launcher("numba", "gradients"),
    triton=_launcher("triton", "gradients"),
)
_second = backends.define_op(
    "cfconv_exact_double",
    f"({_TENSORS}, Tensor grad, Tensor? tangent_x, Tensor? tangent_length, {SPEC_SCHEMA}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_second_fake,
    reference=_second_reference,
    numba=_launcher("numba", "second_gradients"),
    triton=_launcher("triton", "second_gradients"),
)


# Derivatives


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    # tensors, or None where there are no pairs or tangents, come first
    count = next(number for number, value in enumerate(inputs) if isinstance(value, str))
    ctx.save_for_backward(*inputs[:count])
    ctx.rest = inputs[count:]
    ctx.set_materialize_grads(False)


def _wanted(ctx: Any, positions: Sequence[int], tensors: Sequence[Tensor | None]) -> list[bool]:
    """Which gradients are asked for and will be used; ``positions`` are those of the arguments, among which None may be."""
    skipped = [sum(tensor is None for tensor in tensors[:position]) for position in positions]
    return [
        bool(ctx.needs_input_grad[position]) and backends.wanted(ctx, position - before)
        for position, before in zip(positions, skipped, strict=True)
    ]


def _value_autograd(ctx: Any, grad: Tensor | None) -> Grads:
    tensors = ctx.saved_tensors
    *spec, backend = ctx.rest
    needs = _wanted(ctx, range(INPUTS), tensors)
    if grad is None or not any(needs):
        return (None,) * (len(tensors) + 4)
    found = _gradients(*tensors, grad, *spec, needs, backend)
    return (*_used(found, needs), *(None,) * (len(tensors) - INPUTS + 4))


def _gradients_autograd(ctx: Any, *tangents: Tensor | None) -> Grads:
    tensors = ctx.saved_tensors
    *spec, computed, backend = ctx.rest
    # what was not needed is an empty tensor, and so is whatever may have been sent back through it
    tangents = _used(tangents, computed)
    needs = _wanted(ctx, (*range(INPUTS), len(tensors) - 1), tensors)
    padding = (None,) * (len(tensors) - INPUTS - 1)
    if not any(needs) or all(tangent is None for tangent in tangents):
        return (None,) * (len(tensors) + 5)
    if all(tangent is None for tangent in tangents[2:]):
        found = _second(*tensors, tangents[0], tangents[1], *spec, needs, backend)
        grads = _used(found, needs)
    else:

        def composed(*inputs: Any) -> tuple[Tensor, ...]:
            arguments: list[Any] = [*inputs[:INPUTS], *tensors[INPUTS:-1], inputs[-1], *spec]
            return reference.gradients(*arguments)

        with blas.steady(backend):
            grads = _pull_back(composed, (*tensors[:INPUTS], tensors[-1]), tangents, needs)
    return (*grads[:INPUTS], *padding, grads[INPUTS], *(None,) * 5)


def _second_autograd(ctx: Any, *tangents: Tensor | None) -> Grads:
    tensors = ctx.saved_tensors
    *spec, computed, backend = ctx.rest
    tangents = _used(tangents, computed)
    last = len(tensors) - 3
    positions = (*range(INPUTS), *range(last, len(tensors)))
    inputs = [tensors[position] for position in positions]
    needs = [tensor is not None and bool(ctx.needs_input_grad[p]) for tensor, p in zip(inputs, positions, strict=True)]
    if not any(needs) or all(tangent is None for tangent in tangents):
        return (None,) * (len(tensors) + 5)

    def composed(*inputs: Any) -> tuple[Tensor, ...]:
        arguments: list[Any] = [*inputs[:INPUTS], *tensors[INPUTS:last], *inputs[INPUTS:], *spec]
        return reference.second_gradients(*arguments)

    with blas.steady(backend):
        grads = _pull_back(composed, inputs, tangents, needs)
    return (*grads[:INPUTS], *(None,) * (last - INPUTS), *grads[INPUTS:], *(None,) * 5)


def _used(found: Sequence[Tensor | None], needs: Sequence[bool]) -> Grads:
    return tuple(tensor if need else None for tensor, need in zip(found, needs, strict=True))


def _pull_back(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor | None], cotangents: Grads, needs: Sequence[bool]
) -> Grads:
    """Gradients of ⟨cotangents, function(inputs)⟩ by the inputs that are needed, by autograd; differentiable if autograd is on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # new tensors, so that gradients stop here and do not run on to what the inputs were made of
        own = [
            t if t is None else t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_(n)
            for t, n in zip(inputs, needs, strict=True)
        ]
        used = [(o, c) for o, c in zip(function(*own), cotangents, strict=True) if c is not None and o.requires_grad]
        wrt = [tensor for tensor, need in zip(own, needs, strict=True) if need and tensor is not None]
        if not used:
            return (None,) * len(own)
        found = iter(torch.autograd.grad([o for o, _ in used], wrt, [c for _, c in used], create_graph=again, allow_unused=True))
    return tuple(next(found) if need else None for need in needs)


_value.register_autograd(_value_autograd, setup_context=_setup)
_gradients.register_autograd(_gradients_autograd, setup_context=_setup)
_second.register_autograd(_second_autograd, setup_context=_setup)
