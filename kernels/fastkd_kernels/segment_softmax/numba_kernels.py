"""CPU kernels: one thread owns a segment. Rows are [n, F]; ``order`` is empty where segments are contiguous.

Sums over a segment stand in ``s`` and ``t``, [m, F] float64, so that a segment of a million rows keeps its digits. The ``column``
kernels are for one column, where the lanes of a vector unit run along the rows instead.
"""

import numpy as np
from numba import prange

from ..cpu import Kernel
from ..cpu_math import exp


def _softmax(x, ptr, order, log, top, total, out):  # noqa: PLR0912 - one pass a loop
    width, ordered = x.shape[1], order.size > 0
    for segment in prange(ptr.size - 1):
        start, stop = ptr[segment], ptr[segment + 1]
        high, s = top[segment], total[segment]
        high[:] = -np.inf
        s[:] = 0
        for k in range(start, stop):
            source = x[order[k] if ordered else k]
            for f in range(width):
                # NaN loses here, and comes back through the exponential
                high[f] = source[f] if source[f] > high[f] else high[f]  # noqa: FURB136
        for k in range(start, stop):
            number = order[k] if ordered else k
            source, row = x[number], out[number]
            for f in range(width):
                row[f] = exp(source[f] - high[f])
            for f in range(width):
                s[f] += row[f]
        if log:
            for f in range(width):
                s[f] = np.log(s[f])
            for k in range(start, stop):
                number = order[k] if ordered else k
                source, row = x[number], out[number]
                for f in range(width):
                    row[f] = (source[f] - high[f]) - s[f]
        else:
            for f in range(width):
                s[f] = 1 / s[f]
            for k in range(start, stop):
                row = out[order[k] if ordered else k]
                for f in range(width):
                    row[f] *= s[f]


def _column_softmax(x, ptr, order, log, out):
    ordered = order.size > 0
    for segment in prange(ptr.size - 1):
        start, stop = ptr[segment], ptr[segment + 1]
        high = x.dtype.type(-np.inf)
        for k in range(start, stop):
            value = x[order[k] if ordered else k]
            high = value if value > high else high  # noqa: FURB136
        s = 0.0
        for k in range(start, stop):
            number = order[k] if ordered else k
            out[number] = exp(x[number] - high)
        for k in range(start, stop):
            s += out[order[k] if ordered else k]
        if log:
            # in float64, which also keeps the compiler from adding it to the maximum first
            shift = np.log(s)
            for k in range(start, stop):
                number = order[k] if ordered else k
                out[number] = (x[number] - high) - shift
        else:
            scale = x.dtype.type(1 / s)
            for k in range(start, stop):
                out[order[k] if ordered else k] *= scale


def _softmax_backward(y, g, ptr, order, log, s, out):
    width, ordered = y.shape[1], order.size > 0
    for segment in prange(ptr.size - 1):
        start, stop = ptr[segment], ptr[segment + 1]
        total = s[segment]
        total[:] = 0
        for k in range(start, stop):
            number = order[k] if ordered else k
            here, slope = y[number], g[number]
            if log:
                for f in range(width):
                    total[f] += slope[f]
            else:
                for f in range(width):
                    total[f] += here[f] * slope[f]
        for k in range(start, stop):
            number = order[k] if ordered else k
            here, slope, row = y[number], g[number], out[number]
            if log:
                for f in range(width):
                    row[f] = slope[f] - exp(here[f]) * total[f]
            else:
                for f in range(width):
                    row[f] = here[f] * (slope[f] - total[f])


def _column_softmax_backward(y, g, ptr, order, log, out):
    ordered = order.size > 0
    for segment in prange(ptr.size - 1):
        start, stop = ptr[segment], ptr[segment + 1]
        total = 0.0
        for k in range(start, stop):
            number = order[k] if ordered else k
            total += g[number] if log else y[number] * g[number]
        s = y.dtype.type(total)
        for k in range(start, stop):
            number = order[k] if ordered else k
            out[number] = g[number] - exp(y[number]) * s if log else y[number] * (g[number] - s)


def _softmax_double_backward(y, g, h, ptr, order, s, t, by_y, by_g):
    width, ordered = y.shape[1], order.size > 0
    for segment in prange(ptr.size - 1):
        start, stop = ptr[segment], ptr[segment + 1]
        with_g, with_h = s[segment], t[segment]
        with_g[:] = 0
        with_h[:] = 0
        for k in range(start, stop):
            number = order[k] if ordered else k
            here, slope, tangent = y[number], g[number], h[number]
            for f in range(width):
                with_g[f] += here[f] * slope[f]
                with_h[f] += here[f] * tangent[f]
        for k in range(start, stop):
            number = order[k] if ordered else k
            here, slope, tangent, row, more = y[number], g[number], h[number], by_y[number], by_g[number]
            for f in range(width):
                row[f] = tangent[f] * (slope[f] - with_g[f]) - slope[f] * with_h[f]
                more[f] = here[f] * (tangent[f] - with_h[f])


softmax = Kernel(_softmax)
column_softmax = Kernel(_column_softmax)
softmax_backward = Kernel(_softmax_backward)
column_softmax_backward = Kernel(_column_softmax_backward)
softmax_double_backward = Kernel(_softmax_double_backward)
