"""GPU kernels. Index of kernels: ``edge_to_node_kernel`` (one program a node and width tile) and ``node_to_edge_kernel`` (tiles of edges).

Names: m edge features [E, D], r directions [E, 3], s and g scalars [N, D], v and G vectors [N, 3, D] on nodes. Addresses are int64:
edges × width passes 2³¹ in real batches. No [E, 3, D] tensor is made, in memory or on the chip. Sums run in float32, or float64 for float64.
"""

import triton
import triton.language as tl


@triton.jit
def edge_to_node_kernel(
    m_ptr, r_ptr, ptr_ptr, order_ptr, s_ptr, v_ptr, D, SCALAR: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if m_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < D  # the width tile is a power of two
    start = tl.load(ptr_ptr + node)
    stop = tl.load(ptr_ptr + node + 1)
    s = tl.zeros((BLOCK_F,), dtype=ACC)
    x = tl.zeros((BLOCK_F,), dtype=ACC)
    y = tl.zeros((BLOCK_F,), dtype=ACC)
    z = tl.zeros((BLOCK_F,), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        m = tl.load(m_ptr + edge[:, None] * D + f[None, :], mask=tile, other=0.0).to(ACC)
        rx = tl.load(r_ptr + edge * 3, mask=in_segment, other=0.0).to(ACC)
        ry = tl.load(r_ptr + edge * 3 + 1, mask=in_segment, other=0.0).to(ACC)
        rz = tl.load(r_ptr + edge * 3 + 2, mask=in_segment, other=0.0).to(ACC)
        if SCALAR:
            s += tl.sum(m, axis=0)
        x += tl.sum(m * rx[:, None], axis=0)
        y += tl.sum(m * ry[:, None], axis=0)
        z += tl.sum(m * rz[:, None], axis=0)
    if SCALAR:
        tl.store(s_ptr + node * D + f, s, mask=in_width)
    v_ptr += node * 3 * D
    tl.store(v_ptr + f, x, mask=in_width)
    tl.store(v_ptr + D + f, y, mask=in_width)
    tl.store(v_ptr + 2 * D + f, z, mask=in_width)


@triton.jit(do_not_specialize=["E"])  # a batch's size must not make Triton compile again
def node_to_edge_kernel(
    m_ptr, r_ptr, v_ptr, g_ptr, dst_ptr, order_ptr, by_m_ptr, by_r_ptr, E, D, SCALAR: tl.constexpr, BY_M: tl.constexpr,
    BY_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """BY_M: by_m = g_dst (if SCALAR) + Σ_k r_k G_dst,k [E, D]; BY_R: by_r,k = m · G_dst,k [E, 3]."""
    ACC: tl.constexpr = tl.float64 if v_ptr.dtype.element_ty == tl.float64 else tl.float32
    k = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_range = k < E  # the last tile of edges is ragged
    # edges of one node follow each other in this order, so its rows of G come from the cache
    edge = tl.load(order_ptr + k, mask=in_range, other=0)
    node = tl.load(dst_ptr + edge, mask=in_range, other=0)
    if BY_M:
        rx = tl.load(r_ptr + edge * 3, mask=in_range, other=0.0).to(ACC)
        ry = tl.load(r_ptr + edge * 3 + 1, mask=in_range, other=0.0).to(ACC)
        rz = tl.load(r_ptr + edge * 3 + 2, mask=in_range, other=0.0).to(ACC)
    dx = tl.zeros((BLOCK_E,), dtype=ACC)
    dy = tl.zeros((BLOCK_E,), dtype=ACC)
    dz = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(0, D, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        tile = in_range[:, None] & (f < D)[None, :]  # the width tile is a power of two
        row = v_ptr + node[:, None] * 3 * D + f[None, :]
        x = tl.load(row, mask=tile, other=0.0).to(ACC)
        y = tl.load(row + D, mask=tile, other=0.0).to(ACC)
        z = tl.load(row + 2 * D, mask=tile, other=0.0).to(ACC)
        if BY_M:
            by_m = rx[:, None] * x + ry[:, None] * y + rz[:, None] * z
            if SCALAR:
                by_m += tl.load(g_ptr + node[:, None] * D + f[None, :], mask=tile, other=0.0).to(ACC)
            tl.store(by_m_ptr + edge[:, None] * D + f[None, :], by_m, mask=tile)
        if BY_R:
            m = tl.load(m_ptr + edge[:, None] * D + f[None, :], mask=tile, other=0.0).to(ACC)
            dx += tl.sum(m * x, axis=1)
            dy += tl.sum(m * y, axis=1)
            dz += tl.sum(m * z, axis=1)
    if BY_R:
        tl.store(by_r_ptr + edge * 3, dx, mask=in_range)
        tl.store(by_r_ptr + edge * 3 + 1, dy, mask=in_range)
        tl.store(by_r_ptr + edge * 3 + 2, dz, mask=in_range)
