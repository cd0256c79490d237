"""Edge features onto nodes in plain torch: the specification, on any device, differentiable to any order by autograd.

Sums of half precision run in float32.
"""

import torch
from torch import Tensor


def edge_to_node(edge: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Σ over the edges into each node: edge [E, D] → [N, D]."""
    wide = edge.to(torch.promote_types(edge.dtype, torch.float32))
    return wide.new_zeros(num_nodes, edge.shape[1]).index_add(0, dst, wide).to(edge.dtype)


def edge_to_node_vector(edge: Tensor, direction: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Σ direction ⊗ edge: edge [E, D], direction [E, 3] → [N, 3, D]."""
    wide = edge.to(torch.promote_types(edge.dtype, torch.float32))
    outer = direction.to(wide.dtype)[:, :, None] * wide[:, None, :]
    return wide.new_zeros(num_nodes, 3, edge.shape[1]).index_add(0, dst, outer).to(edge.dtype)


def edge_to_node_both(edge: Tensor, direction: Tensor, dst: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Both of the above."""
    return edge_to_node(edge, dst, num_nodes), edge_to_node_vector(edge, direction, dst, num_nodes)


def node_to_edge(direction: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor) -> Tensor:
    """Per edge scalar[dst] + Σ_k direction_k vector[dst, k]: direction [E, 3], vector [N, 3, D], scalar [N, D] or None → [E, D]."""
    dtype = torch.promote_types(vector.dtype, torch.float32)
    out = torch.einsum("ek,ekd->ed", direction.to(dtype), vector[dst].to(dtype))
    return (out if scalar is None else out + scalar[dst].to(dtype)).to(vector.dtype)


def node_dot_edge(edge: Tensor, vector: Tensor, dst: Tensor) -> Tensor:
    """Per edge edge · vector[dst, k]: edge [E, D], vector [N, 3, D] → [E, 3]."""
    dtype = torch.promote_types(vector.dtype, torch.float32)
    return torch.einsum("ed,ekd->ek", edge.to(dtype), vector[dst].to(dtype)).to(vector.dtype)
