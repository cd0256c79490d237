"""How to call the message on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..radial_conv.cases import GRID, random_lengths
from ..radial_conv.places import RadialIndex
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import painn_radial


def _make(paired: bool, first: bool) -> Any:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        units, nodes, width = graph.num_edges if pairs is None else pairs.num_pairs, shape.nodes, shape.width
        phi, vector, direction, table = (
            random_tensor(*size, dtype=dtype, generator=generator)
            for size in ((nodes, 3 * width), (nodes, 3, width), (units, 3), (GRID.rows, 3 * width))
        )
        length = random_lengths(units, dtype, generator)
        return Sample((phi, length, direction, table) if first else (phi, vector, length, direction, table), (graph, pairs))

    return make


def _call(
    phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return painn_radial(phi, vector, length, direction, table, RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend))


def _reference(
    phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any
) -> tuple[Tensor, Tensor]:
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="reference")
    return reference.painn_radial(phi, vector, length, direction, table, index.arguments)


def _first(
    phi: Tensor, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return _call(phi, None, length, direction, table, graph, pairs, backend)


def _first_reference(phi: Tensor, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any) -> tuple[Tensor, Tensor]:
    return _reference(phi, None, length, direction, table, graph, pairs)


_OPERATORS = ("painn_radial", "painn_radial_backward", "painn_radial_double_backward")

CASES: tuple[OpCase, ...] = (
    OpCase("painn_radial", _call, _reference, _make(paired=False, first=False), _OPERATORS),
    OpCase("painn_radial[pairs]", _call, _reference, _make(paired=True, first=False), _OPERATORS),
    OpCase("painn_radial[first]", _first, _first_reference, _make(paired=False, first=True), _OPERATORS),
    OpCase("painn_radial[first, pairs]", _first, _first_reference, _make(paired=True, first=True), _OPERATORS),
)

KERNELS: tuple[AotKernel, ...] = ()
