"""The specification: three closed operators on a table of splines, in plain torch.

With the q-th derivative W⁽q⁾(d_u) = step⁻q Σ_r b_r⁽q⁾(t_u) T[k_u + r] of the filter of unit u, its ends i (dst) and j (src):

    conv:  y_i += c_u W⁽q⁾ ∘ x_j          and, if the unit is a pair, y_j += c_u W⁽q⁾ ∘ x_i
    dot:   s_u = Σ_f W⁽q⁾ ∘ p_u            with p_u = x_j ∘ g_i, plus x_i ∘ g_j for a pair
    knots: K[k_u + r] += c_u step⁻q b_r⁽q⁾(t_u) p_u
"""

from __future__ import annotations

import torch
from torch import Tensor

from .spline import ROWS, row_weights


def place(length: Tensor, step: float, knots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Knot [U] int32, fraction [U] and weights [U, 16] of each distance; found in float64. NaN is inside, at a fraction that is NaN."""
    position = length.double() / step
    beyond = position >= knots - 1
    inside = ~beyond
    below = torch.where(beyond | position.isnan(), 0.0, position).long().clamp_(min=0)
    fraction = torch.where(inside, position - below, 0.0)
    weights = torch.cat([row_weights(fraction, 0), row_weights(fraction, 1) / step], 1) * inside.unsqueeze(1)
    dtype = working_dtype(length)
    return torch.where(inside, below, -1).int(), fraction.to(dtype), weights.to(dtype)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """In which sums are made and places kept: float64 for itself, float32 for everything smaller."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def filters(edge_length: Tensor, table: Tensor, knot: Tensor, fraction: Tensor, step: float, order: int) -> Tensor:
    """W⁽q⁾(d) of each unit, [U, F], differentiable in the distance by autograd: the fraction moves with it."""
    moving = moving_fraction(edge_length, knot, fraction, step)
    weights = row_weights(moving, order) * ((knot >= 0).to(fraction.dtype) / step**order).unsqueeze(1)
    rows = knot.long().clamp_min(0).unsqueeze(1) + torch.arange(ROWS, device=knot.device)
    return torch.einsum("ur,urf->uf", weights, table.to(weights.dtype)[rows])


def moving_fraction(edge_length: Tensor, knot: Tensor, fraction: Tensor, step: float) -> Tensor:
    """The fraction as a function of the length, for autograd; nothing moves beyond the cutoff, where a length may be infinite."""
    nothing = torch.where(knot >= 0, edge_length - edge_length.detach(), 0.0)
    return fraction + nothing.to(fraction.dtype) / step


def conv(c: Tensor | None, x: Tensor, weight: Tensor, unit_dst: Tensor, unit_src: Tensor, paired: bool) -> Tensor:
    """See the head of the file; ``weight`` [U, F] are the filters."""
    if c is not None:
        weight = weight * c.unsqueeze(1)
    y = x.new_zeros(x.shape).index_add(0, unit_dst, weight * x[unit_src])
    return y.index_add(0, unit_src, weight * x[unit_dst]) if paired else y


def product(x: Tensor, g: Tensor, unit_dst: Tensor, unit_src: Tensor, paired: bool) -> Tensor:
    """P [U, F]."""
    p = x[unit_src] * g[unit_dst]
    return p + x[unit_dst] * g[unit_src] if paired else p


def dot(x: Tensor, g: Tensor, weight: Tensor, unit_dst: Tensor, unit_src: Tensor, paired: bool) -> Tensor:
    """See the head of the file."""
    return (weight * product(x, g, unit_dst, unit_src, paired)).sum(1)


def knots(
    c: Tensor | None,
    x: Tensor,
    g: Tensor,
    edge_length: Tensor,
    unit_dst: Tensor,
    unit_src: Tensor,
    knot: Tensor,
    fraction: Tensor,
    paired: bool,
    step: float,
    rows: int,
    order: int,
) -> Tensor:
    """See the head of the file; the gradient of ⟨g, conv⟩ in the table, [rows, F]."""
    p = product(x, g, unit_dst, unit_src, paired)
    if c is not None:
        p = p * c.unsqueeze(1)
    moving = moving_fraction(edge_length, knot, fraction, step)
    weights = row_weights(moving, order) * ((knot >= 0).to(fraction.dtype) / step**order).unsqueeze(1)
    at = knot.long().clamp_min(0).unsqueeze(1) + torch.arange(ROWS, device=knot.device)
    return x.new_zeros(rows, x.shape[1]).index_add(0, at.flatten(), (weights.unsqueeze(2) * p.unsqueeze(1)).flatten(0, 1))
