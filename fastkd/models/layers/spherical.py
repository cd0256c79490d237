"""Spherical Bessel functions and Legendre polynomials, each with derivatives of every order, and the bases made of them.

Both families are closed under differentiation, so that a derivative calls the family again: no angle appears (collinear edges are
nothing special), no power of 1/x, and nothing is differentiated numerically. Zeros and norms are computed here, in float64.

Example:
    >>> bessel_zeros(2, 2)
    array([[3.14159265, 6.28318531],
           [4.49340946, 7.72525184]])
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Floats = npt.NDArray[np.floating]

#: x = d / cutoff below which the radial part is constant, where its factor 1/x has no meaning any more. No two nuclei come this close.
FLOOR = 1e-4


@lru_cache
def _series(degree: int) -> tuple[float, ...]:
    """Coefficients of jₗ(x) / xˡ in powers of x², as many as float64 can tell up to x = l + ½."""
    coefficient = math.prod(1 / (2 * k + 1) for k in range(1, degree + 1))
    coefficients, k, largest = [coefficient], 0, (degree + 0.5) ** 2
    while abs(coefficients[-1]) * largest**k > 1e-18 * coefficient:
        k += 1
        coefficients.append(-coefficients[-1] / (2 * k * (2 * degree + 2 * k + 1)))
    return tuple(coefficients)


def _evaluate(x: Tensor, degrees: tuple[int, ...]) -> Tensor:
    """Column i of x [..., len(degrees), n] → j of degree ``degrees[i]``; degrees ascend.

    Upwards by jₗ₊₁ = (2l + 1) jₗ / x − jₗ₋₁ where x > l + ½, which is stable there; by the power series elsewhere.
    """
    limit = x.new_tensor([degree + 0.5 for degree in degrees]).unsqueeze(-1)
    small = x < limit
    far = torch.where(small, limit, x)
    inverse = 1 / far
    before = torch.cos(far) * inverse  # j₋₁
    now = torch.sin(far) * inverse
    upward, first = torch.empty_like(x), 0
    for degree in range(degrees[-1] + 1):
        done = first
        while done < len(degrees) and degrees[done] == degree:
            done += 1
        upward[..., first:done, :] = now[..., : done - first, :]
        before, now, inverse = (part[..., done - first :, :] for part in (before, now, inverse))
        before, now, first = now, (2 * degree + 1) * inverse * now - before, done
    # a GPU is not made to wait for the answer
    if x.device.type == "cpu" and not bool(small.any()):
        return upward
    terms = max(len(_series(degree)) for degree in degrees)
    table = x.new_tensor([(*_series(degree), *(0.0,) * (terms - len(_series(degree)))) for degree in degrees])
    near = torch.where(small, x, 0)
    square, total = near.square(), torch.zeros_like(x)
    for k in range(terms - 1, -1, -1):
        total = total * square + table[:, k, None]
    power = torch.stack([near[..., i, :] ** degree for i, degree in enumerate(degrees)], -2)
    return torch.where(small, total * power, upward)


class _SphericalBessel(torch.autograd.Function):
    """(2l + 1) jₗ′ = l jₗ₋₁ − (l + 1) jₗ₊₁ (DLMF 10.51.2), as often as asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, degrees: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.degrees = degrees
        return _evaluate(x, degrees)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        degrees: tuple[int, ...] = ctx.degrees
        factors = x.new_tensor([[degree / (2 * degree + 1), (degree + 1) / (2 * degree + 1)] for degree in degrees])
        lower = spherical_bessel(x, tuple(max(degree - 1, 0) for degree in degrees))
        upper = spherical_bessel(x, tuple(degree + 1 for degree in degrees))
        return g * (factors[:, :1] * lower - factors[:, 1:] * upper), None


def spherical_bessel(x: Tensor, degrees: tuple[int, ...]) -> Tensor:
    """Spherical Bessel functions of the first kind jₗ(x), differentiable to every order.

    Args:
        x: [..., len(degrees), n], ≥ 0.
        degrees: l of each row of the last but one axis, ascending.

    Returns:
        The same shape; relative error near rounding wherever jₗ is not near a zero, at small x too.
    """
    value: Tensor = _SphericalBessel.apply(x, degrees)
    return value


class _Legendre(torch.autograd.Function):
    """Pₗ′ = Σ (2k + 1) Pₖ over k = l − 1, l − 3, …: a product with a fixed matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.count = count
        # rows while they are made, for the sake of contiguous passes
        rows = x.new_empty(count, *x.shape)
        rows[0] = 1
        if count > 1:
            rows[1] = x
        for degree in range(2, count):
            torch.mul(x, rows[degree - 1], out=rows[degree]).mul_((2 * degree - 1) / degree).sub_(rows[degree - 2], alpha=1 - 1 / degree)
        return rows.movedim(0, -1).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        count: int = ctx.count
        if count == 1:
            return torch.zeros_like(x) * g.sum(-1), None
        slopes = legendre(x, count - 1)
        table = [[2 * k + 1 if k < degree and (degree - k) % 2 else 0 for k in range(count - 1)] for degree in range(count)]
        return ((g @ g.new_tensor(table)) * slopes).sum(-1), None


def legendre_and_slopes(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `legendre`, and the derivatives, without autograd: twice [..., count]."""
    values = _Legendre.apply(x, count)
    slopes = values.new_zeros(count, *x.shape)
    for degree in range(1, count):
        # Pₗ′ = Pₗ₋₂′ + (2l − 1) Pₗ₋₁
        torch.mul(values[..., degree - 1], 2 * degree - 1, out=slopes[degree])
        if degree > 1:
            slopes[degree] += slopes[degree - 2]
    return values, slopes.movedim(0, -1).contiguous()


