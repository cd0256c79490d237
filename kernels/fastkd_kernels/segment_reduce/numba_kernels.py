"""CPU kernels: one thread owns a segment, so a sum has one order. Rows are [n, F]; ``order`` is empty where segments are contiguous.

Long segments are summed in blocks of ``BLOCK`` rows, so that rounding grows with the number of blocks and not of rows.
"""

import numpy as np
from numba import njit, prange

from ..cpu import Kernel

BLOCK = 512


@njit(cache=True)
def rises(ptr, rows):
    """Whether ptr goes from 0 to rows without a step down."""
    for s in range(ptr.size - 1):
        if ptr[s] > ptr[s + 1]:
            return False
    return ptr[0] == 0 and ptr[-1] == rows


def _segment_sum(values, ptr, order, mean, out):
    width, ordered = out.shape[1], order.size > 0
    for s in prange(out.shape[0]):
        start, stop = ptr[s], ptr[s + 1]
        row = out[s]
        row[:] = 0
        # a short segment is its own only block
        partial = np.empty_like(row) if stop - start > BLOCK else row
        for block in range(start, stop, BLOCK):
            partial[:] = 0
            for k in range(block, min(block + BLOCK, stop)):
                source = values[order[k] if ordered else k]
                for f in range(width):
                    partial[f] += source[f]
            if stop - start > BLOCK:
                for f in range(width):
                    row[f] += partial[f]
        if mean and stop > start:
            scale = 1.0 / (stop - start)
            for f in range(width):
                row[f] *= scale


def _segment_sum_streamed(values, index, first, out):
    """The sums of segments of at most ``BLOCK`` rows, reading the rows as they lie; see `cpu.streams`."""
    width = out.shape[1]
    for run in prange(first.size - 1):
        low, high = first[run], first[run + 1]
        out[low:high] = 0
        for k in range(index.size):
            s = index[k]
            if low <= s < high:
                row, source = out[s], values[k]
                for f in range(width):
                    row[f] += source[f]


def _column_sum(values, ptr, order, mean, out):
    # one column, [n] → [m]: the lanes of a vector unit run along the rows, and a float64 accumulator costs nothing
    ordered = order.size > 0
    for s in prange(out.shape[0]):
        start, stop = ptr[s], ptr[s + 1]
        total = 0.0
        if ordered:
            for k in range(start, stop):
                total += values[order[k]]
        else:
            for k in range(start, stop):
                total += values[k]
        out[s] = total / (stop - start) if mean and stop > start else total


def _segment_gather(rows, ptr, order, mean, out):
    width, ordered = rows.shape[1], order.size > 0
    for s in prange(rows.shape[0]):
        start, stop = ptr[s], ptr[s + 1]
        source = rows[s]
        scale = 1.0 / (stop - start) if mean and stop > start else 1.0
        for k in range(start, stop):
            row = out[order[k] if ordered else k]
            if mean:
                for f in range(width):
                    row[f] = source[f] * scale
            else:
                for f in range(width):
                    row[f] = source[f]


def _segment_gather_streamed(rows, index, out):
    width = out.shape[1]
    for k in prange(index.size):
        row, source = out[k], rows[index[k]]
        for f in range(width):
            row[f] = source[f]


def _segment_extremum(values, ptr, order, largest, out, arg):
    width, ordered = out.shape[1], order.size > 0
    for s in prange(out.shape[0]):
        start, stop = ptr[s], ptr[s + 1]
        best, where = out[s], arg[s]
        best[:] = 0
        where[:] = -1
        for k in range(start, stop):
            source_row = order[k] if ordered else k
            source = values[source_row]
            for f in range(width):
                value = source[f]
                # a NaN wins over every number, and nothing wins over the first NaN
                beats = value > best[f] if largest else value < best[f]
                if k == start or (not np.isnan(best[f]) and (beats or np.isnan(value))):
                    best[f] = value
                    where[f] = source_row


def _arg_gather(values, arg, out):
    for s in prange(out.shape[0]):
        for f in range(out.shape[1]):
            source_row = arg[s, f]
            out[s, f] = values[source_row, f] if source_row >= 0 else 0


def _arg_scatter(grad, arg, out):
    # each row belongs to one segment, so no two threads write to one place
    for s in prange(grad.shape[0]):
        for f in range(grad.shape[1]):
            target_row = arg[s, f]
            if target_row >= 0:
                out[target_row, f] = grad[s, f]


segment_sum = Kernel(_segment_sum)
column_sum = Kernel(_column_sum)
segment_sum_streamed = Kernel(_segment_sum_streamed)
segment_gather = Kernel(_segment_gather)
segment_gather_streamed = Kernel(_segment_gather_streamed)
segment_extremum = Kernel(_segment_extremum)
arg_gather = Kernel(_arg_gather)
arg_scatter = Kernel(_arg_scatter)
