"""GPU kernels over rows [n, F] grouped by ``ptr``, and by ``order`` (sorted position → row) where segments are not contiguous.

Index of kernels: ``segment_sum_kernel`` and ``segment_extremum_kernel`` (one program a segment and width tile), their ``…_pieces_kernel``
(one program a piece of ``PIECE`` positions, for segments too long for one program), ``segment_gather_kernel``, ``arg_gather_kernel`` and
``arg_scatter_kernel`` (tiles of rows). Sums run in float32, or float64 for float64. Addresses are int64: rows × width passes 2³¹ in real batches.

Long segments: piece p holds positions p · PIECE … (p + 1) · PIECE − 1. Where one segment covers a whole piece, the first kernel leaves
the piece's result in a buffer, and the second adds head, pieces and tail in this order. Which pieces exist depends on shapes alone, so
nothing waits for the host and the same input gives the same bits.
"""

import triton
import triton.language as tl

_NO_ROW = tl.constexpr(2**63 - 1)
# a batch's size must not make Triton compile again
_SIZES = ["n", "segments", "steps", "size"]


@triton.jit
def _segment_of(ptr_ptr, position, segments, steps):
    """The last s with ptr[s] ≤ position, by bisection: the segment that owns the position, if any does."""
    low = position * 0
    high = low + segments
    for _ in range(steps):
        middle = (low + high) // 2
        # done lanes have low + 1 ≥ high and keep their interval
        right = tl.load(ptr_ptr + middle) <= position
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit
def _tile(x_ptr, order_ptr, k, stop, f, F, ORDERED: tl.constexpr):
    """Rows at the positions k and columns f, their row numbers, and which of them exist."""
    in_range = k < stop  # the last tile of a segment is ragged
    row = tl.load(order_ptr + k, mask=in_range, other=0) if ORDERED else k
    exists = in_range[:, None] & (f < F)[None, :]  # the width tile is a power of two
    return tl.load(x_ptr + row[:, None] * F + f[None, :], mask=exists, other=0.0), row, exists


@triton.jit
def _add(lanes, x_ptr, order_ptr, start, stop, f, F, ORDERED: tl.constexpr, BLOCK_E: tl.constexpr):
    """Add positions start … stop − 1; each lane has an accumulator of its own, so that one reduction across lanes ends it all."""
    for first in range(start, stop, BLOCK_E):
        x, _, _ = _tile(x_ptr, order_ptr, first + tl.arange(0, BLOCK_E), stop, f, F, ORDERED)
        lanes += x.to(lanes.dtype)
    return lanes


