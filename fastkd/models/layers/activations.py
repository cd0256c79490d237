"""Activations: SiLU, SiLU scaled to keep variance, shifted softplus."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["silu", "scaled_silu"]


class ScaledSiLU(nn.Module):
    """SiLU / 0.6, which keeps the variance of a standard normal input near one (GemNet, Gasteiger et al. 2021, appendix)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x) * (1 / 0.6)


class ShiftedSoftplus(nn.Module):
    """ln(½ eˣ + ½), zero at zero and infinitely smooth (SchNet, Schütt et al. 2017, section 4)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x) - math.log(2.0)


def activation(name: Activation) -> nn.Module:
    """A new module by name."""
    return {"silu": nn.SiLU, "scaled_silu": ScaledSiLU}[name]()
