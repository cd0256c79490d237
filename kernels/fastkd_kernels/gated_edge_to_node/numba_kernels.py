"""CPU kernels: the gated sum, a thread a node, and all of its gradients, a thread a part of the edges; both fixed by the sizes alone.

No BLAS: it sums in another order for another number of threads.
"""

import numba
import numpy as np
from numba import prange

from ..cpu import FASTMATH, Kernel

#: Edges that are summed in the input's precision for the weight's gradient, before they go to the sum in float64: keeps float32 to 1e-7.
FLUSH = 128


def _gated_sum(m, b, w_t, ptr, order, out):
    # Σ_e m ∘ (W b) = Σ_r w_r ∘ Σ_e b_r m: a row of the weight, and the result, are loaded once for eight edges
    rank = b.shape[1]
    for node in prange(out.shape[0]):
        row = out[node]
        row[:] = 0
        k, stop = ptr[node], ptr[node + 1]
        while k + 8 <= stop:
            e0, e1, e2, e3 = order[k], order[k + 1], order[k + 2], order[k + 3]
            e4, e5, e6, e7 = order[k + 4], order[k + 5], order[k + 6], order[k + 7]
            m0, m1, m2, m3, m4, m5, m6, m7 = m[e0], m[e1], m[e2], m[e3], m[e4], m[e5], m[e6], m[e7]
            for r in range(rank):
                w = w_t[r]
                b0, b1, b2, b3 = b[e0, r], b[e1, r], b[e2, r], b[e3, r]
                b4, b5, b6, b7 = b[e4, r], b[e5, r], b[e6, r], b[e7, r]
                for f in range(row.size):
                    row[f] += w[f] * (b0 * m0[f] + b1 * m1[f] + b2 * m2[f] + b3 * m3[f] + b4 * m4[f] + b5 * m5[f] + b6 * m6[f] + b7 * m7[f])
            k += 8
        if k + 4 <= stop:
            e0, e1, e2, e3 = order[k], order[k + 1], order[k + 2], order[k + 3]
            m0, m1, m2, m3 = m[e0], m[e1], m[e2], m[e3]
            for r in range(rank):
                w = w_t[r]
                b0, b1, b2, b3 = b[e0, r], b[e1, r], b[e2, r], b[e3, r]
                for f in range(row.size):
                    row[f] += w[f] * (b0 * m0[f] + b1 * m1[f] + b2 * m2[f] + b3 * m3[f])
            k += 4
        while k < stop:
            edge = order[k]
            source = m[edge]
            for r in range(rank):
                w, factor = w_t[r], b[edge, r]
                for f in range(row.size):
                    row[f] += factor * w[f] * source[f]
            k += 1


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _gate(b, w_t, row):
    """Into row: W b, eight basis functions at a time."""
    rank, r = b.size, 0
    row[:] = 0
    while r + 8 <= rank:
        b0, b1, b2, b3, b4, b5, b6, b7 = b[r], b[r + 1], b[r + 2], b[r + 3], b[r + 4], b[r + 5], b[r + 6], b[r + 7]
        w0, w1, w2, w3 = w_t[r], w_t[r + 1], w_t[r + 2], w_t[r + 3]
        w4, w5, w6, w7 = w_t[r + 4], w_t[r + 5], w_t[r + 6], w_t[r + 7]
        for f in range(row.size):
            row[f] += b0 * w0[f] + b1 * w1[f] + b2 * w2[f] + b3 * w3[f] + b4 * w4[f] + b5 * w5[f] + b6 * w6[f] + b7 * w7[f]
        r += 8
    while r < rank:
        factor, w = b[r], w_t[r]
        for f in range(row.size):
            row[f] += factor * w[f]
        r += 1


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _project(product, w_t, row):
    """Into row: Wᵀ product, four basis functions at a time."""
    rank, r, width = row.size, 0, product.size
    while r + 4 <= rank:
        w0, w1, w2, w3 = w_t[r], w_t[r + 1], w_t[r + 2], w_t[r + 3]
        # zeros of the inputs' own type, so that the sums vectorise at its width
        s0 = s1 = s2 = s3 = row.dtype.type(0)
        for f in range(width):
            value = product[f]
            s0 += value * w0[f]
            s1 += value * w1[f]
            s2 += value * w2[f]
            s3 += value * w3[f]
        row[r], row[r + 1], row[r + 2], row[r + 3] = s0, s1, s2, s3
        r += 4
    while r < rank:
        w = w_t[r]
        total = row.dtype.type(0)
        for f in range(width):
            total += product[f] * w[f]
        row[r] = total
        r += 1


@numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")
def _outer(p, b, k, count, total):
    """total[r] += Σ b_r p over ``count`` ≤ 8 edges from k on, whose products are the rows of p."""
    if count < 8:
        for i in range(count):
            product = p[i]
            for r in range(total.shape[0]):
                row, factor = total[r], b[k + i, r]
                for f in range(row.size):
                    row[f] += factor * product[f]
        return
    p0, p1, p2, p3, p4, p5, p6, p7 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
    for r in range(total.shape[0]):
        row = total[r]
        b0, b1, b2, b3 = b[k, r], b[k + 1, r], b[k + 2, r], b[k + 3, r]
        b4, b5, b6, b7 = b[k + 4, r], b[k + 5, r], b[k + 6, r], b[k + 7, r]
        for f in range(row.size):
            row[f] += b0 * p0[f] + b1 * p1[f] + b2 * p2[f] + b3 * p3[f] + b4 * p4[f] + b5 * p5[f] + b6 * p6[f] + b7 * p7[f]


def _gradients(g, m, b, w_t, dst, need_m, need_b, need_w, part_rows, by_m, by_b, parts):
    # a part of the edges is one thread's, and has a sum of its own for the weight: [parts, R, D] in float64
    edges, width = m.shape
    rank = b.shape[1]
    for part in prange(parts.shape[0]):
        products = np.empty((8, width), m.dtype)
        total = np.zeros((rank if need_w else 0, width), m.dtype)
        parts[part] = 0
        start, stop = part * part_rows, min(edges, (part + 1) * part_rows)
        for k in range(start, stop, 8):
            count = min(8, stop - k)
            for i in range(count):
                upstream = g[dst[k + i]]
                if need_m:
                    row = by_m[k + i]
                    _gate(b[k + i], w_t, row)
                    for f in range(width):
                        row[f] *= upstream[f]
                if need_b or need_w:
                    product, source = products[i], m[k + i]
                    for f in range(width):
                        product[f] = source[f] * upstream[f]
                    if need_b:
                        _project(product, w_t, by_b[k + i])
            if need_w:
                _outer(products, b, k, count, total)
                if (k + 8 - start) % FLUSH == 0 or k + 8 >= stop:
                    parts[part] += total
                    total[:] = 0


gated_sum = Kernel(_gated_sum)
gradients = Kernel(_gradients)
