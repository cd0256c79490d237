"""GPU kernels. Index of kernels: ``value_kernel`` and ``rows_kernel`` (tiles of edges, all functions), ``columns_kernel`` (sums over edges,
for the parameters), ``envelope_kernel``.

Names as in ``op.py``: d distances [E], p and q parameters [R], g [E, R]; h [E], a [R] and b [R] tangents. ``KIND`` and ``ENVELOPE`` count as
`kinds.BASES` and `kinds.ENVELOPES` do. The cutoff and its like are constants of a model and compiled in: a run-time float is only float32.
Addresses are int64: edges × functions passes 2³¹ in real batches. All arithmetic is in float32, or float64 for float64.
"""

import triton
import triton.language as tl

_PI = tl.constexpr(3.141592653589793)
# a batch's size must not make Triton compile again
_SIZES = ["E", "per_part"]


@triton.jit
def _sin_cos_reduced(r):
    """Sine and cosine of |r| ≤ π/2."""
    z = r * r
    if r.dtype == tl.float64:
        sine = z * (1 / 51090942171709440000) + (-1 / 121645100408832000)
        sine = sine * z + (1 / 355687428096000)
        sine = sine * z + (-1 / 1307674368000)
        sine = sine * z + (1 / 6227020800)
        sine = sine * z + (-1 / 39916800)
        sine = sine * z + (1 / 362880)
        sine = sine * z + (-1 / 5040)
        sine = sine * z + (1 / 120)
        sine = sine * z + (-1 / 6)
        sine = sine * z + (1.0)
        cosine = z * (-1 / 1124000727777607680000) + (1 / 2432902008176640000)
        cosine = cosine * z + (-1 / 6402373705728000)
        cosine = cosine * z + (1 / 20922789888000)
        cosine = cosine * z + (-1 / 87178291200)
        cosine = cosine * z + (1 / 479001600)
        cosine = cosine * z + (-1 / 3628800)
        cosine = cosine * z + (1 / 40320)
        cosine = cosine * z + (-1 / 720)
        cosine = cosine * z + (1 / 24)
        cosine = cosine * z + (-1 / 2)
        cosine = cosine * z + (1.0)
    else:
        sine = z * (1 / 6227020800) + (-1 / 39916800)
        sine = sine * z + (1 / 362880)
        sine = sine * z + (-1 / 5040)
        sine = sine * z + (1 / 120)
        sine = sine * z + (-1 / 6)
        sine = sine * z + (1.0)
        cosine = z * (-1 / 87178291200) + (1 / 479001600)
        cosine = cosine * z + (-1 / 3628800)
        cosine = cosine * z + (1 / 40320)
        cosine = cosine * z + (-1 / 720)
        cosine = cosine * z + (1 / 24)
        cosine = cosine * z + (-1 / 2)
        cosine = cosine * z + (1.0)
    return r * sine, cosine


@triton.jit
def _sin_cos(d, w):
    """Sine and cosine of d · w; the product's rounding error is taken along, and π is subtracted in parts."""
    x = d * w
    k = tl.floor(x * (1 / _PI) + 0.5)
    # all parts but the last are short, so that their multiples are exact
    if x.dtype == tl.float64:
        r = (x - k * 3.14159265346825122833) - k * 1.21542010130123844986e-10
    else:
        r = ((x - k * 3.140625) - k * 9.67502593994140625e-4) - k * 1.509957990978376e-7
    r += tl.fma(d, w, -x)
    sine, cosine = _sin_cos_reduced(r)
    sign = 1 - 2 * (k - 2 * tl.floor(k * 0.5))
    return sign * sine, sign * cosine


