"""GPU kernels. Index: ``edge_to_node_rows_{fwd, pull}_kernel`` (a tile of rows and of projected channels each), and the two products
``projection_bwd_{input, weight}_kernel`` that take the gradient of any projection to its factors.

Rows are nodes, or with VECTOR three a node. C input channels, D projected channels; ``KIND`` is a position in `kinds.KINDS`; ``ACC`` the
dtype of every sum. The teacher's edges are summed into registers, where the projection is; neither is written, except their loss's
gradient ``pull``. Addresses are int64. What lies beyond the matrix is loaded as zeros, so its residual is 0 and adds nothing. Products of
float32 are exact to float32, not TF32. ``WIDEN`` makes bfloat16 products in float32, with the same result, for the interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def _projection(
    x_ptr, weight_ptr, bias_ptr, row, d, ROWS, C, D,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """x[row] · weight[d]ᵀ + bias[d], 0 outside of the matrix: a tile [BLOCK_N, BLOCK_D]."""
    in_rows, in_width = row < ROWS, d < D
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
    if HAS_BIAS:
        total += tl.where(in_rows[:, None], tl.load(bias_ptr + d, mask=in_width, other=0.0).to(ACC)[None, :], 0.0)
    return total


@triton.jit
def _edge_sum(
    edge_ptr, direction_ptr, ptr_ptr, order_ptr, row, d, ROWS, D,
    MEAN: tl.constexpr, VECTOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Σ over the edges into each row's node of edge[d], times the direction's component with VECTOR: a tile [BLOCK_N, BLOCK_D]."""
    # columns [BLOCK_N, 1] throughout: Triton 3.7 fails to lay out the same loop over vectors [BLOCK_N]
    row, d = row[:, None], d[None, :]
    node = row // 3 if VECTOR else row
    start = tl.load(ptr_ptr + node, mask=row < ROWS, other=0)
    stop = tl.load(ptr_ptr + node + 1, mask=row < ROWS, other=0)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACC)
    # all rows take their next edge together, until the last row has none left; a row's edges come in ascending number
    longest = tl.max(tl.max(stop - start, axis=1), axis=0)
    for step in range(0, longest, UNROLL):
        # several independent gathers hide one another's latency
        for u in tl.static_range(UNROLL):
            k = start + step + u
            inside = k < stop
            e = tl.load(order_ptr + k, mask=inside, other=0)
            m = tl.load(edge_ptr + e * D + d, mask=inside & (d < D), other=0.0).to(ACC)
            if VECTOR:
                m *= tl.load(direction_ptr + e * 3 + (row - node * 3), mask=inside, other=0.0).to(ACC)
            total += m
    if MEAN:
        total /= tl.maximum(stop - start, 1).to(ACC)
    return total


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


