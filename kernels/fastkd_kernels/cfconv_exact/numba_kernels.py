"""CPU kernels on one tile of units: everything that is not a matrix product. BLAS makes the products between them.

Rows of a tile are stacked by order of derivative: [m, t, ·], m = 0 for values, 1 for slopes in the distance, 2 for curvatures.
``kind`` is a position in `radial_specs.ACTIVATIONS`. Kernels that write rows give each row to one thread; kernels that add onto
nodes give each thread ``block`` features of all nodes, and walk through the units in order. Neither depends on the number of threads.
"""

import numba

from ..cpu import Kernel
from .numba_math import shifted_softplus, silu, tanh

_OPTIONS = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}


def _rows_of(act):
    """The two loops over one row of the hidden layer, for one activation: a branch inside would keep them from being vectorised."""

    @numba.njit(**_OPTIONS)
    def value(z, bias, c, out):
        for h in range(out.size):
            out[h] = act(z[h] + bias[h])[0] * c

    @numba.njit(**_OPTIONS)
    def slope(z, dz, bias, c, dc, out, d_out):
        for h in range(out.size):
            a, a1, _ = act(z[h] + bias[h])
            out[h] = a * c
            d_out[h] = a1 * dz[h] * c + a * dc

    @numba.njit(**_OPTIONS)
    def curve(z, dz, ddz, bias, c, dc, ddc, out):
        two = type(c)(2.0)
        for h in range(out.size):
            a, a1, a2 = act(z[h] + bias[h])
            out[h] = (a2 * dz[h] * dz[h] + a1 * ddz[h]) * c + two * a1 * dz[h] * dc + a * ddc

    @numba.njit(**_OPTIONS)
    def value_back(z, bias, c, g):
        for h in range(g.size):
            g[h] = g[h] * act(z[h] + bias[h])[1] * c

    @numba.njit(**_OPTIONS)
    def slope_back(z, dz, bias, c, dc, g, dg):
        for h in range(g.size):
            _, a1, a2 = act(z[h] + bias[h])
            s = dg[h]
            dg[h] = s * a1 * c
            g[h] = g[h] * a1 * c + s * (a2 * dz[h] * c + a1 * dc)

    @numba.njit(**_OPTIONS)
    def row(t, z, bias, cut, out):
        if z.shape[0] > 2:
            curve(z[0, t], z[1, t], z[2, t], bias, cut[0, t], cut[1, t], cut[2, t], out[2, t])
        if z.shape[0] > 1:
            slope(z[0, t], z[1, t], bias, cut[0, t], cut[1, t], out[0, t], out[1, t])
        else:
            value(z[0, t], bias, cut[0, t], out[0, t])

    @numba.njit(**_OPTIONS)
    def row_back(t, z, bias, cut, g):
        if g.shape[0] > 1:
            slope_back(z[0, t], z[1, t], bias, cut[0, t], cut[1, t], g[0, t], g[1, t])
        else:
            value_back(z[0, t], bias, cut[0, t], g[0, t])

    return row, row_back


_softplus_row, _softplus_back = _rows_of(shifted_softplus)
_silu_row, _silu_back = _rows_of(silu)
_tanh_row, _tanh_back = _rows_of(tanh)


def hidden(z, bias, cut, kind, out):
    """out[m] = (act(z) C)⁽ᵐ⁾ from z[m] = φ⁽ᵐ⁾ w1ᵀ; the bias is added here."""
    for t in numba.prange(z.shape[1]):
        if kind == 0:
            _softplus_row(t, z, bias, cut, out)
        elif kind == 1:
            _silu_row(t, z, bias, cut, out)
        else:
            _tanh_row(t, z, bias, cut, out)


def hidden_back(z, bias, cut, kind, g):
    """In place: cotangents of `hidden`'s rows become those of z, for values alone or values and slopes (as many rows as ``g`` has)."""
    for t in numba.prange(g.shape[1]):
        if kind == 0:
            _softplus_back(t, z, bias, cut, g)
        elif kind == 1:
            _silu_back(t, z, bias, cut, g)
        else:
            _tanh_back(t, z, bias, cut, g)


def with_bias(rows, cut, bias):
    """In place: rows[m, t] += cut[m, t] · bias."""
    for t in numba.prange(rows.shape[1]):
        for m in range(rows.shape[0]):
            c, row = cut[m, t], rows[m, t]
            for f in range(row.size):
                row[f] += c * bias[f]


