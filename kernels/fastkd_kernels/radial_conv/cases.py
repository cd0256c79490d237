"""How to call this folder's functions on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import radial_conv
from .places import RadialIndex
from .spline import SplineGrid

#: Few knots, so that units meet in the same rows of the table; a few lengths lie beyond the cutoff.
GRID = SplineGrid(cutoff=2.0, knots=19)


def random_lengths(number: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Lengths from 0.05 to a little more than the cutoff of `GRID`."""
    return (0.05 + 2.1 * torch.rand(number, dtype=torch.float64, generator=generator)).to(dtype)


def _make(paired: bool) -> Any:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        x = random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator)
        length = random_lengths(graph.num_edges if pairs is None else pairs.num_pairs, dtype, generator)
        table = random_tensor(GRID.rows, shape.width, dtype=dtype, generator=generator)
        return Sample((x, length, table), (graph, pairs))

    return make


def _call(x: Tensor, length: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None) -> Tensor:
    return radial_conv(x, length, table, RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend))


def _reference(x: Tensor, length: Tensor, table: Tensor, graph: Any, pairs: Any) -> Tensor:
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="reference")
    weight = reference.filters(length, table, index.knot, index.fraction, GRID.step, 0)
    return reference.conv(None, x.to(weight.dtype), weight, index.unit_dst, index.unit_src, index.paired).to(x.dtype)


_OPERATORS = ("radial_conv", "radial_conv_backward", "radial_dot", "radial_knots")

CASES: tuple[OpCase, ...] = (
    OpCase("radial_conv", _call, _reference, _make(paired=False), _OPERATORS),
    OpCase("radial_conv[pairs]", _call, _reference, _make(paired=True), _OPERATORS),
)

KERNELS: tuple[AotKernel, ...] = ()
