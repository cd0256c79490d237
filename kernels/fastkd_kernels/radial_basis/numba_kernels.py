"""CPU kernels: one thread owns an edge, or a block of edges where parameters are summed over edges.

What belongs to an edge alone is computed in float64, and so are differences and angles, which cost nothing beside the exponentials; what is
left to the loop over functions runs in the dtype of the data. `gaussian` and `exp_normal` are one Gaussian of a variable t(d).
"""

import math

import numpy as np
from numba import njit, prange

from ..cpu import Kernel
from ..cpu_math import decay, exp, sin_cos
from .kinds import BASES, ENVELOPES, EXPONENTIAL_FLOOR

_BESSEL, _EXPNORM = BASES.index("bessel"), BASES.index("exp_normal")
_NONE, _POLYNOMIAL, _COSINE = (ENVELOPES.index(kind) for kind in ("none", "polynomial", "cosine"))
_FLOOR = EXPONENTIAL_FLOOR
#: Edges whose contributions to the parameters' gradients are summed by one thread.
BLOCK = 512


@njit(cache=True)
def _envelope(kind, d, cutoff, exponent):
    """Value and the first two derivatives; an edge beyond the cutoff is not asked for."""
    if kind == _NONE:
        return 1.0, 0.0, 0.0
    x, scale = d / cutoff, 1 / cutoff
    if kind == _POLYNOMIAL:
        n = exponent
        total = 0.0
        for k in range(n - 1, -1, -1):
            total = total * x + 0.5 * (k + 1) * (k + 2)
        power = 1.0
        for _ in range(n - 2):
            power *= x
        rest = 1 - x
        slope = -0.5 * n * (n + 1) * (n + 2) * power * rest * scale
        return rest * rest * rest * total, slope * x * rest, slope * ((n - 1) - (n + 1) * x) * scale
    if kind == _COSINE:
        sine, cosine = sin_cos(math.pi * 0.5 * x, x)
        first, second = -math.pi * scale * sine * cosine, -0.5 * (math.pi * scale) ** 2 * (cosine * cosine - sine * sine)
        return cosine * cosine, first, second
    rest = x if np.isnan(x) else max((1 - x) * (1 + x), _FLOOR)
    value = exp(-x * x / rest)
    first = -2 * x / (rest * rest) * scale * value
    return value, first, (4 * x * x / rest - 2 * rest - 8 * x * x) / (rest * rest * rest) * scale * scale * value


@njit(inline="always")
def _variable(kind, d, alpha, start):
    """The variable t of the Gaussian and its two derivatives by d."""
    if kind != _EXPNORM:
        return d, 1.0, 0.0
    t = exp(alpha * (start - d))
    return t, -alpha * t, alpha * alpha * t


@njit(inline="always")
def _gaussian(dtype, t, t1, t2, p, q):
    """Value, then the derivatives by d, dd, p, q, dp, dq, pp, pq and qq. Products with 2 are sums: a literal would widen float32."""
    u = dtype.type(t - p)
    square = u * u
    value = decay(-q * square)
    qu = q * u
    by_t = -(qu + qu) * value
    by_tt = ((qu * qu + qu * qu) - q) * value
    by_tt = by_tt + by_tt
    by_tq = (qu * square - u) * value
    by_tq = by_tq + by_tq
    return (
        value, by_t * t1, by_tt * t1 * t1 + by_t * t2, -by_t, -square * value, -by_tt * t1, by_tq * t1, by_tt, -by_tq, square * square * value
    )  # fmt: skip


@njit(inline="always")
def _bessel(dtype, d, w):
    """As `_gaussian`, without the norm; derivatives by q are 0."""
    angle = d * w
    x = dtype.type(angle)
    sine, cosine = sin_cos(np.float64(angle), x)
    zero, unit = dtype.type(0), dtype.type(1)
    ratio = unit if x == zero else sine / (unit if x == zero else x)
    # the derivatives of sin x / x: by their series below 1, where what they are made of cancels
    small = abs(x) < unit
    far = unit if small else x
    one = (cosine - ratio) / far
    two = -ratio - (one + one) / far
    z = x * x
    first = dtype.type(1 / 2554547108585472000)
    first = first * z + dtype.type(-1 / 6758061133824000)
    first = first * z + dtype.type(1 / 22230464256000)
    first = first * z + dtype.type(-1 / 93405312000)
    first = first * z + dtype.type(1 / 518918400)
    first = first * z + dtype.type(-1 / 3991680)
    first = first * z + dtype.type(1 / 45360)
    first = first * z + dtype.type(-1 / 840)
    first = first * z + dtype.type(1 / 30)
    first = first * z + dtype.type(-1 / 3)
    second = dtype.type(1 / 134449847820288000)
    second = second * z + dtype.type(-1 / 397533007872000)
    second = second * z + dtype.type(1 / 1482030950400)
    second = second * z + dtype.type(-1 / 7185024000)
    second = second * z + dtype.type(1 / 47174400)
    second = second * z + dtype.type(-1 / 443520)
    second = second * z + dtype.type(1 / 6480)
    second = second * z + dtype.type(-1 / 168)
    second = second * z + dtype.type(1 / 10)
    second = second * z + dtype.type(-1 / 3)
    one = x * first if small else one
    two = second if small else two
    ws = w * sine
    return w * ratio, w * w * one, w * w * w * two, cosine, zero, -ws, zero, -dtype.type(d) * sine, zero, zero