@triton.jit(do_not_specialize=["ROWS"])
def edge_to_node_rows_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, edge_ptr, direction_ptr, ptr_ptr, order_ptr, part_ptr, ROWS, C, D,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, MEAN: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes part [tiles of D, ROWS]: Σ_c ρ over one tile of columns; torch sums the tiles in order."""
    ACC: tl.constexpr = part_ptr.dtype.element_ty
    # programs that follow each other share their rows, which come from cache
    tiles = tl.cdiv(D, BLOCK_D)
    tile = tl.program_id(0) % tiles
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tile.to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    residual = _projection(x_ptr, weight_ptr, bias_ptr, row, d, ROWS, C, D, HAS_BIAS, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    residual -= _edge_sum(
        edge_ptr, direction_ptr, ptr_ptr, order_ptr, row, d, ROWS, D, MEAN, VECTOR, BLOCK_N, BLOCK_D, UNROLL, ACC
    )  # fmt: skip
    if KIND == 0:
        penalty = residual * residual
    elif KIND == 1:
        penalty = tl.abs(residual)
    else:
        # both branches of Huber in one: ρ = ψ (r − ψ/2)
        slope = _slope(residual, KIND)
        penalty = slope * (residual - 0.5 * slope)
    tl.store(part_ptr + tile.to(tl.int64) * ROWS + row, tl.sum(penalty, axis=1), mask=row < ROWS)


@triton.jit(do_not_specialize=["ROWS", "first_row", "last_row"])
def edge_to_node_rows_pull_kernel(
    x_ptr, weight_ptr, bias_ptr, edge_ptr, direction_ptr, ptr_ptr, order_ptr, upstream_ptr, pull_ptr, ROWS, C, D, first_row, last_row,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, MEAN: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes pull [last_row − first_row, D] = upstream · ψ(residual) of a range of rows: the gradient of their projection."""
    ACC: tl.constexpr = pull_ptr.dtype.element_ty
    tiles = tl.cdiv(D, BLOCK_D)
    row = first_row + (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    residual = _projection(x_ptr, weight_ptr, bias_ptr, row, d, ROWS, C, D, HAS_BIAS, BLOCK_N, BLOCK_D, BLOCK_C, ACC, WIDEN)
    residual -= _edge_sum(
        edge_ptr, direction_ptr, ptr_ptr, order_ptr, row, d, ROWS, D, MEAN, VECTOR, BLOCK_N, BLOCK_D, UNROLL, ACC
    )  # fmt: skip
    upstream = tl.load(upstream_ptr + row, mask=row < last_row, other=0.0)
    pull = upstream[:, None] * _slope(residual, KIND)
    tl.store(pull_ptr + (row - first_row)[:, None] * D + d[None, :], pull, mask=(row < last_row)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["ROWS"])
def projection_bwd_input_kernel(
    pull_ptr, weight_ptr, grad_ptr, ROWS, C, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr
):  # fmt: skip
    """Writes grad [ROWS, C] = pull [ROWS, D] · weight [D, C]; one program a tile, summed over d in order."""
    ACC: tl.constexpr = pull_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_N, BLOCK_OUT), dtype=ACC)
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        pull = tl.load(pull_ptr + row[:, None] * D + d[None, :], mask=(row < ROWS)[:, None] & (d < D)[None, :], other=0.0)
        weight = tl.load(weight_ptr + d[:, None] * C + c[None, :], mask=(d < D)[:, None] & (c < C)[None, :], other=0.0)
        # the product runs in the accumulator's precision: a bfloat16 pull would be rounded before it is summed
        total = tl.dot(pull, weight.to(ACC), total, input_precision="ieee", out_dtype=ACC)
    tl.store(grad_ptr + row[:, None] * C + c[None, :], total, mask=(row < ROWS)[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=["ROWS", "rows_each"])
def projection_bwd_weight_kernel(
    pull_ptr, x_ptr, weight_part_ptr, bias_part_ptr, ROWS, C, D, rows_each,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Σ over the rows of one part of pullᵀ x and of pull: [parts, D, C] and [parts, D], to be summed over parts in order."""
    ACC: tl.constexpr = pull_ptr.dtype.element_ty
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    c = tl.program_id(1).to(tl.int64) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    part = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_D, BLOCK_OUT), dtype=ACC)
    column = tl.zeros((BLOCK_D,), dtype=ACC)
    start = part * rows_each
    for first in range(0, rows_each, BLOCK_N):
        row = start + first + tl.arange(0, BLOCK_N)
        pull = tl.load(pull_ptr + row[None, :] * D + d[:, None], mask=(row < ROWS)[None, :] & (d < D)[:, None], other=0.0)
        x = tl.load(x_ptr + row[:, None] * C + c[None, :], mask=(row < ROWS)[:, None] & (c < C)[None, :], other=0.0)
        total = tl.dot(pull, x.to(ACC), total, input_precision="ieee", out_dtype=ACC)
        column += tl.sum(pull, axis=1)
    tl.store(weight_part_ptr + (part * D + d)[:, None] * C + c[None, :], total, mask=(d < D)[:, None] & (c < C)[None, :])
    # every tile of channels has the same column sums; the first one writes them
    tl.store(bias_part_ptr + part * D + d, column, mask=(d < D) & (tl.program_id(1) == 0))
