"""GPU kernels. Index of kernels: ``pair_rows_kernel`` (one program a tile of atoms), ``pair_pull_kernel`` (a tile of atoms and of width).

Names: features a, b, c, d [N, C] of the student, y [N, D] of the teacher, D(a, b)_ij = (a_i − a_j) · (b_i − b_j) / C. A program goes
through all atoms j of the images that its atoms i belong to: the bounds of that loop are read from ``ptr``, on the device. Distances are
sums of differences, because n_i + n_j − 2 g_ij would cancel. Nothing of the size of the pairs leaves the chip. Addresses are int64. Sums
run in float32, or float64 for float64.
"""

import triton
import triton.language as tl


@triton.jit
def _distance(
    a_ptr, b_ptr, i, j, in_i, in_j, C, SAME: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """D(a, b), or D(a, a) if SAME: a tile [BLOCK_I, BLOCK_J], of no meaning outside of the images."""
    total = tl.zeros((BLOCK_I, BLOCK_J), dtype=ACC)
    for first in range(0, C, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        # the last tile of features is ragged
        mask_i, mask_j = in_i[:, None] & (f < C)[None, :], in_j[:, None] & (f < C)[None, :]
        at_i, at_j = i[:, None] * C + f[None, :], j[:, None] * C + f[None, :]
        a_i = tl.load(a_ptr + at_i, mask=mask_i, other=0.0).to(ACC)
        a_j = tl.load(a_ptr + at_j, mask=mask_j, other=0.0).to(ACC)
        a = a_i[:, None, :] - a_j[None, :, :]
        if SAME:
            total += tl.sum(a * a, axis=2)
        else:
            b_i = tl.load(b_ptr + at_i, mask=mask_i, other=0.0).to(ACC)
            b_j = tl.load(b_ptr + at_j, mask=mask_j, other=0.0).to(ACC)
            total += tl.sum(a * (b_i[:, None, :] - b_j[None, :, :]), axis=2)
    return total / C


@triton.jit
def _atoms(image_ptr, ptr_ptr, N, BLOCK_I: tl.constexpr):
    """This program's atoms, which of them exist, their images, and the first atom and the end of these images."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_I
    i = first + tl.arange(0, BLOCK_I)
    in_i = i < N  # the last tile of atoms is ragged
    image = tl.load(image_ptr + i, mask=in_i, other=-1)
    last = tl.load(image_ptr + tl.minimum(first + BLOCK_I, N) - 1)
    return i, in_i, image, tl.load(ptr_ptr + tl.load(image_ptr + first)), tl.load(ptr_ptr + last + 1)


@triton.jit(do_not_specialize=["N"])  # a batch's size must not make Triton compile again
def pair_rows_kernel(
    a_ptr, b_ptr, c_ptr, d_ptr, y_ptr, image_ptr, ptr_ptr, out_ptr, N, C, D, SQUARE: tl.constexpr, WITH_Y: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """SQUARE: Σ_j (D(a, a) − D(y, y))²; else Σ_j (D(a, b) − D(y, y)) D(c, d). Without y, D(y, y) is 0."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    i, in_i, image_i, start, stop = _atoms(image_ptr, ptr_ptr, N, BLOCK_I)
    total = tl.zeros((BLOCK_I,), dtype=ACC)
    for first in range(start, stop, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        in_j = j < stop
        image_j = tl.load(image_ptr + j, mask=in_j, other=-2)
        left = _distance(a_ptr, b_ptr, i, j, in_i, in_j, C, SQUARE, BLOCK_I, BLOCK_J, BLOCK_F, ACC)
        if WITH_Y:
            left -= _distance(y_ptr, y_ptr, i, j, in_i, in_j, D, True, BLOCK_I, BLOCK_J, BLOCK_F, ACC)
        right = left
        if not SQUARE:
            right = _distance(c_ptr, d_ptr, i, j, in_i, in_j, C, False, BLOCK_I, BLOCK_J, BLOCK_F, ACC)
        # chosen after the product, so that NaN stays in its image
        total += tl.sum(tl.where(image_i[:, None] == image_j[None, :], left * right, 0.0), axis=1)
    tl.store(out_ptr + i, total, mask=in_i)


@triton.jit(do_not_specialize=["N"])
def pair_pull_kernel(
    a_ptr, b_ptr, c_ptr, h_ptr, y_ptr, image_ptr, ptr_ptr, out_ptr, N, C, D, SAME: tl.constexpr, WITH_Y: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Σ_j (h_i + h_j) (D(a, b) − D(y, y)) (c_i − c_j); SAME: b is a. Without y, D(y, y) is 0."""
    ACC: tl.constexpr = h_ptr.dtype.element_ty
    i, in_i, image_i, start, stop = _atoms(image_ptr, ptr_ptr, N, BLOCK_I)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_width = f < C  # the last tile of features is ragged
    h_i = tl.load(h_ptr + i, mask=in_i, other=0.0)
    c_i = tl.load(c_ptr + i[:, None] * C + f[None, :], mask=in_i[:, None] & in_width[None, :], other=0.0).to(ACC)
    total = tl.zeros((BLOCK_I, BLOCK_F), dtype=ACC)
    for first in range(start, stop, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        in_j = j < stop
        image_j = tl.load(image_ptr + j, mask=in_j, other=-2)
        weight = _distance(a_ptr, b_ptr, i, j, in_i, in_j, C, SAME, BLOCK_I, BLOCK_J, BLOCK_F, ACC)
        if WITH_Y:
            weight -= _distance(y_ptr, y_ptr, i, j, in_i, in_j, D, True, BLOCK_I, BLOCK_J, BLOCK_F, ACC)
        weight *= h_i[:, None] + tl.load(h_ptr + j, mask=in_j, other=0.0)[None, :]
        c_j = tl.load(c_ptr + j[:, None] * C + f[None, :], mask=in_j[:, None] & in_width[None, :], other=0.0).to(ACC)
        pull = weight[:, :, None] * (c_i[:, None, :] - c_j[None, :, :])
        # chosen after the product, so that NaN stays in its image
        total += tl.sum(tl.where((image_i[:, None] == image_j[None, :])[:, :, None], pull, 0.0), axis=1)
    tl.store(out_ptr + i[:, None] * C + f[None, :], total, mask=in_i[:, None] & in_width[None, :])
