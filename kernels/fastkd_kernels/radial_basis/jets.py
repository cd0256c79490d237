"""Derivatives of bases and envelopes in closed form and plain torch: what the reference backend runs, and third orders start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kinds import EXPONENTIAL_FLOOR, Constants, accumulator
from .reference import envelope, sinc, within

Jet = dict[str, Tensor]


def envelope_derivative(d: Tensor, kind: str, cutoff: float, exponent: int, order: int) -> Tensor:
    """The envelope's derivative of order 0, 1 or 2: [E] → [E], zero at and beyond the cutoff."""
    if order == 0:
        return envelope(d, kind, cutoff, exponent)
    if kind == "none":
        return torch.zeros_like(d)
    wide = d.to(accumulator(d.dtype))
    x = within(wide, kind, cutoff) / cutoff
    if kind == "polynomial":
        n = exponent
        scale = -n * (n + 1) * (n + 2) / 2
        value = scale * x ** (n - 1) * (1 - x) ** 2 if order == 1 else scale * x ** (n - 2) * (1 - x) * ((n - 1) - (n + 1) * x)
    elif kind == "cosine":
        value = -math.pi / 2 * torch.sin(math.pi * x) if order == 1 else -(math.pi**2) / 2 * torch.cos(math.pi * x)
    else:
        rest = ((1 - x) * (1 + x)).clamp(min=EXPONENTIAL_FLOOR)
        factor = -2 * x / rest**2 if order == 1 else (4 * x * x / rest - 2 * rest - 8 * x * x) / rest**3
        value = factor * torch.exp(-x * x / rest)
    return torch.where(wide >= cutoff, 0.0, value / cutoff**order).to(d.dtype)


def jet(d: Tensor, p: Tensor, q: Tensor, constants: Constants) -> Jet:
    """The basis without its envelope and all its first and second derivatives by d, p and q, each [E, R].

    Keys are the variables: ``""`` is the value, ``"dp"`` the derivative by d and p.
    """
    if constants.kind == "bessel":
        return _bessel(d, p, constants)
    length = d[:, None]
    if constants.kind == "exp_normal":
        t = torch.exp(constants.alpha * (constants.start - length))
        t1, t2 = -constants.alpha * t, constants.alpha**2 * t
    else:
        t, t1, t2 = length, torch.ones_like(length), torch.zeros_like(length)
    u = t - p
    square = u * u
    value = torch.exp(-q * square)
    by_t, by_tt = -2 * q * u * value, (4 * q * square - 2) * q * value
    by_tq = -2 * u * (1 - q * square) * value
    return {
        "": value,
        "d": by_t * t1,
        "p": -by_t,
        "q": -square * value,
        "dd": by_tt * t1 * t1 + by_t * t2,
        "dp": -by_tt * t1,
        "dq": by_tq * t1,
        "pp": by_tt,
        "pq": -by_tq,
        "qq": square * square * value,
    }


def _bessel(d: Tensor, w: Tensor, constants: Constants) -> Jet:
    norm, length = math.sqrt(2 / constants.cutoff), d[:, None]
    x = length * w
    first, second = _sinc_derivatives(x)
    sine, cosine, none = torch.sin(x), torch.cos(x), torch.zeros_like(x)
    return {
        "": norm * w * sinc(x),
        "d": norm * w * w * first,
        "p": norm * cosine,
        "q": none,
        "dd": norm * w * w * w * second,
        "dp": -norm * w * sine,
        "dq": none,
        "pp": -norm * length * sine,
        "pq": none,
        "qq": none,
    }


def _sinc_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    small = x.abs() < 1
    z = torch.where(small, x * x, 0.0)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(13, 0, -1):
        term = (-1) ** n * 2 * n / math.factorial(2 * n + 1)
        first, second = first * z + term, second * z + term * (2 * n - 1)
    far = torch.where(small, 1.0, x)
    one = (torch.cos(far) - torch.sin(far) / far) / far
    two = -torch.sin(far) / far - 2 * one / far
    return torch.where(small, first * x, one), torch.where(small, second, two)


def _with_envelope(d: Tensor, p: Tensor, q: Tensor, constants: Constants) -> Jet:
    """`jet` of envelope times basis."""
    f, f1, f2 = (envelope_derivative(d, constants.envelope, constants.cutoff, constants.exponent, order)[:, None] for order in range(3))
    of = jet(within(d, constants.envelope, constants.cutoff), p, q, constants)
    made = {key: f * value for key, value in of.items() if "d" not in key}
    made["d"] = f1 * of[""] + f * of["d"]
    made["dd"] = f2 * of[""] + 2 * f1 * of["d"] + f * of["dd"]
    for key in "pq":
        made[f"d{key}"] = f1 * of[key] + f * of[f"d{key}"]
    return made


def backward(g: Tensor, d: Tensor, p: Tensor, q: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨g, radial_basis⟩ by d [E], p [R] and q [R]."""
    slope, *inputs = (tensor.to(accumulator(d.dtype)) for tensor in (g, d, p, q))
    of = _with_envelope(inputs[0], inputs[1], inputs[2], constants)
    by_d, by_p, by_q = (slope * of["d"]).sum(1), (slope * of["p"]).sum(0), (slope * of["q"]).sum(0)
    return by_d.to(d.dtype), by_p.to(d.dtype), by_q.to(d.dtype)


def double_backward(
    h: Tensor | None, a: Tensor | None, b: Tensor | None, g: Tensor, d: Tensor, p: Tensor, q: Tensor, constants: Constants
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by g, d, p and q of the contraction of `backward` with h [E], a [R] and b [R]; one that is None is zero."""
    wide = accumulator(d.dtype)
    slope, *inputs = (tensor.to(wide) for tensor in (g, d, p, q))
    of = _with_envelope(inputs[0], inputs[1], inputs[2], constants)
    tangents = {
        "d": None if h is None else h.to(wide)[:, None],
        "p": None if a is None else a.to(wide),
        "q": None if b is None else b.to(wide),
    }
    zero = torch.zeros_like(of[""])

    def along(*extra: str) -> Tensor:
        total = zero
        for key, tangent in tangents.items():
            if tangent is not None:
                total = total + tangent * of["".join(sorted((key, *extra)))]
        return total

    results = along(), (slope * along("d")).sum(1), (slope * along("p")).sum(0), (slope * along("q")).sum(0)
    return results[0].to(d.dtype), results[1].to(d.dtype), results[2].to(d.dtype), results[3].to(d.dtype)
