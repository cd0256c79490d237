"""GPU kernels over rows [n, F] grouped by ``ptr``, and by ``order`` (sorted position → row) where segments are not contiguous.

Index of kernels: ``segment_kernel`` (one program a segment and width tile) does all for a segment of ordinary length. For longer ones
``piece_sums_kernel`` runs before it and ``piece_rows_kernel`` after it (one program a piece of ``PIECE`` positions).

``MODE`` says what is computed, from up to three inputs a, b, c, and which two sums p, q over a segment it needs:

    0  softmax            a = x              p = max x, q = Σ exp(x − p)      exp(x − p) / q
    1  its logarithm      as softmax                                          x − p − log q
    2  gradient           a = y, b = g       p = Σ y g                        y (g − p)
    3  of the logarithm   as gradient        p = Σ g                          g − exp(y) p
    4  of the gradient    a, b, c = y, g, h  p = Σ y g, q = Σ y h             h (g − p) − g q  and  y (h − q)

Long segments: piece i holds positions i · PIECE … (i + 1) · PIECE − 1. Where one segment covers a whole piece, the first kernel leaves the
piece's sums in a buffer. The segment's program adds head, pieces and tail, writes the rows of head and tail, and leaves the total in
the places of its pieces; the third kernel writes their rows. Which pieces exist depends on shapes alone, so nothing waits for the host.
Sums run in float32, or float64 for float64. Addresses are int64: rows × width passes 2³¹ in real batches.
"""

import triton
import triton.language as tl

from ..segment_reduce.triton_kernels import _segment_of

# a batch's size must not make Triton compile again
_SIZES = ["segments", "steps"]


@triton.jit
def _load(a_ptr, order_ptr, k, stop, f, F, MODE: tl.constexpr, ORDERED: tl.constexpr, ACC: tl.constexpr):
    """Where rows stand in memory at the positions k and columns f, which of them exist, and the entries of the first input."""
    in_range = k < stop  # the last tile of a segment is ragged
    row = tl.load(order_ptr + k, mask=in_range, other=0) if ORDERED else k
    exists = in_range[:, None] & (f < F)[None, :]  # the width tile is a power of two
    place = row[:, None] * F + f[None, :]
    return place, exists, tl.load(a_ptr + place, mask=exists, other=float("-inf") if MODE <= 1 else 0.0).to(ACC)


@triton.jit
def _join(p, q, other_p, other_q, MODE: tl.constexpr):
    """Put two pairs of sums together; for the softmax both sums of exponentials are taken to the larger maximum."""
    if MODE <= 1:
        top = tl.maximum(p, other_p)
        # where nothing finite was met yet, −∞ − 0 rather than −∞ − (−∞)
        base = tl.where(top == float("-inf"), 0.0, top)
        p, q = top, q * tl.exp(p - base) + other_q * tl.exp(other_p - base)
    else:
        p, q = p + other_p, q + other_q
    return p, q


