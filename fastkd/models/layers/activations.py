"""Activations: SiLU, SiLU scaled to keep variance, shifted softplus."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from fastkd_kernels.backends import runs_directly
from torch import Tensor, nn
from torch.nn import functional

LOG_2 = math.log(2.0)

Activation = Literal["silu", "scaled_silu"]


class ScaledSiLU(nn.Module):
    """SiLU / 0.6, which keeps the variance of a standard normal input near one (GemNet, Gasteiger et al. 2021, appendix)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x) * (1 / 0.6)


class _TimesSigmoid(torch.autograd.Function):
    """g σ(x), with σ(x) known already; its derivatives are products, where torch's softplus would take exponentials again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, slope)
        return g * slope

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        g, x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope = torch.sigmoid(x)
        g_first = h * slope
        g_x = (g_first * g).mul(1 - slope) if ctx.needs_input_grad[1] else None
        return g_first if ctx.needs_input_grad[0] else None, g_x, None


class _ShiftedSoftplus(torch.autograd.Function):
    """ln(½ eˣ + ½), keeping its slope for every order of derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, torch.sigmoid(x))
        return functional.softplus(x).sub_(LOG_2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            product: Tensor = _TimesSigmoid.apply(g, x, slope)
            return product
        return g * slope


class ShiftedSoftplus(nn.Module):
    """ln(½ eˣ + ½), zero at zero and infinitely smooth (SchNet, Schütt et al. 2017, section 4)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and runs_directly((x,)):
            value: Tensor = _ShiftedSoftplus.apply(x)
            return value
        return functional.softplus(x) - LOG_2


def activation(name: Activation) -> nn.Module:
    """A new module by name."""
    return {"silu": nn.SiLU, "scaled_silu": ScaledSiLU}[name]()