def spread(weight, i, j, symmetric, x, out, block):
    """out[i] += weight ∘ x[j], and for pairs out[j] += weight ∘ x[i]."""
    for part in numba.prange((out.shape[1] + block - 1) // block):
        low = part * block
        high = min(low + block, out.shape[1])
        for t in range(i.size):
            w, one, two = weight[t, low:high], i[t], j[t]
            target, source = out[one, low:high], x[two, low:high]
            for f in range(w.size):
                target[f] += w[f] * source[f]
            if symmetric:
                target, source = out[two, low:high], x[one, low:high]
                for f in range(w.size):
                    target[f] += w[f] * source[f]


def spread_double(weight, u, tangent, i, j, symmetric, g, x, v, grad_x, grad_g, block):
    """grad_x[j] += u weight′ ∘ g[i] and grad_g[i] += u weight′ ∘ x[j] + weight ∘ v[j], and for pairs with i and j exchanged.

    ``weight`` [m, t, F] holds values and slopes; values and v are looked at only if there is a ``tangent``.
    """
    for part in numba.prange((g.shape[1] + block - 1) // block):
        low = part * block
        high = min(low + block, g.shape[1])
        for t in range(i.size):
            w, s, factor = weight[0, t, low:high], weight[1, t, low:high], u[t]
            for turn in range(2 if symmetric else 1):
                one, two = (j[t], i[t]) if turn else (i[t], j[t])
                target, source = grad_x[two, low:high], g[one, low:high]
                for f in range(s.size):
                    target[f] += factor * s[f] * source[f]
                target, source, change = grad_g[one, low:high], x[two, low:high], v[two, low:high]
                if tangent:
                    for f in range(s.size):
                        target[f] += factor * s[f] * source[f] + w[f] * change[f]
                else:
                    for f in range(s.size):
                        target[f] += factor * s[f] * source[f]


def products(i, j, symmetric, g, x, out):
    """out[t] = g[i] ∘ x[j], and for pairs + g[j] ∘ x[i]."""
    for t in numba.prange(i.size):
        row, g_i, x_j = out[t], g[i[t]], x[j[t]]
        if symmetric:
            g_j, x_i = g[j[t]], x[i[t]]
            for f in range(row.size):
                row[f] = g_i[f] * x_j[f] + g_j[f] * x_i[f]
        else:
            for f in range(row.size):
                row[f] = g_i[f] * x_j[f]


def slope_dots(slope, i, j, symmetric, g, x, out):
    """out[t] = Σ slope ∘ q without q in memory."""
    for t in numba.prange(i.size):
        s, g_i, x_j = slope[t], g[i[t]], x[j[t]]
        total = out.dtype.type(0)
        if symmetric:
            g_j, x_i = g[j[t]], x[i[t]]
            for f in range(s.size):
                total += s[f] * (g_i[f] * x_j[f] + g_j[f] * x_i[f])
        else:
            for f in range(s.size):
                total += s[f] * (g_i[f] * x_j[f])
        out[t] = total


def dots(a, b, out):
    """out[t] += Σ a[t] ∘ b[t]."""
    for t in numba.prange(a.shape[0]):
        one, two = a[t], b[t]
        total = out[t]
        for f in range(one.size):
            total += one[f] * two[f]
        out[t] = total


def scale_rows(rows, factor):
    """In place: rows[t] *= factor[t]."""
    for t in numba.prange(rows.shape[0]):
        row, c = rows[t], factor[t]
        for f in range(row.size):
            row[f] *= c


def column_sums(rows, factor, out, block):
    """out[f] += Σ over m and t of factor[m, t] rows[m, t, f], in float64."""
    for part in numba.prange((out.size + block - 1) // block):
        low = part * block
        high = min(low + block, out.size)
        target = out[low:high]
        for m in range(rows.shape[0]):
            for t in range(rows.shape[1]):
                row, c = rows[m, t, low:high], factor[m, t]
                for f in range(row.size):
                    target[f] += c * row[f]


hidden_kernel = Kernel(hidden)
hidden_back_kernel = Kernel(hidden_back)
with_bias_kernel = Kernel(with_bias)
spread_kernel = Kernel(spread)
spread_double_kernel = Kernel(spread_double)
products_kernel = Kernel(products)
slope_dots_kernel = Kernel(slope_dots)
dots_kernel = Kernel(dots)
scale_rows_kernel = Kernel(scale_rows)
column_sums_kernel = Kernel(column_sums)
