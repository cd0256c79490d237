"""GPU kernels: ``centred_grams_kernel`` (three Gram matrices in one launch) and ``centred_map_kernel`` (their gradient by one side).

x [N, C] and y [N, D] are centred as they are read, by means [2, C] and [2, D]; no centred copy is made. Addresses are int64. Rows beyond
the last are 0 after centring, so they add nothing. Products run in the accumulator's dtype, float32 in `ieee` precision, never TF32.
"""

import triton
import triton.language as tl


@triton.jit
def _centred(x_ptr, mean_ptr, row, c, N, C, ACC: tl.constexpr):
    """x[row, c] − mean[0, c] − mean[1, c], 0 outside of the matrix: a tile in the shape of row and c together."""
    inside = (row < N) & (c < C)
    x = tl.load(x_ptr + row * C + c, mask=inside, other=0.0).to(ACC)
    x -= tl.load(mean_ptr + c, mask=c < C, other=0.0)
    return tl.where(inside, x - tl.load(mean_ptr + C + c, mask=c < C, other=0.0), 0.0)


@triton.jit
def _gram(
    a_ptr, a_mean_ptr, b_ptr, b_mean_ptr, out_ptr, i, j, start, stop, N, A, B,
    SAME: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Tile (i, j) of aᵀ b over some rows; with SAME a = b, and the tile's mirror image as well."""
    a_column = i.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_column = j.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=ACC)
    for first in range(start, stop, BLOCK_N):
        row = first + tl.arange(0, BLOCK_N)
        a = _centred(a_ptr, a_mean_ptr, row[None, :], a_column[:, None], N, A, ACC)
        b = _centred(b_ptr, b_mean_ptr, row[:, None], b_column[None, :], N, B, ACC)
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
    inside = (a_column < A)[:, None] & (b_column < B)[None, :]
    tl.store(out_ptr + a_column[:, None] * B + b_column[None, :], total, mask=inside)
    if SAME:
        tl.store(out_ptr + a_column[:, None] + b_column[None, :] * B, total, mask=inside & (i != j))


@triton.jit(do_not_specialize=["N", "rows_each"])
def centred_grams_kernel(
    x_ptr, x_mean_ptr, y_ptr, y_mean_ptr, p_ptr, q_ptr, k_ptr, N, C, D, rows_each, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Partial Gram matrices of one part of the rows: p [parts, C, C], q [parts, D, D], k [parts, C, D]; torch sums parts in order."""
    ACC: tl.constexpr = p_ptr.dtype.element_ty
    across, down = tl.cdiv(C, BLOCK), tl.cdiv(D, BLOCK)
    part = tl.program_id(1).to(tl.int64)
    start = part * rows_each
    stop = tl.minimum(start + rows_each, N)
    tile = tl.program_id(0)
    if tile < across * down:
        k_ptr += part * C * D
        _gram(
            x_ptr, x_mean_ptr, y_ptr, y_mean_ptr, k_ptr, tile // down, tile % down, start, stop, N, C, D, False, BLOCK, BLOCK_N, ACC
        )  # fmt: skip
    elif tile < across * down + across * across:
        tile -= across * down
        i, j = tile // across, tile % across
        # the lower half is the mirror image of the upper one
        if i <= j:
            p_ptr += part * C * C
            _gram(x_ptr, x_mean_ptr, x_ptr, x_mean_ptr, p_ptr, i, j, start, stop, N, C, C, True, BLOCK, BLOCK_N, ACC)
    else:
        tile -= across * down + across * across
        i, j = tile // down, tile % down
        if i <= j:
            q_ptr += part * D * D
            _gram(y_ptr, y_mean_ptr, y_ptr, y_mean_ptr, q_ptr, i, j, start, stop, N, D, D, True, BLOCK, BLOCK_N, ACC)


@triton.jit
def _product(
    x_ptr, mean_ptr, matrix_ptr, row, c, total, N, C, OUT, BLOCK_K: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Adds (x[row] − mean) · matrix[:, c] to total."""
    for first in range(0, C, BLOCK_K):
        k = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        x = _centred(x_ptr, mean_ptr, row[:, None], k[None, :], N, C, ACC)
        matrix = tl.load(matrix_ptr + k[:, None] * OUT + c[None, :], mask=(k < C)[:, None] & (c < OUT)[None, :], other=0.0)
        total = tl.dot(x, matrix, total, input_precision="ieee", out_dtype=ACC)
    return total


@triton.jit(do_not_specialize=["N"])
def centred_map_kernel(
    x_ptr, x_mean_ptr, by_x_ptr, y_ptr, y_mean_ptr, by_y_ptr, grad_ptr, N, C, D,
    BLOCK_N: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes grad [N, C] = (x − mean) · by_x [C, C] + (y − mean) · by_y [D, C]; one program a tile."""
    ACC: tl.constexpr = by_x_ptr.dtype.element_ty
    tiles = tl.cdiv(C, BLOCK_OUT)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_N, BLOCK_OUT), dtype=ACC)
    total = _product(x_ptr, x_mean_ptr, by_x_ptr, row, c, total, N, C, C, BLOCK_K, ACC)
    total = _product(y_ptr, y_mean_ptr, by_y_ptr, row, c, total, N, D, C, BLOCK_K, ACC)
    tl.store(grad_ptr + row[:, None] * C + c[None, :], total, mask=(row < N)[:, None] & (c < C)[None, :])