@triton.jit(do_not_specialize=_SIZES)
def segment_sum_pieces_kernel(
    x_ptr,
    ptr_ptr,
    order_ptr,
    piece_ptr,
    segments,
    steps,
    F,
    PIECE,
    ORDERED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    piece = tl.program_id(0).to(tl.int64)
    start = piece * PIECE
    segment = _segment_of(ptr_ptr, start, segments, steps)
    if tl.load(ptr_ptr + segment + 1) < start + PIECE:
        return
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    lanes = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    lanes = _add(lanes, x_ptr, order_ptr, start, start + PIECE, f, F, ORDERED, BLOCK_E)
    tl.store(piece_ptr + piece * F + f, tl.sum(lanes, axis=0), mask=f < F)


@triton.jit
def segment_sum_kernel(
    x_ptr,
    ptr_ptr,
    order_ptr,
    piece_ptr,
    out_ptr,
    F,
    PIECE,
    ORDERED: tl.constexpr,
    MEAN: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    segment = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start = tl.load(ptr_ptr + segment)
    stop = tl.load(ptr_ptr + segment + 1)
    lanes = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    if SPLIT:
        first, last = (start + PIECE - 1) // PIECE, stop // PIECE
        whole = first < last
        head, tail = tl.where(whole, first * PIECE, stop), tl.where(whole, last * PIECE, stop)
        lanes = _add(lanes, x_ptr, order_ptr, start, head, f, F, ORDERED, BLOCK_E)
        lanes = _add(lanes, piece_ptr, order_ptr, first, last, f, F, False, BLOCK_E)
        lanes = _add(lanes, x_ptr, order_ptr, tail, stop, f, F, ORDERED, BLOCK_E)
    else:
        lanes = _add(lanes, x_ptr, order_ptr, start, stop, f, F, ORDERED, BLOCK_E)
    total = tl.sum(lanes, axis=0)
    if MEAN:
        total = total / tl.maximum(stop - start, 1).to(ACC)
    tl.store(out_ptr + segment * F + f, total, mask=f < F)


@triton.jit(do_not_specialize=_SIZES)
def segment_gather_kernel(
    rows_ptr,
    ptr_ptr,
    index_ptr,
    out_ptr,
    n,
    segments,
    steps,
    F,
    INDEXED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if rows_ptr.dtype.element_ty == tl.float64 else tl.float32
    k = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_range = k < n  # the last tile of rows is ragged
    segment = tl.load(index_ptr + k, mask=in_range, other=0) if INDEXED else _segment_of(ptr_ptr, k, segments, steps)
    tile = in_range[:, None] & (f < F)[None, :]  # the width tile is a power of two
    value = tl.load(rows_ptr + segment[:, None] * F + f[None, :], mask=tile, other=0.0).to(ACC)
    if MEAN:
        count = tl.load(ptr_ptr + segment + 1, mask=in_range, other=1) - tl.load(ptr_ptr + segment, mask=in_range, other=0)
        value = value / tl.maximum(count, 1).to(ACC)[:, None]
    tl.store(out_ptr + k[:, None] * F + f[None, :], value, mask=tile)


@triton.jit
def _is_nan(x):
    return x != x  # noqa: PLR0124 - nothing else is unequal to itself


@triton.jit
def _best(
    best, arg, x_ptr, arg_ptr, order_ptr, start, stop, f, F, SIGN: tl.constexpr, PIECES: tl.constexpr, ORDERED: tl.constexpr,
    BLOCK_E: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Take positions start … stop − 1 into the best of each lane; a lane sees its positions in rising order."""
    for first in range(start, stop, BLOCK_E):
        x, row, exists = _tile(x_ptr, order_ptr, first + tl.arange(0, BLOCK_E), stop, f, F, ORDERED)
        value = x.to(ACC) * SIGN
        if PIECES:
            # a piece's result keeps the sign and the row that it was found with
            value = x
            row_of = tl.load(arg_ptr + row[:, None] * F + f[None, :], mask=exists, other=0)
        else:
            row_of = tl.where(exists, row[:, None], 0)
        beats = (arg == _NO_ROW) | (~_is_nan(best) & ((value > best) | _is_nan(value)))
        best = tl.where(exists & beats, value, best)
        arg = tl.where(exists & beats, row_of, arg)
    return best, arg


@triton.jit
def _first_best(best, arg):
    """Across the lanes: the best value, and the lowest row that has it. NaN wins over numbers."""
    exists = arg != _NO_ROW
    nan = exists & _is_nan(best)
    has_nan = tl.max(nan.to(tl.int32), axis=0) > 0
    top = tl.max(tl.where(exists & ~nan, best, float("-inf")), axis=0)
    wins = tl.where(has_nan[None, :], nan, exists & (best == top[None, :]))
    return tl.where(has_nan, float("nan"), top), tl.min(tl.where(wins, arg, _NO_ROW), axis=0)


@triton.jit(do_not_specialize=_SIZES)
def segment_extremum_pieces_kernel(
    x_ptr,
    ptr_ptr,
    order_ptr,
    piece_ptr,
    piece_arg_ptr,
    segments,
    steps,
    F,
    PIECE,
    SIGN: tl.constexpr,
    ORDERED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    piece = tl.program_id(0).to(tl.int64)
    start = piece * PIECE
    segment = _segment_of(ptr_ptr, start, segments, steps)
    if tl.load(ptr_ptr + segment + 1) < start + PIECE:
        return
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    best = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    arg = tl.full((BLOCK_E, BLOCK_F), _NO_ROW, dtype=tl.int64)
    best, arg = _best(best, arg, x_ptr, piece_arg_ptr, order_ptr, start, start + PIECE, f, F, SIGN, False, ORDERED, BLOCK_E, ACC)
    top, row = _first_best(best, arg)
    tl.store(piece_ptr + piece * F + f, top, mask=f < F)
    tl.store(piece_arg_ptr + piece * F + f, row, mask=f < F)


@triton.jit
def segment_extremum_kernel(
    x_ptr,
    ptr_ptr,
    order_ptr,
    piece_ptr,
    piece_arg_ptr,
    out_ptr,
    arg_ptr,
    F,
    PIECE,
    SIGN: tl.constexpr,
    ORDERED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    segment = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start = tl.load(ptr_ptr + segment)
    stop = tl.load(ptr_ptr + segment + 1)
    best = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    arg = tl.full((BLOCK_E, BLOCK_F), _NO_ROW, dtype=tl.int64)
    if SPLIT:
        first, last = (start + PIECE - 1) // PIECE, stop // PIECE
        whole = first < last
        head, tail = tl.where(whole, first * PIECE, stop), tl.where(whole, last * PIECE, stop)
        best, arg = _best(best, arg, x_ptr, arg_ptr, order_ptr, start, head, f, F, SIGN, False, ORDERED, BLOCK_E, ACC)
        best, arg = _best(best, arg, piece_ptr, piece_arg_ptr, order_ptr, first, last, f, F, SIGN, True, False, BLOCK_E, ACC)
        best, arg = _best(best, arg, x_ptr, arg_ptr, order_ptr, tail, stop, f, F, SIGN, False, ORDERED, BLOCK_E, ACC)
    else:
        best, arg = _best(best, arg, x_ptr, arg_ptr, order_ptr, start, stop, f, F, SIGN, False, ORDERED, BLOCK_E, ACC)
    top, row = _first_best(best, arg)
    some = stop > start
    tl.store(out_ptr + segment * F + f, tl.where(some, top * SIGN, 0.0), mask=f < F)
    tl.store(arg_ptr + segment * F + f, tl.where(some, row, -1), mask=f < F)


@triton.jit(do_not_specialize=_SIZES)
def arg_gather_kernel(values_ptr, arg_ptr, out_ptr, size, F, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = i < size  # the last tile is ragged
    row = tl.load(arg_ptr + i, mask=in_range, other=-1)
    # row −1 is an empty segment
    value = tl.load(values_ptr + row * F + i % F, mask=in_range & (row >= 0), other=0.0)
    tl.store(out_ptr + i, value, mask=in_range)


@triton.jit(do_not_specialize=_SIZES)
def arg_scatter_kernel(grad_ptr, arg_ptr, out_ptr, size, F, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_range = i < size  # the last tile is ragged
    row = tl.load(arg_ptr + i, mask=in_range, other=-1)
    grad = tl.load(grad_ptr + i, mask=in_range, other=0.0)
    # row −1 is an empty segment; a row belongs to one segment, so no two programs write to one place
    tl.store(out_ptr + row * F + i % F, grad, mask=in_range & (row >= 0))