@triton.jit
def _exp(x):
    """The exponential to the last digit, for what every function of an edge depends on; the hardware's is 4 times less exact. −80 ≤ x ≤ 80."""
    if x.dtype == tl.float64:
        value = tl.exp(x)
    else:
        x = tl.minimum(tl.maximum(x, -80.0, propagate_nan=tl.PropagateNan.ALL), 80.0, propagate_nan=tl.PropagateNan.ALL)
        k = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - k * 0.693145751953125) - k * 1.4286068203094172e-06
        value = r * (1 / 5040) + (1 / 720)
        value = value * r + (1 / 120)
        value = value * r + (1 / 24)
        value = value * r + (1 / 6)
        value = value * r + (1 / 2)
        value = value * r * r + r + 1.0
        # NaN, which is no integer, is in the polynomial already
        k = tl.where(x == x, k, 0.0)  # noqa: PLR0124
        value *= ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _envelope(d, ENVELOPE: tl.constexpr, CUTOFF: tl.constexpr, EXPONENT: tl.constexpr):
    """Value and the first two derivatives; zero beyond the cutoff. NaN stays."""
    x = tl.where(d >= CUTOFF, 0.0, d * (1 / CUTOFF))
    f, f1, f2 = x * 0.0 + 1.0, x * 0.0, x * 0.0
    if ENVELOPE == 1:
        total, power, rest = x * 0.0, x * 0.0 + 1.0, 1.0 - x
        for k in tl.static_range(EXPONENT):
            total = total * x + 0.5 * (EXPONENT - k) * (EXPONENT - k + 1)
        for _ in tl.static_range(EXPONENT - 2):
            power = power * x
        slope = power * rest * (-0.5 * EXPONENT * (EXPONENT + 1) * (EXPONENT + 2) / CUTOFF)
        f, f1 = rest * rest * rest * total, slope * x * rest
        f2 = slope * ((EXPONENT - 1) - (EXPONENT + 1) * x) * (1 / CUTOFF)
    elif ENVELOPE == 2:
        sine, cosine = _sin_cos_reduced(x * (0.5 * _PI))
        f, f1 = cosine * cosine, sine * cosine * (-_PI / CUTOFF)
        f2 = (cosine * cosine - sine * sine) * (-0.5 * _PI * _PI / (CUTOFF * CUTOFF))
    elif ENVELOPE == 3:
        rest = tl.maximum((1.0 - x) * (1.0 + x), 1 / 700)
        inverse = 1.0 / rest
        f = tl.exp(-x * x * inverse)
        f1 = -2.0 * x * inverse * inverse * f * (1 / CUTOFF)
        f2 = (4.0 * x * x * inverse - 2.0 * rest - 8.0 * x * x) * inverse * inverse * inverse * f * (1 / (CUTOFF * CUTOFF))
    if ENVELOPE != 0:
        beyond = d >= CUTOFF
        f, f1, f2 = tl.where(beyond, 0.0, f), tl.where(beyond, 0.0, f1), tl.where(beyond, 0.0, f2)
    return f, f1, f2


@triton.jit
def _variable(d, KIND: tl.constexpr, ALPHA: tl.constexpr, START: tl.constexpr):
    """The variable t of the Gaussian and its two derivatives by d."""
    if KIND == 2:
        t = _exp((START - d) * ALPHA)
        t1, t2 = t * (-ALPHA), t * (ALPHA * ALPHA)
    else:
        t, t1, t2 = d, d * 0.0 + 1.0, d * 0.0
    return t, t1, t2


