"""GPU functions that make PaiNN's filters again from distances: rows ψ = (C φ, C) of a tile of edges, and their product with the weight.

``d`` is [BLOCK_E] in float64, so that differences from a centre are exact before they are rounded to ``ACC``. The weight is transposed,
[K + 1, 3F], and ends in the bias. Basis and cutoff are those of `cfconv_exact.triton_rows`.
"""

import triton
import triton.language as tl

from ..cfconv_exact.triton_rows import cut_jets, phi_jets


@triton.jit
def _order(m: tl.constexpr, c, c1, c2, phi, phi1, phi2, is_bias, SMOOTH: tl.constexpr):
    """The m-th derivative of ψ, by Leibniz' rule."""
    if m == 0:
        row, last = c[:, None] * phi, c
    elif m == 1:
        row, last = c[:, None] * phi1 + c1[:, None] * phi, c1
    else:
        row, last = c[:, None] * phi2 + 2.0 * c1[:, None] * phi1 + c2[:, None] * phi, c2
    if SMOOTH:
        return tl.where(is_bias, last[:, None], row)
    else:  # noqa: RET505 - both branches of a compile-time condition must be written as such
        return tl.where(is_bias, 1.0 if m == 0 else 0.0, row)


@triton.jit
def psi_rows(
    d, k, K, LOW: tl.constexpr, BOTH: tl.constexpr, SMOOTH: tl.constexpr, ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr,
    REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, DECAY: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The derivatives of ψ of the orders LOW and, if BOTH, LOW + 1 (else the same again), [BLOCK_E, BLOCK_K] each."""
    c, c1, c2 = cut_jets(d, ENVELOPE, EXPONENT, REACH, ACC)
    phi, phi1, phi2 = phi_jets(d, k, BASIS, FIRST, INVERSE, SCALE, DECAY, ACC)
    is_bias = (k == K)[None, :]
    value = _order(LOW, c, c1, c2, phi, phi1, phi2, is_bias, SMOOTH)
    slope = value
    if BOTH:
        slope = _order(LOW + 1, c, c1, c2, phi, phi1, phi2, is_bias, SMOOTH)
    return value.to(ACC), slope.to(ACC)


@triton.jit
def filters(
    d, scale, f, weight_ptr, F, K, HAS_VECTOR: tl.constexpr, LOW: tl.constexpr, BOTH: tl.constexpr, SMOOTH: tl.constexpr,
    ENVELOPE: tl.constexpr, EXPONENT: tl.constexpr, REACH: tl.constexpr, BASIS: tl.constexpr, FIRST: tl.constexpr, INVERSE: tl.constexpr,
    SCALE: tl.constexpr, DECAY: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The blocks of W⁽ᴸᴼᵂ⁾ (scalar, direction, vector), then those of scale W⁽ᴸᴼᵂ⁺¹⁾ if BOTH, else 0; [BLOCK_E, BLOCK_F] each."""
    w_s = tl.zeros((BLOCK_E, BLOCK_F), dtype=ACC)
    w_r, w_v, s_s, s_r, s_v = w_s, w_s, w_s, w_s, w_s
    in_width = f < F  # F need not be a power of two
    # one function after the other: operands of a product of matrices would take more registers than the sums leave
    for number in range(0, K + 1):
        k = number + tl.arange(0, 1)
        value, slope = psi_rows(d, k, K, LOW, BOTH, SMOOTH, ENVELOPE, EXPONENT, REACH, BASIS, FIRST, INVERSE, SCALE, DECAY, ACC)
        slope *= scale[:, None]
        at = weight_ptr + number * (3 * F) + f
        w = tl.load(at, mask=in_width, other=0.0).to(ACC)[None, :]
        w_s += value * w
        if BOTH:
            s_s += slope * w
        w = tl.load(at + F, mask=in_width, other=0.0).to(ACC)[None, :]
        w_r += value * w
        if BOTH:
            s_r += slope * w
        if HAS_VECTOR:
            w = tl.load(at + 2 * F, mask=in_width, other=0.0).to(ACC)[None, :]
            w_v += value * w
            if BOTH:
                s_v += slope * w
    return w_s, w_r, w_v, s_s, s_r, s_v
