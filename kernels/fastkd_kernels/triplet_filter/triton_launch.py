"""On a GPU: the sums over triplets are kernels of `triplet_reduce`, what happens to an edge alone is products of torch. Names as in ``op.py``."""

from __future__ import annotations

from torch import Tensor

from ..triplet_reduce import triton_launch as kernels
from . import reference
from .reference import Five, Sums


def _sums(edge_in: Tensor, edge_out: Tensor, out_ptr: Tensor, out_order: Tensor, in_ptr: Tensor, in_order: Tensor) -> Sums:
    against = (edge_out, edge_in, in_ptr, in_order, out_ptr, out_order)
    return Sums(
        lambda rows, a: kernels.triplet_pull(rows, a, *against),
        lambda g, a: kernels.triplet_reduce(g, a, *against),
        lambda rows, g: kernels.triplet_dot(rows, g, *against),
    )


def triplet_filter(x: Tensor, r: Tensor, w: Tensor, a: Tensor, *index: Tensor) -> Tensor:
    """[E_in, D], [E_in, S, B], [B, D], [T, S] → [E_out, D]."""
    return reference.triplet_filter(x, r, w, a, _sums(*index))


def gradients(g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Tensor | bool) -> tuple[Tensor, ...]:
    """By x, r, w and a."""
    *index, by_w, by_a = rest
    return reference.gradients(g, x, r, w, a, _sums(*index), by_w=bool(by_w), by_a=bool(by_a))  # type: ignore[arg-type]


def second(hx: Tensor, hr: Tensor, ha: Tensor, g: Tensor, x: Tensor, r: Tensor, w: Tensor, a: Tensor, *rest: Tensor | bool) -> Five:
    """By g, x, r, w and a."""
    *index, by_w, by_a = rest
    return reference.second(hx, hr, ha, g, x, r, w, a, _sums(*index), by_w=bool(by_w), by_a=bool(by_a))  # type: ignore[arg-type]
