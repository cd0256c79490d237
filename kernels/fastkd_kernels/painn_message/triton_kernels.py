"""GPU kernels. ``message_kernel`` and ``tangent_kernel`` (half of the double backward) own a destination, ``backward_kernel`` and
``double_backward_kernel`` (the other half) a source; each walks through the edges of its node in a fixed order: no atomics.

phi, weight and their gradients are [·, 3F] in blocks (scalar, direction, vector), vectors [·, 3, F]. One program has one tile of
``BLOCK_F`` features of one node. Sums stay two-dimensional, [BLOCK_E, BLOCK_F], until the last edge, so that lanes are reduced once
a node and not once a tile; only the gradient by direction, a sum over features, is reduced per edge, into a row of its own for each
tile of features. Addresses are int64: 3 · edges · width passes 2³¹ in real batches.
"""

import triton
import triton.language as tl


@triton.jit
def load_row(pointer, row, offset, f, F, mask, ACC: tl.constexpr):
    """[BLOCK_E, BLOCK_F] of rows ``row`` of an array [·, 3F], from column ``offset`` on."""
    return tl.load(pointer + row[:, None] * 3 * F + offset + f[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def load_axis(pointer, edge, axis: tl.constexpr, mask, ACC: tl.constexpr):
    """[BLOCK_E, 1]: one component of an array [E, 3]."""
    return tl.load(pointer + edge * 3 + axis, mask=mask, other=0.0).to(ACC)[:, None]


@triton.jit
def message_kernel(
    phi_ptr,
    vector_ptr,
    weight_ptr,
    direction_ptr,
    src_ptr,
    ptr_ptr,
    order_ptr,
    out_scalar_ptr,
    out_vector_ptr,
    F,
    HAS_VECTOR: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
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
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        j = tl.load(src_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        scalar += load_row(weight_ptr, edge, 0, f, F, tile, ACC) * load_row(phi_ptr, j, 0, f, F, tile, ACC)
        along = load_row(weight_ptr, edge, F, f, F, tile, ACC) * load_row(phi_ptr, j, F, f, F, tile, ACC)
        x += load_axis(direction_ptr, edge, 0, in_segment, ACC) * along
        y += load_axis(direction_ptr, edge, 1, in_segment, ACC) * along
        z += load_axis(direction_ptr, edge, 2, in_segment, ACC) * along
        if HAS_VECTOR:
            carried = load_row(weight_ptr, edge, 2 * F, f, F, tile, ACC) * load_row(phi_ptr, j, 2 * F, f, F, tile, ACC)
            x += carried * load_row(vector_ptr, j, 0, f, F, tile, ACC)
            y += carried * load_row(vector_ptr, j, F, f, F, tile, ACC)
            z += carried * load_row(vector_ptr, j, 2 * F, f, F, tile, ACC)
    into = out_vector_ptr + node * 3 * F + f
    tl.store(out_scalar_ptr + node * F + f, tl.sum(scalar, axis=0), mask=in_width)
    tl.store(into, tl.sum(x, axis=0), mask=in_width)
    tl.store(into + F, tl.sum(y, axis=0), mask=in_width)
    tl.store(into + 2 * F, tl.sum(z, axis=0), mask=in_width)


@triton.jit
def backward_kernel(  # noqa: PLR0912, PLR0915 - long because one pass yields four gradients, each only where it is wanted
    grad_scalar_ptr,
    grad_vector_ptr,
    phi_ptr,
    vector_ptr,
    weight_ptr,
    direction_ptr,
    dst_ptr,
    ptr_ptr,
    order_ptr,
    by_phi_ptr,
    by_vector_ptr,
    by_weight_ptr,
    by_direction_ptr,
    E,
    F,
    HAS_VECTOR: tl.constexpr,
    NEEDS_PHI: tl.constexpr,
    NEEDS_VECTOR: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_DIRECTION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    own = node * 3 * F + f
    phi_s = tl.load(phi_ptr + own, mask=in_width, other=0.0).to(ACC)[None, :]
    phi_r = tl.load(phi_ptr + own + F, mask=in_width, other=0.0).to(ACC)[None, :]
    phi_v = tl.load(phi_ptr + own + 2 * F, mask=in_width, other=0.0).to(ACC)[None, :]
    if HAS_VECTOR:
        vx = tl.load(vector_ptr + own, mask=in_width, other=0.0).to(ACC)[None, :]
        vy = tl.load(vector_ptr + own + F, mask=in_width, other=0.0).to(ACC)[None, :]
        vz = tl.load(vector_ptr + own + 2 * F, mask=in_width, other=0.0).to(ACC)[None, :]
    sum_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    sum_r, sum_v, sum_x, sum_y, sum_z = sum_s, sum_s, sum_s, sum_s, sum_s
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        i = tl.load(dst_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        gx = load_row(grad_vector_ptr, i, 0, f, F, tile, ACC)
        gy = load_row(grad_vector_ptr, i, F, f, F, tile, ACC)
        gz = load_row(grad_vector_ptr, i, 2 * F, f, F, tile, ACC)
        w_r = load_row(weight_ptr, edge, F, f, F, tile, ACC)
        if NEEDS_VECTOR or (HAS_VECTOR and NEEDS_PHI):
            w_v = load_row(weight_ptr, edge, 2 * F, f, F, tile, ACC)
        if NEEDS_PHI or NEEDS_WEIGHT:
            g_s = tl.load(grad_scalar_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
            pull_r = (
                load_axis(direction_ptr, edge, 0, in_segment, ACC) * gx
                + load_axis(direction_ptr, edge, 1, in_segment, ACC) * gy
                + load_axis(direction_ptr, edge, 2, in_segment, ACC) * gz
            )
            if HAS_VECTOR:
                pull_v = vx * gx + vy * gy + vz * gz
        if NEEDS_PHI:
            sum_s += load_row(weight_ptr, edge, 0, f, F, tile, ACC) * g_s
            sum_r += w_r * pull_r
            if HAS_VECTOR:
                sum_v += w_v * pull_v
        if NEEDS_WEIGHT:
            into = by_weight_ptr + edge[:, None] * 3 * F + f[None, :]
            tl.store(into, phi_s * g_s, mask=tile)
            tl.store(into + F, phi_r * pull_r, mask=tile)
            if HAS_VECTOR:
                tl.store(into + 2 * F, phi_v * pull_v, mask=tile)
            else:
                tl.store(into + 2 * F, tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC), mask=tile)
        if NEEDS_VECTOR:
            sum_x += w_v * gx
            sum_y += w_v * gy
            sum_z += w_v * gz
        if NEEDS_DIRECTION:
            along = w_r * phi_r
            row = by_direction_ptr + (tl.program_id(1).to(tl.int64) * E + edge) * 3
            tl.store(row, tl.sum(along * gx, axis=1), mask=in_segment)
            tl.store(row + 1, tl.sum(along * gy, axis=1), mask=in_segment)
            tl.store(row + 2, tl.sum(along * gz, axis=1), mask=in_segment)
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
def load_tangent(t_ptr, row, offset, f, F, mask, HAS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr):
    """`load_row` of a tangent, zero where the tangent is missing."""
    if HAS:
        return load_row(t_ptr, row, offset, f, F, mask, ACC)
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)


@triton.jit
def tangent_kernel(
    t_phi_ptr,
    t_vector_ptr,
    t_weight_ptr,
    t_direction_ptr,
    phi_ptr,
    vector_ptr,
    weight_ptr,
    direction_ptr,
    src_ptr,
    ptr_ptr,
    order_ptr,
    by_grad_scalar_ptr,
    by_grad_vector_ptr,
    F,
    HAS_VECTOR: tl.constexpr,
    HAS_T_PHI: tl.constexpr,
    HAS_T_VECTOR: tl.constexpr,
    HAS_T_WEIGHT: tl.constexpr,
    HAS_T_DIRECTION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
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
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        j = tl.load(src_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        w, p = load_row(weight_ptr, edge, 0, f, F, tile, ACC), load_row(phi_ptr, j, 0, f, F, tile, ACC)
        dw = load_tangent(t_weight_ptr, edge, 0, f, F, tile, HAS_T_WEIGHT, BLOCK_E, BLOCK_F, ACC)
        dp = load_tangent(t_phi_ptr, j, 0, f, F, tile, HAS_T_PHI, BLOCK_E, BLOCK_F, ACC)
        scalar += dw * p + w * dp
        w, p = load_row(weight_ptr, edge, F, f, F, tile, ACC), load_row(phi_ptr, j, F, f, F, tile, ACC)
        dw = load_tangent(t_weight_ptr, edge, F, f, F, tile, HAS_T_WEIGHT, BLOCK_E, BLOCK_F, ACC)
        dp = load_tangent(t_phi_ptr, j, F, f, F, tile, HAS_T_PHI, BLOCK_E, BLOCK_F, ACC)
        d_along = dw * p + w * dp
        x += load_axis(direction_ptr, edge, 0, in_segment, ACC) * d_along
        y += load_axis(direction_ptr, edge, 1, in_segment, ACC) * d_along
        z += load_axis(direction_ptr, edge, 2, in_segment, ACC) * d_along
        if HAS_T_DIRECTION:
            x += load_axis(t_direction_ptr, edge, 0, in_segment, ACC) * (w * p)
            y += load_axis(t_direction_ptr, edge, 1, in_segment, ACC) * (w * p)
            z += load_axis(t_direction_ptr, edge, 2, in_segment, ACC) * (w * p)
        if HAS_VECTOR:
            w, p = load_row(weight_ptr, edge, 2 * F, f, F, tile, ACC), load_row(phi_ptr, j, 2 * F, f, F, tile, ACC)
            dw = load_tangent(t_weight_ptr, edge, 2 * F, f, F, tile, HAS_T_WEIGHT, BLOCK_E, BLOCK_F, ACC)
            dp = load_tangent(t_phi_ptr, j, 2 * F, f, F, tile, HAS_T_PHI, BLOCK_E, BLOCK_F, ACC)
            d_carried = dw * p + w * dp
            x += d_carried * load_row(vector_ptr, j, 0, f, F, tile, ACC)
            y += d_carried * load_row(vector_ptr, j, F, f, F, tile, ACC)
            z += d_carried * load_row(vector_ptr, j, 2 * F, f, F, tile, ACC)
            if HAS_T_VECTOR:
                x += (w * p) * load_row(t_vector_ptr, j, 0, f, F, tile, ACC)
                y += (w * p) * load_row(t_vector_ptr, j, F, f, F, tile, ACC)
                z += (w * p) * load_row(t_vector_ptr, j, 2 * F, f, F, tile, ACC)
    into = by_grad_vector_ptr + node * 3 * F + f
    tl.store(by_grad_scalar_ptr + node * F + f, tl.sum(scalar, axis=0), mask=in_width)
    tl.store(into, tl.sum(x, axis=0), mask=in_width)
    tl.store(into + F, tl.sum(y, axis=0), mask=in_width)
    tl.store(into + 2 * F, tl.sum(z, axis=0), mask=in_width)


@triton.jit
def load_own(pointer, own, mask, HAS: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr):
    """[1, BLOCK_F] of the program's own node, zero where the tensor is missing."""
    if HAS:
        return tl.load(pointer + own, mask=mask, other=0.0).to(ACC)[None, :]
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return tl.zeros((1, BLOCK_F), dtype=ACC)


@triton.jit
def double_backward_kernel(  # noqa: PLR0912, PLR0915 - long for the same reason
    t_phi_ptr,
    t_vector_ptr,
    t_weight_ptr,
    t_direction_ptr,
    grad_scalar_ptr,
    grad_vector_ptr,
    phi_ptr,
    vector_ptr,
    weight_ptr,
    direction_ptr,
    dst_ptr,
    ptr_ptr,
    order_ptr,
    by_phi_ptr,
    by_vector_ptr,
    by_weight_ptr,
    by_direction_ptr,
    E,
    F,
    HAS_VECTOR: tl.constexpr,
    HAS_T_PHI: tl.constexpr,
    HAS_T_VECTOR: tl.constexpr,
    HAS_T_WEIGHT: tl.constexpr,
    HAS_T_DIRECTION: tl.constexpr,
    NEEDS_PHI: tl.constexpr,
    NEEDS_VECTOR: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_DIRECTION: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
    node = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < F  # F need not be a power of two
    stop = tl.load(ptr_ptr + node + 1)
    own = node * 3 * F + f
    sum_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    sum_r, sum_v, sum_x, sum_y, sum_z = sum_s, sum_s, sum_s, sum_s, sum_s
    for first in range(tl.load(ptr_ptr + node), stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        in_segment = k < stop  # the last tile of a node is ragged
        edge = tl.load(order_ptr + k, mask=in_segment, other=0)
        i = tl.load(dst_ptr + edge, mask=in_segment, other=0)
        tile = in_segment[:, None] & in_width[None, :]
        gx = load_row(grad_vector_ptr, i, 0, f, F, tile, ACC)
        gy = load_row(grad_vector_ptr, i, F, f, F, tile, ACC)
        gz = load_row(grad_vector_ptr, i, 2 * F, f, F, tile, ACC)
        into = by_weight_ptr + edge[:, None] * 3 * F + f[None, :]

        # block 0: scalar
        if NEEDS_PHI or NEEDS_WEIGHT:
            g_s = tl.load(grad_scalar_ptr + i[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
            if NEEDS_PHI and HAS_T_WEIGHT:
                sum_s += load_row(t_weight_ptr, edge, 0, f, F, tile, ACC) * g_s
            if NEEDS_WEIGHT:
                tl.store(into, load_own(t_phi_ptr, own, in_width, HAS_T_PHI, BLOCK_F, ACC) * g_s, mask=tile)

        # block 1: direction
        w = load_row(weight_ptr, edge, F, f, F, tile, ACC)
        dw = load_tangent(t_weight_ptr, edge, F, f, F, tile, HAS_T_WEIGHT, BLOCK_E, BLOCK_F, ACC)
        p = load_own(phi_ptr, own + F, in_width, True, BLOCK_F, ACC)
        dp = load_own(t_phi_ptr, own + F, in_width, HAS_T_PHI, BLOCK_F, ACC)
        if NEEDS_PHI or NEEDS_WEIGHT:
            pull = (
                load_axis(direction_ptr, edge, 0, in_segment, ACC) * gx
                + load_axis(direction_ptr, edge, 1, in_segment, ACC) * gy
                + load_axis(direction_ptr, edge, 2, in_segment, ACC) * gz
            )
            d_pull = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
            if HAS_T_DIRECTION:
                d_pull += load_axis(t_direction_ptr, edge, 0, in_segment, ACC) * gx
                d_pull += load_axis(t_direction_ptr, edge, 1, in_segment, ACC) * gy
                d_pull += load_axis(t_direction_ptr, edge, 2, in_segment, ACC) * gz
            if NEEDS_PHI:
                sum_r += dw * pull + w * d_pull
            if NEEDS_WEIGHT:
                tl.store(into + F, dp * pull + p * d_pull, mask=tile)
        if NEEDS_DIRECTION:
            d_along = dw * p + w * dp
            row = by_direction_ptr + (tl.program_id(1).to(tl.int64) * E + edge) * 3
            tl.store(row, tl.sum(d_along * gx, axis=1), mask=in_segment)
            tl.store(row + 1, tl.sum(d_along * gy, axis=1), mask=in_segment)
            tl.store(row + 2, tl.sum(d_along * gz, axis=1), mask=in_segment)

        # block 2: vector
        if HAS_VECTOR:
            w = load_row(weight_ptr, edge, 2 * F, f, F, tile, ACC)
            dw = load_tangent(t_weight_ptr, edge, 2 * F, f, F, tile, HAS_T_WEIGHT, BLOCK_E, BLOCK_F, ACC)
            p = load_own(phi_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC)
            dp = load_own(t_phi_ptr, own + 2 * F, in_width, HAS_T_PHI, BLOCK_F, ACC)
            if NEEDS_PHI or NEEDS_WEIGHT:
                pull = load_own(vector_ptr, own, in_width, True, BLOCK_F, ACC) * gx
                pull += load_own(vector_ptr, own + F, in_width, True, BLOCK_F, ACC) * gy
                pull += load_own(vector_ptr, own + 2 * F, in_width, True, BLOCK_F, ACC) * gz
                d_pull = load_own(t_vector_ptr, own, in_width, HAS_T_VECTOR, BLOCK_F, ACC) * gx
                d_pull += load_own(t_vector_ptr, own + F, in_width, HAS_T_VECTOR, BLOCK_F, ACC) * gy
                d_pull += load_own(t_vector_ptr, own + 2 * F, in_width, HAS_T_VECTOR, BLOCK_F, ACC) * gz
                if NEEDS_PHI:
                    sum_v += dw * pull + w * d_pull
                if NEEDS_WEIGHT:
                    tl.store(into + 2 * F, dp * pull + p * d_pull, mask=tile)
            if NEEDS_VECTOR:
                d_carried = dw * p + w * dp
                sum_x += d_carried * gx
                sum_y += d_carried * gy
                sum_z += d_carried * gz
        elif NEEDS_WEIGHT:
            tl.store(into + 2 * F, tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC), mask=tile)
    if NEEDS_PHI:
        tl.store(by_phi_ptr + own, tl.sum(sum_s, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + F, tl.sum(sum_r, axis=0), mask=in_width)
        tl.store(by_phi_ptr + own + 2 * F, tl.sum(sum_v, axis=0), mask=in_width)
    if NEEDS_VECTOR:
        tl.store(by_vector_ptr + own, tl.sum(sum_x, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + F, tl.sum(sum_y, axis=0), mask=in_width)
        tl.store(by_vector_ptr + own + 2 * F, tl.sum(sum_z, axis=0), mask=in_width)
