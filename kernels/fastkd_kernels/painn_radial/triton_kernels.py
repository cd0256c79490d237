"""GPU kernels: sums over the edges of a node (`message_kernel`, `backward_kernel`, `double_backward_kernel`) and over the units between two
knots (`knots_kernel`, whose partial sums `radial_conv.triton_kernels.rows_kernel` adds up).

phi, the table and their gradients are [·, 3F] in blocks (scalar, direction, vector), vectors [·, 3, F]. The filter is mixed from eight
rows of the table where it is used, in registers; feature tiles are the slow dimension of a grid, so that programs that run together
read the same columns. No atomics: a program owns what it writes, and every sum is made in a fixed order, in float32 (float64 for
float64). A pair is met at both of its ends, with the direction reversed at one; between a node and itself both ways cancel.
"""

import triton
import triton.language as tl

from ..radial_conv.triton_kernels import mixed, mixed_twice


@triton.jit
def load_rows(pointer, row, mask, ACC: tl.constexpr):
    return tl.load(pointer + row, mask=mask, other=0.0).to(ACC)


@triton.jit
def load_axis(pointer, unit, axis: tl.constexpr, sign, mask, ACC: tl.constexpr):
    """[BLOCK_E, 1]: one component of an array [U, 3], times a sign."""
    return (sign * tl.load(pointer + unit * 3 + axis, mask=mask, other=0.0).to(ACC))[:, None]


@triton.jit
def sign_into(dst_ptr, unit, node, other, mask, PAIRED: tl.constexpr, ACC: tl.constexpr):
    """1 where the unit points to the node, −1 where it points away from it, 0 where both ends are one."""
    if PAIRED:
        dst = tl.load(dst_ptr + unit, mask=mask, other=0)
        return (dst == node).to(ACC) - (dst == other).to(ACC)
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return tl.full(unit.shape, 1.0, ACC)


