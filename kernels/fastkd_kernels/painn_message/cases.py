"""How to call the message on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import painn_message


def _make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    nodes, edges, width = shape.nodes, shape.edges, shape.width
    sizes = ((nodes, 3 * width), (nodes, 3, width), (edges, 3 * width), (edges, 3))
    inputs = tuple(random_tensor(*size, dtype=dtype, generator=generator) for size in sizes)
    return Sample(inputs, (random_graph(shape, generator),))


def _make_first_layer(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    made = _make(shape, dtype, generator)
    phi, _, weight, direction = made.inputs
    return Sample((phi, weight, direction), made.extra)


def _reference(phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return reference.painn_message(phi, vector, weight, direction, graph.edge_src, graph.edge_dst)


def _first_layer(
    phi: Tensor, weight: Tensor, direction: Tensor, graph: CSRGraph, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return painn_message(phi, None, weight, direction, graph, backend=backend)


def _first_layer_reference(phi: Tensor, weight: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return _reference(phi, None, weight, direction, graph)


_OPERATORS = ("painn_message", "painn_message_backward", "painn_message_double_backward")

CASES: tuple[OpCase, ...] = (
    OpCase("painn_message", painn_message, _reference, _make, _OPERATORS),
    OpCase("painn_message[first layer]", _first_layer, _first_layer_reference, _make_first_layer, _OPERATORS),
)

KERNELS: tuple[AotKernel, ...] = ()
