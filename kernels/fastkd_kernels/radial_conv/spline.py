"""Septic B-splines on evenly spaced knots: how a function of a distance becomes a table, and what its rows weigh at a distance.

Between knots k and k + 1, at the fraction t of the way, the spline and its q-th derivative are

    s⁽q⁾ = step⁻q Σ_r b_r⁽q⁾(t) c[k + r],  r = 0 … 7,

with the cardinal B-spline's pieces b_r, polynomials of degree 7, so that s is six times continuously differentiable. The coefficients c
follow from the values at the knots by a linear map that depends on nothing but their number (`prefilter`): interpolation, with "not a knot"
at both ends (the first and the last four pieces are one polynomial each), so that no values beyond the ends are needed.

Source: Unser 1999, Splines: a perfect fit for signal and image processing; de Boor, A Practical Guide to Splines, ch. IV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from .remembered import remembered

DEGREE = 7
#: Rows of the table that a distance touches.
ROWS = DEGREE + 1
#: Coefficients beyond the number of knots.
EXTRA_ROWS = DEGREE - 1
#: The "not a knot" conditions must not overlap.
MIN_KNOTS = 16


@dataclass(frozen=True)
class SplineGrid:
    """``knots`` evenly spaced distances from 0 to ``cutoff`` Å."""

    cutoff: float
    knots: int = 161

    def __post_init__(self) -> None:
        if not self.cutoff > 0:
            raise ValueError(f"the cutoff must be positive, got {self.cutoff}")
        if self.knots < MIN_KNOTS:
            raise ValueError(f"a spline needs at least {MIN_KNOTS} knots, got {self.knots}")

    @property
    def step(self) -> float:
        """Å between knots."""
        return self.cutoff / (self.knots - 1)

    @property
    def rows(self) -> int:
        """Rows of a table on this grid."""
        return self.knots + EXTRA_ROWS

    def positions(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The knots, [knots] Å."""
        return torch.linspace(0, self.cutoff, self.knots, dtype=torch.float64).to(device=device, dtype=dtype)

    def coefficients(self, values: Tensor) -> Tensor:
        """Values at the knots, [knots, F], to the table that interpolates them, [rows, F]; linear, hence differentiable.

        Raises:
            ValueError: if there is not one row of values per knot.
        """
        if values.dim() != 2 or values.shape[0] != self.knots:
            raise ValueError(f"a grid of {self.knots} knots needs values [{self.knots}, F], got {list(values.shape)}")
        return torch.mm(prefilter(self.knots, values.dtype, values.device), values)


@lru_cache(maxsize=16)
def pieces(order: int) -> tuple[tuple[float, ...], ...]:
    """Polynomials b_r⁽q⁾(t): [row][power of t], for q = ``order``; all zero beyond the degree."""
    rows = []
    for row in range(ROWS):
        powers = [Fraction(0)] * ROWS
        for k in range(DEGREE - row + 1):
            # (t + shift)⁷ by the binomial theorem
            shift, sign = DEGREE - row - k, (-1) ** k * math.comb(ROWS, k)
            for power in range(ROWS):
                powers[power] += Fraction(sign * math.comb(DEGREE, power) * shift ** (DEGREE - power), math.factorial(DEGREE))
        for _ in range(order):
            powers = [*(power * value for power, value in enumerate(powers[1:], 1)), Fraction(0)]
        rows.append(tuple(float(value) for value in powers))
    return tuple(rows)


@remembered(maxsize=32)
def prefilter(knots: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """The linear map from values at the knots to coefficients, [knots + 6, knots]; made in float64."""
    rows = knots + EXTRA_ROWS
    at_knot = [piece[0] for piece in pieces(0)]
    system = torch.zeros(rows, rows, dtype=torch.float64)
    for row, weight in enumerate(at_knot[:DEGREE]):
        system[:knots].diagonal(row).fill_(weight)
    difference = torch.tensor([(-1) ** k * math.comb(ROWS, k) for k in range(ROWS + 1)], dtype=torch.float64)
    for number in range(EXTRA_ROWS // 2):
        system[knots + 2 * number, number : number + ROWS + 1] = difference
        end = rows - number
        system[knots + 2 * number + 1, end - ROWS - 1 : end] = difference
    right = torch.zeros(rows, knots, dtype=torch.float64)
    right[:knots] = torch.eye(knots, dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(system, right)
    return solved.to(device=device, dtype=dtype)


def row_weights(fraction: Tensor, order: int) -> Tensor:
    """b_r⁽q⁾(t) of each distance, [n] → [n, 8], without the factor step⁻q; differentiable in the fraction."""
    polynomials = torch.tensor(pieces(order), dtype=fraction.dtype, device=fraction.device)
    powers = torch.stack([fraction**power for power in range(ROWS)], -1)
    weights: Tensor = torch.mm(powers, polynomials.T)
    return weights
