"""The edges of a batch, ordered so that every reduction runs over contiguous segments, without atomics.

Example:
    >>> graph = CSRGraph.from_edges(torch.tensor([1, 2, 0]), torch.tensor([0, 0, 2]), num_nodes=3)
    >>> graph.edge_ptr.tolist()
    [0, 2, 2, 3]
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .backends import runs_directly

#: The graph as the operators of `torch.library` take it: plain tensors, in the order of `CSRGraph.tensors`.
GRAPH_SCHEMA = "Tensor edge_src, Tensor edge_dst, Tensor edge_ptr, Tensor edge_order, Tensor src_ptr, Tensor src_order"

GraphTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class CSRGraph:
    """Directed edges src → dst, indexed by destination and by source.

    Edge tensors stay in the caller's order. ``edge_order[edge_ptr[i]:edge_ptr[i + 1]]`` are the edges that end in node i,
    ``src_order[src_ptr[i]:src_ptr[i + 1]]`` those that leave it, both in ascending edge number (stable, hence reproducible).
    """

    edge_src: Tensor  #: [n_edges] int64
    edge_dst: Tensor  #: [n_edges] int64
    edge_ptr: Tensor  #: [n_nodes + 1] int64, CSR over edge_dst
    edge_order: Tensor  #: [n_edges] int64, sorted position → the caller's edge
    src_ptr: Tensor  #: [n_nodes + 1] int64, CSR over edge_src
    src_order: Tensor  #: [n_edges] int64

    @classmethod
    def from_edges(cls, edge_src: Tensor, edge_dst: Tensor, num_nodes: int) -> CSRGraph:
        """Sort once per batch; every layer, and teacher and student alike, reuse the result.

        Args:
            edge_src: source node of each edge, [n_edges] int64, each in [0, num_nodes).
            edge_dst: destination node of each edge, [n_edges] int64, each in [0, num_nodes).
            num_nodes: number of nodes; nodes without edges are allowed.

        Raises:
            ValueError: if the two differ in shape or device, or are not one-dimensional int64; on a CPU also if an index is out of range.
        """
        if edge_src.shape != edge_dst.shape or edge_src.dim() != 1 or edge_src.dtype != torch.int64 or edge_dst.dtype != torch.int64:
            raise ValueError(
                f"edge_src and edge_dst must both be [n_edges] int64, got {tuple(edge_src.shape)} {edge_src.dtype} "
                f"and {tuple(edge_dst.shape)} {edge_dst.dtype}"
            )
        if edge_src.device != edge_dst.device:
            raise ValueError(f"edge_src is on {edge_src.device}, edge_dst on {edge_dst.device}")
        edge_ptr, edge_order = segments(edge_dst, num_nodes)
        src_ptr, src_order = segments(edge_src, num_nodes)
        return cls(edge_src.contiguous(), edge_dst.contiguous(), edge_ptr, edge_order, src_ptr, src_order)

    @property
    def num_nodes(self) -> int:
        return self.edge_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        return self.edge_src.shape[0]

    @property
    def tensors(self) -> GraphTensors:
        """Arguments of an operator that reduces onto destinations, see `GRAPH_SCHEMA`."""
        return self.edge_src, self.edge_dst, self.edge_ptr, self.edge_order, self.src_ptr, self.src_order

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CSRGraph:
        """The same graph on another device."""
        return CSRGraph(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))


def transpose(edge_src: Tensor, edge_dst: Tensor, edge_ptr: Tensor, edge_order: Tensor, src_ptr: Tensor, src_order: Tensor) -> GraphTensors:
    """The same graph with every edge reversed: no data moves, only roles change."""
    return edge_dst, edge_src, src_ptr, src_order, edge_ptr, edge_order


def segments(index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """CSR of any index: pointers [num_segments + 1] and the stable order [n] that groups equal indices, both int64.

    Raises:
        ValueError: on a CPU, if an index lies outside [0, num_segments). A GPU is not synchronised to look, and a tracer has no values.
    """
    ordered, order = torch.sort(index, stable=True)
    check_range(ordered[:: max(1, ordered.shape[0] - 1)], num_segments)
    # a binary search, because counting has an output whose size depends on the values
    return torch.searchsorted(ordered, torch.arange(num_segments + 1, device=index.device)), order


def check_range(index: Tensor, num_segments: int) -> None:
    """Raise ValueError if an index on a CPU lies outside [0, num_segments); a GPU is not synchronised, and a tracer has no values."""
    if index.device.type == "cpu" and runs_directly((index,)) and index.numel():
        low, high = (int(end) for end in torch.aminmax(index))
        if low < 0 or high >= num_segments:
            raise ValueError(f"index must lie in [0, {num_segments}), got values from {low} to {high}")
