"""CPU kernels: for each unit the eight rows of the table are mixed into one filter, which serves both directions of a pair at once.

Units are worked on in their order; runs of units without a common node (`group_ptr`) may run side by side, each node's sum still being
made in the order of the units. Loops over features write one array each, which the compiler can prove not to overlap with what it
reads, and so vectorises. A filter is mixed once into a small scratch row that stays in the first cache.
"""

import numba
import numpy as np
from numba import prange

from ..cpu import FASTMATH, Kernel

_inline = numba.njit(fastmath=FASTMATH, error_model="numpy", inline="always")


@_inline
def mix(table, knot, b, out):
    """Out = Σ_r b[r] table[knot + r]."""
    b0, b1, b2, b3, b4, b5, b6, b7 = b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]
    r0, r1, r2, r3 = table[knot], table[knot + 1], table[knot + 2], table[knot + 3]
    r4, r5, r6, r7 = table[knot + 4], table[knot + 5], table[knot + 6], table[knot + 7]
    for f in range(out.size):
        out[f] = b0 * r0[f] + b1 * r1[f] + b2 * r2[f] + b3 * r3[f] + b4 * r4[f] + b5 * r5[f] + b6 * r6[f] + b7 * r7[f]


@_inline
def add_rows(table, knot, b, p):
    """table[knot + r] += b[r] p."""
    for r in range(8):
        row, weight = table[knot + r], b[r]
        for f in range(p.size):
            row[f] += weight * p[f]


@_inline
def add_rows_both(table, knot, b, p, b1, p1):
    """table[knot + r] += b[r] p + b1[r] p1."""
    for r in range(8):
        row, weight, weight1 = table[knot + r], b[r], b1[r]
        for f in range(p.size):
            row[f] += weight * p[f] + weight1 * p1[f]


@_inline
def add_product(out, a, b):
    """Out += a ∘ b."""
    for f in range(out.size):
        out[f] += a[f] * b[f]


@_inline
def add_two_products(out, a, b, c, d):
    """Out += a ∘ b + c ∘ d."""
    for f in range(out.size):
        out[f] += a[f] * b[f] + c[f] * d[f]


@_inline
def products(out, a, b, c, d):
    """Out = a ∘ b + c ∘ d."""
    for f in range(out.size):
        out[f] = a[f] * b[f] + c[f] * d[f]


@_inline
def product(out, a, b):
    """Out = a ∘ b."""
    for f in range(out.size):
        out[f] = a[f] * b[f]


def _place(length, inverse, last, polynomials, knot, fraction, weights):
    for u in prange(length.size):
        position = length[u] * inverse
        if position >= last:
            knot[u], fraction[u] = -1, 0
            for r in range(16):
                weights[u, r] = 0
            continue
        below = max(int(position), 0)
        t = position - below
        knot[u], fraction[u] = below, t
        for q in range(2):
            scale = 1.0 if q == 0 else inverse
            for r in range(8):
                value = 0.0
                for power in range(7, -1, -1):
                    value = value * t + polynomials[q, r, power]
                weights[u, 8 * q + r] = scale * value


def _groups(dst, src, group_ptr, reach):
    # a run may end before unit u if no node below u's smallest has been reached by later units: reach[u] is the smallest node from u on
    units, groups = dst.size, group_ptr.size - 1
    smallest = np.iinfo(np.int64).max
    for u in range(units - 1, -1, -1):
        smallest = min(smallest, dst[u], src[u])
        reach[u] = smallest
    group_ptr[0] = 0
    group, largest = 1, -1
    for u in range(units):
        if group < groups and u * groups >= group * units and reach[u] > largest:
            group_ptr[group] = u
            group += 1
        largest = max(largest, dst[u], src[u])
    for rest in range(group, groups + 1):
        group_ptr[rest] = units


def _weights(knot, fraction, polynomials, scale, weights):
    for u in prange(knot.size):
        for r in range(8):
            value = 0.0
            for power in range(7, -1, -1):
                value = value * fraction[u] + polynomials[r, power]
            weights[u, r] = scale * value if knot[u] >= 0 else 0.0


def _conv(c, x, table, dst, src, knot, weights, group_ptr, paired, scaled, out):
    for group in prange(group_ptr.size - 1):
        w = np.empty(x.shape[1], x.dtype)
        b = np.empty(8, x.dtype)
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            i, j = dst[u], src[u]
            factor = c[u] if scaled else x.dtype.type(1)
            for r in range(8):
                b[r] = factor * weights[u, r]
            mix(table, knot[u], b, w)
            add_product(out[i], w, x[j])
            if paired:
                add_product(out[j], w, x[i])


