"""Rows of atoms for each edge, with sums of one order in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from fastkd_kernels import CSRGraph, edge_to_node
from fastkd_kernels.graph import transpose
from torch import Tensor


class _Gather(torch.autograd.Function):
    """x[dst]; its derivative is the sum of edges into nodes, whose derivative is known to every order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: CSRGraph) -> Tensor:
        ctx.graph = graph
        return x[graph.edge_dst]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return edge_to_node(g.contiguous(), ctx.graph), None


def node_to_edge(x: Tensor, graph: CSRGraph, *, source: bool = False) -> Tensor:
    """Rows of each edge's destination, or of its source: [n_atoms, c] → [n_edges, c]."""
    rows: Tensor = _Gather.apply(x, CSRGraph(*transpose(*graph.tensors)) if source else graph)
    return rows
