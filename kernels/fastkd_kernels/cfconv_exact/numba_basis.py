"""CPU kernel for the jets of the basis and the cutoff of one tile of units.

Distances are taken to float64, and to the working precision only as differences from a nearby centre, so that float32 rows are as
good as float32 can be. The kinds are positions in `radial_specs.BASES` and `radial_specs.ENVELOPES`.
"""

import math

import numba
import numpy as np

from ..cpu import Kernel
from .numba_math import expm1_negative

#: As in `radial_specs`.
_EXPONENTIAL_LIMIT = 600.0
_SERIES_BELOW = 1.0
_SERIES_TERMS = 11


@numba.njit(error_model="numpy")
def _cut_jets(d, kind, reach, p):
    """C and its first two derivatives at one distance."""
    x, inverse = d / reach, 1.0 / reach
    if kind == 3:
        return 1.0, 0.0, 0.0
    if not x < 1.0:
        # NaN stays NaN in the basis
        return 0.0, 0.0, 0.0
    if kind == 0:
        phase = math.pi * x
        cosine, scale = math.cos(phase), math.pi * inverse
        return 0.5 * (cosine + 1.0), -0.5 * scale * math.sin(phase), -0.5 * scale * scale * cosine
    if kind == 1:
        power = 1.0
        for _ in range(p - 2):
            power *= x
        a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
        rest, scale = 1.0 - x, -p * (p + 1) * (p + 2) / 2 * inverse
        value = 1.0 + power * x * x * (a + x * (b + c * x))
        return value, scale * power * x * rest * rest, scale * inverse * power * rest * ((p - 1) - (p + 1) * x)
    gap = 1.0 - x * x
    if gap * _EXPONENTIAL_LIMIT <= 1.0:
        return 0.0, 0.0, 0.0
    w = 1.0 / gap
    value = math.exp(1.0 - w)
    g = -2.0 * x * w * w
    curve = -2.0 * w * w - 8.0 * x * x * w * w * w + g * g
    return value, g * value * inverse, curve * value * inverse * inverse


@numba.njit(error_model="numpy")
def _sinc(z, m):
    """The m-th derivative of sin(z)/z by its power series."""
    total, square = 0.0, z * z
    for back in range(_SERIES_TERMS):
        n = _SERIES_TERMS - 1 - back
        if 2 * n >= m:
            factor = 1.0
            for step in range(1, 2 * n + 2):
                factor *= step
            rise = 1.0
            for step in range(m):
                rise *= 2 * n - step
            total = total * square + (1.0 if n % 2 == 0 else -1.0) * rise / factor
    return total * z if m % 2 else total


@numba.njit(error_model="numpy")
def _bessel_row(d, first, norm, order, rows):
    """rows[m, k] of one distance: norm sin(kd first)/d and its derivatives."""
    step_sine, step_cosine = math.sin(first * d), math.cos(first * d)
    sine, cosine = 0.0, 1.0
    for k in range(rows.shape[1]):
        # the angle grows by one step of rotation
        sine, cosine = sine * step_cosine + cosine * step_sine, cosine * step_cosine - sine * step_sine
        frequency = (k + 1) * first
        if abs(frequency * d) < _SERIES_BELOW:
            scale = norm * frequency
            for m in range(order + 1):
                rows[m, k] = scale * _sinc(frequency * d, m)
                scale *= frequency
        else:
            value = norm * sine / d
            rows[0, k] = value
            if order >= 1:
                slope = (norm * frequency * cosine - value) / d
                rows[1, k] = slope
                if order >= 2:
                    rows[2, k] = (-norm * frequency * frequency * sine - 2.0 * slope) / d


@numba.njit(fastmath={"contract", "nsz"}, error_model="numpy")
def _gauss_row(near, base, scale, order, first, second, curve, value, slope_row, curve_row):
    """exp(−scale t²), t = near + base − k, and its derivatives through v(d): v′ = first, v″ = second and v′² = curve, in spacings."""
    real = type(near)
    two, base = real(2.0), real(base)
    for k in range(value.size):
        t = near + (base - real(k))
        _, value[k] = expm1_negative(-scale * t * t)
    if order >= 1:
        for k in range(value.size):
            t = near + (base - real(k))
            slope_row[k] = -two * scale * t * value[k] * first
    if order >= 2:
        for k in range(value.size):
            slope = -two * scale * (near + (base - real(k)))
            curve_row[k] = value[k] * ((slope * slope - two * scale) * curve + slope * second)


def basis_tile(length, kinds, numbers, phi, cut):
    """phi[m, t, k] = φₖ⁽ᵐ⁾ and cut[m, t] = C⁽ᵐ⁾ at the distances of one tile, m = 0, …, as many as fit."""
    kind, envelope, exponent = kinds[0], kinds[1], kinds[2]
    first, inverse, scale, decay, reach = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    real = phi.dtype.type
    order = phi.shape[0] - 1
    for t in numba.prange(length.size):
        d = np.float64(length[t])
        jets = _cut_jets(d, envelope, reach, exponent)
        cut[0, t] = jets[0]
        if order >= 1:
            cut[1, t] = jets[1]
        if order >= 2:
            cut[2, t] = jets[2]
        if kind == 1:
            _bessel_row(d, first, scale, order, phi[:, t])
        else:
            v, slope = d, 1.0
            if kind == 2:
                v = math.exp(-decay * d)
                slope = -decay * v
            u = (v - first) * inverse
            base = math.floor(u + 0.5)
            # v″ = −α v′ of e^(−αd); both in units of the spacing
            one, two = slope * inverse, -decay * slope * inverse
            steps = real(one), real(two), real(one * one)
            _gauss_row(real(u - base), base, real(scale), order, *steps, phi[0, t], phi[min(order, 1), t], phi[order, t])


basis_tile_kernel = Kernel(basis_tile)
