"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference


def _scalar_reference(edge: Tensor, graph: CSRGraph) -> Tensor:
    return reference.edge_to_node(edge, graph.edge_dst, graph.num_nodes)


def _vector_reference(edge: Tensor, direction: Tensor, graph: CSRGraph) -> Tensor:
    return reference.edge_to_node_vector(edge, direction, graph.edge_dst, graph.num_nodes)


def _both_reference(edge: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return reference.edge_to_node_both(edge, direction, graph.edge_dst, graph.num_nodes)


def _scalar_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (graph,))


def _vector_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    edge = random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator)
    return Sample((edge, random_tensor(shape.edges, 3, dtype=dtype, generator=generator)), (graph,))


_DERIVATIVES = ("node_to_edge", "node_dot_edge", "edge_to_node_backward")

CASES = (
    OpCase("edge_to_node", op.edge_to_node, _scalar_reference, _scalar_sample, ("segment_sum", "segment_gather")),
    OpCase("edge_to_node_vector", op.edge_to_node_vector, _vector_reference, _vector_sample, ("edge_to_node_vector", *_DERIVATIVES)),
    OpCase("edge_to_node_both", op.edge_to_node_both, _both_reference, _vector_sample, ("edge_to_node_both", *_DERIVATIVES)),
)

KERNELS: tuple[AotKernel, ...] = ()
