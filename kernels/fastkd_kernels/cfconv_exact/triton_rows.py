"""GPU functions that make rows of a filter again from distances: cutoff, basis, first layer, activation.

``d`` is [BLOCK_E] in float64, so that differences from a centre are exact before they are rounded to ``ACC``. Derivatives beyond
``ORDER`` are zero and cost nothing. The kinds are positions in `radial_specs`; the numbers of a spec are those of `codes.Slopes`.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _series(n, factor):
    """The number factor times the coefficient of z²ⁿ in sin(z)/z."""
    size = factor
    for m in range(2, 2 * n + 2):
        size = size / m
    return -size if n % 2 else size


@triton.jit
def sine_cosine(turns, ACC: tl.constexpr):
    """The sine sin(πt) and the cosine cos(πt) of t in float64, without the library's slow path for large arguments, which takes local memory."""
    quarter = tl.floor(2.0 * turns + 0.5)
    y = ((turns - 0.5 * quarter) * 3.141592653589793).to(ACC)
    q = y * y
    # Taylor's series on |y| ≤ π/4, by Horner's rule
    s, c = q * 0.0, q * 0.0
    for n in tl.static_range(8, -1, -1):
        s = s * q + _series(n, 1)
        c = c * q + _series(n, 2 * n + 1)
    s *= y
    turn = (quarter - 4.0 * tl.floor(0.25 * quarter)).to(tl.int32)
    sine = tl.where(turn % 2 == 0, s, c)
    cosine = tl.where(turn % 2 == 0, c, s)
    return tl.where(turn >= 2, -sine, sine), tl.where((turn == 1) | (turn == 2), -cosine, cosine)


@triton.jit
def cut_jets(d, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, ACC: tl.constexpr):
    """C and its first two derivatives, [BLOCK_E] each."""
    x = d / REACH
    inside = x < 1.0
    if ENVELOPE == 3:
        value, slope, curve = x * 0.0 + 1.0, x * 0.0, x * 0.0
        inside = x < float("inf")
    elif ENVELOPE == 0:
        scale: tl.constexpr = 3.141592653589793 / REACH
        sine, cosine = sine_cosine(x, ACC)
        value, slope, curve = 0.5 * (cosine + 1.0), -0.5 * scale * sine, -0.5 * scale * scale * cosine
    elif ENVELOPE == 1:
        power = x * 0.0 + 1.0
        for _ in tl.static_range(EXPONENT - 2):
            power *= x
        rest = 1.0 - x
        factor: tl.constexpr = -EXPONENT * (EXPONENT + 1) * (EXPONENT + 2) / (2 * REACH)
        bend = EXPONENT * (EXPONENT + 2) - 0.5 * EXPONENT * (EXPONENT + 1) * x
        value = 1.0 + power * x * x * (-0.5 * (EXPONENT + 1) * (EXPONENT + 2) + x * bend)
        slope = factor * power * x * rest * rest
        curve = factor / REACH * power * rest * ((EXPONENT - 1.0) - (EXPONENT + 1.0) * x)
    else:
        gap = 1.0 - x * x
        inside = inside & (gap * 600.0 > 1.0)
        w = 1.0 / tl.where(inside, gap, 1.0)
        value = tl.exp(1.0 - w)
        g = -2.0 * x * w * w
        slope = g * value / REACH
        curve = (-2.0 * w * w - 8.0 * x * x * w * w * w + g * g) * value / (REACH * REACH)
    # NaN stays NaN in the basis
    zero = tl.zeros_like(value)
    return tl.where(inside, value, zero).to(ACC), tl.where(inside, slope, zero).to(ACC), tl.where(inside, curve, zero).to(ACC)


@triton.jit
def _bessel(d, k, FIRST: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr):
    """SCALE sin(kr)/r and its derivatives; below kr = 1 by the power series, where the closed forms cancel."""
    PI: tl.constexpr = 3.141592653589793
    number = (k + 1).to(tl.float64)[None, :]
    turns = number * (d * (FIRST / PI))[:, None]
    frequency = (number * FIRST).to(ACC)
    z = (turns * PI).to(ACC)
    near = z < 1.0
    r = tl.where(near, 1.0, d[:, None].to(ACC) + tl.zeros_like(z))
    sine, cosine = sine_cosine(turns, ACC)
    value = SCALE * sine / r
    slope = (SCALE * frequency * cosine - value) / r
    curve = (-SCALE * frequency * frequency * sine - 2.0 * slope) / r
    small = tl.where(near, z, 0.0)
    q = small * small
    # up to z¹⁸
    s = q * 0.0
    s1, s2 = s, s
    for n in tl.static_range(9, -1, -1):
        s = s * q + _series(n, 1)
        if n >= 1:
            s1 = s1 * q + _series(n, 2 * n)
            s2 = s2 * q + _series(n, 2 * n * (2 * n - 1))
    scale = SCALE * frequency
    value = tl.where(near, scale * s, value)
    slope = tl.where(near, scale * frequency * s1 * small, slope)
    return value, slope, tl.where(near, scale * frequency * frequency * s2, curve)


