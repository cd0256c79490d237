"""Where each distance of a batch lies between the knots of a grid: made once, shared by every layer, and by teacher and student.

Distances come per *unit*: an undirected pair (both directions share one filter, evaluated once), or a directed edge where the graph has
no pairs. Sums run over units in their given order, or over CSR segments, so that they are reproducible.

Example:
    >>> grid = SplineGrid(cutoff=5.0)
    >>> index = RadialIndex.from_lengths(edge_length, grid, graph)
    >>> y = radial_conv(x, edge_length, table, index)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..cfconv.pairs import PairIndex
from ..graph import CSRGraph, segments
from . import reference
from .spline import ROWS, SplineGrid

#: Units and knots as the operators take them, in the order of `RadialIndex.tensors`.
INDEX_SCHEMA = (
    "Tensor unit_dst, Tensor unit_src, Tensor in_ptr, Tensor in_unit, Tensor in_other, Tensor out_ptr, Tensor out_unit, Tensor out_other, "
    "Tensor knot, Tensor fraction, Tensor weights, Tensor bucket_ptr, Tensor bucket_order, Tensor group_ptr, bool paired, float step"
)
INDEX_SIZE = 16
#: Runs of units that share no node are worked on side by side, and each has its own partial sum of a table's gradient; a fixed number,
#: so that the bits do not depend on the number of threads.
GROUPS = 4

IndexArguments = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float
]


@dataclass(frozen=True, eq=False)
class RadialIndex:
    """Units, their nodes, and their place on a grid. Make it with `from_lengths`; no derivative passes through it."""

    grid: SplineGrid
    num_nodes: int
    paired: bool  #: whether a unit stands for both directions
    unit_dst: Tensor  #: [U] int64
    unit_src: Tensor  #: [U] int64
    # what sums over nodes on a GPU run over: CSR of the edges into each node (and out of it), each with its unit and the other node
    in_ptr: Tensor  #: [N + 1] int64; empty for the numba backend, as are the five that follow
    in_unit: Tensor  #: [E] int64
    in_other: Tensor  #: [E] int64
    out_ptr: Tensor  #: [N + 1] int64
    out_unit: Tensor  #: [E] int64
    out_other: Tensor  #: [E] int64
    knot: Tensor  #: [U] int32, number of the knot below the distance; −1 from the cutoff on, where the filter is zero
    fraction: Tensor  #: [U], of the step to the next knot, in [0, 1]
    weights: Tensor  #: [U, 16]: what the eight rows of the table weigh in the value and, divided by the step, in the slope
    bucket_ptr: Tensor  #: [knots] int64, CSR of the units over their knots; empty for the numba backend
    bucket_order: Tensor  #: [units inside] int64
    group_ptr: Tensor  #: [GROUPS + 1] int64, runs of units without a common node; empty but for the numba backend
    backend: backends.Backend

    @classmethod
    def from_lengths(
        cls, edge_length: Tensor, grid: SplineGrid, graph: CSRGraph, pairs: PairIndex | None = None, *, backend: str | None = None
    ) -> RadialIndex:
        """Find the knots; nothing is differentiated and a GPU is not synchronised.

        Args:
            edge_length: [n_edges] Å, or [n_pairs] Å with ``pairs``: the length of ``pairs.pair_edges[:, 0]``.
            grid: the knots.
            graph: edges src → dst.
            pairs: which edges share a length, if all do.
            backend: of the operators that will use the index; chosen by device and dtype if None.

        Raises:
            ValueError: if the number of lengths does not fit, or they are not floating point, or the backend cannot run.
        """
        units = graph.num_edges if pairs is None else pairs.num_pairs
        if edge_length.shape != (units,) or not edge_length.is_floating_point():
            what = "edge" if pairs is None else "pair"
            raise ValueError(
                f"edge_length must be [{units}], one floating number per {what}, got {list(edge_length.shape)} {edge_length.dtype}"
            )
        chosen = backends.resolve(backend, edge_length)
        edge = None if pairs is None else pairs.pair_edges[:, 0]
        unit_dst, unit_src = (graph.edge_dst, graph.edge_src) if edge is None else (graph.edge_dst[edge], graph.edge_src[edge])
        length = edge_length.detach()
        knot, fraction, weights = _place(length, grid.step, grid.knots, chosen)
        none = unit_dst.new_empty(0)
        buckets = (none, none)
        into = outof = (none, none, none)
        groups = none
        if chosen == "numba":
            groups = _groups(unit_dst, unit_src, GROUPS, chosen)
        elif chosen == "triton":
            into = _neighbours(graph.edge_ptr, graph.edge_order, graph.edge_src, pairs)
            outof = into if pairs is not None else _neighbours(graph.src_ptr, graph.src_order, graph.edge_dst, None)
            # units beyond the cutoff come first and belong to no bucket
            order_ptr, buckets_order = segments(knot.long() + 1, grid.knots)
            buckets = (order_ptr[1:], buckets_order)
        return cls(
            grid, graph.num_nodes, pairs is not None, unit_dst, unit_src, *into, *outof, knot, fraction, weights, *buckets, groups, chosen
        )

    @property
    def num_units(self) -> int:
        return self.unit_dst.shape[0]

    @property
    def arguments(self) -> IndexArguments:
        """Arguments of the operators, see `INDEX_SCHEMA`."""
        return (
            self.unit_dst,
            self.unit_src,
            self.in_ptr,
            self.in_unit,
            self.in_other,
            self.out_ptr,
            self.out_unit,
            self.out_other,
            self.knot,
            self.fraction,
            self.weights,
            self.bucket_ptr,
            self.bucket_order,
            self.group_ptr,
            self.paired,
            self.grid.step,
        )


def reverse(arguments: tuple) -> tuple:  # type: ignore[type-arg]
    """The same units with both ends exchanged."""
    dst, src, in_ptr, in_unit, in_other, out_ptr, out_unit, out_other, *rest = arguments
    return src, dst, out_ptr, out_unit, out_other, in_ptr, in_unit, in_other, *rest


def _neighbours(ptr: Tensor, order: Tensor, other: Tensor, pairs: PairIndex | None) -> tuple[Tensor, Tensor, Tensor]:
    return ptr, order if pairs is None else pairs.pair[order], other[order]


# Both are operators only so that torch.compile and make_fx can look at an index being made.


def _place_fake(length: Tensor, step: float, knots: int) -> tuple[Tensor, Tensor, Tensor]:
    units, dtype = length.shape[0], reference.working_dtype(length)
    return length.new_empty(units, dtype=torch.int32), length.new_empty(units, dtype=dtype), length.new_empty(units, 2 * ROWS, dtype=dtype)


def _place_numba(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .numba_launch import place

    return place(*args)


def _groups_fake(unit_dst: Tensor, unit_src: Tensor, number: int) -> Tensor:
    return unit_dst.new_empty(number + 1)


def _groups_numba(*args: Any) -> Tensor:
    from .numba_launch import groups

    return groups(*args)


def _no_groups(unit_dst: Tensor, unit_src: Tensor, number: int) -> Tensor:
    raise NotImplementedError("only the numba backend works on groups of units side by side")


_place = backends.define_op(
    "radial_place",
    "(Tensor length, float step, int knots) -> (Tensor, Tensor, Tensor)",
    fake=_place_fake,
    reference=reference.place,
    numba=_place_numba,
    triton=reference.place,
)
_groups = backends.define_op(
    "radial_groups",
    "(Tensor unit_dst, Tensor unit_src, int number) -> Tensor",
    fake=_groups_fake,
    reference=_no_groups,
    numba=_groups_numba,
    triton=_no_groups,
)


__all__ = ["GROUPS", "INDEX_SCHEMA", "INDEX_SIZE", "ROWS", "RadialIndex", "reverse"]
