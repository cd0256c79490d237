"""GPU kernels: sums over the edges of a node (`message_kernel`, `backward_kernel`, `double_backward_kernel`), and the weight's gradient
(`weight_kernel`).

Each makes the filters of its tile of edges again (`triton_rows`) and keeps none. phi and its gradient are [·, 3F] in blocks (scalar,
direction, vector), vectors [·, 3, F]; F and K are the widths of features and basis. A pair is met at both of its ends, with the
direction reversed at one; between a node and itself both ways cancel. No atomics: a program owns what it writes, and every sum is made in
a fixed order, in float32 (float64 for float64). Addresses are int64.
"""

import triton
import triton.language as tl

from ..cfconv_exact.triton_kernels import _lengths
from ..painn_radial.triton_kernels import load_axis, load_own, load_rows, sign_into, store_end
from ..painn_radial.triton_knots import one_way
from .triton_rows import filters, psi_rows


@triton.jit
def message_kernel(
    phi_ptr, vector_ptr, direction_ptr, weight_ptr, length_ptr, ptr_ptr, order_ptr, other_ptr, index_ptr, dst_ptr,
    out_scalar_ptr, out_vector_ptr, F, K, HAS_VECTOR: tl.constexpr, PAIRED: tl.constexpr, SMOOTH: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    scalar = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    x, y, z = scalar, scalar, scalar
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        position = first + tl.arange(0, BLOCK_E)
        inside = position < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + position, mask=inside, other=0)
        other = tl.load(other_ptr + edge, mask=inside, other=0)
        unit, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, PAIRED)
        ones = tl.full((BLOCK_E,), 1.0, ACC)
        w_s, w_r, w_v, _, _, _ = filters(
            d, ones, f, weight_ptr, F, K, HAS_VECTOR, 0, False, SMOOTH, ENVELOPE, EXPONENT, REACH, BASIS, FIRST, INVERSE, SCALE, DECAY,
            BLOCK_E, BLOCK_F, ACC,
        )  # fmt: skip
        tile = inside[:, None] & in_width[None, :]
        row = other[:, None] * 3 * F + f[None, :]
        sign = sign_into(dst_ptr, unit, node, other, inside, PAIRED, ACC)
        scalar += w_s * load_rows(phi_ptr, row, tile, ACC)
        along = w_r * load_rows(phi_ptr, row + F, tile, ACC)
        x += load_axis(direction_ptr, unit, 0, sign, inside, ACC) * along
        y += load_axis(direction_ptr, unit, 1, sign, inside, ACC) * along
        z += load_axis(direction_ptr, unit, 2, sign, inside, ACC) * along
        if HAS_VECTOR:
            carried = w_v * load_rows(phi_ptr, row + 2 * F, tile, ACC)
            x += carried * load_rows(vector_ptr, row, tile, ACC)
            y += carried * load_rows(vector_ptr, row + F, tile, ACC)
            z += carried * load_rows(vector_ptr, row + 2 * F, tile, ACC)
    into = out_vector_ptr + node * 3 * F + f
    tl.store(out_scalar_ptr + node * F + f, tl.sum(scalar, axis=0), mask=in_width)
    tl.store(into, tl.sum(x, axis=0), mask=in_width)
    tl.store(into + F, tl.sum(y, axis=0), mask=in_width)
    tl.store(into + 2 * F, tl.sum(z, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["U"])  # a batch's size must not make Triton compile again
def backward_kernel(  # noqa: PLR0915 - long because one pass yields four gradients, each only where it is wanted
    grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, weight_ptr, length_ptr, ptr_ptr, order_ptr, other_ptr,
    index_ptr, dst_ptr, by_phi_ptr, by_vector_ptr, partial_ptr, U, F, K, HAS_VECTOR: tl.constexpr, PAIRED: tl.constexpr, LOW: tl.constexpr,
    NEEDS_PHI: tl.constexpr, NEEDS_VECTOR: tl.constexpr, NEEDS_LENGTH: tl.constexpr, NEEDS_DIRECTION: tl.constexpr, SMOOTH: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Over the edges that leave a node: its by_phi and by_vector, and what each edge and feature tile adds to the gradients of the unit.

    The partial sums are [tiles, ends, U, 4]: by length, and by the three components of the direction. W⁽ᴸᴼᵂ⁾ stands for the filter.
    """
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    partial_ptr += tl.program_id(1).to(tl.int64) * (2 if PAIRED else 1) * U * 4
    stop = tl.load(ptr_ptr + node + 1)
    own = node * 3 * F + f
    sum_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    sum_r, sum_v, sum_x, sum_y, sum_z = sum_s, sum_s, sum_s, sum_s, sum_s
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        position = first + tl.arange(0, BLOCK_E)
        inside = position < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + position, mask=inside, other=0)
        other = tl.load(other_ptr + edge, mask=inside, other=0)
        unit, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, PAIRED)
        dst = tl.load(dst_ptr + unit, mask=inside, other=0)
        ones = tl.full((BLOCK_E,), 1.0, ACC)
        w_s, w_r, w_v, s_s, s_r, s_v = filters(
            d, ones, f, weight_ptr, F, K, HAS_VECTOR, LOW, NEEDS_LENGTH, SMOOTH, ENVELOPE, EXPONENT, REACH, BASIS, FIRST, INVERSE, SCALE,
            DECAY, BLOCK_E, BLOCK_F, ACC,
        )  # fmt: skip
        tile = inside[:, None] & in_width[None, :]
        row = other[:, None] * 3 * F + f[None, :]
        # what leaves this node points to the other one
        sign = sign_into(dst_ptr, unit, other, node, inside, PAIRED, ACC)
        gx = load_rows(grad_vector_ptr, row, tile, ACC)
        gy = load_rows(grad_vector_ptr, row + F, tile, ACC)
        gz = load_rows(grad_vector_ptr, row + 2 * F, tile, ACC)
        # rows of the program's own node are loaded again for each tile of edges: they stay in the first cache, and registers are few
        phi_r = load_own(phi_ptr, own + F, in_width, True, BLOCK_F, ACC)
        if NEEDS_PHI or NEEDS_LENGTH:
            g_s = load_rows(grad_scalar_ptr, other[:, None] * F + f[None, :], tile, ACC)
            pull = load_axis(direction_ptr, unit, 0, sign, inside, ACC) * gx
            pull += load_axis(direction_ptr, unit, 1, sign, inside, ACC) * gy
            pull += load_axis(direction_ptr, unit, 2, sign, inside, ACC) * gz
            sum_s += w_s * g_s
            sum_r += w_r * pull
            rate = s_s * load_own(phi_ptr, own, in_width, True, BLOCK_F, ACC) * g_s + s_r * phi_r * pull
        if NEEDS_DIRECTION:
            along = w_r * phi_r
            store_end(partial_ptr + 1, sign * tl.sum(along * gx, axis=1), unit, dst, node, other, U, inside, PAIRED)
            store_end(partial_ptr + 2, sign * tl.sum(along * gy, axis=1), unit, dst, node, other, U, inside, PAIRED)
            store_end(partial_ptr + 3, sign * tl.sum(along * gz, axis=1), unit, dst, node, other, U, inside, PAIRED)
        if HAS_VECTOR and (NEEDS_PHI or NEEDS_LENGTH):
            pull = load_own(vector_ptr, own, in_width, True, BLOCK_F, ACC) * gx
            pull += load_own(vector_ptr, own + F, in_width, True, BLOCK_F, ACC) * gy
            pull += load_own(vector_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC) * gz
            sum_v += w_v * pull
            rate += s_v * load_own(phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC) * pull
        if NEEDS_VECTOR:
            sum_x += w_v * gx
            sum_y += w_v * gy
            sum_z += w_v * gz
        if NEEDS_LENGTH:
            store_end(partial_ptr, tl.sum(rate, axis=1), unit, dst, node, other, U, inside, PAIRED)
    if NEEDS_PHI:
        tl.store(by_phi_ptr + own, tl.sum(sum_s, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + F, tl.sum(sum_r, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + 2 * F, tl.sum(sum_v, axis=0), mask=in_width)
    if NEEDS_VECTOR:
        # phi of the source is the same factor for all its edges
        phi_v = load_own(phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
        tl.store(by_vector_ptr + own, tl.sum(sum_x * phi_v, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + F, tl.sum(sum_y * phi_v, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + 2 * F, tl.sum(sum_z * phi_v, axis=0), mask=in_width)


@triton.jit
def double_backward_kernel(  # noqa: PLR0912, PLR0915 - long for the same reason
    t_phi_ptr, t_vector_ptr, rate_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, weight_ptr,
    length_ptr, ptr_ptr, order_ptr, other_ptr, index_ptr, dst_ptr, by_grad_scalar_ptr, by_grad_vector_ptr, by_phi_ptr, by_vector_ptr, F, K,
    HAS_T_PHI: tl.constexpr, HAS_T_VECTOR: tl.constexpr, HAS_RATE: tl.constexpr, HAS_T_DIRECTION: tl.constexpr, HAS_VECTOR: tl.constexpr,
    PAIRED: tl.constexpr, INTO: tl.constexpr, OUT_OF: tl.constexpr, SMOOTH: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """INTO: what the edges into a node add to by_grad_scalar and by_grad_vector; OUT_OF: those that leave it, to by_phi and by_vector.

    Both in one pass where the two are the same edges.
    """
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    own = node * 3 * F + f
    sum_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    sum_r, sum_v, sum_x, sum_y, sum_z = sum_s, sum_s, sum_s, sum_s, sum_s
    scalar, x, y, z = sum_s, sum_s, sum_s, sum_s
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        position = first + tl.arange(0, BLOCK_E)
        inside = position < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + position, mask=inside, other=0)
        other = tl.load(other_ptr + edge, mask=inside, other=0)
        unit, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, PAIRED)
        rate = tl.full((BLOCK_E,), 0.0, ACC)
        if HAS_RATE:
            rate = tl.load(rate_ptr + unit, mask=inside, other=0.0).to(ACC)
        w_s, w_r, w_v, s_s, s_r, s_v = filters(
            d, rate, f, weight_ptr, F, K, HAS_VECTOR, 0, HAS_RATE, SMOOTH, ENVELOPE, EXPONENT, REACH, BASIS, FIRST, INVERSE, SCALE, DECAY,
            BLOCK_E, BLOCK_F, ACC,
        )  # fmt: skip
        tile = inside[:, None] & in_width[None, :]
        row = other[:, None] * 3 * F + f[None, :]
        # along what enters the node; what leaves it points the other way in a pair
        sign = sign_into(dst_ptr, unit, node, other, inside, PAIRED, ACC)
        rx = load_axis(direction_ptr, unit, 0, sign, inside, ACC)
        ry = load_axis(direction_ptr, unit, 1, sign, inside, ACC)
        rz = load_axis(direction_ptr, unit, 2, sign, inside, ACC)
        if HAS_T_DIRECTION:
            dx = load_axis(t_direction_ptr, unit, 0, sign, inside, ACC)
            dy = load_axis(t_direction_ptr, unit, 1, sign, inside, ACC)
            dz = load_axis(t_direction_ptr, unit, 2, sign, inside, ACC)
        if INTO:
            scalar += s_s * load_rows(phi_ptr, row, tile, ACC)
            if HAS_T_PHI:
                scalar += w_s * load_rows(t_phi_ptr, row, tile, ACC)
            phi = load_rows(phi_ptr, row + F, tile, ACC)
            moved = s_r * phi
            if HAS_T_PHI:
                moved += w_r * load_rows(t_phi_ptr, row + F, tile, ACC)
            x += rx * moved
            y += ry * moved
            z += rz * moved
            if HAS_T_DIRECTION:
                x += dx * (w_r * phi)
                y += dy * (w_r * phi)
                z += dz * (w_r * phi)
            if HAS_VECTOR:
                phi = load_rows(phi_ptr, row + 2 * F, tile, ACC)
                moved = s_v * phi
                if HAS_T_PHI:
                    moved += w_v * load_rows(t_phi_ptr, row + 2 * F, tile, ACC)
                x += moved * load_rows(vector_ptr, row, tile, ACC)
                y += moved * load_rows(vector_ptr, row + F, tile, ACC)
                z += moved * load_rows(vector_ptr, row + 2 * F, tile, ACC)
                if HAS_T_VECTOR:
                    x += w_v * phi * load_rows(t_vector_ptr, row, tile, ACC)
                    y += w_v * phi * load_rows(t_vector_ptr, row + F, tile, ACC)
                    z += w_v * phi * load_rows(t_vector_ptr, row + 2 * F, tile, ACC)
        if OUT_OF:
            gx = load_rows(grad_vector_ptr, row, tile, ACC)
            gy = load_rows(grad_vector_ptr, row + F, tile, ACC)
            gz = load_rows(grad_vector_ptr, row + 2 * F, tile, ACC)
            sum_s += s_s * load_rows(grad_scalar_ptr, other[:, None] * F + f[None, :], tile, ACC)
            pull = s_r * (rx * gx + ry * gy + rz * gz)
            if HAS_T_DIRECTION:
                pull += w_r * (dx * gx + dy * gy + dz * gz)
            if PAIRED:
                sum_r -= pull
            else:
                sum_r += pull
            if HAS_VECTOR:
                pull = load_own(vector_ptr, own, in_width, True, BLOCK_F, ACC) * gx
                pull += load_own(vector_ptr, own + F, in_width, True, BLOCK_F, ACC) * gy
                pull += load_own(vector_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC) * gz
                sum_v += s_v * pull
                if HAS_T_VECTOR:
                    pull = load_own(t_vector_ptr, own, in_width, True, BLOCK_F, ACC) * gx
                    pull += load_own(t_vector_ptr, own + F, in_width, True, BLOCK_F, ACC) * gy
                    pull += load_own(t_vector_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC) * gz
                    sum_v += w_v * pull
                moved = s_v * load_own(phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
                if HAS_T_PHI:
                    moved += w_v * load_own(t_phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
                sum_x += moved * gx
                sum_y += moved * gy
                sum_z += moved * gz
    if INTO:
        tl.store(by_grad_scalar_ptr + node * F + f, tl.sum(scalar, axis=0), mask=in_width)
        tl.store(by_grad_vector_ptr + own, tl.sum(x, axis=0), mask=in_width)
        tl.store(by_grad_vector_ptr + own + F, tl.sum(y, axis=0), mask=in_width)
        tl.store(by_grad_vector_ptr + own + 2 * F, tl.sum(z, axis=0), mask=in_width)
    if OUT_OF:
        tl.store(by_phi_ptr + own, tl.sum(sum_s, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + F, tl.sum(sum_r, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + 2 * F, tl.sum(sum_v, axis=0), mask=in_width)
        if HAS_VECTOR:
            tl.store(by_vector_ptr + own, tl.sum(sum_x, axis=0), mask=in_width)
            tl.store(by_vector_ptr + own + F, tl.sum(sum_y, axis=0), mask=in_width)
            tl.store(by_vector_ptr + own + 2 * F, tl.sum(sum_z, axis=0), mask=in_width)


@triton.jit(do_not_specialize=["E", "edges_each"])
def weight_kernel(
    t_phi_ptr, t_vector_ptr, rate_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr,
    length_ptr, to_ptr, from_ptr, index_ptr, dst_ptr, part_ptr, E, F, K, edges_each, WHICH: tl.constexpr, TANGENT: tl.constexpr,
    HAS_T_PHI: tl.constexpr, HAS_T_VECTOR: tl.constexpr, HAS_RATE: tl.constexpr, HAS_T_DIRECTION: tl.constexpr,
    PAIRED: tl.constexpr, SMOOTH: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Block WHICH of the weight's gradient [parts, 3F, K + 1], to be summed over parts: a program owns a tile of it and a part of the edges.

    Σ (φ_j ∘ q) ψᵀ over directed edges or, if TANGENT, Σ (φ_j ∘ q)˙ ψᵀ + rate (φ_j ∘ q) ψ′ᵀ.
    """
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    f = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.program_id(2).to(tl.int64)
    in_width = f < F
    total = tl.zeros((BLOCK_F, BLOCK_K), dtype=ACC)
    for start in range(0, edges_each, BLOCK_E):
        edge = part * edges_each + start + tl.arange(0, BLOCK_E)
        inside = edge < E
        i = tl.load(to_ptr + edge, mask=inside, other=0)
        j = tl.load(from_ptr + edge, mask=inside, other=0)
        unit, d = _lengths(length_ptr, index_ptr, edge, inside, REACH, PAIRED)
        tile = inside[:, None] & in_width[None, :]
        sign = sign_into(dst_ptr, unit, i, j, inside, PAIRED, ACC)
        kept, moved = one_way(
            t_phi_ptr, t_vector_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, unit, i, j, f,
            sign, F, inside, tile, WHICH, TANGENT, HAS_T_PHI, HAS_T_VECTOR, HAS_T_DIRECTION, ACC,
        )  # fmt: skip
        psi, slope = psi_rows(d, k, K, 0, HAS_RATE, SMOOTH, ENVELOPE, EXPONENT, REACH, BASIS, FIRST, INVERSE, SCALE, DECAY, ACC)
        total = tl.dot(tl.trans(moved), psi, total, input_precision="ieee", out_dtype=ACC)
        if HAS_RATE:
            slope *= tl.load(rate_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
            total = tl.dot(tl.trans(kept), slope, total, input_precision="ieee", out_dtype=ACC)
    row = (part * 3 + WHICH) * F + f
    # F and K + 1 need not be multiples of the tile
    tl.store(part_ptr + row[:, None] * (K + 1) + k[None, :], total, mask=in_width[:, None] & (k <= K)[None, :])
