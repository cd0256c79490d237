"""cfconv, edge_product and their twins on undirected pairs, in plain torch: the specification, on any device.

Half-precision input is summed in float32, as in the kernels. Autograd differentiates all four to any order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cfconv(x: Tensor, weight: Tensor, edge_src: Tensor, edge_dst: Tensor) -> Tensor:
    """From x [N, F] and weight [E, F] to [N, F]: sum over the edges into each node of weight ∘ x[src]."""
    message = _wide(weight) * _wide(x)[edge_src]
    return message.new_zeros(x.shape).index_add(0, edge_dst, message).to(x.dtype)


def edge_product(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor) -> Tensor:
    """From a, b [N, F] to [E, F]: a[dst] ∘ b[src] on each edge."""
    return a[edge_dst] * b[edge_src]


def paired_cfconv(x: Tensor, pair_weight: Tensor, edge_src: Tensor, edge_dst: Tensor, pair: Tensor) -> Tensor:
    """From x [N, F] and pair_weight [P, F] to [N, F]: `cfconv` where both directions of a pair share a filter row."""
    return cfconv(x, pair_weight[pair], edge_src, edge_dst)


def pair_product(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor, pair_edges: Tensor) -> Tensor:
    """From a, b [N, F] to [P, F]: `edge_product` summed over the two edges of each pair."""
    return edge_product(_wide(a), _wide(b), edge_src, edge_dst)[pair_edges].sum(1).to(a.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
