"""GPU kernels: ``triplet_reduce_kernel`` (a program an output edge), ``triplet_pull_kernel`` (an input edge; both gradients) and
``triplet_dot_kernel`` (a tile of pairs of triplet and basis function).

Names: x input edges [E_in, D], a angular basis [T, S], g on output edges [E_out, S, D]. S is a constant of the model, so that a flat
number p of a pair is split as t = p // S, s = p % S at no cost, whatever S is; no lane is spent on padding it. Addresses are int64:
triplets × S passes 2³¹ in real batches. Sums run in float32, or float64 for float64, in ascending order of triplets, without atomics.
"""

import triton
import triton.language as tl


@triton.jit
def triplet_reduce_kernel(
    x_ptr, a_ptr, in_ptr, ptr_ptr, order_ptr, out_ptr, D, S: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """out[edge] = Σ_t a_t ⊗ x_in(t): a product of matrices [S, triplets] and [triplets, D]."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    edge = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    f = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_basis, in_width = s < S, f < D  # tiles are powers of two
    stop = tl.load(ptr_ptr + edge + 1)
    total = tl.zeros((BLOCK_S, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + edge), stop, BLOCK_T):
        k = first + tl.arange(0, BLOCK_T)
        in_segment = k < stop  # the last tile of an edge is ragged
        triplet = tl.load(order_ptr + k, mask=in_segment, other=0)
        source = tl.load(in_ptr + triplet, mask=in_segment, other=0)
        a = tl.load(a_ptr + triplet[None, :] * S + s[:, None], mask=in_basis[:, None] & in_segment[None, :], other=0.0).to(ACC)
        x = tl.load(x_ptr + source[:, None] * D + f[None, :], mask=in_segment[:, None] & in_width[None, :], other=0.0).to(ACC)
        total = tl.dot(a, x, total, input_precision="ieee", out_dtype=ACC)
    tl.store(out_ptr + (edge * S + s)[:, None] * D + f[None, :], total, mask=in_basis[:, None] & in_width[None, :])


@triton.jit
def triplet_pull_kernel(
    g_ptr, x_ptr, a_ptr, out_edge_ptr, ptr_ptr, order_ptr, by_x_ptr, by_a_ptr, D, S: tl.constexpr, BY_A: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """by_x[edge] = Σ_t Σ_s a_ts g_out(t),s; BY_A (one tile spans the width): by_a_ts = g_out(t),s · x[edge]."""
    ACC: tl.constexpr = tl.float64 if g_ptr.dtype.element_ty == tl.float64 else tl.float32
    edge = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < D
    start = tl.load(ptr_ptr + edge)
    pairs = (tl.load(ptr_ptr + edge + 1) - start) * S
    if BY_A:
        x = tl.load(x_ptr + edge * D + f, mask=in_width, other=0.0).to(ACC)
    total = tl.zeros((BLOCK_P, BLOCK_F), dtype=ACC)
    for first in range(0, pairs, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P).to(tl.int64)
        in_segment = p < pairs
        triplet = tl.load(order_ptr + start + p // S, mask=in_segment, other=0)
        row = tl.load(out_edge_ptr + triplet, mask=in_segment, other=0) * S + p % S
        g = tl.load(g_ptr + row[:, None] * D + f[None, :], mask=in_segment[:, None] & in_width[None, :], other=0.0).to(ACC)
        place = triplet * S + p % S
        a = tl.load(a_ptr + place, mask=in_segment, other=0.0).to(ACC)
        total += a[:, None] * g
        if BY_A:
            tl.store(by_a_ptr + place, tl.sum(g * x[None, :], axis=1), mask=in_segment)
    tl.store(by_x_ptr + edge * D + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["T"])  # a batch's size must not make Triton compile again
def triplet_dot_kernel(
    g_ptr, x_ptr, in_ptr, out_edge_ptr, order_ptr, by_a_ptr, T, D, S: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """by_a_ts = g_out(t),s · x_in(t); triplets of one output edge follow each other, so its rows of g come from the cache."""
    ACC: tl.constexpr = tl.float64 if g_ptr.dtype.element_ty == tl.float64 else tl.float32
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = p // S
    in_range = k < T
    triplet = tl.load(order_ptr + k, mask=in_range, other=0)
    row = tl.load(out_edge_ptr + triplet, mask=in_range, other=0) * S + p % S
    source = tl.load(in_ptr + triplet, mask=in_range, other=0)
    total = tl.zeros((BLOCK_P,), dtype=ACC)
    for first in range(0, D, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        tile = in_range[:, None] & (f < D)[None, :]
        g = tl.load(g_ptr + row[:, None] * D + f[None, :], mask=tile, other=0.0).to(ACC)
        x = tl.load(x_ptr + source[:, None] * D + f[None, :], mask=tile, other=0.0).to(ACC)
        total += tl.sum(g * x, axis=1)
    tl.store(by_a_ptr + triplet * S + p % S, total, mask=in_range)