@triton.jit
def phi_jets(
    d, k, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """φ, φ′ and φ″ of the functions k, [BLOCK_E, BLOCK_K] each."""
    if BASIS == 1:
        value, slope, curve = _bessel(d, k, FIRST, SCALE, ACC)
    else:
        v, v1 = d, d * 0.0 + 1.0
        if BASIS == 2:
            v = tl.exp(-DECAY * d)
            v1 = -DECAY * v
        u = (v - FIRST) * INVERSE
        base = tl.floor(u + 0.5)
        t = (u - base).to(ACC)[:, None] + (base[:, None] - k[None, :].to(tl.float64)).to(ACC)
        one = (v1 * INVERSE).to(ACC)[:, None]
        two = (-DECAY * INVERSE * v1).to(ACC)[:, None]
        value = tl.exp(-SCALE * t * t)
        rise = -2.0 * SCALE * t
        slope = rise * value * one
        curve = value * ((rise * rise - 2.0 * SCALE) * one * one + rise * two)
    return value.to(ACC), slope.to(ACC), curve.to(ACC)


@triton.jit
def act_jets(z, ACT: tl.constexpr):
    """The activation and its first two derivatives."""
    if ACT == 2:
        e = tl.exp(-2.0 * tl.abs(z))
        size = (1.0 - e) / (1.0 + e)
        value = tl.where(z < 0, -size, size)
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e))
        curve = -2.0 * value * slope
    else:
        e = tl.exp(-tl.abs(z))
        inverse = 1.0 / (1.0 + e)
        s = tl.where(z < 0, e * inverse, inverse)
        s1 = e * inverse * inverse
        if ACT == 0:
            value = tl.where(z > 0, z, 0.0) + (tl.log(1.0 + e) - 0.6931471805599453)
            slope, curve = s, s1
        else:
            value, slope, curve = z * s, s + z * s1, s1 * (2.0 + z * (1.0 - 2.0 * s))
    return value, slope, curve


@triton.jit
def first_layer(
    d, h, w1_ptr, b1_ptr, H, K, ORDER: tl.constexpr,
    BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sum z = φ w1ᵀ + b1 and its derivatives for the hidden units h, [BLOCK_E, BLOCK_H] each."""
    z = tl.zeros((BLOCK_E, BLOCK_H), dtype=ACC)
    z1 = tl.zeros((BLOCK_E, BLOCK_H), dtype=ACC)
    z2 = tl.zeros((BLOCK_E, BLOCK_H), dtype=ACC)
    in_hidden = h < H
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        phi, phi1, phi2 = phi_jets(d, k, BASIS, FIRST, INVERSE, SCALE, DECAY, ACC)
        # the last tile of functions is ragged
        mask = (k < K)[:, None] & in_hidden[None, :]
        w = tl.load(w1_ptr + h[None, :] * K + k[:, None], mask=mask, other=0.0).to(ACC)
        z = tl.dot(phi, w, z, input_precision="ieee", out_dtype=ACC)
        if ORDER >= 1:
            z1 = tl.dot(phi1, w, z1, input_precision="ieee", out_dtype=ACC)
        if ORDER >= 2:
            z2 = tl.dot(phi2, w, z2, input_precision="ieee", out_dtype=ACC)
    return z + tl.load(b1_ptr + h, mask=in_hidden, other=0.0).to(ACC)[None, :], z1, z2


@triton.jit
def hidden_rows(z, z1, z2, c, c1, c2, ACT: tl.constexpr):
    """(act(z) C) and its derivatives."""
    a, a1, a2 = act_jets(z, ACT)
    value = a * c[:, None]
    slope = a1 * z1 * c[:, None] + a * c1[:, None]
    curve = (a2 * z1 * z1 + a1 * z2) * c[:, None] + 2.0 * a1 * z1 * c1[:, None] + a * c2[:, None]
    return value, slope, curve


@triton.jit
def filters(
    d, c, c1, c2, f, w1_ptr, b1_ptr, w2_ptr, b2_ptr, F, H, K, LOW: tl.constexpr, ORDER: tl.constexpr, ACT: tl.constexpr,
    BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """W and its derivatives of the orders LOW to ORDER for the features f, [BLOCK_E, BLOCK_F] each."""
    w = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    t = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    in_width = f < F
    for first in range(0, H, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        z, z1, z2 = first_layer(
            d, h, w1_ptr, b1_ptr, H, K, ORDER, BASIS, FIRST, INVERSE, SCALE, DECAY, BLOCK_E, BLOCK_H, BLOCK_K, ACC
        )  # fmt: skip
        value, slope, curve = hidden_rows(z, z1, z2, c, c1, c2, ACT)
        # the last tile of hidden units is ragged
        mask = (h < H)[:, None] & in_width[None, :]
        second = tl.load(w2_ptr + f[None, :] * H + h[:, None], mask=mask, other=0.0).to(ACC)
        if LOW == 0:
            w = tl.dot(value, second, w, input_precision="ieee", out_dtype=ACC)
        if LOW <= 1 and ORDER >= 1:
            s = tl.dot(slope, second, s, input_precision="ieee", out_dtype=ACC)
        if ORDER >= 2:
            t = tl.dot(curve, second, t, input_precision="ieee", out_dtype=ACC)
    bias = tl.load(b2_ptr + f, mask=in_width, other=0.0).to(ACC)[None, :]
    return w + c[:, None] * bias, s + c1[:, None] * bias, t + c2[:, None] * bias
