"""The operators on a CPU: allocate, hand over arrays, say how much work there is.

Nothing of size [E, D] is made, except the gradient by the edges if it is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels as kernels

#: The gradients run over parts of so many edges or more, each with a sum of its own for the weight, and over so many parts at most.
PART_ROWS, MOST_PARTS = 512, 64


def gated_sum(m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """See `reference.gated_edge_to_node`."""
    out = m.new_empty(ptr.shape[0] - 1, m.shape[1])
    kernels.gated_sum(*arrays(m, b, w.T, ptr, order, out), work=m.numel() * b.shape[1])
    return out


def gradients(
    g: Tensor, m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.gradients`; in the caller's order of edges, in which everything but g is contiguous."""
    (edges, width), rank = m.shape, b.shape[1]
    by_m, by_b, by_w = (like.new_empty(like.shape if need else (0, 0)) for like, need in zip((m, b, w), needs, strict=True))
    part_rows = max(PART_ROWS, -(-edges // MOST_PARTS))
    parts = torch.empty(-(-edges // part_rows), rank if needs[2] else 0, width, dtype=torch.float64)
    inputs, outputs = arrays(g, m, b, w.T, dst), arrays(by_m, by_b, parts)
    kernels.gradients(*inputs, *needs, part_rows, *outputs, work=sum(needs) * m.numel() * rank)
    if needs[2]:
        by_w.copy_(parts.sum(0).T)
    by_m, by_b, by_w = (grad if need else grad.new_empty(0) for grad, need in zip((by_m, by_b, by_w), needs, strict=True))
    return by_m, by_b, by_w