@triton.jit
def _sum(
    p, q, a_ptr, b_ptr, c_ptr, order_ptr, start, stop, f, F, MODE: tl.constexpr, ORDERED: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """Add positions start … stop − 1; each lane has sums of its own, so that one reduction across lanes ends it all."""
    ACC: tl.constexpr = p.dtype
    for first in range(start, stop, BLOCK_E):
        place, exists, a = _load(a_ptr, order_ptr, first + tl.arange(0, BLOCK_E), stop, f, F, MODE, ORDERED, ACC)
        if MODE <= 1:
            p, q = _join(p, q, a, tl.where(exists, 1.0, 0.0).to(ACC), MODE)
        else:
            b = tl.load(b_ptr + place, mask=exists, other=0.0).to(ACC)
            p += b if MODE == 3 else a * b
            if MODE == 4:
                q += a * tl.load(c_ptr + place, mask=exists, other=0.0).to(ACC)
    return p, q


@triton.jit
def _sum_pieces(p, q, p_ptr, q_ptr, first, last, f, F, MODE: tl.constexpr, BLOCK_E: tl.constexpr):
    """Add the sums of the pieces first … last − 1."""
    for start in range(first, last, BLOCK_E):
        k = start + tl.arange(0, BLOCK_E)
        exists = (k < last)[:, None] & (f < F)[None, :]
        place = k[:, None] * F + f[None, :]
        other_p = tl.load(p_ptr + place, mask=exists, other=float("-inf") if MODE <= 1 else 0.0)
        p, q = _join(p, q, other_p, tl.load(q_ptr + place, mask=exists, other=0.0), MODE)
    return p, q


@triton.jit
def _across(p, q, in_width, MODE: tl.constexpr):
    """One pair of sums from those of the lanes; columns beyond the width get numbers that do no harm."""
    if MODE <= 1:
        top = tl.max(p, axis=0)
        base = tl.where(top == float("-inf"), 0.0, top)
        q = tl.where(in_width, tl.sum(tl.exp(p - base[None, :]) * q, axis=0), 1.0)
        p = tl.where(in_width, top, 0.0)
    else:
        p, q = tl.sum(p, axis=0), tl.sum(q, axis=0)
    return p, q


@triton.jit
def _write(
    p, q, a_ptr, b_ptr, c_ptr, order_ptr, y_ptr, z_ptr, start, stop, f, F,
    MODE: tl.constexpr, ORDERED: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """Rows at positions start … stop − 1 from the sums [BLOCK_F] of their segment."""
    ACC: tl.constexpr = p.dtype
    for first in range(start, stop, BLOCK_E):
        place, exists, a = _load(a_ptr, order_ptr, first + tl.arange(0, BLOCK_E), stop, f, F, MODE, ORDERED, ACC)
        if MODE == 0:
            tl.store(y_ptr + place, tl.exp(a - p[None, :]) / q[None, :], mask=exists)
        elif MODE == 1:
            tl.store(y_ptr + place, (a - p[None, :]) - tl.log(q)[None, :], mask=exists)
        else:
            b = tl.load(b_ptr + place, mask=exists, other=0.0).to(ACC)
            if MODE == 2:
                tl.store(y_ptr + place, a * (b - p[None, :]), mask=exists)
            elif MODE == 3:
                tl.store(y_ptr + place, b - tl.exp(a) * p[None, :], mask=exists)
            else:
                c = tl.load(c_ptr + place, mask=exists, other=0.0).to(ACC)
                tl.store(y_ptr + place, c * (b - p[None, :]) - b * q[None, :], mask=exists)
                tl.store(z_ptr + place, a * (c - q[None, :]), mask=exists)


@triton.jit
def _nothing(BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, MODE: tl.constexpr, ACC: tl.constexpr):
    """The sums of no rows, one pair a lane."""
    q = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    return q + float("-inf") if MODE <= 1 else q, q


@triton.jit(do_not_specialize=_SIZES)
def piece_sums_kernel(
    a_ptr, b_ptr, c_ptr, ptr_ptr, order_ptr, p_ptr, q_ptr, segments, steps, F, PIECE,
    MODE: tl.constexpr, ORDERED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Sums of each piece that one segment covers."""
    ACC: tl.constexpr = p_ptr.dtype.element_ty
    piece = tl.program_id(0).to(tl.int64)
    start = piece * PIECE
    segment = _segment_of(ptr_ptr, start, segments, steps)
    if tl.load(ptr_ptr + segment + 1) < start + PIECE:
        return
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    p, q = _nothing(BLOCK_E, BLOCK_F, MODE, ACC)
    p, q = _sum(p, q, a_ptr, b_ptr, c_ptr, order_ptr, start, start + PIECE, f, F, MODE, ORDERED, BLOCK_E)
    p, q = _across(p, q, f < F, MODE)
    tl.store(p_ptr + piece * F + f, p, mask=f < F)
    tl.store(q_ptr + piece * F + f, q, mask=f < F)


@triton.jit
def segment_kernel(
    a_ptr, b_ptr, c_ptr, ptr_ptr, order_ptr, p_ptr, q_ptr, y_ptr, z_ptr, F, PIECE,
    MODE: tl.constexpr, ORDERED: tl.constexpr, SPLIT: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """All rows of a segment that are not in a piece of their own."""
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    segment = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    start = tl.load(ptr_ptr + segment)
    stop = tl.load(ptr_ptr + segment + 1)
    p, q = _nothing(BLOCK_E, BLOCK_F, MODE, ACC)
    if SPLIT:
        first, last = (start + PIECE - 1) // PIECE, stop // PIECE
        whole = first < last
        head, tail = tl.where(whole, first * PIECE, stop), tl.where(whole, last * PIECE, stop)
        p, q = _sum(p, q, a_ptr, b_ptr, c_ptr, order_ptr, start, head, f, F, MODE, ORDERED, BLOCK_E)
        p, q = _sum_pieces(p, q, p_ptr, q_ptr, first, last, f, F, MODE, BLOCK_E)
        p, q = _sum(p, q, a_ptr, b_ptr, c_ptr, order_ptr, tail, stop, f, F, MODE, ORDERED, BLOCK_E)
        p, q = _across(p, q, f < F, MODE)
        # every program has read these places before it writes them: they are its own
        tl.debug_barrier()
        for piece in range(first, last):
            tl.store(p_ptr + piece * F + f, p, mask=f < F)
            tl.store(q_ptr + piece * F + f, q, mask=f < F)
        _write(p, q, a_ptr, b_ptr, c_ptr, order_ptr, y_ptr, z_ptr, start, head, f, F, MODE, ORDERED, BLOCK_E)
        _write(p, q, a_ptr, b_ptr, c_ptr, order_ptr, y_ptr, z_ptr, tail, stop, f, F, MODE, ORDERED, BLOCK_E)
    else:
        p, q = _sum(p, q, a_ptr, b_ptr, c_ptr, order_ptr, start, stop, f, F, MODE, ORDERED, BLOCK_E)
        p, q = _across(p, q, f < F, MODE)
        _write(p, q, a_ptr, b_ptr, c_ptr, order_ptr, y_ptr, z_ptr, start, stop, f, F, MODE, ORDERED, BLOCK_E)


@triton.jit(do_not_specialize=_SIZES)
def piece_rows_kernel(
    a_ptr, b_ptr, c_ptr, ptr_ptr, order_ptr, p_ptr, q_ptr, y_ptr, z_ptr, segments, steps, F, PIECE,
    MODE: tl.constexpr, ORDERED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """The rows of each piece that one segment covers, from the segment's sums."""
    piece = tl.program_id(0).to(tl.int64)
    start = piece * PIECE
    segment = _segment_of(ptr_ptr, start, segments, steps)
    if tl.load(ptr_ptr + segment + 1) < start + PIECE:
        return
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    p = tl.load(p_ptr + piece * F + f, mask=f < F, other=0.0)
    q = tl.load(q_ptr + piece * F + f, mask=f < F, other=1.0)
    _write(p, q, a_ptr, b_ptr, c_ptr, order_ptr, y_ptr, z_ptr, start, start + PIECE, f, F, MODE, ORDERED, BLOCK_E)
