"""The filtered sum over triplets in plain torch: the specification, on any device, differentiable to any order by autograd.

Names are the README's: x [E_in, D], r [E_in, S, B], w [B, D], a [T, S], g [E_out, D]. The three sums over triplets are handed in, so that
the Triton backend is this file with other sums. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..triplet_reduce import reference as plain

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Sums(NamedTuple):
    """Sums of `triplet_reduce`, all taken against the direction of the triplets: the rows [E_in, S, D] belong to input edges."""

    contract: Callable[[Tensor, Tensor], Tensor]  #: Σ a · rows onto output edges: [E_in, S, D], [T, S] → [E_out, D]
    spread: Callable[[Tensor, Tensor], Tensor]  #: Σ a ⊗ g onto input edges: [E_out, D], [T, S] → [E_in, S, D]
    dot: Callable[[Tensor, Tensor], Tensor]  #: rows · g on each triplet: [E_in, S, D], [E_out, D] → [T, S]


def plain_sums(edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor) -> Sums:
    """The sums in plain torch."""
    num_in, num_out = in_ptr.shape[0] - 1, out_ptr.shape[0] - 1
    return Sums(
        lambda rows, a: plain.triplet_pull(rows, a, edge_out, edge_in, num_out),
        lambda g, a: plain.triplet_reduce(g, a, edge_out, edge_in, num_in),
        lambda rows, g: plain.triplet_dot(rows, g, edge_out, edge_in),
    )


def triplet_filter(x: Tensor, r: Tensor, w: Tensor, a: Tensor, sums: Sums) -> Tensor:
    """y_o = Σ_{t → o} (Σ_s a_ts r_in,s) w ∘ x_in: [E_out, D]."""
    dtype = x.dtype
    x, r, w, a = _wide(x, r, w, a)
    return sums.contract((r @ w) * x.unsqueeze(1), a).to(dtype)


def gradients(g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, sums: Sums, *, by_w: bool, by_a: bool) -> tuple[Tensor, ...]:
    """By x, r, w and a, of ⟨g, y⟩; what is not wanted is empty."""
    dtype = x.dtype
    g, x, r, w, a = _wide(g, x, r, w, a)
    filters, onto = r @ w, sums.spread(g, a)
    rows, row = onto * x.unsqueeze(1), x.unsqueeze(1)
    found = (
        (filters * onto).sum(1),
        rows @ w.T,
        _outer(r, rows) if by_w else w.new_empty(0),
        sums.dot(filters * row, g) if by_a else a.new_empty(0),
    )
    return tuple(part.to(dtype) for part in found)


def second(
    hx: Tensor, hr: Tensor, ha: Tensor, g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, sums: Sums, *, by_w: bool, by_a: bool
) -> Five:
    """By g, x, r, w and a, of ⟨hx, ∂x⟩ + ⟨hr, ∂r⟩ + ⟨ha, ∂a⟩, the derivatives of ``gradients``; an empty ``ha`` is none."""
    dtype, along = x.dtype, ha.numel() > 0
    hx, hr, ha, g, x, r, w, a = _wide(hx, hr, ha, g, x, r, w, a)
    row, hrow = x.unsqueeze(1), hx.unsqueeze(1)
    filters, change, onto = r @ w, hr @ w, sums.spread(g, a)
    moved, rows, by_x = filters * hrow + change * row, onto * hrow, (change * onto).sum(1)
    by_g = sums.contract(moved, a)
    if along:
        turned = sums.spread(g, ha)
        rows, by_x = rows + turned * row, by_x + (filters * turned).sum(1)
        by_g = by_g + sums.contract(filters * row, ha)
    found = (
        by_g,
        by_x,
        rows @ w.T,
        _outer(r, rows) + _outer(hr, onto * row) if by_w else w.new_empty(0),
        sums.dot(moved, g) if by_a else a.new_empty(0),
    )
    by = [part.to(dtype) for part in found]
    return by[0], by[1], by[2], by[3], by[4]


def _outer(r: Tensor, rows: Tensor) -> Tensor:
    return r.flatten(0, 1).T @ rows.flatten(0, 1)


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
