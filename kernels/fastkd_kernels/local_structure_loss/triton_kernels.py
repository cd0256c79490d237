"""GPU kernels. Index of kernels: ``edge_dot_kernel`` (tiles of edges), ``edge_laplacian_kernel`` (one program a node and width tile),
``divergence_kernel`` (one program a node).

Names: features a, b, x [N, C], numbers of edges w [E]. Addresses are int64. Nothing [E, C] is made, in memory or on the chip. Sums run
in float32, or float64 for float64.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["E"])  # a batch's size must not make Triton compile again
def edge_dot_kernel(
    a_ptr, b_ptr, src_ptr, dst_ptr, order_ptr, out_ptr, E, C, SAME: tl.constexpr, ROOT: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """(a_src − a_dst) · (b_src − b_dst); SAME: b is a; ROOT: the root of it."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    k = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_range = k < E  # the last tile of edges is ragged
    # edges of one node follow each other in this order, so its row comes from the cache
    edge = tl.load(order_ptr + k, mask=in_range, other=0)
    src = tl.load(src_ptr + edge, mask=in_range, other=0)
    dst = tl.load(dst_ptr + edge, mask=in_range, other=0)
    total = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(0, C, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        tile = in_range[:, None] & (f < C)[None, :]  # the width tile is a power of two
        there, here = src[:, None] * C + f[None, :], dst[:, None] * C + f[None, :]
        a = tl.load(a_ptr + there, mask=tile, other=0.0).to(ACC) - tl.load(a_ptr + here, mask=tile, other=0.0).to(ACC)
        if SAME:
            total += tl.sum(a * a, axis=1)
        else:
            b = tl.load(b_ptr + there, mask=tile, other=0.0).to(ACC) - tl.load(b_ptr + here, mask=tile, other=0.0).to(ACC)
            total += tl.sum(a * b, axis=1)
    if ROOT:
        total = tl.sqrt(total)
    tl.store(out_ptr + edge, total, mask=in_range)


@triton.jit
def _pull(
    w_ptr, x_ptr, other_ptr, order_ptr, here, f, in_width, start, stop, C, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Σ of w_e (x_here − x_other) over one segment of edges."""
    total = tl.zeros((BLOCK_F,), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        node = tl.load(other_ptr + edge, mask=in_segment, other=0)
        w = tl.load(w_ptr + edge, mask=in_segment, other=0.0)
        tile = in_segment[:, None] & in_width[None, :]
        there = tl.load(x_ptr + node[:, None] * C + f[None, :], mask=tile, other=0.0).to(ACC)
        total += tl.sum(w[:, None] * (here[None, :] - there), axis=0)
    return total


@triton.jit
def edge_laplacian_kernel(
    w_ptr, x_ptr, src_ptr, dst_ptr, in_ptr, in_order_ptr, out_edges_ptr, out_order_ptr, grad_ptr, C,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Edges that end in the node first, then those that leave it, each in ascending number."""
    ACC: tl.constexpr = w_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < C  # the width tile is a power of two
    here = tl.load(x_ptr + node * C + f, mask=in_width, other=0.0).to(ACC)
    start, stop = tl.load(in_ptr + node), tl.load(in_ptr + node + 1)
    total = _pull(w_ptr, x_ptr, src_ptr, in_order_ptr, here, f, in_width, start, stop, C, BLOCK_E, BLOCK_F, ACC)
    start, stop = tl.load(out_edges_ptr + node), tl.load(out_edges_ptr + node + 1)
    total += _pull(w_ptr, x_ptr, dst_ptr, out_order_ptr, here, f, in_width, start, stop, C, BLOCK_E, BLOCK_F, ACC)
    tl.store(grad_ptr + node * C + f, total, mask=in_width)


@triton.jit
def divergence_kernel(
    student_ptr, teacher_ptr, upstream_ptr, ptr_ptr, order_ptr, out_ptr, GRADIENT: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """out[node] = KL of the node's two distributions; GRADIENT: out[edge] = upstream[node] (p^s − p^t)."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    node = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(ptr_ptr + node), tl.load(ptr_ptr + node + 1)
    most_s = tl.full((BLOCK_E,), float("-inf"), dtype=ACC)
    most_t = tl.full((BLOCK_E,), float("-inf"), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        edge = tl.load(order_ptr + k, mask=k < stop, other=0)
        most_s = tl.maximum(most_s, tl.load(student_ptr + edge, mask=k < stop, other=float("-inf")))
        most_t = tl.maximum(most_t, tl.load(teacher_ptr + edge, mask=k < stop, other=float("-inf")))
    top_s, top_t = tl.max(most_s, axis=0), tl.max(most_t, axis=0)
    sum_s = tl.zeros((BLOCK_E,), dtype=ACC)
    sum_t = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        edge = tl.load(order_ptr + k, mask=k < stop, other=0)
        # lanes beyond the segment add exp(−∞) = 0
        sum_s += tl.exp(tl.load(student_ptr + edge, mask=k < stop, other=float("-inf")) - top_s)
        sum_t += tl.exp(tl.load(teacher_ptr + edge, mask=k < stop, other=float("-inf")) - top_t)
    # a node without edges has sums of 0, and nothing reads their logarithms
    log_s = tl.log(tl.where(start < stop, tl.sum(sum_s, axis=0), 1.0))
    log_t = tl.log(tl.where(start < stop, tl.sum(sum_t, axis=0), 1.0))
    total = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        edge = tl.load(order_ptr + k, mask=k < stop, other=0)
        shifted_s = tl.load(student_ptr + edge, mask=k < stop, other=0.0) - top_s - log_s
        shifted_t = tl.load(teacher_ptr + edge, mask=k < stop, other=0.0) - top_t - log_t
        p_s, p_t = tl.exp(shifted_s), tl.exp(shifted_t)
        if GRADIENT:
            tl.store(out_ptr + edge, tl.load(upstream_ptr + node) * (p_s - p_t), mask=k < stop)
        else:
            total += tl.where(k < stop, _excess(shifted_s - shifted_t, p_s, p_t, ACC), 0.0)
    if not GRADIENT:
        tl.store(out_ptr + node, tl.sum(total, axis=0))


@triton.jit
def _excess(a, p_s, p_t, ACC: tl.constexpr):
    """p_t (e^a − 1 − a) with p_s = p_t e^a: a series where |a| is small, because the difference would cancel."""
    series = tl.full(a.shape, 1.0, dtype=ACC)
    for n in tl.static_range(11):
        series = 1.0 + a * series / (13 - n)
    return tl.where(tl.abs(a) < 0.25, p_t * 0.5 * a * a * series, p_s - p_t - p_t * a)