def legendre(x: Tensor, count: int) -> Tensor:
    """Legendre polynomials P₀ … of ``count`` degrees: [...] → [..., count], differentiable to every order."""
    value: Tensor = _Legendre.apply(x, count)
    return value


def _bessel(x: float, degree: int) -> float:
    return _evaluate(torch.full((1, 1), x, dtype=torch.float64, device="cpu"), (degree,)).item()


@lru_cache
def _zeros(degree: int, count: int) -> tuple[float, ...]:
    if degree == 0:
        return tuple(math.pi * (k + 1) for k in range(count))
    # zeros of neighbouring degrees alternate
    return tuple(_zero_between(low, high, degree) for low, high in pairwise(_zeros(degree - 1, count + 1)))


def _zero_between(low: float, high: float, degree: int) -> float:
    """By bisection, down to neighbouring numbers."""
    sign = _bessel(low, degree) > 0
    while low < (middle := 0.5 * (low + high)) < high:
        if (_bessel(middle, degree) > 0) == sign:
            low = middle
        else:
            high = middle
    return low


def bessel_zeros(degrees: int, count: int) -> npt.NDArray[np.float64]:
    """The first ``count`` positive zeros of j₀ … of as many ``degrees``, [degrees, count], to the last bit or two."""
    return np.array([_zeros(degree, count) for degree in range(degrees)])


def bessel_norms(zeros: Floats) -> Floats:
    """Factors √2 / |jₗ₊₁(z)| that give jₗ(z x), [degrees, count], the norm 1 on the unit ball (DimeNet, eq. 9).

    In the dtype of ``zeros`` throughout: float32 rounds every step, as the public implementations do.
    """
    norms = np.empty_like(zeros)
    for degree, row in enumerate(zeros):
        exact = np.array([_bessel(float(z), degree + 1) for z in row])
        if zeros.dtype == np.float64:
            norms[degree] = math.sqrt(2) / np.abs(exact)
            continue
        amplitude = np.sqrt(np.float32(math.pi) / (np.float32(2) * row))
        cylindrical = (exact * np.sqrt(2 * row.astype(np.float64) / math.pi)).astype(np.float32)
        norms[degree] = np.float32(1) / np.sqrt(np.float32(0.5) * (amplitude * cylindrical) ** 2)
    return norms


class SphericalRadial(nn.Module):
    """Radial part of DimeNet's spherical basis: √2 / |jₗ₊₁(zₗₙ)| jₗ(zₗₙ d/c) u(d/c) / (d/c), with √((2l + 1) / 4π) of Yₗ (eq. 9 and 10).

    The constants are no part of the state dict: they follow from the options, and are kept in float64 whatever the module's dtype.

    Args:
        degrees: l = 0 … degrees − 1.
        radial: zeros per degree.
        cutoff: c, Å.
        rounded: take zeros and norms as float32 made them, as the public implementations do; this changes the seventh digit.
    """

    def __init__(self, degrees: int, radial: int, cutoff: float, *, rounded: bool = False) -> None:
        super().__init__()
        self.degrees, self.radial, self.cutoff = degrees, radial, float(cutoff)
        zeros: Floats = bessel_zeros(degrees, radial)
        zeros = zeros.astype(np.float32) if rounded else zeros
        harmonics = np.sqrt((2 * np.arange(degrees) + 1) / (4 * math.pi))
        norms = bessel_norms(zeros).astype(np.float64) * harmonics[:, None]
        self._exact = torch.from_numpy(zeros.astype(np.float64)), torch.from_numpy(norms)
        self._constants: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def extra_repr(self) -> str:
        return f"degrees={self.degrees}, radial={self.radial}, cutoff={self.cutoff}"

    def forward(self, length: Tensor, envelope: Tensor) -> Tensor:
        """[n] Å and the envelope u there, [n] → [n, degrees, radial]."""
        zeros, norms = self._constant(length)
        x = (length / self.cutoff).clamp(min=FLOOR)
        waves = spherical_bessel(x[:, None, None] * zeros, tuple(range(self.degrees)))
        return waves * (norms * (envelope / x)[:, None, None])

    def value_and_slope(self, length: Tensor, envelope: Tensor, envelope_slope: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the derivative by the length, without autograd; ``envelope_slope`` [n] is the envelope's derivative."""
        zeros, norms = self._constant(length)
        x = length / self.cutoff
        # below the floor x stands still
        rate = (x > FLOOR).to(x.dtype) / self.cutoff
        x = x.clamp(min=FLOOR)
        inside, degrees = x[:, None, None] * zeros, range(self.degrees)
        waves = _evaluate(inside, tuple(degrees))
        # jₗ′(y) = l jₗ / y − jₗ₊₁, of which neither end of the range of y makes a small difference of large numbers
        bends = waves * (x.new_tensor([[float(degree)] for degree in degrees]) / inside)
        bends -= _evaluate(inside, tuple(degree + 1 for degree in degrees))
        factor = envelope / x
        change = envelope_slope / x - factor / x * rate
        slope = waves * change[:, None, None]
        slope += bends * zeros * (factor * rate)[:, None, None]
        return waves * (norms * factor[:, None, None]), slope * norms

    def _constant(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._constants:
            zeros, norms = (constant.to(device=like.device, dtype=like.dtype) for constant in self._exact)
            self._constants[key] = zeros, norms
        return self._constants[key]
