"""Convolution with a table of splines as torch operators: three closed ones for every order, and fused ones for the first two.

`radial_conv`, `radial_dot` and `radial_knots` are each other's derivatives (see `reference`), with the order q of the filter's own derivative
as an argument; it goes up by one with each derivative in the distance, until the polynomial ends. Training on forces needs two orders, for
which `_backward` and `_double_backward` do in one pass what would be up to seven; when autograd records beyond them, the closed operators
take over.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..cfconv.op import describe
from ..needed import save_inputs, wants
from . import reference
from .places import INDEX_SCHEMA, INDEX_SIZE, RadialIndex, reverse

Grads = tuple[Any, ...]

_NO_INDEX = (None,) * INDEX_SIZE


def radial_conv(x: Tensor, edge_length: Tensor, table: Tensor, index: RadialIndex, *, length_once: bool = False) -> Tensor:
    """Sum over the edges into each node of a tabulated filter of the edge's length times the source's features.

    Args:
        x: node features, [n_nodes, F].
        edge_length: the lengths that ``index`` was made from, [n_units] Å (pairs or edges); derivatives go to them.
        table: coefficients of the filter's spline, `SplineGrid.coefficients`, [rows, F], in the dtype of ``x``.
        index: places of the lengths on the grid.
        length_once: for a training step that takes forces by one backward pass and then a loss's gradient by weights alone: the gradient by
            ``edge_length`` is given in the first backward pass only, and is then a constant for ``edge_length`` (and only for it).
            Saves a third of the second pass; wrong for anything else.

    Returns:
        [n_nodes, F], differentiable to the order of the polynomial (7) in ``edge_length`` and to every order in ``x`` and ``table``.
        Nothing of the size [n_units, F] is made on any backend but the reference.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.

    Source: SchNet, Schütt et al. 2017, eq. 2; `spline` for the table.
    """
    if not (
        x.dim() == 2
        and x.shape[0] == index.num_nodes
        and edge_length.shape == (index.num_units,)
        and table.shape == (index.grid.rows, x.shape[1])
        and x.dtype == table.dtype
        and x.is_floating_point()
        and x.device == table.device == edge_length.device
    ):
        raise ValueError(
            f"radial_conv needs x [{index.num_nodes}, F], edge_length [{index.num_units}] and table [{index.grid.rows}, F] on one device, "
            f"x and table of one floating dtype, got {describe(x)}, {describe(edge_length)} and {describe(table)}"
        )
    output: Tensor = _conv(None, x, edge_length, table, *index.arguments, 0, length_once, index.backend)
    return output


# The operators. Their last arguments are the index, flags or the order q, and the backend.


def _conv_fake(c: Tensor | None, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _conv_reference(c: Tensor | None, x: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *index, order, _ = rest
    weight = reference.filters(edge_length, table, index[8], index[9], index[-1], order)
    return reference.conv(c, x.to(weight.dtype), weight, index[0], index[1], index[-2]).to(x.dtype)


def _conv_numba(*args: Any) -> Tensor:
    from .numba_launch import conv

    return conv(*args)


def _conv_triton(*args: Any) -> Tensor:
    from .triton_launch import conv

    return conv(*args)


def _dot_fake(x: Tensor, g: Tensor, edge_length: Tensor, *rest: Any) -> Tensor:
    return edge_length.new_empty(edge_length.shape)


def _dot_reference(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Tensor:
    *index, order = rest
    weight = reference.filters(edge_length, table, index[8], index[9], index[-1], order)
    found = reference.dot(x.to(weight.dtype), g.to(weight.dtype), weight, index[0], index[1], index[-2])
    return found.to(edge_length.dtype)


def _dot_numba(*args: Any) -> Tensor:
    from .numba_launch import dot

    return dot(*args)


def _dot_triton(*args: Any) -> Tensor:
    from .triton_launch import dot

    return dot(*args)


def _knots_fake(c: Tensor | None, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(rest[-2], x.shape[1])


def _knots_reference(c: Tensor | None, x: Tensor, g: Tensor, edge_length: Tensor, *rest: Any) -> Tensor:
    *index, rows, order = rest
    knot, fraction, paired, step = index[8], index[9], index[-2], index[-1]
    wide = x.to(fraction.dtype), g.to(fraction.dtype)
    found = reference.knots(c, *wide, edge_length, index[0], index[1], knot, fraction, paired, step, rows, order)
    return found.to(x.dtype)


def _knots_numba(*args: Any) -> Tensor:
    from .numba_launch import knots

    return knots(*args)


def _knots_triton(*args: Any) -> Tensor:
    from .triton_launch import knots

    return knots(*args)


def _backward_fake(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_length, need_table = rest[-2:]
    return (
        x.new_empty(x.shape),
        edge_length.new_empty(edge_length.shape if need_length else 0),
        table.new_empty(table.shape if need_table else (0, 0)),
    )


def _backward_reference(x: Tensor, g: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *index, need_length, need_table = rest
    grad_x = _conv_reference(None, g, edge_length, table, *reverse(tuple(index)), 0, False)
    grad_length = _dot_reference(x, g, edge_length, table, *index, 1) if need_length else edge_length.new_empty(0)
    grad_table = _knots_reference(None, x, g, edge_length, *index, table.shape[0], 0) if need_table else table.new_empty(0, 0)
    return grad_x, grad_length, grad_table


def _backward_numba(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .numba_launch import backward

    return backward(*args)


def _backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_launch import backward

    return backward(*args)


def _double_backward_fake(x: Tensor, g: Tensor, tangent: Tensor, rate: Tensor, edge_length: Tensor, table: Tensor, *rest: Any) -> Grads:
    return x.new_empty(x.shape), g.new_empty(g.shape), table.new_empty(table.shape)


def _double_backward_reference(
    x: Tensor, g: Tensor, tangent: Tensor, rate: Tensor, edge_length: Tensor, table: Tensor, *index: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows = table.shape[0]
    grad_x = _conv_reference(rate, g, edge_length, table, *reverse(index), 1, False)
    grad_g = _conv_reference(None, tangent, edge_length, table, *index, 0, False) + _conv_reference(
        rate, x, edge_length, table, *index, 1, False
    )
    grad_table = _knots_reference(None, tangent, g, edge_length, *index, rows, 0) + _knots_reference(
        rate, x, g, edge_length, *index, rows, 1
    )
    return grad_x, grad_g, grad_table


def _double_backward_numba(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .numba_launch import double_backward

    return double_backward(*args)


def _double_backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton_launch import double_backward

    return double_backward(*args)


_conv = backends.define_op(
    "radial_conv",
    f"(Tensor? c, Tensor x, Tensor edge_length, Tensor table, {INDEX_SCHEMA}, int order, bool once) -> Tensor",
    fake=_conv_fake,
    reference=_conv_reference,
    numba=_conv_numba,
    triton=_conv_triton,
)
_dot = backends.define_op(
    "radial_dot",
    f"(Tensor x, Tensor g, Tensor edge_length, Tensor table, {INDEX_SCHEMA}, int order) -> Tensor",
    fake=_dot_fake,
    reference=_dot_reference,
    numba=_dot_numba,
    triton=_dot_triton,
)
_knots = backends.define_op(
    "radial_knots",
    f"(Tensor? c, Tensor x, Tensor g, Tensor edge_length, {INDEX_SCHEMA}, int rows, int order) -> Tensor",
    fake=_knots_fake,
    reference=_knots_reference,
    numba=_knots_numba,
    triton=_knots_triton,
)
_backward = backends.define_op(
    "radial_conv_backward",
    f"(Tensor x, Tensor g, Tensor edge_length, Tensor table, {INDEX_SCHEMA}, bool need_length, bool need_table) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)
_double_backward = backends.define_op(
    "radial_conv_double_backward",
    f"(Tensor x, Tensor g, Tensor tangent, Tensor rate, Tensor edge_length, Tensor table, {INDEX_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    reference=_double_backward_reference,
    numba=_double_backward_numba,
    triton=_double_backward_triton,
)


# Derivatives. Of the inputs c may be None; the gradients of inputs that the engine will not use are not computed.

_save = partial(save_inputs, index=INDEX_SIZE - 2, constants=2, materialize=True)


def _conv_autograd(ctx: Any, g: Tensor) -> Grads:
    c, x, edge_length, table, *tensors = ctx.saved_tensors
    index, (order, once, backend) = (*tensors, *ctx.constants), ctx.rest
    want_c, want_x, want_length, want_table = wants(ctx)
    if once:
        edge_length = edge_length.detach()
        want_length, ctx.spent = want_length and not getattr(ctx, "spent", False), True
    if c is None and order == 0 and want_x and (want_length or want_table):
        grad_x, grad_length, grad_table = _backward(x, g, edge_length, table, *index, want_length, want_table, backend)
        return None, grad_x, grad_length if want_length else None, grad_table if want_table else None, *_NO_INDEX, None, None, None
    grad_length = None
    if want_length:
        grad_length = _dot(x, g, edge_length, table, *index, order + 1, backend)
        grad_length = grad_length if c is None else c * grad_length
    return (
        _dot(x, g, edge_length, table, *index, order, backend) if want_c else None,
        _conv(c, g, edge_length, table, *reverse(index), order, False, backend) if want_x else None,
        grad_length,
        _knots(c, x, g, edge_length, *index, table.shape[0], order, backend) if want_table else None,
        *_NO_INDEX,
        None,
        None,
        None,
    )


def _dot_autograd(ctx: Any, rate: Tensor) -> Grads:
    x, g, edge_length, table, *tensors = ctx.saved_tensors
    index, (order, backend) = (*tensors, *ctx.constants), ctx.rest
    want_x, want_g, want_length, want_table = wants(ctx)
    return (
        _conv(rate, g, edge_length, table, *reverse(index), order, False, backend) if want_x else None,
        _conv(rate, x, edge_length, table, *index, order, False, backend) if want_g else None,
        rate * _dot(x, g, edge_length, table, *index, order + 1, backend) if want_length else None,
        _knots(rate, x, g, edge_length, *index, table.shape[0], order, backend) if want_table else None,
        *_NO_INDEX,
        None,
        None,
    )


def _knots_autograd(ctx: Any, table: Tensor) -> Grads:
    # the cotangent of a table is a table
    c, x, g, edge_length, *tensors = ctx.saved_tensors
    index, (_, order, backend) = (*tensors, *ctx.constants), ctx.rest
    want_c, want_x, want_g, want_length = wants(ctx)
    grad_length = None
    if want_length:
        grad_length = _dot(x, g, edge_length, table, *index, order + 1, backend)
        grad_length = grad_length if c is None else c * grad_length
    return (
        _dot(x, g, edge_length, table, *index, order, backend) if want_c else None,
        _conv(c, g, edge_length, table, *reverse(index), order, False, backend) if want_x else None,
        _conv(c, x, edge_length, table, *index, order, False, backend) if want_g else None,
        grad_length,
        *_NO_INDEX,
        None,
        None,
        None,
    )


def _backward_setup(ctx: Any, inputs: Grads, output: Any) -> None:
    _save(4)(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _backward_autograd(ctx: Any, tangent: Tensor | None, rate: Tensor | None, table_tangent: Tensor | None) -> Grads:
    x, g, edge_length, table, *tensors = ctx.saved_tensors
    index, (need_length, need_table, backend) = (*tensors, *ctx.constants), ctx.rest
    # what was not asked for came back empty, and so did whatever was sent back through it
    rate, table_tangent = rate if need_length else None, table_tangent if need_table else None
    wanted = wants(ctx)
    fused = tangent is not None and rate is not None and table_tangent is None and not wanted[2] and not torch.is_grad_enabled()
    if fused:
        grad_x, grad_g, grad_table = _double_backward(x, g, tangent, rate, edge_length, table, *index, backend)
        return grad_x, grad_g, None, grad_table, *_NO_INDEX, None, None, None
    back, rows = reverse(index), table.shape[0]
    # ⟨tangent, conv⁽ᵀ⁾(g)⟩ + ⟨rate, dot₁(x, g)⟩ + ⟨table_tangent, knots(x, g)⟩, each differentiated by what it depends on
    terms: list[list[Tensor | None]] = []
    if tangent is not None:
        terms.append(
            [
                None,
                _conv(None, tangent, edge_length, table, *index, 0, False, backend) if wanted[1] else None,
                _dot(tangent, g, edge_length, table, *index, 1, backend) if wanted[2] else None,
                _knots(None, tangent, g, edge_length, *index, rows, 0, backend) if wanted[3] else None,
            ]
        )
    if rate is not None:
        terms.append(
            [
                _conv(rate, g, edge_length, table, *back, 1, False, backend) if wanted[0] else None,
                _conv(rate, x, edge_length, table, *index, 1, False, backend) if wanted[1] else None,
                rate * _dot(x, g, edge_length, table, *index, 2, backend) if wanted[2] else None,
                _knots(rate, x, g, edge_length, *index, rows, 1, backend) if wanted[3] else None,
            ]
        )
    if table_tangent is not None:
        terms.append(
            [
                _conv(None, g, edge_length, table_tangent, *back, 0, False, backend) if wanted[0] else None,
                _conv(None, x, edge_length, table_tangent, *index, 0, False, backend) if wanted[1] else None,
                _dot(x, g, edge_length, table_tangent, *index, 1, backend) if wanted[2] else None,
                None,
            ]
        )
    return *(_sum([term[number] for term in terms]) for number in range(4)), *_NO_INDEX, None, None, None


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


def _double_backward_autograd(ctx: Any, *cotangents: Any) -> Grads:
    raise RuntimeError("radial_conv_double_backward is only called where nothing is recorded; use radial_conv")


_conv.register_autograd(_conv_autograd, setup_context=_save(4))
_dot.register_autograd(_dot_autograd, setup_context=_save(4))
_knots.register_autograd(_knots_autograd, setup_context=_save(4))
_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
_double_backward.register_autograd(_double_backward_autograd, setup_context=_save(6))
