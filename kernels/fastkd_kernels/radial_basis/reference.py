"""Radial bases and envelopes in plain torch: the specification, on any device, differentiable to any order by autograd.

Half precision is computed in float32. Names: d distances [E], p and q parameters [R]. They are centres and exponents of ``gaussian`` and
``exp_normal``, and frequencies (q is not used) of ``bessel``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kinds import EXPONENTIAL_FLOOR, Constants, accumulator


def radial_basis(d: Tensor, p: Tensor, q: Tensor, constants: Constants) -> Tensor:
    """Every function of every distance, times the envelope: [E], [R], [R] → [E, R]."""
    kind, cutoff, alpha, start, envelope_kind, exponent = constants
    length, first, second = (tensor.to(accumulator(d.dtype)) for tensor in (d, p, q))
    factor = envelope(length, envelope_kind, cutoff, exponent)
    # beyond the cutoff a distance may be anything, infinite too
    length = within(length, envelope_kind, cutoff)[:, None]
    if kind == "bessel":
        value = math.sqrt(2 / cutoff) * first * sinc(length * first)
    else:
        t = torch.exp(alpha * (start - length)) if kind == "exp_normal" else length
        value = torch.exp(-second * (t - first).square())
    return (factor[:, None] * value).to(d.dtype)


def within(d: Tensor, kind: str, cutoff: float) -> Tensor:
    """The distance, and the cutoff in its place where the envelope is zero. NaN stays."""
    return d if kind == "none" else torch.where(d >= cutoff, cutoff, d)


def envelope(d: Tensor, kind: str, cutoff: float, exponent: int) -> Tensor:
    """The factor that takes everything to zero at the cutoff: [E] → [E]. NaN stays."""
    if kind == "none":
        return torch.ones_like(d)
    wide = d.to(accumulator(d.dtype))
    x = within(wide, kind, cutoff) / cutoff
    if kind == "polynomial":
        # 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺² without its zero of order three
        total = torch.zeros_like(x)
        for k in range(exponent - 1, -1, -1):
            total = total * x + (k + 1) * (k + 2) / 2
        value = (1 - x) ** 3 * total
    elif kind == "cosine":
        value = torch.cos((math.pi / 2) * x).square()
    else:
        rest = ((1 - x) * (1 + x)).clamp(min=EXPONENTIAL_FLOOR)
        value = torch.exp(-x * x / rest)
    return torch.where(wide >= cutoff, 0.0, value).to(d.dtype)


def sinc(x: Tensor) -> Tensor:
    """The quotient sin x / x, by its series below 1, so that it and all its derivatives are exact at 0."""
    small = x.abs() < 1
    # each branch is given numbers that do it no harm
    z = torch.where(small, x * x, 0.0)
    series = torch.zeros_like(x)
    for n in range(12, -1, -1):
        series = series * z + (-1) ** n / math.factorial(2 * n + 1)
    far = torch.where(small, 1.0, x)
    return torch.where(small, series, torch.sin(far) / far)
