"""PaiNN's message as torch operators: forward, gradient and gradient of gradient are one fused operator each.

The third derivative is the automatic one of the double backward written in plain torch (`reference`), so every order is there.

Example:
    >>> graph = CSRGraph.from_edges(edge_src, edge_dst, num_nodes)
    >>> d_scalar, d_vector = painn_message(phi, vector, weight, direction, graph)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..graph import GRAPH_SCHEMA, CSRGraph
from . import reference

Grads = tuple[Tensor | None, ...]


def painn_message(
    phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, graph: CSRGraph, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """What each node receives from its neighbours in PaiNN, with the filter of each edge given.

    With a = phi_src ∘ weight = (a_scalar, a_direction, a_vector), summed over the edges into each node:
    Δscalar = Σ a_scalar and Δvector_k = Σ (a_direction · direction_k + a_vector ∘ vector_src,k).

    Args:
        phi: node features after the message's perceptron, in blocks (scalar, direction, vector), [n_nodes, 3F].
        vector: vector features, [n_nodes, 3, F], or None for the first layer, where they are zero.
        weight: filter of each edge, cutoff included, in the same blocks, [n_edges, 3F].
        direction: unit vector of each edge, [n_edges, 3]; not normalised here.
        graph: edges src → dst.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        Δscalar [n_nodes, F] and Δvector [n_nodes, 3, F]; zero for nodes without incoming edges. Differentiable to every order
        in all four tensors. Other splits and factors are a permutation and scaling of phi's perceptron and the filter's rows.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 7 and 8; blocks in the order of the authors' code.
    """
    nodes, edges, width = graph.num_nodes, graph.num_edges, phi.shape[-1] // 3 if phi.dim() else 0
    fits = (
        phi.shape == (nodes, 3 * width)
        and (vector is None or vector.shape == (nodes, 3, width))
        and weight.shape == (edges, 3 * width)
        and direction.shape == (edges, 3)
    )
    given = (phi, weight, direction) if vector is None else (phi, vector, weight, direction)
    if not fits or not phi.is_floating_point() or any(t.dtype != phi.dtype or t.device != phi.device for t in given):
        got = ", ".join(
            f"{name} " + ("None" if t is None else f"{list(t.shape)} {t.dtype} on {t.device}")
            for name, t in (("phi", phi), ("vector", vector), ("weight", weight), ("direction", direction))
        )
        raise ValueError(
            f"painn_message needs phi [{nodes}, 3F], vector [{nodes}, 3, F] or None, weight [{edges}, 3F] and direction [{edges}, 3] "
            f"of one floating dtype on one device, got {got}"
        )
    scalar, out_vector = _message(phi, vector, weight, direction, *graph.tensors, backends.resolve(backend, phi))
    return scalar, out_vector


# The operators. `needs` says which of the gradients are wanted, in the order of the outputs; the others come back empty.

_INPUTS = "Tensor phi, Tensor? vector, Tensor weight, Tensor direction"
_GRADS = "Tensor grad_scalar, Tensor grad_vector"
_TANGENTS = "Tensor? tangent_phi, Tensor? tangent_vector, Tensor? tangent_weight, Tensor? tangent_direction"


def allocate(like: Tensor, tensors: tuple[Tensor | None, ...], needs: list[bool]) -> tuple[Tensor, ...]:
    """One output as large as each of ``tensors``; without rows where it is not needed or belongs to a vector that is None."""
    return tuple(
        like.new_empty(t.shape if need and t is not None else (0,) * (3 if t is None else t.dim()))
        for t, need in zip(tensors, needs, strict=True)
    )


def _kept(grads: Grads, tensors: tuple[Tensor | None, ...], needs: list[bool]) -> tuple[Tensor, ...]:
    empty = allocate(grads[0], tensors, [False] * len(needs)) if grads[0] is not None else ()
    return tuple(grad if need and grad is not None else none for grad, none, need in zip(grads, empty, needs, strict=True))


def _message_fake(phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, *graph: Tensor) -> tuple[Tensor, Tensor]:
    nodes, width = phi.shape[0], phi.shape[1] // 3
    return phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)


def _message_reference(phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, *graph: Tensor) -> tuple[Tensor, Tensor]:
    return reference.painn_message(phi, vector, weight, direction, *graph[:2])


def _message_numba(*args: Any) -> tuple[Tensor, Tensor]:
    from .numba_launch import message

    return message(*args)


def _message_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton_launch import message

    return message(*args)


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(args[2], args[2:6], args[-1])


def _backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return _kept(reference.painn_message_backward(*args[:8]), args[2:6], args[-1])


def _backward_numba(*args: Any) -> tuple[Tensor, ...]:
    from .numba_launch import message_backward

    return message_backward(*args)


def _backward_triton(*args: Any) -> tuple[Tensor, ...]:
    from .triton_launch import message_backward

    return message_backward(*args)


def _double_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(args[6], args[4:10], args[-1])


def _double_backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return _kept(reference.painn_message_double_backward(*args[:12]), args[4:10], args[-1])


def _double_backward_numba(*args: Any) -> tuple[Tensor, ...]:
    from .numba_launch import message_double_backward

    return message_double_backward(*args)


def _double_backward_triton(*args: Any) -> tuple[Tensor, ...]:
    from .triton_launch import message_double_backward

    return message_double_backward(*args)


_message = backends.define_op(
    "painn_message",
    f"({_INPUTS}, {GRAPH_SCHEMA}) -> (Tensor, Tensor)",
    fake=_message_fake,
    reference=_message_reference,
    numba=_message_numba,
    triton=_message_triton,
)
_backward = backends.define_op(
    "painn_message_backward",
    f"({_GRADS}, {_INPUTS}, {GRAPH_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)
_double_backward = backends.define_op(
    "painn_message_double_backward",
    f"({_TANGENTS}, {_GRADS}, {_INPUTS}, {GRAPH_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    reference=_double_backward_reference,
    numba=_double_backward_numba,
    triton=_double_backward_triton,
)


# Derivatives


def _message_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.backend = inputs[10]


def _message_autograd(ctx: Any, grad_scalar: Tensor, grad_vector: Tensor) -> Grads:
    needs = list(ctx.needs_input_grad[:4])
    grads = _backward(grad_scalar, grad_vector, *ctx.saved_tensors, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 7)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:12])
    ctx.given, ctx.backend = inputs[12:]
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> Grads:
    # what was not asked for is an empty tensor, and so is whatever may have been sent back through it
    wanted = [tangent if given else None for tangent, given in zip(tangents, ctx.given, strict=True)]
    if all(tangent is None for tangent in wanted):
        return (None,) * 14
    needs = list(ctx.needs_input_grad[:6])
    grads = _double_backward(*wanted, *ctx.saved_tensors, needs, ctx.backend)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 8)


def _double_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:12])
    ctx.given = inputs[16]
    ctx.set_materialize_grads(False)


def _double_backward_autograd(ctx: Any, *cotangents: Tensor | None) -> Grads:
    """The third order: the double backward again in plain torch, differentiated by autograd."""
    create_graph = torch.is_grad_enabled()
    needs = ctx.needs_input_grad[:10]
    with torch.enable_grad():
        # views, so that an input that stands in two places is told apart
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        outputs = reference.painn_message_double_backward(*inputs)
        pairs = [
            (output, cotangent)
            for output, cotangent, given in zip(outputs, cotangents, ctx.given, strict=True)
            if given and output is not None and cotangent is not None and output.requires_grad
        ]
        wanted = [t for t, need in zip(inputs, needs, strict=False) if need]
        if not pairs:
            return (None,) * 18
        grads = torch.autograd.grad([o for o, _ in pairs], wanted, [c for _, c in pairs], create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return (*(next(found) if need else None for need in needs), *(None,) * 8)


_message.register_autograd(_message_autograd, setup_context=_message_setup)
_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
_double_backward.register_autograd(_double_backward_autograd, setup_context=_double_backward_setup)
