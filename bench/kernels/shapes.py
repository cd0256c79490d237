"""Sizes and graphs that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from fastkd_kernels import CSRGraph
from fastkd_kernels.registry import Shape

#: ``local``: sorted by destination, neighbours near by, as in a batch of molecules; ``random``: any two nodes, in any order;
#: ``skewed``: degrees after a power law; ``giant``: all edges into one node.
GraphKind = Literal["local", "random", "skewed", "giant"]


@dataclass(frozen=True)
class BenchShape:
    """A size by name."""

    name: str
    size: Shape
    graph: GraphKind = "local"
    gpu_only: bool = False


SHAPES: dict[str, BenchShape] = {
    shape.name: shape
    for shape in (
        BenchShape("small", Shape(72, 576, 128)),
        BenchShape("qm9", Shape(2_000, 40_000, 128)),
        BenchShape("gate", Shape(2_000, 60_000, 128), "random"),
        BenchShape("skewed", Shape(2_000, 40_000, 128), "skewed"),
        BenchShape("giant", Shape(2_000, 40_000, 128), "giant"),
        BenchShape("oc20", Shape(20_000, 500_000, 512), gpu_only=True),
        BenchShape("md", Shape(50_000, 1_000_000, 128), gpu_only=True),
        BenchShape("skewed_large", Shape(50_000, 1_000_000, 128), "skewed", gpu_only=True),
        BenchShape("giant_large", Shape(50_000, 1_000_000, 128), "giant", gpu_only=True),
        BenchShape("cka", Shape(5_000, 0, 512), gpu_only=True),
        BenchShape("nodes", Shape(1_000, 0, 512)),
    )
}


def make_edges(kind: GraphKind, size: Shape, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and destinations, [E] each, made on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    nodes, edges = size.nodes, size.edges

    def uniform(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (edges,), generator=generator, device=device)

    if kind == "random":
        return uniform(0, nodes), uniform(0, nodes)
    if kind == "skewed":
        # a node's share of the edges falls as its number to the power of -3/4
        power = torch.rand(edges, generator=generator, device=device, dtype=torch.float64).pow(4)
        return uniform(0, nodes), (power * nodes).long().clamp_(max=nodes - 1)
    if kind == "giant":
        return uniform(0, nodes), torch.zeros(edges, dtype=torch.int64, device=device)
    edge_dst = torch.arange(edges, device=device) * nodes // max(edges, 1)
    reach = max(1, min(nodes, 2 * edges // max(nodes, 1)))
    return (edge_dst + uniform(-reach, reach + 1)) % nodes, edge_dst


def make_graph(shape: BenchShape, seed: int, device: torch.device) -> CSRGraph:
    """The graph of a shape."""
    return CSRGraph.from_edges(*make_edges(shape.graph, shape.size, seed, device), shape.size.nodes)
