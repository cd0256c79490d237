"""The GPU kernel that sums the gradient of the table over the units between two knots.

One program has one interval between knots (or a piece of it), one tile of features and one block of phi: eight sums fit in registers,
twenty-four do not.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from ..radial_conv.triton_kernels import weighed
from .triton_kernels import load_axis, load_rows


@triton.jit
def contract(gx, gy, gz, ax, ay, az):
    return gx * ax + gy * ay + gz * az


@triton.jit
def one_way(
    t_phi_ptr, t_vector_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, unit, i, j, f, sign, F,
    inside, tile, WHICH: tl.constexpr, TANGENT: tl.constexpr, HAS_T_PHI: tl.constexpr, HAS_T_VECTOR: tl.constexpr,
    HAS_T_DIRECTION: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """One block of φ_j ∘ q and, if TANGENT, of φ̇_j ∘ q + φ_j ∘ q̇ (else the same again), for what j sends to i."""
    source, target = j[:, None] * 3 * F + f[None, :], i[:, None] * 3 * F + f[None, :]
    phi = load_rows(phi_ptr, source + WHICH * F, tile, ACC)
    if WHICH == 0:
        q = load_rows(grad_scalar_ptr, i[:, None] * F + f[None, :], tile, ACC)
    else:
        gx = load_rows(grad_vector_ptr, target, tile, ACC)
        gy = load_rows(grad_vector_ptr, target + F, tile, ACC)
        gz = load_rows(grad_vector_ptr, target + 2 * F, tile, ACC)
        if WHICH == 1:
            rx = load_axis(direction_ptr, unit, 0, sign, inside, ACC)
            ry = load_axis(direction_ptr, unit, 1, sign, inside, ACC)
            rz = load_axis(direction_ptr, unit, 2, sign, inside, ACC)
            q = contract(gx, gy, gz, rx, ry, rz)
        else:
            vx = load_rows(vector_ptr, source, tile, ACC)
            vy = load_rows(vector_ptr, source + F, tile, ACC)
            vz = load_rows(vector_ptr, source + 2 * F, tile, ACC)
            q = contract(gx, gy, gz, vx, vy, vz)
    kept = phi * q
    moved = kept
    if TANGENT:
        moved = tl.zeros_like(kept)
        if HAS_T_PHI:
            moved += load_rows(t_phi_ptr, source + WHICH * F, tile, ACC) * q
        if WHICH == 1 and HAS_T_DIRECTION:
            dx = load_axis(t_direction_ptr, unit, 0, sign, inside, ACC)
            dy = load_axis(t_direction_ptr, unit, 1, sign, inside, ACC)
            dz = load_axis(t_direction_ptr, unit, 2, sign, inside, ACC)
            moved += phi * contract(gx, gy, gz, dx, dy, dz)
        if WHICH == 2 and HAS_T_VECTOR:
            dvx = load_rows(t_vector_ptr, source, tile, ACC)
            dvy = load_rows(t_vector_ptr, source + F, tile, ACC)
            dvz = load_rows(t_vector_ptr, source + 2 * F, tile, ACC)
            moved += phi * contract(gx, gy, gz, dvx, dvy, dvz)
    return kept, moved


@triton.jit(do_not_specialize=["pieces"])  # a batch's size must not make Triton compile again
def knots_kernel(
    t_phi_ptr, t_vector_ptr, rate_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr,
    dst_ptr, src_ptr, weight_ptr, bucket_ptr, order_ptr, partial_ptr, F, pieces, WHICH: tl.constexpr, TANGENT: tl.constexpr,
    HAS_T_PHI: tl.constexpr, HAS_T_VECTOR: tl.constexpr, HAS_RATE: tl.constexpr, HAS_T_DIRECTION: tl.constexpr, PAIRED: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """partial[interval, piece, r] of block WHICH: Σ_u b_r φ ∘ q or, if TANGENT, Σ_u b_r (φ ∘ q)˙ + rate b′_r φ ∘ q."""
    ACC: tl.constexpr = tl.float64 if phi_ptr.dtype.element_ty == tl.float64 else tl.float32
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
    t1, t2, t3, t4, t5, t6, t7 = t0, t0, t0, t0, t0, t0, t0
    for first in range(start, stop, BLOCK_E):
        k = first + tl.arange(0, BLOCK_E)
        inside = k < stop  # the last tile of a piece is ragged
        unit = tl.load(order_ptr + k, mask=inside, other=0)
        i = tl.load(dst_ptr + unit, mask=inside, other=0)
        j = tl.load(src_ptr + unit, mask=inside, other=0)
        tile = inside[:, None] & in_width[None, :]
        sign = tl.full((BLOCK_E,), 1.0, ACC)
        if PAIRED:
            # between a node and itself both ways cancel
            sign = (i != j).to(ACC)
        kept, moved = one_way(
            t_phi_ptr, t_vector_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, unit, i, j, f,
            sign, F, inside, tile, WHICH, TANGENT, HAS_T_PHI, HAS_T_VECTOR, HAS_T_DIRECTION, ACC
        )  # fmt: skip
        if PAIRED:
            kept_back, moved_back = one_way(
                t_phi_ptr, t_vector_ptr, t_direction_ptr, grad_scalar_ptr, grad_vector_ptr, phi_ptr, vector_ptr, direction_ptr, unit, j, i, f,
                -sign, F, inside, tile, WHICH, TANGENT, HAS_T_PHI, HAS_T_VECTOR, HAS_T_DIRECTION, ACC
            )  # fmt: skip
            kept += kept_back
            moved += moved_back
        if HAS_RATE:
            kept *= tl.load(rate_ptr + unit, mask=inside, other=0.0).to(ACC)[:, None]
        b_ptr = weight_ptr + unit * 16
        t0 += weighed(b_ptr, 0, moved, kept, inside, HAS_RATE, ACC)
        t1 += weighed(b_ptr, 1, moved, kept, inside, HAS_RATE, ACC)
        t2 += weighed(b_ptr, 2, moved, kept, inside, HAS_RATE, ACC)
        t3 += weighed(b_ptr, 3, moved, kept, inside, HAS_RATE, ACC)
        t4 += weighed(b_ptr, 4, moved, kept, inside, HAS_RATE, ACC)
        t5 += weighed(b_ptr, 5, moved, kept, inside, HAS_RATE, ACC)
        t6 += weighed(b_ptr, 6, moved, kept, inside, HAS_RATE, ACC)
        t7 += weighed(b_ptr, 7, moved, kept, inside, HAS_RATE, ACC)
    out = partial_ptr + tl.program_id(0).to(tl.int64) * 24 * F + WHICH * F + f
    tl.store(out, tl.sum(t0, axis=0), mask=in_width)
    tl.store(out + 3 * F, tl.sum(t1, axis=0), mask=in_width)
    tl.store(out + 6 * F, tl.sum(t2, axis=0), mask=in_width)
    tl.store(out + 9 * F, tl.sum(t3, axis=0), mask=in_width)
    tl.store(out + 12 * F, tl.sum(t4, axis=0), mask=in_width)
    tl.store(out + 15 * F, tl.sum(t5, axis=0), mask=in_width)
    tl.store(out + 18 * F, tl.sum(t6, axis=0), mask=in_width)
    tl.store(out + 21 * F, tl.sum(t7, axis=0), mask=in_width)
