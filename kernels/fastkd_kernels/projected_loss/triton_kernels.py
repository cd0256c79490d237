"""GPU kernels: ``projected_rows_fwd_kernel``, ``projected_rows_bwd_{input, weight, target}_kernel`` for the gradients, and
``projected_rows_bwd2_{input, weight, target}_kernel`` for theirs.

All make the residual tile again from x, weight and target in `_residual`; none writes it, except the gradient of the target, which
is that tile. N rows, C input channels, D projected channels; ``KIND`` is a position in `kinds.KINDS`; ``ACC`` the dtype of
every sum, which is that of the row losses and of their gradient. Addresses are int64. Rows and columns beyond the matrix are loaded
as zeros, so their residual is 0 and adds nothing. Products of float32 are exact to float32, not TF32. ``WIDEN`` makes bfloat16
products in float32, with the same result, for the interpreter, which multiplies their bit patterns.
"""

import triton
import triton.language as tl


@triton.jit
def _product(
    x_ptr, weight_ptr, row, d, N, C, D,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x[row] · weight[d]ᵀ, 0 outside of the matrix: a tile [BLOCK_N, BLOCK_D]."""
    in_rows, in_width = row < N, d < D
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        # the last tile of channels is ragged
        in_channels = c < C
        x = tl.load(x_ptr + row[:, None] * C + c[None, :], mask=in_rows[:, None] & in_channels[None, :], other=0.0)
        weight = tl.load(weight_ptr + d[None, :] * C + c[:, None], mask=in_width[None, :] & in_channels[:, None], other=0.0)
        if WIDEN:
            x, weight = x.to(ACC), weight.to(ACC)
        total = tl.dot(x, weight, total, input_precision="ieee", out_dtype=ACC)
    return total


@triton.jit
def _residual(
    x_ptr, weight_ptr, bias_ptr, target_ptr, row, d, N, C, D,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x[row] · weight[d]ᵀ + bias[d] − target[row, d], 0 outside of the matrix: a tile [BLOCK_N, BLOCK_D]."""
    in_rows, in_width = row < N, d < D
    total = _product(x_ptr, weight_ptr, row, d, N, C, D, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    inside = in_rows[:, None] & in_width[None, :]
    if HAS_BIAS:
        total += tl.where(in_rows[:, None], tl.load(bias_ptr + d, mask=in_width, other=0.0).to(ACC)[None, :], 0.0)
    return total - tl.load(target_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(ACC)


@triton.jit
def _slope(residual, KIND: tl.constexpr):
    """ψ: 2 r, sign(r), or r clamped to ±1; NaN stays NaN."""
    if KIND == 0:
        slope = 2.0 * residual
    elif KIND == 1:
        slope = tl.where(residual > 0, 1.0, tl.where(residual < 0, -1.0, residual))
    else:
        slope = tl.where(residual > 1, 1.0, tl.where(residual < -1, -1.0, residual))
    return slope.to(residual.dtype)


@triton.jit
def _pull(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, row, d, N, C, D, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """upstream[row] · ψ(residual): the gradient of the projection, a tile [BLOCK_N, BLOCK_D], 0 outside of the matrix."""
    residual = _residual(x_ptr, weight_ptr, bias_ptr, target_ptr, row, d, N, C, D, HAS_BIAS, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    upstream = tl.load(upstream_ptr + row, mask=row < N, other=0.0)
    return upstream[:, None] * _slope(residual, KIND)


@triton.jit
def projected_rows_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, losses_ptr, N, C, D, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One program a tile of rows: sums over a tile of columns first, then over the tiles in order."""
    ACC: tl.constexpr = losses_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    losses = tl.zeros((BLOCK_N,), dtype=ACC)
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        residual = _residual(x_ptr, weight_ptr, bias_ptr, target_ptr, row, d, N, C, D, HAS_BIAS, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
        if KIND == 0:
            penalty = residual * residual
        elif KIND == 1:
            penalty = tl.abs(residual)
        else:
            # both branches of Huber in one: ρ = ψ (r − ψ/2)
            slope = _slope(residual, KIND)
            penalty = slope * (residual - 0.5 * slope)
        losses += tl.sum(penalty, axis=1)
    tl.store(losses_ptr + row, losses, mask=row < N)


@triton.jit
def projected_rows_bwd_input_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, grad_ptr, N, C, D, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """grad_x[rows, c tile] = Σ_d pull · weight; one program a tile, summed over d in order."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_N, BLOCK_OUT), dtype=ACC)
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        pull = _pull(
            x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, row, d, N, C, D, KIND, HAS_BIAS,
            BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
        )  # fmt: skip
        weight = tl.load(weight_ptr + d[:, None] * C + c[None, :], mask=(d < D)[:, None] & (c < C)[None, :], other=0.0)
        # the product runs in the accumulator's precision: a bfloat16 pull would be rounded before it is summed
        total = tl.dot(pull, weight.to(ACC), total, input_precision="ieee", out_dtype=ACC)
    tl.store(grad_ptr + row[:, None] * C + c[None, :], total, mask=(row < N)[:, None] & (c < C)[None, :])


@triton.jit
def projected_rows_bwd_weight_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, weight_part_ptr, bias_part_ptr, N, C, D, rows_each,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Σ over the rows of one part: weight_part [parts, D, C] and bias_part [parts, D], to be summed over parts in order."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_D, BLOCK_OUT), dtype=ACC)
    column = tl.zeros((BLOCK_D,), dtype=ACC)
    start = part * rows_each
    for first in range(0, rows_each, BLOCK_N):
        row = start + first + tl.arange(0, BLOCK_N)
        pull = _pull(
            x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, row, d, N, C, D, KIND, HAS_BIAS,
            BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
        )  # fmt: skip
        x = tl.load(x_ptr + row[:, None] * C + c[None, :], mask=(row < N)[:, None] & (c < C)[None, :], other=0.0)
        total = tl.dot(tl.trans(pull), x.to(ACC), total, input_precision="ieee", out_dtype=ACC)
        column += tl.sum(pull, axis=0)
    inside = (d < D)[:, None] & (c < C)[None, :]
    tl.store(weight_part_ptr + (part * D + d)[:, None] * C + c[None, :], total, mask=inside)
    # every tile of channels has the same column sums; the first one writes them
    tl.store(bias_part_ptr + part * D + d, column, mask=(d < D) & (tl.program_id(1) == 0))


@triton.jit
def projected_rows_bwd_target_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, grad_ptr, N, C, D, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """grad_target = −pull, one program a tile."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    pull = _pull(
        x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, row, d, N, C, D, KIND, HAS_BIAS,
        BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
    )  # fmt: skip
    tl.store(grad_ptr + row[:, None] * D + d[None, :], -pull, mask=(row < N)[:, None] & (d < D)[None, :])


@triton.jit
def _tangent(
    x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
    HAS_DX: tl.constexpr, HAS_DWEIGHT: tl.constexpr, HAS_DBIAS: tl.constexpr, HAS_DTARGET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The residual's tangent dx · weightᵀ + x · dweightᵀ + dbias − dtarget, a tile [BLOCK_N, BLOCK_D], 0 outside of the matrix."""
    if HAS_DX:
        total = _product(dx_ptr, weight_ptr, row, d, N, C, D, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    if HAS_DWEIGHT:
        total += _product(x_ptr, dweight_ptr, row, d, N, C, D, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    in_rows, in_width = row < N, d < D
    if HAS_DBIAS:
        total += tl.where(in_rows[:, None], tl.load(dbias_ptr + d, mask=in_width, other=0.0).to(ACC)[None, :], 0.0)
    if HAS_DTARGET:
        inside = in_rows[:, None] & in_width[None, :]
        total -= tl.load(dtarget_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(ACC)
    return total


@triton.jit
def _pulls(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DX: tl.constexpr, HAS_DWEIGHT: tl.constexpr, HAS_DBIAS: tl.constexpr, HAS_DTARGET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Tiles of q = upstream · ψ(r), of p = upstream · ψ′(r) · T and of ψ(r) · T, all 0 outside of the matrix."""
    residual = _residual(x_ptr, weight_ptr, bias_ptr, target_ptr, row, d, N, C, D, HAS_BIAS, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    tangent = _tangent(
        x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
        HAS_DX, HAS_DWEIGHT, HAS_DBIAS, HAS_DTARGET, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
    )  # fmt: skip
    upstream = tl.load(upstream_ptr + row, mask=row < N, other=0.0)[:, None]
    slope = _slope(residual, KIND)
    if KIND == 0:
        curved = 2.0 * upstream * tangent
    elif KIND == 1:
        curved = 0.0 * tangent
    else:
        curved = tl.where(tl.abs(residual) <= 1, upstream, 0.0) * tangent
    return upstream * slope, curved.to(ACC), slope * tangent


@triton.jit
def projected_rows_bwd2_input_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, grad_ptr, slopes_ptr, N, C, D,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DX: tl.constexpr, HAS_DWEIGHT: tl.constexpr, HAS_DBIAS: tl.constexpr, HAS_DTARGET: tl.constexpr, NEED_X: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """grad_x[rows, c tile] = Σ_d p · weight + q · dweight if NEED_X, and slopes[rows] = Σ_d ψ · T."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_N, BLOCK_OUT), dtype=ACC)
    slopes = tl.zeros((BLOCK_N,), dtype=ACC)
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        pull, curved, slope = _pulls(
            x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
            KIND, HAS_BIAS, HAS_DX, HAS_DWEIGHT, HAS_DBIAS, HAS_DTARGET, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
        )  # fmt: skip
        slopes += tl.sum(slope, axis=1)
        if NEED_X:
            inside = (d < D)[:, None] & (c < C)[None, :]
            weight = tl.load(weight_ptr + d[:, None] * C + c[None, :], mask=inside, other=0.0)
            total = tl.dot(curved, weight.to(ACC), total, input_precision="ieee", out_dtype=ACC)
            if HAS_DWEIGHT:
                dweight = tl.load(dweight_ptr + d[:, None] * C + c[None, :], mask=inside, other=0.0)
                total = tl.dot(pull, dweight.to(ACC), total, input_precision="ieee", out_dtype=ACC)
    if NEED_X:
        tl.store(grad_ptr + row[:, None] * C + c[None, :], total, mask=(row < N)[:, None] & (c < C)[None, :])
    # every tile of channels has the same sums; the first one writes them
    tl.store(slopes_ptr + row, slopes, mask=(row < N) & (tl.program_id(1) == 0))


@triton.jit
def projected_rows_bwd2_weight_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, weight_part_ptr, bias_part_ptr,
    N, C, D, rows_each, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DX: tl.constexpr, HAS_DWEIGHT: tl.constexpr, HAS_DBIAS: tl.constexpr, HAS_DTARGET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_OUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Σ over the rows of one part of pᵀ x + qᵀ dx [parts, D, C] and of p [parts, D], to be summed over parts in order."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_D, BLOCK_OUT), dtype=ACC)
    column = tl.zeros((BLOCK_D,), dtype=ACC)
    start = part * rows_each
    for first in range(0, rows_each, BLOCK_N):
        row = start + first + tl.arange(0, BLOCK_N)
        pull, curved, _ = _pulls(
            x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
            KIND, HAS_BIAS, HAS_DX, HAS_DWEIGHT, HAS_DBIAS, HAS_DTARGET, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
        )  # fmt: skip
        inside = (row < N)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + row[:, None] * C + c[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(curved), x.to(ACC), total, input_precision="ieee", out_dtype=ACC)
        if HAS_DX:
            dx = tl.load(dx_ptr + row[:, None] * C + c[None, :], mask=inside, other=0.0)
            total = tl.dot(tl.trans(pull), dx.to(ACC), total, input_precision="ieee", out_dtype=ACC)
        column += tl.sum(curved, axis=0)
    inside = (d < D)[:, None] & (c < C)[None, :]
    tl.store(weight_part_ptr + (part * D + d)[:, None] * C + c[None, :], total, mask=inside)
    # every tile of channels has the same column sums; the first one writes them
    tl.store(bias_part_ptr + part * D + d, column, mask=(d < D) & (tl.program_id(1) == 0))


@triton.jit
def projected_rows_bwd2_target_kernel(
    x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, grad_ptr, N, C, D,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_DX: tl.constexpr, HAS_DWEIGHT: tl.constexpr, HAS_DBIAS: tl.constexpr, HAS_DTARGET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """grad_target = −p, one program a tile."""
    ACC: tl.constexpr = upstream_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    _, curved, _ = _pulls(
        x_ptr, weight_ptr, bias_ptr, target_ptr, upstream_ptr, dx_ptr, dweight_ptr, dbias_ptr, dtarget_ptr, row, d, N, C, D,
        KIND, HAS_BIAS, HAS_DX, HAS_DWEIGHT, HAS_DBIAS, HAS_DTARGET, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN,
    )  # fmt: skip
    tl.store(grad_ptr + row[:, None] * D + d[None, :], -curved, mask=(row < N)[:, None] & (d < D)[None, :])
