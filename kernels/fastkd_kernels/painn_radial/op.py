"""PaiNN's message with a tabulated filter as torch operators: forward, gradient and gradient of gradient are one fused operator each.

A force pass and the loss pass behind it need the two fused derivatives alone. A cotangent of the table's gradient is again a table, so that
the message and its gradient serve once more. Everything from the third order on is autograd's own, of the formulas in `reference`.

Example:
    >>> index = RadialIndex.from_lengths(edge_length, grid, graph, pairs)
    >>> d_scalar, d_vector = painn_radial(phi, vector, edge_length, direction, table, index)
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from .. import backends
from ..higher import through_reference
from ..needed import Grads, allocate, kept, masked, save_inputs, wants
from ..radial_conv.places import INDEX_SCHEMA, INDEX_SIZE, RadialIndex
from . import reference

_NO_INDEX = (None,) * INDEX_SIZE


def painn_radial(
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    index: RadialIndex,
    *,
    places_once: bool = False,
) -> tuple[Tensor, Tensor]:
    """What each node receives from its neighbours in PaiNN, the filter being a table over the distance.

    `painn_message` with the filter W(d) of each unit, from the eight rows of the table around its length d. Where ``index`` is over
    pairs, a pair sends its message both ways: along its direction from unit_src to unit_dst, and along the opposite one back.

    Args:
        phi: node features after the message's perceptron, in blocks (scalar, direction, vector), [n_nodes, 3F].
        vector: vector features, [n_nodes, 3, F], or None for the first layer, where they are zero.
        edge_length: the lengths that ``index`` was made from, [n_units] Å; derivatives go to them.
        direction: unit vector of each unit, of the pair's first edge if units are pairs, [n_units, 3]; not normalised here.
        table: coefficients of the filter's spline, `SplineGrid.coefficients`, cutoff included, in the same blocks, [rows, 3F].
        index: places of the lengths on the grid; the backend is the one it was made for.
        places_once: give the gradient in edge_length and direction to the first backward pass only, and none of theirs to a second one.
            For the training of a force field, F = −∂E/∂x first and then the gradient of a loss in the parameters: the second pass would
            else make second derivatives in positions, which nobody asked for but autograd cannot tell. Wrong where positions or the
            cell are trained, or where a backward pass is repeated.

    Returns:
        Δscalar [n_nodes, F] and Δvector [n_nodes, 3, F]; zero for nodes without neighbours inside the cutoff. Differentiable to every
        order in phi, vector, direction and table, and in edge_length to the order of the polynomial (7). Nothing of the size
        [n_units, F] is made for energies, forces and the gradient of a loss on them, but by the reference backend.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 7 and 8; `radial_conv.spline` for the table.
    """
    nodes, units, width = index.num_nodes, index.num_units, phi.shape[-1] // 3 if phi.dim() else 0
    fits = (
        phi.shape == (nodes, 3 * width)
        and (vector is None or vector.shape == (nodes, 3, width))
        and edge_length.shape == (units,)
        and direction.shape == (units, 3)
        and table.shape == (index.grid.rows, 3 * width)
    )
    given = [phi, direction, table] if vector is None else [phi, vector, direction, table]
    alike = phi.is_floating_point() and all(t.dtype == phi.dtype and t.device == phi.device for t in given)
    if not fits or not alike or not edge_length.is_floating_point() or edge_length.device != phi.device:
        named = {"phi": phi, "vector": vector, "edge_length": edge_length, "direction": direction, "table": table}
        got = ", ".join(f"{name} {'None' if t is None else f'{list(t.shape)} {t.dtype} on {t.device}'}" for name, t in named.items())
        raise ValueError(
            f"painn_radial needs phi [{nodes}, 3F], vector [{nodes}, 3, F] or None, edge_length [{units}], direction [{units}, 3] and "
            f"table [{index.grid.rows}, 3F] on one device, all but the lengths of one floating dtype, got {got}"
        )
    scalar, out_vector = _message(phi, vector, edge_length, direction, table, *index.arguments, places_once, index.backend)
    return scalar, out_vector


# The operators. `needs` says which of the gradients are wanted, in the order of the outputs; the others come back empty.

_INPUTS = "Tensor phi, Tensor? vector, Tensor edge_length, Tensor direction, Tensor table"
_GRADS = "Tensor grad_scalar, Tensor grad_vector"
_TANGENTS = "Tensor? tangent_phi, Tensor? tangent_vector, Tensor? rate, Tensor? tangent_direction"


def _grouped(args: Grads, tensors: int) -> Grads:
    """The arguments of an operator with those of the index as one, after the differentiable tensors."""
    return *args[:tensors], args[tensors : tensors + INDEX_SIZE], *args[tensors + INDEX_SIZE :]


def _message_fake(phi: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    nodes, width = phi.shape[0], phi.shape[1] // 3
    return phi.new_empty(nodes, width), phi.new_empty(nodes, 3, width)


def _message_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.painn_radial(*_grouped(args[:-1], 5))


def _message_numba(*args: Any) -> tuple[Tensor, Tensor]:
    from .numba_launch import message

    return message(*_grouped(args[:-1], 5))


def _message_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton_launch import message

    return message(*_grouped(args[:-1], 5))


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(args[2:7], args[-1], args[2])


def _backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return kept(reference.painn_radial_backward(*_grouped(args[:-1], 7)), args[2:7], args[-1], args[2])


def _backward_numba(*args: Any) -> tuple[Tensor, ...]:
    from .numba_launch import backward

    return backward(*_grouped(args, 7))


def _backward_triton(*args: Any) -> tuple[Tensor, ...]:
    from .triton_launch import backward

    return backward(*_grouped(args, 7))


def second_outputs(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the outputs of the double backward are gradients by: grad_scalar, grad_vector, phi, vector, edge_length, direction, table."""
    return args[4:11]


