"""GPU kernels: sums over the edges of a node (`conv_kernel`, `backward_kernel`, `double_backward_kernel`), over the features of a unit
(`dot_kernel`), and over the units between two knots (`knots_kernel`, then `rows_kernel`); `weights_kernel` for derivatives beyond the first.

The filter is mixed from eight rows of the table where it is used, in registers. Feature tiles are the slow dimension of a grid, so that
programs that run together read the same columns of the table, which stay in the first cache. No atomics: a program owns what it writes,
and every sum is made in a fixed order, in float32 (float64 for float64), two-dimensional until its end.

Names: ``weight`` holds what the rows weigh, [U, 16], or one order of it with a stride. Addresses of nodes, units and edges are int64.
"""

import triton
import triton.language as tl


@triton.jit
def mixed(b_ptr, table_ptr, at, F, inside, tile, ACC: tl.constexpr):
    """Σ_r b_r T_r; ``b_ptr`` points to the eight weights of each unit, ``at`` is the place of its first row."""
    w = tl.load(b_ptr, mask=inside, other=0.0).to(ACC)[:, None] * tl.load(table_ptr + at, mask=tile, other=0.0).to(ACC)
    for r in tl.static_range(1, 8):
        row = tl.load(table_ptr + at + r * F, mask=tile, other=0.0).to(ACC)
        w += tl.load(b_ptr + r, mask=inside, other=0.0).to(ACC)[:, None] * row
    return w


@triton.jit
def mixed_twice(b_ptr, table_ptr, at, F, inside, tile, ACC: tl.constexpr):
    """Value and slope; each row is read once."""
    row = tl.load(table_ptr + at, mask=tile, other=0.0).to(ACC)
    w = tl.load(b_ptr, mask=inside, other=0.0).to(ACC)[:, None] * row
    slope = tl.load(b_ptr + 8, mask=inside, other=0.0).to(ACC)[:, None] * row
    for r in tl.static_range(1, 8):
        row = tl.load(table_ptr + at + r * F, mask=tile, other=0.0).to(ACC)
        w += tl.load(b_ptr + r, mask=inside, other=0.0).to(ACC)[:, None] * row
        slope += tl.load(b_ptr + 8 + r, mask=inside, other=0.0).to(ACC)[:, None] * row
    return w, slope


