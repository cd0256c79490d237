"""Allocate, hand over arrays, say how much work there is."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays, shares, streams
from . import numba_kernels


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
    out = torch.empty(x.shape, dtype=x.dtype)
    features, filters, src, dst, ptr, order, sums = arrays(x, weight, edge_src, edge_dst, edge_ptr, edge_order, out)
    work = weight.numel()
    if streams(order, filters, sums):
        numba_kernels.cfconv_streamed(features, filters, src, dst, shares(ptr, work), sums, work=work)
    else:
        numba_kernels.cfconv(features, filters, src, ptr, order, sums, work=work)
    return out


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
    edge_ptr: Tensor,
    edge_order: Tensor,
    src_ptr: Tensor,
    src_order: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Gradients of `cfconv` by x and weight in one pass, or None where two passes are better."""
    by_x, by_weight = torch.empty(x.shape, dtype=x.dtype), torch.empty(weight.shape, dtype=weight.dtype)
    inputs = arrays(grad, x, weight, edge_src, edge_dst)
    ptr, order, sums, products = arrays(src_ptr, src_order, by_x, by_weight)
    if not streams(order, inputs[2], sums):
        return None
    work = 2 * weight.numel()
    numba_kernels.gradients_streamed(*inputs, shares(ptr, work), sums, products, work=work)
    return by_x, by_weight


def edge_product(a: Tensor, b: Tensor, edge_src: Tensor, edge_dst: Tensor, *rest: Tensor) -> Tensor:
    out = torch.empty(edge_src.shape[0], a.shape[1], dtype=a.dtype)
    numba_kernels.edge_product(*arrays(a, b, edge_src, edge_dst, out), work=out.numel())
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
    out = torch.empty(x.shape, dtype=x.dtype)
    numba_kernels.paired_cfconv(*arrays(x, pair_weight, edge_src, edge_ptr, edge_order, pair, out), work=2 * pair_weight.numel())
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
    out = torch.empty(pair_edges.shape[0], a.shape[1], dtype=a.dtype)
    numba_kernels.pair_product(*arrays(a, b, edge_src, edge_dst, pair_edges, out), work=2 * out.numel())
    return out