def _double_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return allocate(second_outputs(args), args[-1], args[6])


def _double_backward_reference(*args: Any) -> tuple[Tensor, ...]:
    return kept(reference.painn_radial_double_backward(*_grouped(args[:-1], 11)), second_outputs(args), args[-1], args[6])


def _double_backward_numba(*args: Any) -> tuple[Tensor, ...]:
    from .numba_launch import double_backward

    return double_backward(*_grouped(args, 11))


def _double_backward_triton(*args: Any) -> tuple[Tensor, ...]:
    from .triton_launch import double_backward

    return double_backward(*_grouped(args, 11))


_message = backends.define_op(
    "painn_radial",
    f"({_INPUTS}, {INDEX_SCHEMA}, bool once) -> (Tensor, Tensor)",
    fake=_message_fake,
    reference=_message_reference,
    numba=_message_numba,
    triton=_message_triton,
)
_backward = backends.define_op(
    "painn_radial_backward",
    f"({_GRADS}, {_INPUTS}, {INDEX_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)
_double_backward = backends.define_op(
    "painn_radial_double_backward",
    f"({_TANGENTS}, {_GRADS}, {_INPUTS}, {INDEX_SCHEMA}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    reference=_double_backward_reference,
    numba=_double_backward_numba,
    triton=_double_backward_triton,
)


# Derivatives.


def _or_zeros(grad: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return like.new_zeros(shape) if grad is None else grad


def _message_autograd(ctx: Any, grad_scalar: Tensor | None, grad_vector: Tensor | None) -> Grads:
    tensors, (once, backend) = list(ctx.saved_tensors), ctx.rest
    wanted, phi = wants(ctx), tensors[0]
    if once:
        tensors[2:4] = [place.detach() for place in tensors[2:4]]
        if getattr(ctx, "spent", False):
            wanted[2:4] = [False, False]
        ctx.spent = True
    nodes, width = phi.shape[0], phi.shape[1] // 3
    cotangents = (_or_zeros(grad_scalar, (nodes, width), phi), _or_zeros(grad_vector, (nodes, 3, width), phi))
    grads = _backward(*cotangents, *tensors, *ctx.constants, wanted, backend)
    return *masked(grads, wanted), *_NO_INDEX, None, None


def _backward_autograd(ctx: Any, *tangents: Tensor | None) -> Grads:
    needs, backend = ctx.rest
    tensors, index = ctx.saved_tensors[:7], (*ctx.saved_tensors[7:], *ctx.constants)
    # what was not asked for came back empty, and so did whatever was sent back through it
    *moved, table_tangent = [tangent if given else None for tangent, given in zip(tangents, needs, strict=True)]
    wanted = wants(ctx)
    total: list[Tensor | None] = [None] * 7
    if any(tangent is not None for tangent in moved) and any(wanted):
        total = masked(_double_backward(*moved, *tensors, *index, wanted, backend), wanted)
    if table_tangent is not None:
        # ⟨table_tangent, ∂table⟩ is the form ⟨cotangents, message⟩ itself, with this table
        parts = _with_table(tensors, table_tangent, index, wanted, backend)
        total[:6] = [b if a is None else a if b is None else a + b for a, b in zip(total[:6], parts, strict=True)]
    return *total, *_NO_INDEX, None, None


def _with_table(tensors: Grads, table: Tensor, index: Grads, wanted: list[bool], backend: str) -> list[Tensor | None]:
    by_grads: Grads = (None, None)
    if wanted[0] or wanted[1]:
        by_grads = tuple(masked(_message(*tensors[2:6], table, *index, False, backend), wanted[:2]))
    needs = [*wanted[2:6], False]
    if not any(needs):
        return [*by_grads, None, None, None, None]
    return [*by_grads, *masked(_backward(*tensors[:6], table, *index, needs, backend), needs)[:4]]


def _double_backward_autograd(ctx: Any, *cotangents: Tensor | None) -> Grads:
    needs, _ = ctx.rest
    tensors, index = ctx.saved_tensors[:11], (*ctx.saved_tensors[11:], *ctx.constants)
    given = [cotangent if need else None for cotangent, need in zip(cotangents, needs, strict=True)]
    grads = through_reference(partial(reference.painn_radial_double_backward, index=index), tensors, given, list(ctx.needs_input_grad[:11]))
    return *grads, *_NO_INDEX, None, None


_message.register_autograd(_message_autograd, setup_context=save_inputs(5, index=INDEX_SIZE - 2, constants=2))
_backward.register_autograd(_backward_autograd, setup_context=save_inputs(7, index=INDEX_SIZE - 2, constants=2))
_double_backward.register_autograd(_double_backward_autograd, setup_context=save_inputs(11, index=INDEX_SIZE - 2, constants=2))