def _value(d, p, q, kind, cutoff, alpha, start, envelope, exponent, out):
    dtype, norm = out.dtype, np.sqrt(2 / cutoff)
    for e in prange(d.size):
        length, row = np.float64(d[e]), out[e]
        if envelope != _NONE and length >= cutoff:
            row[:] = 0
            continue
        f = _envelope(envelope, length, cutoff, exponent)[0]
        if kind == _BESSEL:
            factor = dtype.type(norm * f)
            for r in range(p.size):
                sine, _ = sin_cos(length * p[r], p[r])
                # sin x = x in the last digit wherever the quotient could fail but at 0
                row[r] = factor * (sine / dtype.type(length) if length != 0 else p[r])
        else:
            t = _variable(kind, length, alpha, start)[0]
            factor = dtype.type(f)
            for r in range(p.size):
                u = dtype.type(t - p[r])
                row[r] = factor * decay(-q[r] * (u * u))


def _by_length(g, d, p, q, kind, cutoff, alpha, start, envelope, exponent, by_d):
    dtype, norm = by_d.dtype, np.sqrt(2 / cutoff)
    for e in prange(d.size):
        length, slope = np.float64(d[e]), g[e]
        if envelope != _NONE and length >= cutoff:
            by_d[e] = 0
            continue
        f, f1, _ = _envelope(envelope, length, cutoff, exponent)
        zeroth = first = dtype.type(0)
        if kind == _BESSEL:
            for r in range(p.size):
                made = _bessel(dtype, length, p[r])
                zeroth += slope[r] * made[0]
                first += slope[r] * made[1]
            by_d[e] = norm * (f1 * zeroth + f * first)
        else:
            t, t1, _ = _variable(kind, length, alpha, start)
            for r in range(p.size):
                made = _gaussian(dtype, t, dtype.type(1), dtype.type(0), p[r], q[r])
                zeroth += slope[r] * made[0]
                first += slope[r] * made[1]
            by_d[e] = f1 * zeroth + f * t1 * first


def _tangent_of_length(h, g, d, p, q, kind, cutoff, alpha, start, envelope, exponent, by_g, by_d):
    # the usual double backward: forces have been trained on, parameters are constant
    dtype, norm = by_d.dtype, np.sqrt(2 / cutoff)
    for e in prange(d.size):
        length, slope, row = np.float64(d[e]), g[e], by_g[e]
        if envelope != _NONE and length >= cutoff:
            row[:] = 0
            by_d[e] = 0
            continue
        f, f1, f2 = _envelope(envelope, length, cutoff, exponent)
        zeroth = first = second = dtype.type(0)
        if kind == _BESSEL:
            of_value, of_first = dtype.type(norm * h[e] * f1), dtype.type(norm * h[e] * f)
            for r in range(p.size):
                made = _bessel(dtype, length, p[r])
                row[r] = of_value * made[0] + of_first * made[1]
                zeroth += slope[r] * made[0]
                first += slope[r] * made[1]
                second += slope[r] * made[2]
            by_d[e] = norm * h[e] * (f2 * zeroth + 2 * f1 * first + f * second)
        else:
            t, t1, t2 = _variable(kind, length, alpha, start)
            of_value, of_first = dtype.type(h[e] * f1), dtype.type(h[e] * f * t1)
            for r in range(p.size):
                made = _gaussian(dtype, t, dtype.type(1), dtype.type(0), p[r], q[r])
                row[r] = of_value * made[0] + of_first * made[1]
                zeroth += slope[r] * made[0]
                first += slope[r] * made[1]
                second += slope[r] * made[2]
            by_d[e] = h[e] * (f2 * zeroth + (2 * f1 * t1 + f * t2) * first + f * t1 * t1 * second)


@njit(inline="always")
def _any(dtype, kind, norm, length, t, t1, t2, p, q):
    """All derivatives of either family."""
    if kind == _BESSEL:
        a = _bessel(dtype, length, p)
        return (
            norm * a[0], norm * a[1], norm * a[2], norm * a[3], norm * a[4], norm * a[5], norm * a[6], norm * a[7], norm * a[8], norm * a[9]
        )  # fmt: skip
    return _gaussian(dtype, t, t1, t2, p, q)


