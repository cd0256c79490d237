"""CPU kernels: one thread owns a run of edges; filters live in the nearest cache, one at a time.

Names as in ``op.py``: x [E, D], r [E, S, B], w [B, D], a [T, S], g [E_out, D].
"""

from __future__ import annotations

import numba
import numpy as np
from numba import prange

from ..cpu import FASTMATH, Kernel

_inline = numba.njit(fastmath=FASTMATH, error_model="numpy")


@_inline
def _product(r, w, out):
    """Put r [S, B] · w [B, D] into out [S, D]."""
    size, width = w.shape
    for s in range(out.shape[0]):
        row = out[s]
        row[:] = 0
        b = 0
        while b + 4 <= size:
            r0, r1, r2, r3 = r[s, b], r[s, b + 1], r[s, b + 2], r[s, b + 3]
            w0, w1, w2, w3 = w[b], w[b + 1], w[b + 2], w[b + 3]
            for f in range(width):
                row[f] += r0 * w0[f] + r1 * w1[f] + r2 * w2[f] + r3 * w3[f]
            b += 4
        while b < size:
            factor, source = r[s, b], w[b]
            for f in range(width):
                row[f] += factor * source[f]
            b += 1


@_inline
def _spread(g, a, edge_out, order, start, stop, out):
    """Put Σ a ⊗ g over an edge's triplets into out [S, D], four triplets at a time."""
    count, width = out.shape
    out[:] = 0
    k = start
    while k + 4 <= stop:
        t0, t1, t2, t3 = order[k], order[k + 1], order[k + 2], order[k + 3]
        g0, g1, g2, g3 = g[edge_out[t0]], g[edge_out[t1]], g[edge_out[t2]], g[edge_out[t3]]
        for s in range(count):
            row = out[s]
            a0, a1, a2, a3 = a[t0, s], a[t1, s], a[t2, s], a[t3, s]
            for f in range(width):
                row[f] += a0 * g0[f] + a1 * g1[f] + a2 * g2[f] + a3 * g3[f]
        k += 4
    while k < stop:
        triplet = order[k]
        source = g[edge_out[triplet]]
        for s in range(count):
            row, factor = out[s], a[triplet, s]
            for f in range(width):
                row[f] += factor * source[f]
        k += 1


@_inline
def _dots(rows, g, edge_out, order, start, stop, by_a):
    """Put rows[s] · g_out(t) into by_a [t, s] for an edge's triplets."""
    count, width = rows.shape
    for k in range(start, stop):
        triplet = order[k]
        source = g[edge_out[triplet]]
        for s in range(count):
            row = rows[s]
            total = by_a.dtype.type(0)
            for f in range(width):
                total += row[f] * source[f]
            by_a[triplet, s] = total


@_inline
def _back(rows, w, out):
    """Put rows [S, D] · wᵀ into out [S, B]."""
    size, width = w.shape
    for s in range(rows.shape[0]):
        row = rows[s]
        for b in range(size):
            source = w[b]
            total = out.dtype.type(0)
            for f in range(width):
                total += row[f] * source[f]
            out[s, b] = total


@_inline
def _outer(r, rows, out):
    """Add rᵀ [B, S] · rows [S, D] to out [B, D]."""
    count, width = rows.shape
    for b in range(out.shape[0]):
        row = out[b]
        s = 0
        while s + 4 <= count:
            r0, r1, r2, r3 = r[s, b], r[s + 1, b], r[s + 2, b], r[s + 3, b]
            w0, w1, w2, w3 = rows[s], rows[s + 1], rows[s + 2], rows[s + 3]
            for f in range(width):
                row[f] += r0 * w0[f] + r1 * w1[f] + r2 * w2[f] + r3 * w3[f]
            s += 4
        while s < count:
            factor, source = r[s, b], rows[s]
            for f in range(width):
                row[f] += factor * source[f]
            s += 1


@_inline
def _mixed(a, r, out):
    """Add a [S] · r [S, B] to out [B]."""
    for s in range(a.size):
        factor, row = a[s], r[s]
        for b in range(out.size):
            out[b] += factor * row[b]


@_inline
def _filtered(c, w, source, filters, row):
    """Add (c [B] · w [B, D]) ∘ source to row [D]."""
    size, width = w.shape
    filters[:] = 0
    b = 0
    while b + 4 <= size:
        c0, c1, c2, c3 = c[b], c[b + 1], c[b + 2], c[b + 3]
        w0, w1, w2, w3 = w[b], w[b + 1], w[b + 2], w[b + 3]
        for f in range(width):
            filters[f] += c0 * w0[f] + c1 * w1[f] + c2 * w2[f] + c3 * w3[f]
        b += 4
    while b < size:
        factor, line = c[b], w[b]
        for f in range(width):
            filters[f] += factor * line[f]
        b += 1
    for f in range(width):
        row[f] += filters[f] * source[f]


