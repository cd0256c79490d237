"""Radial bases and cutoff envelopes, each with its own first derivative.

The derivative is written out so that a model can carry it forward beside the value: forces then need no backward pass through
filter networks, see `fastkd.models.layers.filters`.

Example:
    >>> basis = RadialBasis("bessel", 8, cutoff=5.0)
    >>> value, slope = basis.value_and_derivative(torch.tensor([1.0, 2.0]))
    >>> value.shape
    torch.Size([2, 8])
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

BasisKind = Literal["gaussian", "bessel", "exp_normal"]
EnvelopeKind = Literal["polynomial", "cosine", "none"]

#: Å. The Bessel basis is constant below, where sin(kr)/r and its slope lose their digits. No two nuclei come this close.
BESSEL_FLOOR = 1e-3


class RadialBasis(nn.Module):
    """``size`` functions of a distance in [0, cutoff] Å, without an envelope.

    - ``gaussian``: exp(−(r − μₖ)² / 2Δ²), μ evenly spaced from 0 to the cutoff, Δ their spacing (SchNet, section 4.1).
    - ``bessel``: √(2/c) sin(kπr/c)/r (DimeNet, eq. 7).
    - ``exp_normal``: exp(−β(e^(−αr) − μₖ)²), α = 5/c, μ evenly spaced from e^(−αc) to 1 (PhysNet, eq. 7).

    The constants are no part of the state dict: they follow from the options, and are kept in float64 whatever the module's dtype.
    """

    def __init__(self, kind: BasisKind, size: int, cutoff: float) -> None:
        super().__init__()
        if size < 1 or (kind == "gaussian" and size < 2):
            raise ValueError(f"a {kind} basis cannot have {size} functions")
        self.kind, self.size, self.cutoff = kind, size, float(cutoff)
        self._constants: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def extra_repr(self) -> str:
        return f"{self.kind}, size={self.size}, cutoff={self.cutoff}"

    def forward(self, length: Tensor) -> Tensor:
        """[n] Å → [n, size]."""
        return self._evaluate(length, slope=False)[0]

    def value_and_derivative(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """[n] Å → [n, size] and its derivative, [n, size] 1/Å."""
        value, slope = self._evaluate(length, slope=True)
        assert slope is not None
        return value, slope

    def _evaluate(self, length: Tensor, *, slope: bool) -> tuple[Tensor, Tensor | None]:
        r, k = length.unsqueeze(-1), self._constant(length)
        if self.kind == "gaussian":
            width = self.cutoff / (self.size - 1)
            t = r - k
            value = torch.exp(t.square() * (-0.5 / width**2))
            return value, t * value * (-1 / width**2) if slope else None
        if self.kind == "bessel":
            r = r.clamp(min=BESSEL_FLOOR)
            norm, kr = math.sqrt(2 / self.cutoff), k * r
            value = torch.sin(kr) * (norm / r)
            if not slope:
                return value, None
            return value, (norm * k * torch.cos(kr) - value) / r * (length.unsqueeze(-1) > BESSEL_FLOOR)
        alpha = 5 / self.cutoff
        beta = (2 / self.size * (1 - math.exp(-5.0))) ** -2
        decay = torch.exp(-alpha * r)
        t = decay - k
        value = torch.exp(-beta * t.square())
        return value, 2 * alpha * beta * t * decay * value if slope else None

    def _constant(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._constants:
            if self.kind == "gaussian":
                table = torch.linspace(0, self.cutoff, self.size, dtype=torch.float64)
            elif self.kind == "bessel":
                table = torch.arange(1, self.size + 1, dtype=torch.float64) * (math.pi / self.cutoff)
            else:
                table = torch.linspace(math.exp(-5.0), 1, self.size, dtype=torch.float64)
            self._constants[key] = table.to(device=like.device, dtype=like.dtype)
        return self._constants[key]


class Envelope(nn.Module):
    """A factor that takes everything to zero at the cutoff.

    - ``polynomial``: 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺², x = r/c. Energy, forces and their gradient are continuous
      (DimeNet, eq. 8).
    - ``cosine``: ½(cos(πx) + 1). Energy and forces are continuous; the gradient of forces jumps (SchNet, Behler 2011).
    - ``none``: 1.
    """

    def __init__(self, kind: EnvelopeKind, cutoff: float, exponent: int = 6) -> None:
        super().__init__()
        if kind == "polynomial" and exponent < 2:
            raise ValueError(f"the polynomial envelope needs an exponent of at least 2, got {exponent}")
        self.kind, self.cutoff, self.exponent = kind, float(cutoff), exponent

    def extra_repr(self) -> str:
        return f"{self.kind}, cutoff={self.cutoff}" + (f", exponent={self.exponent}" if self.kind == "polynomial" else "")

    def forward(self, length: Tensor) -> Tensor:
        """[n] Å → [n]."""
        return self.value_and_derivative(length)[0]

    def value_and_derivative(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """[n] Å → [n] and its derivative, [n] 1/Å."""
        if self.kind == "none":
            return torch.ones_like(length), torch.zeros_like(length)
        x = length / self.cutoff
        inside = (x < 1).to(length.dtype)
        if self.kind == "cosine":
            phase = math.pi * x
            return 0.5 * (torch.cos(phase) + 1) * inside, torch.sin(phase) * (-0.5 * math.pi / self.cutoff) * inside
        p = self.exponent
        a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
        power = x.pow(p - 1)
        value = 1 + power * x * (a + x * (b + c * x))
        slope = power * (1 - x).square() * (-p * (p + 1) * (p + 2) / (2 * self.cutoff))
        return value * inside, slope * inside