@triton.jit
def _jet(
    d, t, t1, t2, p, q, KIND: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """A basis without its envelope: value, derivatives by d, dd, p, q, dp, dq, pp, pq and qq. What is not used is not computed."""
    if KIND == 1:
        x = d * p
        sine, cosine = _sin_cos(d, p)
        ratio = tl.where(x == 0.0, 1.0, sine / tl.where(x == 0.0, 1.0, x))
        # the derivatives of sin x / x: by their series below 1, where what they are made of cancels
        small = tl.abs(x) < 1.0
        far = tl.where(small, 1.0, x)
        one = (cosine - ratio) / far
        two = -ratio - 2.0 * one / far
        z = tl.where(small, x * x, 0.0)
        first = z * (1 / 2554547108585472000) + (-1 / 6758061133824000)
        first = first * z + (1 / 22230464256000)
        first = first * z + (-1 / 93405312000)
        first = first * z + (1 / 518918400)
        first = first * z + (-1 / 3991680)
        first = first * z + (1 / 45360)
        first = first * z + (-1 / 840)
        first = first * z + (1 / 30)
        first = first * z + (-1 / 3)
        second = z * (1 / 134449847820288000) + (-1 / 397533007872000)
        second = second * z + (1 / 1482030950400)
        second = second * z + (-1 / 7185024000)
        second = second * z + (1 / 47174400)
        second = second * z + (-1 / 443520)
        second = second * z + (1 / 6480)
        second = second * z + (-1 / 168)
        second = second * z + (1 / 10)
        second = second * z + (-1 / 3)
        one, two = tl.where(small, x * first, one), tl.where(small, second, two)
        wave, none = p * sine * (-NORM), x * 0.0
        v, vd, vdd = p * ratio * NORM, p * p * one * NORM, p * p * p * two * NORM
        vp, vq, vdp, vdq, vpp, vpq, vqq = cosine * NORM, none, wave, none, d * sine * (-NORM), none, none
    else:
        u = t - p
        square = u * u
        v = tl.exp(-q * square)
        by_t, by_tt = -2.0 * q * u * v, (4.0 * q * square - 2.0) * q * v
        by_tq = 2.0 * u * (q * square - 1.0) * v
        vd, vdd, vp, vq = by_t * t1, by_tt * t1 * t1 + by_t * t2, -by_t, -square * v
        vdp, vdq, vpp, vpq, vqq = -by_tt * t1, by_tq * t1, by_tt, -by_tq, square * square * v
    return v, vd, vdd, vp, vq, vdp, vdq, vpp, vpq, vqq


@triton.jit
def _edge(
    d_ptr, e, E, KIND: tl.constexpr, CUTOFF: tl.constexpr, ALPHA: tl.constexpr, START: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """All that an edge's functions share, each a column: distance, variable and its derivatives, envelope and its derivatives."""
    d = tl.load(d_ptr + e, mask=e < E, other=0.5 * CUTOFF).to(ACC)
    f, f1, f2 = _envelope(d, ENVELOPE, CUTOFF, EXPONENT)
    if ENVELOPE != 0:
        # beyond the cutoff a distance may be anything, infinite too
        d = tl.where(d >= CUTOFF, CUTOFF, d)
    t, t1, t2 = _variable(d, KIND, ALPHA, START)
    return d[:, None], t[:, None], t1[:, None], t2[:, None], f[:, None], f1[:, None], f2[:, None]


@triton.jit
def _function(p_ptr, q_ptr, r, R, ACC: tl.constexpr):
    """Parameters of the functions r, each a row."""
    p = tl.load(p_ptr + r, mask=r < R, other=1.0).to(ACC)
    q = tl.load(q_ptr + r, mask=r < R, other=1.0).to(ACC)
    return p[None, :], q[None, :]


@triton.jit(do_not_specialize=_SIZES)
def value_kernel(
    d_ptr, p_ptr, q_ptr, out_ptr, E, R, KIND: tl.constexpr, CUTOFF: tl.constexpr, ALPHA: tl.constexpr, START: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, NORM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if d_ptr.dtype.element_ty == tl.float64 else tl.float32
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    d, t, t1, t2, f, _f1, _f2 = _edge(d_ptr, e, E, KIND, CUTOFF, ALPHA, START, ENVELOPE, EXPONENT, ACC)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        p, q = _function(p_ptr, q_ptr, r, R, ACC)
        v, _vd, _vdd, _vp, _vq, _vdp, _vdq, _vpp, _vpq, _vqq = _jet(d, t, t1, t2, p, q, KIND, NORM)
        # the last tiles of edges and of functions are ragged
        tl.store(out_ptr + e[:, None] * R + r[None, :], f * v, mask=(e < E)[:, None] & (r < R)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def rows_kernel(
    h_ptr, a_ptr, b_ptr, g_ptr, d_ptr, p_ptr, q_ptr, by_g_ptr, by_d_ptr, E, R,
    SECOND: tl.constexpr, HAS_H: tl.constexpr, HAS_P: tl.constexpr, HAS_Q: tl.constexpr, NEED_G: tl.constexpr,
    KIND: tl.constexpr, CUTOFF: tl.constexpr, ALPHA: tl.constexpr, START: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, NORM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """First: by_d = Σ_r g ∂_d. SECOND, with the derivative T along h (HAS_H), a (HAS_P) and b (HAS_Q): by_g = T and by_d = Σ_r g ∂_d T."""
    ACC: tl.constexpr = tl.float64 if d_ptr.dtype.element_ty == tl.float64 else tl.float32
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    d, t, t1, t2, f, f1, f2 = _edge(d_ptr, e, E, KIND, CUTOFF, ALPHA, START, ENVELOPE, EXPONENT, ACC)
    if HAS_H:
        h = tl.load(h_ptr + e, mask=e < E, other=0.0).to(ACC)[:, None]
    total = tl.zeros((BLOCK_E,), dtype=ACC)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        p, q = _function(p_ptr, q_ptr, r, R, ACC)
        exists = (e < E)[:, None] & (r < R)[None, :]
        place = e[:, None] * R + r[None, :]
        g = tl.load(g_ptr + place, mask=exists, other=0.0).to(ACC)
        v, vd, vdd, vp, vq, vdp, vdq, _vpp, _vpq, _vqq = _jet(d, t, t1, t2, p, q, KIND, NORM)
        if SECOND:
            along, along_d = g * 0.0, g * 0.0
            if HAS_H:
                along, along_d = h * (f1 * v + f * vd), h * (f2 * v + 2.0 * f1 * vd + f * vdd)
            if HAS_P:
                a = tl.load(a_ptr + r, mask=r < R, other=0.0).to(ACC)[None, :]
                along += a * f * vp
                along_d += a * (f1 * vp + f * vdp)
            if HAS_Q:
                b = tl.load(b_ptr + r, mask=r < R, other=0.0).to(ACC)[None, :]
                along += b * f * vq
                along_d += b * (f1 * vq + f * vdq)
            if NEED_G:
                tl.store(by_g_ptr + place, along, mask=exists)
            total += tl.sum(tl.where(exists, g * along_d, 0.0), axis=1)
        else:
            total += tl.sum(tl.where(exists, g * (f1 * v + f * vd), 0.0), axis=1)
    tl.store(by_d_ptr + e, total, mask=e < E)


@triton.jit(do_not_specialize=_SIZES)
def columns_kernel(
    h_ptr, a_ptr, b_ptr, g_ptr, d_ptr, p_ptr, q_ptr, by_p_ptr, by_q_ptr, E, R, per_part,
    SECOND: tl.constexpr, HAS_H: tl.constexpr, HAS_P: tl.constexpr, HAS_Q: tl.constexpr,
    KIND: tl.constexpr, CUTOFF: tl.constexpr, ALPHA: tl.constexpr, START: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, NORM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """Sums over the edges of one part: by_p and by_q [parts, R]. First: Σ_e g ∂_p; SECOND: Σ_e g ∂_p T, see `rows_kernel`."""
    ACC: tl.constexpr = tl.float64 if d_ptr.dtype.element_ty == tl.float64 else tl.float32
    part = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    p, q = _function(p_ptr, q_ptr, r, R, ACC)
    by_p = tl.zeros((BLOCK_R,), dtype=ACC)
    by_q = tl.zeros((BLOCK_R,), dtype=ACC)
    for first in range(0, per_part, BLOCK_E):
        e = part * per_part + first + tl.arange(0, BLOCK_E)
        d, t, t1, t2, f, f1, _f2 = _edge(d_ptr, e, E, KIND, CUTOFF, ALPHA, START, ENVELOPE, EXPONENT, ACC)
        exists = (e < E)[:, None] & (r < R)[None, :]
        g = tl.load(g_ptr + e[:, None] * R + r[None, :], mask=exists, other=0.0).to(ACC)
        _v, _vd, _vdd, vp, vq, vdp, vdq, vpp, vpq, vqq = _jet(d, t, t1, t2, p, q, KIND, NORM)
        if SECOND:
            along_p, along_q = g * 0.0, g * 0.0
            if HAS_H:
                h = tl.load(h_ptr + e, mask=e < E, other=0.0).to(ACC)[:, None]
                along_p, along_q = h * (f1 * vp + f * vdp), h * (f1 * vq + f * vdq)
            if HAS_P:
                a = tl.load(a_ptr + r, mask=r < R, other=0.0).to(ACC)[None, :]
                along_p += a * f * vpp
                along_q += a * f * vpq
            if HAS_Q:
                b = tl.load(b_ptr + r, mask=r < R, other=0.0).to(ACC)[None, :]
                along_p += b * f * vpq
                along_q += b * f * vqq
        else:
            along_p, along_q = f * vp, f * vq
        by_p += tl.sum(tl.where(exists, g * along_p, 0.0), axis=0)
        by_q += tl.sum(tl.where(exists, g * along_q, 0.0), axis=0)
    tl.store(by_p_ptr + part * R + r, by_p, mask=r < R)
    tl.store(by_q_ptr + part * R + r, by_q, mask=r < R)


@triton.jit(do_not_specialize=_SIZES)
def envelope_kernel(
    d_ptr, out_ptr, E, CUTOFF: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, ORDER: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if d_ptr.dtype.element_ty == tl.float64 else tl.float32
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.load(d_ptr + e, mask=e < E, other=0.5 * CUTOFF).to(ACC)
    f, f1, f2 = _envelope(d, ENVELOPE, CUTOFF, EXPONENT)
    if ORDER == 0:
        tl.store(out_ptr + e, f, mask=e < E)
    elif ORDER == 1:
        tl.store(out_ptr + e, f1, mask=e < E)
    else:
        tl.store(out_ptr + e, f2, mask=e < E)
