"""Exponentials and activations that numba can vectorise: no calls of the C library, one code path for every argument.

Every function takes and returns float32 or float64 and is accurate to about one unit in the last place. NaN stays NaN.
numba's cache on disk does not see changes of this file: whoever edits it must touch the files of kernels beside it.
"""

import math

import numba
import numpy as np
from numba import types
from numba.extending import overload

# no reassociation and no reciprocals: both cost digits here
_FASTMATH = {"contract", "nsz"}
# a call inside of a loop would keep it from being vectorised
_JIT = {"fastmath": _FASTMATH, "error_model": "numpy", "forceinline": True}

_LOG2_E = 1 / math.log(2.0)
_LOG_2 = math.log(2.0)
# ln 2 in two parts, so that n · high is exact
_HIGH32, _LOW32 = 0.693359375, -2.12194440054690581e-4
_HIGH64, _LOW64 = 6.93145751953125e-1, 1.42860682030941723212e-6


def expm1_negative(x):
    """exp(x) − 1 and exp(x) for x ≤ 0."""
    raise NotImplementedError


def log1p_unit(e):
    """log(1 + e) for 0 ≤ e ≤ 1."""
    raise NotImplementedError


@overload(expm1_negative, jit_options=_JIT)
def _expm1_negative(x):
    single = x == types.float32
    real, integer = (np.float32, np.int32) if single else (np.float64, np.int64)
    lowest, bias, mantissa = (real(-87.0), integer(127), integer(23)) if single else (real(-708.0), integer(1023), integer(52))
    high, low = (real(_HIGH32), real(_LOW32)) if single else (real(_HIGH64), real(_LOW64))
    log2_e, half, one = real(_LOG2_E), real(0.5), real(1.0)
    # 1/m! of the Taylor series on |r| ≤ ln 2 / 2: its next term is below the rounding
    c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (real(1 / math.factorial(m)) for m in range(2, 14))

    def short(x):
        # not max, which may drop NaN
        x = lowest if x < lowest else x  # noqa: FURB136
        n = np.floor(x * log2_e + half)
        r = x - n * high - n * low
        p = r + r * r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7)))))
        s = integer((integer(n) + bias) << mantissa).view(real)
        return p * s + (s - one), p * s + s

    def long(x):
        # not max, which may drop NaN
        x = lowest if x < lowest else x  # noqa: FURB136
        n = np.floor(x * log2_e + half)
        r = x - n * high - n * low
        tail = c8 + r * (c9 + r * (c10 + r * (c11 + r * (c12 + r * c13))))
        p = r + r * r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * (c7 + r * tail))))))
        s = integer((integer(n) + bias) << mantissa).view(real)
        return p * s + (s - one), p * s + s

    return short if single else long


@overload(log1p_unit, jit_options=_JIT)
def _log1p_unit(e):
    single = e == types.float32
    real = np.float32 if single else np.float64
    one, two = real(1.0), real(2.0)
    # 2 artanh(s) with s = e / (2 + e) ≤ 1/3
    c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16 = (real(1 / (2 * n + 1)) for n in range(1, 17))

    def short(e):
        s = e / (two + e)
        q = s * s
        return two * s * (one + q * (c1 + q * (c2 + q * (c3 + q * (c4 + q * (c5 + q * (c6 + q * c7)))))))

    def long(e):
        s = e / (two + e)
        q = s * s
        tail = c8 + q * (c9 + q * (c10 + q * (c11 + q * (c12 + q * (c13 + q * (c14 + q * (c15 + q * c16)))))))
        return two * s * (one + q * (c1 + q * (c2 + q * (c3 + q * (c4 + q * (c5 + q * (c6 + q * (c7 + q * tail))))))))

    return short if single else long


@numba.njit(**_JIT)
def shifted_softplus(z):
    """ln(½ eᶻ + ½) and its first and second derivative."""
    real = type(z)
    one = real(1.0)
    _, e = expm1_negative(-abs(z))
    inverse = one / (one + e)
    positive = z if z > 0 else real(0.0)
    # NaN in the exponential reaches the value through the logarithm
    return positive + (log1p_unit(e) - real(_LOG_2)), inverse if z > 0 else e * inverse, e * inverse * inverse


@numba.njit(**_JIT)
def silu(z):
    """The function z σ(z) and its first and second derivative."""
    real = type(z)
    one, two = real(1.0), real(2.0)
    _, e = expm1_negative(-abs(z))
    inverse = one / (one + e)
    s = inverse if z > 0 else e * inverse
    s1 = e * inverse * inverse
    return z * s, s + z * s1, s1 * (two + z * (one - two * s))


@numba.njit(**_JIT)
def tanh(z):
    """Hyperbolic tangent and its first and second derivative."""
    real = type(z)
    one, two = real(1.0), real(2.0)
    m, e = expm1_negative(-two * abs(z))
    size = -m / (one + e)
    t = size if z > 0 else -size
    slope = real(4.0) * e / ((one + e) * (one + e))
    return t, slope, -two * t * slope
