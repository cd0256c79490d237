"""Launches of the Triton kernels; names as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .tiles import tile

#: The weight's gradient is made in parts of so many edges or more: a part sums its edges in order, and torch the parts in order.
EDGES_PER_PART = 256
#: Ceiling on programs, a few per multiprocessor, which bounds the scratch whatever E is.
MAX_PROGRAMS = 512


def gated_sum(m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """See `reference.gated_edge_to_node`."""
    (width, rank), nodes = w.shape, ptr.shape[0] - 1
    out = m.new_empty(nodes, width)
    if out.numel():
        blocks = tile(width, rank, double=m.dtype == torch.float64)
        grid = (nodes, triton.cdiv(width, blocks["BLOCK_D"]))
        kernels.gated_edge_to_node_kernel[grid](
            m.contiguous(), b.contiguous(), w.contiguous(), ptr.contiguous(), order.contiguous(), out, width, rank, **blocks
        )
    return out


def gradients(
    g: Tensor, m: Tensor, b: Tensor, w: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.gradients`."""
    need_m, need_b, need_w = needs
    g, m, b, w, dst = g.contiguous(), m.contiguous(), b.contiguous(), w.contiguous(), dst.contiguous()
    (width, rank), edges = w.shape, m.shape[0]
    blocks = tile(width, rank, double=m.dtype == torch.float64)
    by_m, by_b = (like.new_empty(like.shape if need else (0,)) for like, need in ((m, need_m), (b, need_b)))
    if by_m.numel() or by_b.numel():
        grid = (triton.cdiv(edges, blocks["BLOCK_E"]), triton.cdiv(rank, blocks["BLOCK_R"]) if by_b.numel() else 1)
        flags = {"BY_M": by_m.numel() > 0, "BY_B": by_b.numel() > 0}
        kernels.gated_edge_kernel[grid](g, m, b, w, dst, by_m, by_b, edges, width, rank, **flags, **blocks)
    return by_m, by_b, _by_weight(g, m, b, w, dst, blocks) if need_w else w.new_empty(0)


def _by_weight(g: Tensor, m: Tensor, b: Tensor, w: Tensor, dst: Tensor, blocks: dict[str, int]) -> Tensor:
    (width, rank), edges = w.shape, m.shape[0]
    tiles = triton.cdiv(width, blocks["BLOCK_D"]), triton.cdiv(rank, blocks["BLOCK_R"])
    least = max(EDGES_PER_PART, triton.cdiv(edges, max(1, MAX_PROGRAMS // (tiles[0] * tiles[1] or 1))))
    edges_each = triton.cdiv(min(least, edges), blocks["BLOCK_E"]) * blocks["BLOCK_E"]
    parts = triton.cdiv(edges, max(edges_each, 1))
    sums = w.new_empty(parts, width, rank, dtype=torch.promote_types(w.dtype, torch.float32))
    if sums.numel():
        kernels.gated_weight_kernel[(*tiles, parts)](g, m, b, dst, sums, edges, width, rank, edges_each, **blocks)
    return sums.sum(0).to(w.dtype)