def _dot(x, g, table, dst, src, knot, weights, paired, out):
    for u in prange(dst.size):
        total = x.dtype.type(0)
        if knot[u] >= 0:
            w = np.empty(x.shape[1], x.dtype)
            mix(table, knot[u], weights[u], w)
            xi, xj, gi, gj = x[dst[u]], x[src[u]], g[dst[u]], g[src[u]]
            if paired:
                for f in range(w.size):
                    total += w[f] * (xj[f] * gi[f] + xi[f] * gj[f])
            else:
                for f in range(w.size):
                    total += w[f] * xj[f] * gi[f]
        out[u] = total


def _knots(c, x, g, dst, src, knot, weights, group_ptr, paired, scaled, partial):
    for group in prange(group_ptr.size - 1):
        p = np.empty(x.shape[1], x.dtype)
        b = np.empty(8, x.dtype)
        rows = partial[group]
        rows[:] = 0
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            i, j = dst[u], src[u]
            factor = c[u] if scaled else x.dtype.type(1)
            for r in range(8):
                b[r] = factor * weights[u, r]
            if paired:
                products(p, x[j], g[i], x[i], g[j])
            else:
                product(p, x[j], g[i])
            add_rows(rows, knot[u], b, p)


def _backward_length(x, g, table, dst, src, knot, weights, group_ptr, paired, grad_x, grad_length):
    for group in prange(group_ptr.size - 1):
        w = np.empty(x.shape[1], x.dtype)
        slope = np.empty(x.shape[1], x.dtype)
        for u in range(group_ptr[group], group_ptr[group + 1]):
            total = x.dtype.type(0)
            if knot[u] >= 0:
                i, j = dst[u], src[u]
                mix(table, knot[u], weights[u], w)
                mix(table, knot[u], weights[u, 8:], slope)
                xi, xj, gi, gj = x[i], x[j], g[i], g[j]
                add_product(grad_x[j], w, gi)
                if paired:
                    add_product(grad_x[i], w, gj)
                    for f in range(w.size):
                        total += slope[f] * (xj[f] * gi[f] + xi[f] * gj[f])
                else:
                    for f in range(w.size):
                        total += slope[f] * xj[f] * gi[f]
            grad_length[u] = total


def _backward_table(x, g, table, dst, src, knot, weights, group_ptr, paired, grad_x, partial):
    for group in prange(group_ptr.size - 1):
        w = np.empty(x.shape[1], x.dtype)
        rows = partial[group]
        rows[:] = 0
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            i, j = dst[u], src[u]
            mix(table, knot[u], weights[u], w)
            xi, xj, gi, gj = x[i], x[j], g[i], g[j]
            add_product(grad_x[j], w, gi)
            if paired:
                add_product(grad_x[i], w, gj)
                products(w, xj, gi, xi, gj)
            else:
                product(w, xj, gi)
            add_rows(rows, knot[u], weights[u], w)


def _double_backward(x, g, tangent, rate, table, dst, src, knot, weights, group_ptr, paired, grad_x, grad_g, partial):
    # tangent and rate are the cotangents of the gradients by x and by the length
    for group in prange(group_ptr.size - 1):
        w = np.empty(x.shape[1], x.dtype)
        slope = np.empty(x.shape[1], x.dtype)
        b = np.empty(8, x.dtype)
        rows = partial[group]
        rows[:] = 0
        for u in range(group_ptr[group], group_ptr[group + 1]):
            if knot[u] < 0:
                continue
            i, j = dst[u], src[u]
            for r in range(8):
                b[r] = rate[u] * weights[u, 8 + r]
            mix(table, knot[u], weights[u], w)
            mix(table, knot[u], b, slope)
            xi, xj, gi, gj, vi, vj = x[i], x[j], g[i], g[j], tangent[i], tangent[j]
            add_two_products(grad_g[i], w, vj, slope, xj)
            add_product(grad_x[j], slope, gi)
            if paired:
                add_two_products(grad_g[j], w, vi, slope, xi)
                add_product(grad_x[i], slope, gj)
                products(w, vj, gi, vi, gj)
                products(slope, xj, gi, xi, gj)
            else:
                product(w, vj, gi)
                product(slope, xj, gi)
            add_rows_both(rows, knot[u], weights[u], w, b, slope)


place = Kernel(_place)
groups = Kernel(_groups)
weights_of_order = Kernel(_weights)
conv = Kernel(_conv)
dot = Kernel(_dot)
knots = Kernel(_knots)
backward_length = Kernel(_backward_length)
backward_table = Kernel(_backward_table)
double_backward = Kernel(_double_backward)
