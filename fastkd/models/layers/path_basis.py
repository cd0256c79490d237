"""Functions of the distance and the angle along a path of two edges: spherical Bessel functions times Legendre polynomials.

This is DimeNet's basis (Gasteiger et al. 2020, eq. 6), as MXMNet and PAMNet use it. The angle enters through its cosine alone, and
distances near zero through series: values and derivatives of every order are finite for collinear and for coinciding atoms.

Example:
    >>> basis = PathBasis(spherical=7, radial=6, cutoff=5.0)
    >>> basis.radial_part(torch.tensor([1.0, 1.5])).shape
    torch.Size([2, 42])
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from fastkd_kernels import radial_envelope
from torch import Tensor, nn

Floats = npt.NDArray[np.float64]

#: Å. The basis is constant below, where its factor cutoff/r would overflow. No two nuclei come this close.
LENGTH_FLOOR = 1e-3
#: Below this argument the closed forms lose digits by cancellation, and so many terms of the series are exact.
_SERIES_BELOW = 3.0
_SERIES_TERMS = 15


class PathBasis(nn.Module):
    """``spherical`` × ``radial`` functions N_ln w(x)/x j_l(z_ln x) Y_l0(cos), x = r/cutoff, w as in `multiplex_envelope`.

    z_ln is the n-th zero of j_l. Zeros and norms N_ln are rounded to float32, as in all public implementations: weights were trained
    with these. The radial part is computed in float64 whatever the dtype of the lengths: there are few, and the closed forms cancel.
    """

    def __init__(self, spherical: int, radial: int, cutoff: float, exponent: int = 5, *, smooth: bool = False) -> None:
        super().__init__()
        if spherical < 2 or radial < 1 or exponent < 2:
            raise ValueError(f"a path basis needs spherical ≥ 2, radial ≥ 1 and exponent ≥ 2, got {spherical}, {radial} and {exponent}")
        self.spherical, self.radial, self.cutoff = spherical, radial, float(cutoff)
        self.exponent, self.smooth = exponent, smooth
        self.size = spherical * radial  #: number of functions
        zeros = spherical_bessel_zeros(spherical, radial).astype(np.float32)
        degree = np.arange(spherical).repeat(radial)
        series, sine, cosine = _coefficients(spherical)
        # rows of constants, a column a function: zeros, norms, degrees, coefficients
        self._rows = [zeros.astype(np.float64).ravel(), _norms(zeros).astype(np.float64).ravel(), degree.astype(np.float64)]
        self._rows += [table[degree, k] for table in (series, sine, cosine) for k in range(table.shape[1])]
        self._constants: dict[torch.device, Tensor] = {}

    def extra_repr(self) -> str:
        return f"spherical={self.spherical}, radial={self.radial}, cutoff={self.cutoff}, exponent={self.exponent}"

    def radial_part(self, length: Tensor) -> Tensor:
        """N_ln w(x)/x j_l(z_ln x): [n] Å → [n, spherical · radial], l varying slowest, in the dtype of ``length``."""
        constants = self._constants_on(length.device)
        x = length.double().clamp(min=LENGTH_FLOOR) / self.cutoff
        value = constants[1] * self._bessel(constants[0] * x.unsqueeze(-1), constants)
        factor = multiplex_envelope(x, self.exponent, smooth=self.smooth) / x
        return (factor.unsqueeze(-1) * value).to(length.dtype)

    def angular_part(self, cosine: Tensor) -> Tensor:
        """Y_l0 = √((2l+1)/4π) P_l(cos): [t] → [t, spherical]."""
        legendre = [torch.ones_like(cosine), cosine]
        for n in range(1, self.spherical - 1):
            legendre.append(((2 * n + 1) * cosine * legendre[n] - n * legendre[n - 1]) / (n + 1))
        return torch.stack([value * math.sqrt((2 * n + 1) / (4 * math.pi)) for n, value in enumerate(legendre)], -1)

    def combine(self, radial: Tensor, angular: Tensor) -> Tensor:
        """Products per path: [t, spherical · radial], [t, spherical] → [t, spherical · radial]."""
        paths = radial.shape[0]
        return (radial.view(paths, self.spherical, self.radial) * angular.unsqueeze(-1)).view(paths, self.size)

    def _bessel(self, argument: Tensor, constants: Tensor) -> Tensor:
        """Take j_l of each column, by its series near zero and in closed form beyond."""
        degree = constants[2]
        series, sine, cosine = constants[3:].split([_SERIES_TERMS, self.spherical + 2, self.spherical + 2])
        near, far = argument.clamp(max=_SERIES_BELOW), argument.clamp(min=_SERIES_BELOW)
        small = _horner(near.square(), series)
        for n in range(1, self.spherical):
            small = small * torch.where(degree >= n, near, 1.0)
        inverse = 1 / far
        large = _horner(inverse, sine) * torch.sin(far) + _horner(inverse, cosine) * torch.cos(far)
        return torch.where(argument < _SERIES_BELOW, small, large)

    def _constants_on(self, device: torch.device) -> Tensor:
        if device not in self._constants:
            # kept for whoever comes next, who may want gradients
            with torch.inference_mode(False):
                self._constants[device] = torch.from_numpy(np.stack(self._rows)).to(device)
        return self._constants[device]


def multiplex_envelope(x: Tensor, exponent: int, *, smooth: bool) -> Tensor:
    """A factor w that falls from 1 at x = 0 to 0 at x = 1, and stays there: [n] → [n].

    1 + a xᵖ⁺¹ + b xᵖ⁺² + c xᵖ⁺³ with DimeNet's constants for p = ``exponent``, a = −(p+1)(p+2)/2, b = p(p+2), c = −p(p+1)/2. The references take
    this, whose powers are one higher than those that the constants were made for: its slope at 1 is −1. ``smooth`` takes the constants for
    p + 1 instead, which make it the polynomial of DimeNet (eq. 8), with two continuous derivatives.
    """
    if smooth:
        return radial_envelope(x, "polynomial", 1.0, exponent + 1)
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return (1 + x.pow(p + 1) * (a + x * (b + c * x))) * (x < 1)


def spherical_bessel_zeros(degrees: int, count: int) -> Floats:
    """The first ``count`` positive zeros of j_0 … j_(degrees−1), [degrees, count]: those of j_(l+1) lie between those of j_l."""
    brackets: Floats = np.arange(1, count + degrees, dtype=np.float64) * np.pi
    zeros = [brackets[:count]]
    for degree in range(1, degrees):
        low: Floats = brackets[:-1].copy()
        high: Floats = brackets[1:].copy()
        sign = np.sign(_spherical_bessel(degree, low))
        for _ in range(80):
            middle = 0.5 * (low + high)
            left = np.sign(_spherical_bessel(degree, middle)) == sign
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        brackets = 0.5 * (low + high)
        zeros.append(brackets[:count])
    return np.stack(zeros)


def _spherical_bessel(degree: int, x: Floats) -> Floats:
    """j_l by upward recurrence, which is stable where x exceeds the degree, as it does between zeros."""
    before, value = np.cos(x) / x, np.sin(x) / x
    for n in range(degree):
        before, value = value, (2 * n + 1) / x * value - before
    return value


def _norms(zeros: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """√2 / |j_(l+1)(z_ln)|, each step rounded to float32 as SciPy and NumPy round it in the public implementations."""
    rows = []
    for degree, z in enumerate(zeros):
        exact = z.astype(np.float64)
        half_integer = (np.sqrt(2 * exact / np.pi) * _spherical_bessel(degree + 1, exact)).astype(np.float32)
        value = np.sqrt(np.float32(np.pi) / (np.float32(2) * z)) * half_integer
        rows.append(np.float32(1) / np.sqrt(np.float32(0.5) * (value * value)))
    return np.stack(rows)


def _coefficients(degrees: int) -> tuple[Floats, Floats, Floats]:
    """Of j_l, row l: its series in x² after the factor xˡ, and the polynomials in 1/x that multiply sin x and cos x."""
    series = np.zeros((degrees, _SERIES_TERMS))
    sine, cosine = np.zeros((degrees + 1, degrees + 2)), np.zeros((degrees + 1, degrees + 2))
    sine[0, 1], sine[1, 2], cosine[1, 1] = 1, 1, -1
    for n in range(1, degrees):
        for table in (sine, cosine):
            table[n + 1, 1:] = (2 * n + 1) * table[n, :-1]
            table[n + 1] -= table[n - 1]
    for n in range(degrees):
        series[n, 0] = 1 / math.prod(range(1, 2 * n + 2, 2))
        for k in range(1, _SERIES_TERMS):
            series[n, k] = series[n, k - 1] * -0.5 / (k * (2 * n + 2 * k + 1))
    return series, sine[:degrees], cosine[:degrees]


def _horner(x: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_k coefficients[k] xᵏ, [n, c], [terms, c] → [n, c]."""
    total = coefficients[-1] * torch.ones_like(x)
    for row in coefficients[:-1].flip(0):
        total = total * x + row
    return total