@triton.jit
def conv_kernel(
    c_ptr, x_ptr, table_ptr, ptr_ptr, unit_ptr, other_ptr, knot_ptr, weight_ptr, out_ptr, F, stride,
    SCALED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """out_node = Σ over its edges of c_u W_u ∘ x_other."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * F + f[None, :]
        w = mixed(weight_ptr + unit * stride, table_ptr, at, F, inside, tile, ACC)
        if SCALED:
            w *= tl.load(c_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
        total += w * tl.load(x_ptr + other[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
    tl.store(out_ptr + node * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["U"])  # a batch's size must not make Triton compile again
def dot_kernel(
    x_ptr, g_ptr, table_ptr, dst_ptr, src_ptr, knot_ptr, weight_ptr, out_ptr, U, F, stride,
    PAIRED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """out_u = Σ_f W_u ∘ p_u."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    unit = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_range = unit < U  # the last tile of units is ragged
    knot = tl.load(knot_ptr + unit, mask=in_range, other=-1)
    inside = knot >= 0
    i = tl.load(dst_ptr + unit, mask=inside, other=0)[:, None] * F
    j = tl.load(src_ptr + unit, mask=inside, other=0)[:, None] * F
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(0, F, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)[None, :]
        tile = inside[:, None] & (f < F)  # F need not be a power of two
        w = mixed(weight_ptr + unit * stride, table_ptr, knot[:, None] * F + f, F, inside, tile, ACC)
        total += w * unit_product(x_ptr, g_ptr, i + f, j + f, tile, PAIRED, ACC)
    tl.store(out_ptr + unit, tl.sum(total, axis=1), mask=in_range)


@triton.jit
def unit_product(x_ptr, g_ptr, i, j, tile, PAIRED: tl.constexpr, ACC: tl.constexpr):
    p = tl.load(x_ptr + j, mask=tile, other=0.0).to(ACC) * tl.load(g_ptr + i, mask=tile, other=0.0).to(ACC)
    if PAIRED:
        p += tl.load(x_ptr + i, mask=tile, other=0.0).to(ACC) * tl.load(g_ptr + j, mask=tile, other=0.0).to(ACC)
    return p


@triton.jit(do_not_specialize=["U"])
def backward_kernel(
    x_ptr, g_ptr, table_ptr, ptr_ptr, unit_ptr, other_ptr, dst_ptr, knot_ptr, weight_ptr, grad_x_ptr, partial_ptr, U, F,
    PAIRED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Over the edges that leave a node: its grad_x, and what each edge and feature tile adds to the gradient by the length.

    The partial sums are [tiles, slots, U]: the two ends of a pair write to two slots.
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    partial_ptr += tl.program_id(1).to(tl.int64) * (2 if PAIRED else 1) * U
    stop = tl.load(ptr_ptr + node + 1)
    x = tl.load(x_ptr + node * F + f, mask=in_width, other=0.0).to(ACC)
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * F + f[None, :]
        w, slope = mixed_twice(weight_ptr + unit * 16, table_ptr, at, F, inside, tile, ACC)
        g = tl.load(g_ptr + other[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
        total += w * g
        rate = tl.sum(slope * g * x[None, :], axis=1)
        if PAIRED:
            # a pair of a node with itself is met twice, with the same sum, and both slots get it
            dst = tl.load(dst_ptr + unit, mask=in_segment, other=0)
            tl.store(partial_ptr + unit, rate, mask=in_segment & (dst == node))
            tl.store(partial_ptr + U + unit, rate, mask=in_segment & (dst == other))
        else:
            tl.store(partial_ptr + unit, rate, mask=in_segment)
    tl.store(grad_x_ptr + node * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit
def double_backward_kernel(
    x_ptr, g_ptr, v_ptr, rate_ptr, table_ptr, ptr_ptr, unit_ptr, other_ptr, knot_ptr, weight_ptr, grad_x_ptr, grad_g_ptr, F,
    BOTH: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """grad_g = Σ W ∘ v_other + rate W′ ∘ x_other over the edges of a node, and grad_x = Σ rate W′ ∘ g_other.

    The second only if BOTH: the edges that leave a node are those that enter it.
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    by_g = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    by_x = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * F + f[None, :]
        w, slope = mixed_twice(weight_ptr + unit * 16, table_ptr, at, F, inside, tile, ACC)
        slope *= tl.load(rate_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
        row = other[:, None] * F + f[None, :]
        by_g += w * tl.load(v_ptr + row, mask=tile, other=0.0).to(ACC)
        by_g += slope * tl.load(x_ptr + row, mask=tile, other=0.0).to(ACC)
        if BOTH:
            by_x += slope * tl.load(g_ptr + row, mask=tile, other=0.0).to(ACC)
    tl.store(grad_g_ptr + node * F + f, tl.sum(by_g, axis=0), mask=in_width)
    if BOTH:
        tl.store(grad_x_ptr + node * F + f, tl.sum(by_x, axis=0), mask=in_width)


@triton.jit
def weighed(b_ptr, r: tl.constexpr, p, q, inside, BOTH: tl.constexpr, ACC: tl.constexpr):
    found = tl.load(b_ptr + r, mask=inside, other=0.0).to(ACC)[:, None] * p
    if BOTH:
        found += tl.load(b_ptr + 8 + r, mask=inside, other=0.0).to(ACC)[:, None] * q
    return found


@triton.jit(do_not_specialize=["pieces"])
def knots_kernel(
    c_ptr, x_ptr, g_ptr, v_ptr, dst_ptr, src_ptr, weight_ptr, bucket_ptr, order_ptr, partial_ptr, F, stride, pieces,
    SCALED: tl.constexpr, BOTH: tl.constexpr, PAIRED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """partial[interval, piece, r] = Σ over a piece of the units between two knots of c_u b_r(u) p_u.

    BOTH: the sum of b_r times the product of v and g, and c_u b′_r times the product of x and g; weights are then [U, 16].
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    interval = tl.program_id(0) // pieces
    piece = tl.program_id(0) % pieces
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    begin = tl.load(bucket_ptr + interval)
    end = tl.load(bucket_ptr + interval + 1)
    share = tl.cdiv(end - begin, pieces)
    start = begin + piece * share
    stop = tl.minimum(start + share, end)
    t0 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t1 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t2 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t3 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t4 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t5 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t6 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t7 = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        inside = k < stop  # the last tile of a piece is ragged
        unit = tl.load(order_ptr + k, mask=inside, other=0)
        i = tl.load(dst_ptr + unit, mask=inside, other=0)[:, None] * F + f[None, :]
        j = tl.load(src_ptr + unit, mask=inside, other=0)[:, None] * F + f[None, :]
        tile = inside[:, None] & in_width[None, :]
        p = unit_product(x_ptr, g_ptr, i, j, tile, PAIRED, ACC)
        if SCALED:
            p *= tl.load(c_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
        q = p
        if BOTH:
            p = unit_product(v_ptr, g_ptr, i, j, tile, PAIRED, ACC)
        b_ptr = weight_ptr + unit * stride
        t0 += weighed(b_ptr, 0, p, q, inside, BOTH, ACC)
        t1 += weighed(b_ptr, 1, p, q, inside, BOTH, ACC)
        t2 += weighed(b_ptr, 2, p, q, inside, BOTH, ACC)
        t3 += weighed(b_ptr, 3, p, q, inside, BOTH, ACC)
        t4 += weighed(b_ptr, 4, p, q, inside, BOTH, ACC)
        t5 += weighed(b_ptr, 5, p, q, inside, BOTH, ACC)
        t6 += weighed(b_ptr, 6, p, q, inside, BOTH, ACC)
        t7 += weighed(b_ptr, 7, p, q, inside, BOTH, ACC)
    out = partial_ptr + tl.program_id(0).to(tl.int64) * 8 * F + f
    tl.store(out, tl.sum(t0, axis=0), mask=in_width)
    tl.store(out + F, tl.sum(t1, axis=0), mask=in_width)
    tl.store(out + 2 * F, tl.sum(t2, axis=0), mask=in_width)
    tl.store(out + 3 * F, tl.sum(t3, axis=0), mask=in_width)
    tl.store(out + 4 * F, tl.sum(t4, axis=0), mask=in_width)
    tl.store(out + 5 * F, tl.sum(t5, axis=0), mask=in_width)
    tl.store(out + 6 * F, tl.sum(t6, axis=0), mask=in_width)
    tl.store(out + 7 * F, tl.sum(t7, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["pieces"])
def rows_kernel(partial_ptr, out_ptr, intervals, pieces, F, BLOCK_F: tl.constexpr):
    """out[m] = Σ_r Σ_piece partial[m − r, piece, r]."""
    m = tl.program_id(0)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    r = tl.arange(0, 8)
    interval = m - r
    tile = ((interval >= 0) & (interval < intervals))[:, None] & in_width[None, :]  # the ends have fewer than eight
    row = (interval.to(tl.int64) * pieces * 8 + r)[:, None] * F + f[None, :]
    total = tl.load(partial_ptr + row, mask=tile, other=0.0)
    for piece in range(1, pieces):
        total += tl.load(partial_ptr + row + piece * 8 * F, mask=tile, other=0.0)
    tl.store(out_ptr + m.to(tl.int64) * F + f, tl.sum(total, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["U"])
def weights_kernel(knot_ptr, fraction_ptr, polynomial_ptr, out_ptr, U, BLOCK_E: tl.constexpr):
    """What the eight rows weigh in another order of derivative, [U, 8]; the polynomials [8, 8] include the power of the step."""
    unit = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    in_range = unit < U  # the last tile of units is ragged
    inside = tl.load(knot_ptr + unit, mask=in_range, other=-1) >= 0
    t = tl.load(fraction_ptr + unit, mask=in_range, other=0.0)
    for r in tl.static_range(8):
        value = tl.zeros((BLOCK_E,), dtype=t.dtype) + tl.load(polynomial_ptr + 8 * r + 7)
        for power in tl.static_range(1, 8):
            value = value * t + tl.load(polynomial_ptr + 8 * r + 7 - power)
        tl.store(out_ptr + unit * 8 + r, tl.where(inside, value, 0.0), mask=in_range)
