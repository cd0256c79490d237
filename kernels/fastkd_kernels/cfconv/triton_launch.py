"""Allocate, choose tiles, launch. Nothing here reads a tensor's values, so nothing waits for the device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_kernels

#: Elements of a tile; with four warps each thread holds four of each operand, one vector load of float32.
TILE = 512
NUM_WARPS = 4


def cfconv(
    x: Tensor,
    weight: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    src_ptr: Tensor,
    src_order: Tensor,
) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    out, width = torch.empty_like(x), x.shape[1]
    if out.numel():
        blocks = tile_of(width)
        grid = (x.shape[0], triton.cdiv(width, blocks["BLOCK_F"]))
        triton_kernels.cfconv_kernel[grid](x, weight, edge_src, edge_ptr, edge_order, out, width, **blocks, num_warps=NUM_WARPS)
    return out


def edge_product(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor, *rest: Tensor) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    edges, width = edge_src.shape[0], a.shape[1]
    out = torch.empty(edges, width, dtype=a.dtype, device=a.device)
    if out.numel():
        blocks = tile_of(width)
        grid = (triton.cdiv(edges, blocks["BLOCK_E"]), triton.cdiv(width, blocks["BLOCK_F"]))
        triton_kernels.edge_product_kernel[grid](a, b, edge_src, edge_dst, out, edges, width, **blocks, num_warps=NUM_WARPS)
    return out


def paired_cfconv(
    x: Tensor,
    pair_weight: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    pair: Tensor,
    pair_edges: Tensor,
) -> Tensor:
    x, pair_weight = x.contiguous(), pair_weight.contiguous()
    out, width = torch.empty_like(x), x.shape[1]
    if out.numel():
        blocks = tile_of(width)
        grid = (x.shape[0], triton.cdiv(width, blocks["BLOCK_F"]))
        triton_kernels.paired_cfconv_kernel[grid](
            x, pair_weight, edge_src, edge_ptr, edge_order, pair, out, width, **blocks, num_warps=NUM_WARPS
        )
    return out


def pair_product(
    a: Tensor,
    b: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    pair: Tensor,
    pair_edges: Tensor,
) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    pairs, width = pair_edges.shape[0], a.shape[1]
    out = torch.empty(pairs, width, dtype=a.dtype, device=a.device)
    if out.numel():
        blocks = tile_of(width)
        grid = (triton.cdiv(pairs, blocks["BLOCK_E"]), triton.cdiv(width, blocks["BLOCK_F"]))
        triton_kernels.pair_product_kernel[grid](a, b, edge_src, edge_dst, pair_edges, out, pairs, width, **blocks, num_warps=NUM_WARPS)
    return out


def tile_of(width: int) -> dict[str, int]:
    """Tile of edges and features for a width."""
    block_f = int(min(128, triton.next_power_of_2(width)))
    return {"BLOCK_E": min(32, TILE // block_f), "BLOCK_F": block_f}