def _tangents(h, a, b, g, d, p, q, kind, cutoff, alpha, start, envelope, exponent, by_g, by_d):
    # h [E], a [R] and b [R] are tangents of the gradients by d, p and q; none of them is missing here
    dtype = by_d.dtype
    norm = dtype.type(np.sqrt(2 / cutoff))
    for e in prange(d.size):
        length, slope, row = np.float64(d[e]), g[e], by_g[e]
        if envelope != _NONE and length >= cutoff:
            row[:] = 0
            by_d[e] = 0
            continue
        f, f1, f2 = _envelope(envelope, length, cutoff, exponent)
        f, f1, f2 = dtype.type(f), dtype.type(f1), dtype.type(f2)
        t, t1, t2 = _variable(kind, length, alpha, start)
        t1, t2, tangent, total = dtype.type(t1), dtype.type(t2), h[e], dtype.type(0)
        for r in range(p.size):
            v, vd, vdd, vp, vq, vdp, vdq, _, _, _ = _any(dtype, kind, norm, length, t, t1, t2, p[r], q[r])
            along, along_d = a[r] * vp + b[r] * vq, a[r] * vdp + b[r] * vdq
            row[r] = tangent * (f1 * v + f * vd) + f * along
            total += slope[r] * (tangent * (f2 * v + (f1 + f1) * vd + f * vdd) + f1 * along + f * along_d)
        by_d[e] = total


def _by_parameters(g, d, p, q, kind, cutoff, alpha, start, envelope, exponent, by_p, by_q):
    # by_p, by_q [blocks, R] float64
    dtype = d.dtype
    norm = dtype.type(np.sqrt(2 / cutoff))
    for block in prange(by_p.shape[0]):
        sum_p, sum_q = by_p[block], by_q[block]
        sum_p[:] = 0
        sum_q[:] = 0
        for e in range(block * BLOCK, min((block + 1) * BLOCK, d.size)):
            length, slope = np.float64(d[e]), g[e]
            if envelope != _NONE and length >= cutoff:
                continue
            f = dtype.type(_envelope(envelope, length, cutoff, exponent)[0])
            t, t1, t2 = _variable(kind, length, alpha, start)
            t1, t2 = dtype.type(t1), dtype.type(t2)
            for r in range(p.size):
                made = _any(dtype, kind, norm, length, t, t1, t2, p[r], q[r])
                sum_p[r] += slope[r] * f * made[3]
                sum_q[r] += slope[r] * f * made[4]


def _tangents_by_parameters(h, a, b, g, d, p, q, kind, cutoff, alpha, start, envelope, exponent, by_p, by_q):
    dtype = d.dtype
    norm = dtype.type(np.sqrt(2 / cutoff))
    for block in prange(by_p.shape[0]):
        sum_p, sum_q = by_p[block], by_q[block]
        sum_p[:] = 0
        sum_q[:] = 0
        for e in range(block * BLOCK, min((block + 1) * BLOCK, d.size)):
            length, slope = np.float64(d[e]), g[e]
            if envelope != _NONE and length >= cutoff:
                continue
            f, f1, _ = _envelope(envelope, length, cutoff, exponent)
            f, f1 = dtype.type(f), dtype.type(f1)
            t, t1, t2 = _variable(kind, length, alpha, start)
            t1, t2, tangent = dtype.type(t1), dtype.type(t2), h[e]
            for r in range(p.size):
                _, _, _, vp, vq, vdp, vdq, vpp, vpq, vqq = _any(dtype, kind, norm, length, t, t1, t2, p[r], q[r])
                sum_p[r] += slope[r] * (tangent * (f1 * vp + f * vdp) + f * (a[r] * vpp + b[r] * vpq))
                sum_q[r] += slope[r] * (tangent * (f1 * vq + f * vdq) + f * (a[r] * vpq + b[r] * vqq))


def _envelopes(d, kind, cutoff, exponent, order, out):
    for e in prange(d.size):
        length = np.float64(d[e])
        if length >= cutoff and kind != _NONE:
            out[e] = 0
        else:
            value, first, second = _envelope(kind, length, cutoff, exponent)
            out[e] = value if order == 0 else first if order == 1 else second


value = Kernel(_value, one_code=True)
by_length = Kernel(_by_length, one_code=True)
tangent_of_length = Kernel(_tangent_of_length, one_code=True)
tangents = Kernel(_tangents, one_code=True)
by_parameters = Kernel(_by_parameters, one_code=True)
tangents_by_parameters = Kernel(_tangents_by_parameters, one_code=True)
envelopes = Kernel(_envelopes, one_code=True)
