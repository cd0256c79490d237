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


class _SiLUSlope(torch.autograd.Function):
    """g y′(x) for y = x σ(x); its derivatives are g y″ and y′, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, x = ctx.saved_tensors
        by_g = _silu_slope(h, x) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_g, None
        # y″ = σ (1 − σ) (2 + x (1 − 2σ))
        gate = torch.sigmoid(x)
        if torch.is_grad_enabled():
            return by_g, h * g * (gate * (1 - gate) * (2 + x * (1 - 2 * gate)))
        curvature = torch.sub(1, gate, alpha=2).mul_(x).add_(2)
        curvature.mul_(gate.addcmul_(gate, gate, value=-1))
        return by_g, curvature.mul_(g).mul_(h)


class _SiLU(torch.autograd.Function):
    """x σ(x), with a first and a second derivative that cost a few passes each; torch's second derivative takes some twenty."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _silu_slope(g, x)


def _silu_slope(g: Tensor, x: Tensor) -> Tensor:
    slope: Tensor = _SiLUSlope.apply(g, x) if torch.is_grad_enabled() else torch.ops.aten.silu_backward(g, x)
    return slope


class SiLU(nn.Module):
    """x σ(x), differentiable to every order, and made for being differentiated twice."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and runs_directly((x,)):
            value: Tensor = _SiLU.apply(x)
            return value
        return functional.silu(x)


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