@triton.jit
def message_kernel(
    phi_ptr, vector_ptr, direction_ptr, table_ptr, ptr_ptr, unit_ptr, other_ptr, dst_ptr, knot_ptr, weight_ptr,
    out_scalar_ptr, out_vector_ptr, F, HAS_VECTOR: tl.constexpr, PAIRED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    scalar = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    x, y, z = scalar, scalar, scalar
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * 3 * F + f[None, :]
        b_ptr = weight_ptr + unit * 16
        row = other[:, None] * 3 * F + f[None, :]
        sign = sign_into(dst_ptr, unit, node, other, inside, PAIRED, ACC)
        scalar += mixed(b_ptr, table_ptr, at, 3 * F, inside, tile, ACC) * load_rows(phi_ptr, row, tile, ACC)
        along = mixed(b_ptr, table_ptr, at + F, 3 * F, inside, tile, ACC) * load_rows(phi_ptr, row + F, tile, ACC)
        x += load_axis(direction_ptr, unit, 0, sign, inside, ACC) * along
        y += load_axis(direction_ptr, unit, 1, sign, inside, ACC) * along
        z += load_axis(direction_ptr, unit, 2, sign, inside, ACC) * along
        if HAS_VECTOR:
            carried = mixed(b_ptr, table_ptr, at + 2 * F, 3 * F, inside, tile, ACC) * load_rows(phi_ptr, row + 2 * F, tile, ACC)
            x += carried * load_rows(vector_ptr, row, tile, ACC)
            y += carried * load_rows(vector_ptr, row + F, tile, ACC)
            z += carried * load_rows(vector_ptr, row + 2 * F, tile, ACC)
    into = out_vector_ptr + node * 3 * F + f
    tl.store(out_scalar_ptr + node * F + f, tl.sum(scalar, axis=0), mask=in_width)
    tl.store(into, tl.sum(x, axis=0), mask=in_width)
    tl.store(into + F, tl.sum(y, axis=0), mask=in_width)
    tl.store(into + 2 * F, tl.sum(z, axis=0), mask=in_width)


@triton.jit
def store_end(pointer, value, unit, dst, node, other, U, in_segment, PAIRED: tl.constexpr):
    """One number a unit and end: ``pointer`` [ends, U, 4]; a pair of a node with itself is met twice, and both slots get the same."""
    if PAIRED:
        tl.store(pointer + unit * 4, value, mask=in_segment & (dst == node))
        tl.store(pointer + (U + unit) * 4, value, mask=in_segment & (dst == other))
    else:
        tl.store(pointer + unit * 4, value, mask=in_segment)


@triton.jit(do_not_specialize=["U"])  # a batch's size must not make Triton compile again
def backward_kernel(  # noqa: PLR0915 - long because one pass yields four gradients, each only where it is wanted
    grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, table_ptr, ptr_ptr, unit_ptr, other_ptr, dst_ptr, knot_ptr,
    weight_ptr, by_phi_ptr, by_vector_ptr, partial_ptr, U, F, HAS_VECTOR: tl.constexpr, PAIRED: tl.constexpr, NEEDS_PHI: tl.constexpr,
    NEEDS_VECTOR: tl.constexpr, NEEDS_LENGTH: tl.constexpr, NEEDS_DIRECTION: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Over the edges that leave a node: its by_phi and by_vector, and what each edge and feature tile adds to the gradients of the unit.

    The partial sums are [tiles, ends, U, 4]: by length, and by the three components of the direction.
    """
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    partial_ptr += tl.program_id(1).to(tl.int64) * (2 if PAIRED else 1) * U * 4
    stop = tl.load(ptr_ptr + node + 1)
    own = node * 3 * F + f
    phi_s = load_rows(phi_ptr, own, in_width, ACC)[None, :]
    phi_r = load_rows(phi_ptr, own + F, in_width, ACC)[None, :]
    sum_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    sum_r, sum_v, sum_x, sum_y, sum_z = sum_s, sum_s, sum_s, sum_s, sum_s
    if HAS_VECTOR:
        phi_v = load_rows(phi_ptr, own + 2 * F, in_width, ACC)[None, :]
        vx = load_rows(vector_ptr, own, in_width, ACC)[None, :]
        vy = load_rows(vector_ptr, own + F, in_width, ACC)[None, :]
        vz = load_rows(vector_ptr, own + 2 * F, in_width, ACC)[None, :]
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        dst = tl.load(dst_ptr + unit, mask=in_segment, other=0)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * 3 * F + f[None, :]
        b_ptr = weight_ptr + unit * 16
        row = other[:, None] * 3 * F + f[None, :]
        # what leaves this node points to the other one
        sign = sign_into(dst_ptr, unit, other, node, inside, PAIRED, ACC)
        gx = load_rows(grad_vector_ptr, row, tile, ACC)
        gy = load_rows(grad_vector_ptr, row + F, tile, ACC)
        gz = load_rows(grad_vector_ptr, row + 2 * F, tile, ACC)
        if NEEDS_PHI or NEEDS_LENGTH:
            w, slope = mixed_twice(b_ptr, table_ptr, at, 3 * F, inside, tile, ACC)
            g_s = load_rows(grad_scalar_ptr, other[:, None] * F + f[None, :], tile, ACC)
            sum_s += w * g_s
            rate = slope * phi_s * g_s
            w, slope = mixed_twice(b_ptr, table_ptr, at + F, 3 * F, inside, tile, ACC)
            pull = load_axis(direction_ptr, unit, 0, sign, inside, ACC) * gx
            pull += load_axis(direction_ptr, unit, 1, sign, inside, ACC) * gy
            pull += load_axis(direction_ptr, unit, 2, sign, inside, ACC) * gz
            sum_r += w * pull
            rate += slope * phi_r * pull
        else:
            w = mixed(b_ptr, table_ptr, at + F, 3 * F, inside, tile, ACC)
        if NEEDS_DIRECTION:
            along = w * phi_r
            store_end(partial_ptr + 1, sign * tl.sum(along * gx, axis=1), unit, dst, node, other, U, in_segment, PAIRED)
            store_end(partial_ptr + 2, sign * tl.sum(along * gy, axis=1), unit, dst, node, other, U, in_segment, PAIRED)
            store_end(partial_ptr + 3, sign * tl.sum(along * gz, axis=1), unit, dst, node, other, U, in_segment, PAIRED)
        if HAS_VECTOR and (NEEDS_PHI or NEEDS_LENGTH or NEEDS_VECTOR):
            w, slope = mixed_twice(b_ptr, table_ptr, at + 2 * F, 3 * F, inside, tile, ACC)
            if NEEDS_PHI or NEEDS_LENGTH:
                pull = vx * gx + vy * gy + vz * gz
                sum_v += w * pull
                rate += slope * phi_v * pull
            sum_x += w * gx
            sum_y += w * gy
            sum_z += w * gz
        if NEEDS_LENGTH:
            store_end(partial_ptr, tl.sum(rate, axis=1), unit, dst, node, other, U, in_segment, PAIRED)
    if NEEDS_PHI:
        tl.store(by_phi_ptr + own, tl.sum(sum_s, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + F, tl.sum(sum_r, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + 2 * F, tl.sum(sum_v, axis=0), mask=in_width)
    if NEEDS_VECTOR:
        # phi of the source is the same factor for all its edges
        tl.store(by_vector_ptr + own, tl.sum(sum_x * phi_v, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + F, tl.sum(sum_y * phi_v, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + 2 * F, tl.sum(sum_z * phi_v, axis=0), mask=in_width)


@triton.jit
def filter_and_rate(
    b_ptr, table_ptr, at, F, rate, inside, tile, HAS_RATE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """W and rate W′; the latter zero where there is no rate."""
    if HAS_RATE:
        w, slope = mixed_twice(b_ptr, table_ptr, at, 3 * F, inside, tile, ACC)
        return w, slope * rate
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return mixed(b_ptr, table_ptr, at, 3 * F, inside, tile, ACC), tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)


@triton.jit
def load_own(pointer, own, mask, HAS: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr):
    """[1, BLOCK_F] of the program's own node, zero where the tensor is missing."""
    if HAS:
        return tl.load(pointer + own, mask=mask, other=0.0).to(ACC)[None, :]
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return tl.zeros((1, BLOCK_F), dtype=ACC)


@triton.jit
def double_backward_kernel(  # noqa: PLR0912, PLR0915 - long for the same reason
    t_phi_ptr, t_vector_ptr, rate_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, table_ptr,
    ptr_ptr, unit_ptr, other_ptr, dst_ptr, knot_ptr, weight_ptr, by_grad_scalar_ptr, by_grad_vector_ptr, by_phi_ptr, by_vector_ptr, F,
    HAS_T_PHI: tl.constexpr, HAS_T_VECTOR: tl.constexpr, HAS_RATE: tl.constexpr, HAS_T_DIRECTION: tl.constexpr, HAS_VECTOR: tl.constexpr,
    PAIRED: tl.constexpr, INTO: tl.constexpr, OUT_OF: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
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
    if OUT_OF and HAS_VECTOR:
        own_phi = load_own(phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
        own_t_phi = load_own(t_phi_ptr, own + 2 * F, in_width, HAS_T_PHI, BLOCK_F, ACC)
        vx = load_own(vector_ptr, own, in_width, True, BLOCK_F, ACC)
        vy = load_own(vector_ptr, own + F, in_width, True, BLOCK_F, ACC)
        vz = load_own(vector_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
        dvx = load_own(t_vector_ptr, own, in_width, HAS_T_VECTOR, BLOCK_F, ACC)
        dvy = load_own(t_vector_ptr, own + F, in_width, HAS_T_VECTOR, BLOCK_F, ACC)
        dvz = load_own(t_vector_ptr, own + 2 * F, in_width, HAS_T_VECTOR, BLOCK_F, ACC)
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        unit = tl.load(unit_ptr + k, mask=in_segment, other=0)
        other = tl.load(other_ptr + k, mask=in_segment, other=0)
        knot = tl.load(knot_ptr + unit, mask=in_segment, other=-1)
        inside = knot >= 0  # beyond the cutoff the filter is zero
        tile = inside[:, None] & in_width[None, :]
        at = knot[:, None] * 3 * F + f[None, :]
        b_ptr = weight_ptr + unit * 16
        row = other[:, None] * 3 * F + f[None, :]
        rate = sum_s  # only of the right kind: it is not used without HAS_RATE
        if HAS_RATE:
            rate = tl.load(rate_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
        # along what enters the node; what leaves it points the other way in a pair
        sign = sign_into(dst_ptr, unit, node, other, inside, PAIRED, ACC)
        rx = load_axis(direction_ptr, unit, 0, sign, inside, ACC)
        ry = load_axis(direction_ptr, unit, 1, sign, inside, ACC)
        rz = load_axis(direction_ptr, unit, 2, sign, inside, ACC)
        if HAS_T_DIRECTION:
            dx = load_axis(t_direction_ptr, unit, 0, sign, inside, ACC)
            dy = load_axis(t_direction_ptr, unit, 1, sign, inside, ACC)
            dz = load_axis(t_direction_ptr, unit, 2, sign, inside, ACC)
        if OUT_OF:
            gx = load_rows(grad_vector_ptr, row, tile, ACC)
            gy = load_rows(grad_vector_ptr, row + F, tile, ACC)
            gz = load_rows(grad_vector_ptr, row + 2 * F, tile, ACC)
        w, slope = filter_and_rate(b_ptr, table_ptr, at, F, rate, inside, tile, HAS_RATE, BLOCK_E, BLOCK_F, ACC)
        if INTO:
            scalar += slope * load_rows(phi_ptr, row, tile, ACC)
            if HAS_T_PHI:
                scalar += w * load_rows(t_phi_ptr, row, tile, ACC)
        if OUT_OF:
            sum_s += slope * load_rows(grad_scalar_ptr, other[:, None] * F + f[None, :], tile, ACC)
        w, slope = filter_and_rate(b_ptr, table_ptr, at + F, F, rate, inside, tile, HAS_RATE, BLOCK_E, BLOCK_F, ACC)
        if INTO:
            phi = load_rows(phi_ptr, row + F, tile, ACC)
            moved = slope * phi
            if HAS_T_PHI:
                moved += w * load_rows(t_phi_ptr, row + F, tile, ACC)
            x += rx * moved
            y += ry * moved
            z += rz * moved
            if HAS_T_DIRECTION:
                x += dx * (w * phi)
                y += dy * (w * phi)
                z += dz * (w * phi)
        if OUT_OF:
            pull = slope * (rx * gx + ry * gy + rz * gz)
            if HAS_T_DIRECTION:
                pull += w * (dx * gx + dy * gy + dz * gz)
            if PAIRED:
                sum_r -= pull
            else:
                sum_r += pull
        if HAS_VECTOR:
            w, slope = filter_and_rate(b_ptr, table_ptr, at + 2 * F, F, rate, inside, tile, HAS_RATE, BLOCK_E, BLOCK_F, ACC)
            if INTO:
                phi = load_rows(phi_ptr, row + 2 * F, tile, ACC)
                moved = slope * phi
                if HAS_T_PHI:
                    moved += w * load_rows(t_phi_ptr, row + 2 * F, tile, ACC)
                x += moved * load_rows(vector_ptr, row, tile, ACC)
                y += moved * load_rows(vector_ptr, row + F, tile, ACC)
                z += moved * load_rows(vector_ptr, row + 2 * F, tile, ACC)
                if HAS_T_VECTOR:
                    x += w * phi * load_rows(t_vector_ptr, row, tile, ACC)
                    y += w * phi * load_rows(t_vector_ptr, row + F, tile, ACC)
                    z += w * phi * load_rows(t_vector_ptr, row + 2 * F, tile, ACC)
            if OUT_OF:
                sum_v += slope * (vx * gx + vy * gy + vz * gz) + w * (dvx * gx + dvy * gy + dvz * gz)
                moved = slope * own_phi + w * own_t_phi
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
