"""The gated sum in plain torch: the specification, on any device, differentiable to any order by autograd. Names are the README's.

Half precision is computed in float32, as in the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gated_edge_to_node(edge: Tensor, basis: Tensor, weight: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Σ over the edges into each node of edge ∘ (basis · weightᵀ): [E, D], [E, R], [D, R] → [N, D]."""
    wide, (m, b, w) = _widened(edge, basis, weight)
    out = m.new_zeros(num_nodes, edge.shape[1], dtype=wide)
    return out.index_add(0, dst, m * (b @ w.T)).to(edge.dtype)


def gradients(
    node: Tensor, edge: Tensor, basis: Tensor, weight: Tensor, dst: Tensor, needs: Sequence[bool] = (True, True, True)
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ⟨node, gated sum⟩ by edge [E, D], basis [E, R] and weight [D, R]; what is not needed is empty."""
    _, (g, m, b, w) = _widened(node, edge, basis, weight)
    upstream, none = g[dst], edge.new_empty(0)
    by_edge = (upstream * (b @ w.T)).to(edge.dtype) if needs[0] else none
    if not (needs[1] or needs[2]):
        return by_edge, none, none
    product = upstream * m
    by_basis = (product @ w).to(edge.dtype) if needs[1] else none
    return by_edge, by_basis, (product.T @ b).to(edge.dtype) if needs[2] else none


def _widened(*tensors: Tensor) -> tuple[torch.dtype, tuple[Tensor, ...]]:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return dtype, tuple(tensor.to(dtype) for tensor in tensors)
