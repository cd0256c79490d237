"""Which two directed edges make up each undirected pair.

Example:
    >>> graph = CSRGraph.from_edges(torch.tensor([1, 0]), torch.tensor([0, 1]), num_nodes=2)
    >>> PairIndex.from_pair(torch.tensor([0, 0]), graph).pair_edges.tolist()
    [[0, 1]]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import CSRGraph

#: Pairs as the operators take them: plain tensors, in the order of `PairIndex.tensors`.
PAIR_SCHEMA = "Tensor edge_src, Tensor edge_dst, Tensor edge_ptr, Tensor edge_order, Tensor pair, Tensor pair_edges"

PairTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PairIndex:
    """The edges of a graph, two by two: j → i and i → j, of one length and so with one filter.

    Make it with `from_pair`, once per batch; the constructor itself looks at nothing.
    """

    pair: Tensor  #: [n_edges] int64, pair of each edge, in the caller's order of edges
    pair_edges: Tensor  #: [n_pairs, 2] int64, the two edges of each pair, in ascending order

    @classmethod
    def from_pair(cls, pair: Tensor, graph: CSRGraph) -> PairIndex:
        """Find the two edges of each pair and check that they are each other's reverse.

        Two edges of a node with its own periodic images are a pair like any other. The check reads values, so on a GPU it waits
        for the device; build the index where the batch is collated and move it with `to`.

        Args:
            pair: pair of each edge, [n_edges] int64; every number from 0 to n_edges / 2 − 1 exactly twice.
            graph: the directed edges.

        Raises:
            ValueError: if the shape is wrong, a pair has not two edges, or its edges do not run in opposite directions.
        """
        if pair.shape != (graph.num_edges,) or pair.dtype != torch.int64:
            raise ValueError(
                f"pair must be [{graph.num_edges}] int64, one number per edge of the graph, got {list(pair.shape)} {pair.dtype}"
            )
        if graph.num_edges % 2:
            raise ValueError(f"{graph.num_edges} edges cannot be paired: the number of edges must be even")
        numbers, order = torch.sort(pair, stable=True)
        wanted = torch.arange(graph.num_edges // 2, device=pair.device).repeat_interleave(2)
        if not torch.equal(numbers, wanted):
            first = int(wanted[(numbers != wanted).nonzero()[0, 0]])
            raise ValueError(f"each of the {graph.num_edges // 2} pairs must have exactly two edges; pair {first} has not")
        pair_edges = order.view(-1, 2)
        reverse = pair_edges.flip(1)
        opposite = (graph.edge_src[pair_edges] == graph.edge_dst[reverse]).all(1)
        if not bool(opposite.all()):
            first = int((~opposite).nonzero()[0, 0])
            one, two = pair_edges[first].tolist()
            raise ValueError(f"the edges of a pair must run in opposite directions; edges {one} and {two} of pair {first} do not")
        return cls(pair.contiguous(), pair_edges)

    @property
    def num_pairs(self) -> int:
        return self.pair_edges.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairIndex:
        """The same pairs on another device."""
        return PairIndex(self.pair.to(device, non_blocking=non_blocking), self.pair_edges.to(device, non_blocking=non_blocking))

    def tensors(self, graph: CSRGraph) -> PairTensors:
        """Arguments of the operators, see `PAIR_SCHEMA`."""
        return graph.edge_src, graph.edge_dst, graph.edge_ptr, graph.edge_order, self.pair, self.pair_edges
