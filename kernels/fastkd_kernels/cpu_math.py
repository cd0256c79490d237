"""exp, sin and cos for numba kernels, as polynomials that the compiler can put into vector units.

The C library's functions take one number a call, which makes a loop of exponentials several times slower than torch's. These are
within 2 units in the last place of the dtype they are called with, for any exponent and for angles up to 10⁵, and keep NaN. What is below
the smallest normal number is 0: subnormal numbers slow a processor down a hundredfold, and Gaussians are made of little else.
Which of the versions runs follows from the type, at compile time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

# products may be contracted, but not reassociated: the reductions below live from the order of their subtractions
_FLAGS = {"contract"}

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.4286068203094172e-06  # the first has 15 bits, so that its multiples are exact
_LN2_HIGH_64, _LN2_LOW_64 = 0.6931471803691238, 1.9082149292705877e-10  # 32 bits
_PI_HIGH, _PI_LOW = 3.141592653589793, 1.2246467991473532e-16


def exp(x: Any) -> Any:
    """The exponential of a float32 or float64, in numba kernels only."""
    raise NotImplementedError


def decay(x: Any) -> Any:
    """As `exp`, but 0 already below −80 (float32) or −690 (float64), so that products with it do not become subnormal either."""
    raise NotImplementedError


def sin_cos(x: Any, like: Any) -> Any:
    """Sine and cosine of a float64 angle, both in the type of ``like``, in numba kernels only."""
    raise NotImplementedError


def _exp_32(x: Any) -> Any:
    # comparisons are written so that NaN is not clamped, as min would
    y = np.float32(-87) if x < np.float32(-87.33) else x
    y = np.float32(89) if y > np.float32(89) else y  # noqa: FURB136
    k = np.rint(y * np.float32(_LOG2_E))
    r = (y - k * np.float32(_LN2_HIGH)) - k * np.float32(_LN2_LOW)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(1 / 2)
    p = p * r * r + r + np.float32(1)
    # 2ᵏ in two factors, because k passes both ends of the exponent's range
    n = np.int32(k)
    half = n >> np.int32(1)
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((n - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0) if x < np.float32(-87.33) else p * first * second


def _exp_64(x: Any) -> Any:
    y = -708.0 if x < -708.39 else x
    y = 710.0 if y > 710.0 else y  # noqa: FURB136
    k = np.rint(y * _LOG2_E)
    r = (y - k * _LN2_HIGH_64) - k * _LN2_LOW_64
    p = 1 / 6227020800
    p = p * r + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 1 / 2
    p = p * r * r + r + 1
    n = np.int64(np.int32(k))
    half = n >> np.int64(1)
    first = np.int64((half + np.int64(1023)) << np.int64(52)).view(np.float64)
    second = np.int64((n - half + np.int64(1023)) << np.int64(52)).view(np.float64)
    return 0.0 if x < -708.39 else p * first * second


def _decay_32(x: Any) -> Any:
    return np.float32(0) if x < np.float32(-80) else exp(x)


def _decay_64(x: Any) -> Any:
    return 0.0 if x < -690.0 else exp(x)


def _sin_cos_32(x: Any, like: Any) -> Any:
    # the angle is reduced in float64: what is lost there comes back multiplied by the number of periods
    k = np.rint(x * (1 / _PI_HIGH))
    r = np.float32((x - k * _PI_HIGH) - k * _PI_LOW)
    sign = np.float32(1 - 2 * (np.int32(k) & 1))
    z = r * r
    sine = np.float32(1 / 6227020800)
    sine = sine * z + np.float32(-1 / 39916800)
    sine = sine * z + np.float32(1 / 362880)
    sine = sine * z + np.float32(-1 / 5040)
    sine = sine * z + np.float32(1 / 120)
    sine = sine * z + np.float32(-1 / 6)
    sine = sine * z + np.float32(1)
    cosine = np.float32(-1 / 87178291200)
    cosine = cosine * z + np.float32(1 / 479001600)
    cosine = cosine * z + np.float32(-1 / 3628800)
    cosine = cosine * z + np.float32(1 / 40320)
    cosine = cosine * z + np.float32(-1 / 720)
    cosine = cosine * z + np.float32(1 / 24)
    cosine = cosine * z + np.float32(-1 / 2)
    cosine = cosine * z + np.float32(1)
    return sign * (r * sine), sign * cosine


def _sin_cos_64(x: Any, like: Any) -> Any:
    k = np.rint(x * (1 / _PI_HIGH))
    r = (x - k * _PI_HIGH) - k * _PI_LOW
    sign = 1.0 - 2 * (np.int32(k) & 1)
    z = r * r
    sine = 1 / 51090942171709440000
    sine = sine * z + -1 / 121645100408832000
    sine = sine * z + 1 / 355687428096000
    sine = sine * z + -1 / 1307674368000
    sine = sine * z + 1 / 6227020800
    sine = sine * z + -1 / 39916800
    sine = sine * z + 1 / 362880
    sine = sine * z + -1 / 5040
    sine = sine * z + 1 / 120
    sine = sine * z + -1 / 6
    sine = sine * z + 1.0
    cosine = -1 / 1124000727777607680000
    cosine = cosine * z + 1 / 2432902008176640000
    cosine = cosine * z + -1 / 6402373705728000
    cosine = cosine * z + 1 / 20922789888000
    cosine = cosine * z + -1 / 87178291200
    cosine = cosine * z + 1 / 479001600
    cosine = cosine * z + -1 / 3628800
    cosine = cosine * z + 1 / 40320
    cosine = cosine * z + -1 / 720
    cosine = cosine * z + 1 / 24
    cosine = cosine * z + -1 / 2
    cosine = cosine * z + 1.0
    return sign * (r * sine), sign * cosine


@overload(exp, jit_options={"fastmath": _FLAGS})  # type: ignore[untyped-decorator]
def _exp_of(x: Any) -> Any:
    return _exp_32 if x == types.float32 else _exp_64


@overload(decay, jit_options={"fastmath": _FLAGS})  # type: ignore[untyped-decorator]
def _decay_of(x: Any) -> Any:
    return _decay_32 if x == types.float32 else _decay_64


@overload(sin_cos, jit_options={"fastmath": _FLAGS})  # type: ignore[untyped-decorator]
def _sin_cos_of(x: Any, like: Any) -> Any:
    return _sin_cos_32 if like == types.float32 else _sin_cos_64
