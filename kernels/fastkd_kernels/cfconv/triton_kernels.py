"""GPU kernels: ``cfconv_kernel`` and ``edge_product_kernel``, and their twins on pairs, ``paired_cfconv_kernel`` and ``pair_product_kernel``.

A program of the convolutions owns one node and a tile of features, and walks through the node's edges in a fixed order: no atomics.
Sums stay two-dimensional, [BLOCK_E, BLOCK_F], until the last edge, so that lanes are reduced once a node and not once a tile.
``F`` is the width; ``BLOCK_F`` its tile, a power of two. Addresses are int64: edges × width passes 2³¹ in real batches.
"""

import triton
import triton.language as tl


@triton.jit
def cfconv_kernel(x_ptr, weight_ptr, src_ptr, ptr_ptr, order_ptr, out_ptr, F, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        neighbour = tl.load(src_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        w = tl.load(weight_ptr + edge[:, None] * F + f[None, :], mask=tile, other=0.0)
        x = tl.load(x_ptr + neighbour[:, None] * F + f[None, :], mask=tile, other=0.0)
        total += w.to(ACC) * x.to(ACC)
    tl.store(out_ptr + node * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit
def edge_product_kernel(a_ptr, b_ptr, src_ptr, dst_ptr, out_ptr, E, F, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    edge = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_range = edge < E  # the last tile of edges is ragged
    tile = in_range[:, None] & (f < F)[None, :]  # F need not be a power of two
    i = tl.load(dst_ptr + edge, mask=in_range, other=0)
    j = tl.load(src_ptr + edge, mask=in_range, other=0)
    a = tl.load(a_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0)
    b = tl.load(b_ptr + j[:, None] * F + f[None, :], mask=tile, other=0.0)
    tl.store(out_ptr + edge[:, None] * F + f[None, :], a.to(ACC) * b.to(ACC), mask=tile)


@triton.jit
def paired_cfconv_kernel(
    x_ptr,
    weight_ptr,
    src_ptr,
    ptr_ptr,
    order_ptr,
    pair_ptr,
    out_ptr,
    F,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        neighbour = tl.load(src_ptr + edge, mask=in_segment, other=0)
        pair = tl.load(pair_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        w = tl.load(weight_ptr + pair[:, None] * F + f[None, :], mask=tile, other=0.0)
        x = tl.load(x_ptr + neighbour[:, None] * F + f[None, :], mask=tile, other=0.0)
        total += w.to(ACC) * x.to(ACC)
    tl.store(out_ptr + node * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit
def pair_product_kernel(a_ptr, b_ptr, src_ptr, dst_ptr, pair_edges_ptr, out_ptr, P, F, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    pair = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_range = pair < P  # the last tile of pairs is ragged
    tile = in_range[:, None] & (f < F)[None, :]  # F need not be a power of two
    edge = tl.load(pair_edges_ptr + 2 * pair, mask=in_range, other=0)
    i = tl.load(dst_ptr + edge, mask=in_range, other=0)[:, None] * F + f[None, :]
    j = tl.load(src_ptr + edge, mask=in_range, other=0)[:, None] * F + f[None, :]
    a_i = tl.load(a_ptr + i, mask=tile, other=0.0).to(ACC)
    a_j = tl.load(a_ptr + j, mask=tile, other=0.0).to(ACC)
    b_i = tl.load(b_ptr + i, mask=tile, other=0.0).to(ACC)
    b_j = tl.load(b_ptr + j, mask=tile, other=0.0).to(ACC)
    tl.store(out_ptr + pair[:, None] * F + f[None, :], a_i * b_j + a_j * b_i, mask=tile)
