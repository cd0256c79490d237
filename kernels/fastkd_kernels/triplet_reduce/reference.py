"""The reduction over triplets in plain torch: the specification, on any device, differentiable to any order by autograd.

Half precision is computed in float32, as in the kernels. Names are the README's: x [E_in, D], a [T, S], g [E_out, S, D].
"""

from __future__ import annotations

import torch
from torch import Tensor


def triplet_reduce(x: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, num_out: int) -> Tensor:
    """Σ over the triplets into each output edge of a_t ⊗ x_in: [E_in, D], [T, S] → [E_out, S, D]."""
    outer = _wide(a)[:, :, None] * _wide(x)[edge_in][:, None, :]
    return outer.new_zeros(num_out, a.shape[1], x.shape[1]).index_add(0, edge_out, outer).to(x.dtype)


def triplet_pull(g: Tensor, a: Tensor, edge_in: Tensor, edge_out: Tensor, num_in: int) -> Tensor:
    """Σ over the triplets that leave each input edge of a_t · g_out: [E_out, S, D], [T, S] → [E_in, D]."""
    message = torch.einsum("ts,tsd->td", _wide(a), _wide(g)[edge_out])
    return message.new_zeros(num_in, g.shape[2]).index_add(0, edge_in, message).to(g.dtype)


def triplet_dot(g: Tensor, x: Tensor, edge_in: Tensor, edge_out: Tensor) -> Tensor:
    """Per triplet g_out · x_in: [E_out, S, D], [E_in, D] → [T, S]."""
    return torch.einsum("tsd,td->ts", _wide(g)[edge_out], _wide(x)[edge_in]).to(g.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
