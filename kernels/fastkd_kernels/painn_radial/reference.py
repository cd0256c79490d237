"""The message and its first two derivatives in plain torch: the specification, on any device, differentiable by autograd to any order.

Everything is that of ``painn_message`` (whose reference is called) with the filters of the units made from the table: a pair stands for
its edge as given and, with the direction reversed, for the other one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..painn_message import reference as message
from ..radial_conv.reference import filters, moving_fraction
from ..radial_conv.spline import ROWS, row_weights

Index = tuple[Any, ...]

_DST, _SRC, _KNOT, _FRACTION, _PAIRED, _STEP = 0, 1, 8, 9, 14, 15


def painn_radial(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, table: Tensor, index: Index
) -> tuple[Tensor, Tensor]:
    """Scalar [N, F] and vector [N, 3, F]; ``index`` are the arguments of a `RadialIndex`."""
    weight = _both(_filters(edge_length, table, index, 0), index)
    wide = (_wide(phi), _wide(vector), weight, _turned(direction, index))
    scalar, out_vector = message.painn_message(*wide, *_ends(index))
    return scalar.to(phi.dtype), out_vector.to(phi.dtype)


def painn_radial_backward(
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    index: Index,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients by phi, vector (None if it is None), edge_length, direction and table."""
    weight, slope = (_filters(edge_length, table, index, order) for order in (0, 1))
    wide = (*map(_wide, (grad_scalar, grad_vector, phi, vector)), _both(weight, index), _turned(direction, index), *_ends(index))
    by_phi, by_vector, by_weight, by_direction = message.painn_message_backward(*wide)
    products = _fold(by_weight, index)
    return (
        by_phi.to(phi.dtype),
        None if vector is None or by_vector is None else by_vector.to(vector.dtype),
        (slope * products).sum(1).to(edge_length.dtype),
        _fold_turned(by_direction, index).to(direction.dtype),
        _spread(products, edge_length, index, table.shape[0], 0).to(table.dtype),
    )


def painn_radial_double_backward(
    tangent_phi: Tensor | None,
    tangent_vector: Tensor | None,
    rate: Tensor | None,
    tangent_direction: Tensor | None,
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    edge_length: Tensor,
    direction: Tensor,
    table: Tensor,
    index: Index,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of ⟨tangents, `painn_radial_backward` without its last⟩ by grad_scalar, grad_vector, phi, vector, length, direction, table.

    ``rate`` is the tangent of the gradient by the length.
    """
    weight = _both(_filters(edge_length, table, index, 0), index)
    primals = (*map(_wide, (grad_scalar, grad_vector, phi, vector)), weight, _turned(direction, index), *_ends(index))
    moved = None
    if rate is not None:
        moved = _both(_wide(rate).unsqueeze(1) * _filters(edge_length, table, index, 1), index)
    turned = None if tangent_direction is None else _turned(tangent_direction, index)
    tangents = (_wide(tangent_phi), _wide(tangent_vector), moved, turned)
    found = message.painn_message_double_backward(*(*tangents, *primals))
    by_scalar, by_grad_vector, by_phi, by_vector, by_weight, by_direction = found
    moved_products = _fold(by_weight, index)
    by_table = _spread(moved_products, edge_length, index, table.shape[0], 0)
    by_length = (_filters(edge_length, table, index, 1) * moved_products).sum(1)
    if rate is not None:
        products = _fold(message.painn_message_backward(*primals)[2], index)
        by_table = by_table + _spread(_wide(rate).unsqueeze(1) * products, edge_length, index, table.shape[0], 1)
        by_length = by_length + _wide(rate) * (_filters(edge_length, table, index, 2) * products).sum(1)
    return (
        by_scalar.to(phi.dtype),
        by_grad_vector.to(phi.dtype),
        by_phi.to(phi.dtype),
        None if vector is None or by_vector is None else by_vector.to(vector.dtype),
        by_length.to(edge_length.dtype),
        _fold_turned(by_direction, index).to(direction.dtype),
        by_table.to(table.dtype),
    )


def _filters(edge_length: Tensor, table: Tensor, index: Index, order: int) -> Tensor:
    return filters(edge_length, table, index[_KNOT], index[_FRACTION], index[_STEP], order)


def _ends(index: Index) -> tuple[Tensor, Tensor]:
    """Source and destination of each directed edge."""
    dst, src = index[_DST], index[_SRC]
    return (torch.cat([src, dst]), torch.cat([dst, src])) if index[_PAIRED] else (src, dst)


def _both(per_unit: Tensor, index: Index) -> Tensor:
    """Per directed edge from per unit."""
    return torch.cat([per_unit, per_unit]) if index[_PAIRED] else per_unit


def _turned(direction: Tensor, index: Index) -> Tensor:
    """`_both` of directions, which the way back reverses; 0 between a node and itself, where both ways cancel."""
    one: Tensor = _wide(direction)
    if not index[_PAIRED]:
        return one
    one = one * _apart(index)
    return torch.cat([one, -one])


def _apart(index: Index) -> Tensor:
    """Whether the ends of a unit are two nodes, [U, 1]."""
    different: Tensor = index[_DST] != index[_SRC]
    return different.unsqueeze(1)


def _fold(per_edge: Tensor, index: Index) -> Tensor:
    """The transpose of `_both`."""
    units = index[_DST].shape[0]
    return per_edge[:units] + per_edge[units:] if index[_PAIRED] else per_edge


def _fold_turned(per_edge: Tensor, index: Index) -> Tensor:
    """The transpose of `_turned`."""
    if not index[_PAIRED]:
        return per_edge
    units = index[_DST].shape[0]
    return (per_edge[:units] - per_edge[units:]) * _apart(index)


def _spread(products: Tensor, edge_length: Tensor, index: Index, rows: int, order: int) -> Tensor:
    """The transpose of `filters` in the table: [U, 3F] → [rows, 3F]."""
    knot, fraction, step = index[_KNOT], index[_FRACTION], index[_STEP]
    moving = moving_fraction(edge_length, knot, fraction, step)
    weights = row_weights(moving, order) * ((knot >= 0).to(fraction.dtype) / step**order).unsqueeze(1)
    at = knot.long().clamp_min(0).unsqueeze(1) + torch.arange(ROWS, device=knot.device)
    spread = (weights.unsqueeze(2) * products.unsqueeze(1)).flatten(0, 1)
    into: Tensor = spread.new_zeros(rows, products.shape[1])
    return into.index_add(0, at.flatten(), spread)


def _wide(tensor: Any) -> Any:
    return tensor.float() if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16) else tensor
