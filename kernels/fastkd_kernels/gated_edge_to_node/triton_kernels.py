"""GPU kernels: ``gated_edge_to_node_kernel`` (one program a node and width tile), ``gated_edge_kernel`` (a tile of edges; the gradients
by edge and basis) and ``gated_weight_kernel`` (a tile of the weight and a part of the edges).

Names: m edge features [E, D], b basis [E, R], w weight [D, R], g on nodes [N, D]; ``ACC`` is the dtype of all products and sums, float32,
or float64 for float64. The gate W b of a tile is made where it is used, in registers. Addresses are int64: edges × width passes 2³¹ in
real batches. Products of float32 are exact to float32, not TF32.
"""

import triton
import triton.language as tl


@triton.jit
def _gate(
    b_ptr, w_ptr, edge, in_range, d, in_width, R, ACC: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """b[edge] · w[d]ᵀ, 0 outside: a tile [BLOCK_E, BLOCK_D]."""
    total = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        in_rank = r < R  # the last tile of the basis is ragged
        b = tl.load(b_ptr + edge[:, None] * R + r[None, :], mask=in_range[:, None] & in_rank[None, :], other=0.0).to(ACC)
        w = tl.load(w_ptr + d[None, :] * R + r[:, None], mask=in_width[None, :] & in_rank[:, None], other=0.0).to(ACC)
        total = tl.dot(b, w, total, input_precision="ieee", out_dtype=ACC)
    return total


@triton.jit
def gated_edge_to_node_kernel(
    m_ptr, b_ptr, w_ptr, ptr_ptr, order_ptr, out_ptr, D, R, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """out[node] = Σ_e m ∘ (w b), over the node's edges in order."""
    ACC: tl.constexpr = tl.float64 if m_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_width = d < D  # the width tile is a power of two
    stop = tl.load(ptr_ptr + node + 1)
    total = tl.zeros((BLOCK_E, BLOCK_D), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_range = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_range, other=0)
        m = tl.load(m_ptr + edge[:, None] * D + d[None, :], mask=in_range[:, None] & in_width[None, :], other=0.0).to(ACC)
        total += m * _gate(b_ptr, w_ptr, edge, in_range, d, in_width, R, ACC, BLOCK_E, BLOCK_D, BLOCK_R)
    tl.store(out_ptr + node * D + d, tl.sum(total, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["E"])  # a batch's size must not make Triton compile again
def gated_edge_kernel(
    g_ptr, m_ptr, b_ptr, w_ptr, dst_ptr, by_m_ptr, by_b_ptr, E, D, R, BY_M: tl.constexpr, BY_B: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """BY_M: by_m = g_dst ∘ (w b) [E, D]; BY_B: by_b = (g_dst ∘ m) · w [E, R], a tile of its columns for each program of axis 1."""
    ACC: tl.constexpr = tl.float64 if g_ptr.dtype.element_ty == tl.float64 else tl.float32
    edge = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_range = edge < E  # the last tile of edges is ragged
    r_tile = tl.program_id(1).to(tl.int64)
    r = r_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rank = r < R
    node = tl.load(dst_ptr + edge, mask=in_range, other=0)
    by_b = tl.zeros((BLOCK_E, BLOCK_R), dtype=ACC)
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        in_width = d < D
        tile = in_range[:, None] & in_width[None, :]
        g = tl.load(g_ptr + node[:, None] * D + d[None, :], mask=tile, other=0.0).to(ACC)
        if BY_M and r_tile == 0:
            # one of the programs that share these edges writes their rows
            by_m = g * _gate(b_ptr, w_ptr, edge, in_range, d, in_width, R, ACC, BLOCK_E, BLOCK_D, BLOCK_R)
            tl.store(by_m_ptr + edge[:, None] * D + d[None, :], by_m, mask=tile)
        if BY_B:
            m = tl.load(m_ptr + edge[:, None] * D + d[None, :], mask=tile, other=0.0).to(ACC)
            w = tl.load(w_ptr + d[:, None] * R + r[None, :], mask=in_width[:, None] & in_rank[None, :], other=0.0).to(ACC)
            by_b = tl.dot(g * m, w, by_b, input_precision="ieee", out_dtype=ACC)
    if BY_B:
        tl.store(by_b_ptr + edge[:, None] * R + r[None, :], by_b, mask=in_range[:, None] & in_rank[None, :])


@triton.jit(do_not_specialize=["E", "edges_each"])
def gated_weight_kernel(
    g_ptr, m_ptr, b_ptr, dst_ptr, part_ptr, E, D, R, edges_each, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """part[part] = Σ (g_dst ∘ m) ⊗ b over the edges of one part, [parts, D, R], to be summed over parts in order."""
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    part = tl.program_id(2).to(tl.int64)
    in_width, in_rank = d < D, r < R
    total = tl.zeros((BLOCK_D, BLOCK_R), dtype=ACC)
    start = part * edges_each
    for first in range(0, edges_each, BLOCK_E):
        edge = start + first + tl.arange(0, BLOCK_E)
        in_range = edge < E
        node = tl.load(dst_ptr + edge, mask=in_range, other=0)
        tile = in_range[:, None] & in_width[None, :]
        g = tl.load(g_ptr + node[:, None] * D + d[None, :], mask=tile, other=0.0).to(ACC)
        m = tl.load(m_ptr + edge[:, None] * D + d[None, :], mask=tile, other=0.0).to(ACC)
        b = tl.load(b_ptr + edge[:, None] * R + r[None, :], mask=in_range[:, None] & in_rank[None, :], other=0.0).to(ACC)
        total = tl.dot(tl.trans(g * m), b, total, input_precision="ieee", out_dtype=ACC)
    tl.store(part_ptr + (part * D + d)[:, None] * R + r[None, :], total, mask=in_width[:, None] & in_rank[None, :])