@_inline
def _contracted(left, right, row):
    """Add Σ_s left ∘ right, both [S, D], to row [D]."""
    for s in range(left.shape[0]):
        one, other = left[s], right[s]
        for f in range(row.size):
            row[f] += one[f] * other[f]


@_inline
def _scaled(rows, factor, out):
    """Put rows [S, D] ∘ factor [D] into out."""
    for s in range(rows.shape[0]):
        source, result = rows[s], out[s]
        for f in range(factor.size):
            result[f] = source[f] * factor[f]


@_inline
def _added(rows, factor, out):
    """Add rows [S, D] ∘ factor [D] to out."""
    for s in range(rows.shape[0]):
        source, result = rows[s], out[s]
        for f in range(factor.size):
            result[f] += source[f] * factor[f]


def _sum(x, r, w, a, edge_in, ptr, order, each, out):
    edges = out.shape[0]
    for part in prange((edges + each - 1) // each):
        c, filters = np.empty(w.shape[0], x.dtype), np.empty(w.shape[1], x.dtype)
        for edge in range(part * each, min((part + 1) * each, edges)):
            row = out[edge]
            row[:] = 0
            for k in range(ptr[edge], ptr[edge + 1]):
                triplet = order[k]
                sender = edge_in[triplet]
                c[:] = 0
                _mixed(a[triplet], r[sender], c)
                _filtered(c, w, x[sender], filters, row)


def _change(hx, hr, ha, x, r, w, a, edge_in, ptr, order, each, along, out):
    # the sum's change by hx, hr and ha
    edges = out.shape[0]
    for part in prange((edges + each - 1) // each):
        c, filters = np.empty(w.shape[0], x.dtype), np.empty(w.shape[1], x.dtype)
        for edge in range(part * each, min((part + 1) * each, edges)):
            row = out[edge]
            row[:] = 0
            for k in range(ptr[edge], ptr[edge + 1]):
                triplet = order[k]
                sender = edge_in[triplet]
                c[:] = 0
                _mixed(a[triplet], r[sender], c)
                _filtered(c, w, hx[sender], filters, row)
                c[:] = 0
                _mixed(a[triplet], hr[sender], c)
                if along:
                    _mixed(ha[triplet], r[sender], c)
                _filtered(c, w, x[sender], filters, row)


def _gradients(g, x, r, w, a, edge_out, ptr, order, each, need_w, need_a, by_x, by_r, parts, by_a):
    edges, count, width = x.shape[0], a.shape[1], x.shape[1]
    for part in prange(parts.shape[0]):
        filters, onto = np.empty((count, width), x.dtype), np.empty((count, width), x.dtype)
        share = parts[part]
        share[:] = 0
        for edge in range(part * each, min((part + 1) * each, edges)):
            source, result, start, stop = x[edge], by_x[edge], ptr[edge], ptr[edge + 1]
            result[:] = 0
            if start == stop:
                by_r[edge] = 0
                continue
            _product(r[edge], w, filters)
            _spread(g, a, edge_out, order, start, stop, onto)
            _contracted(filters, onto, result)
            _scaled(onto, source, onto)
            _scaled(filters, source, filters)
            _back(onto, w, by_r[edge])
            if need_w:
                _outer(r[edge], onto, share)
            if need_a:
                _dots(filters, g, edge_out, order, start, stop, by_a)


def _second(hx, hr, ha, g, x, r, w, a, edge_out, ptr, order, each, along, need_w, need_a, by_x, by_r, parts, by_a):
    edges, count, width = x.shape[0], a.shape[1], x.shape[1]
    for part in prange(parts.shape[0]):
        onto, turned = np.empty((count, width), x.dtype), np.empty((count, width), x.dtype)
        filters, change = np.empty((count, width), x.dtype), np.empty((count, width), x.dtype)
        moved = np.empty((count, width), x.dtype)
        share = parts[part]
        share[:] = 0
        for edge in range(part * each, min((part + 1) * each, edges)):
            source, along_x, result, start, stop = x[edge], hx[edge], by_x[edge], ptr[edge], ptr[edge + 1]
            result[:] = 0
            if start == stop:
                by_r[edge] = 0
                continue
            _product(r[edge], w, filters)
            _product(hr[edge], w, change)
            _spread(g, a, edge_out, order, start, stop, onto)
            _contracted(change, onto, result)
            if need_a:
                _scaled(filters, along_x, moved)
                _added(change, source, moved)
                _dots(moved, g, edge_out, order, start, stop, by_a)
            turned[:] = 0
            if along:
                _spread(g, ha, edge_out, order, start, stop, turned)
                _contracted(filters, turned, result)
                _scaled(turned, source, turned)
            _added(onto, along_x, turned)
            _scaled(onto, source, onto)
            _back(turned, w, by_r[edge])
            if need_w:
                _outer(r[edge], turned, share)
                _outer(hr[edge], onto, share)


sum_onto = Kernel(_sum)
change_onto = Kernel(_change)
gradients = Kernel(_gradients)
second = Kernel(_second)
