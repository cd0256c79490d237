"""Edge filters that know their own derivative.

Filters W(r) depend on one number per edge. Forces need Σ (∂E/∂W) ∘ W′(r), and training on forces differentiates that again. When
W′ is carried forward beside W (two rows per edge through the same linear maps), the backward pass to positions stops at the
filters, and the second one is an ordinary backward pass to the weights: no double backward through the network that makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .radial import Envelope, RadialBasis


class _AttachDerivative(torch.autograd.Function):
    """Identity in the filter; towards the length, the product with the slope that was carried along."""

    @staticmethod
    def forward(ctx: Any, length: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (slope,) = ctx.saved_tensors
        g_length = torch.linalg.vecdot(g, slope) if ctx.needs_input_grad[0] else None
        return g_length, g if ctx.needs_input_grad[1] else None, None


def attach_derivative(length: Tensor, rows: Tensor) -> Tensor:
    """The upper half of ``rows``, with d value/d length = the lower half for autograd.

    Args:
        length: [n], the variable that gradients are wanted for.
        rows: [2n, c], values and below them slopes. Must not depend on ``length`` for autograd (compute it from ``length.detach()``).
            Gradients of gradients reach the weights through the slopes, but not ``length``: whoever wants second derivatives in
            positions must compute values from ``length`` itself instead.

    Returns:
        [n, c].
    """
    # unbind, not split: its backward pass joins both gradients in one copy
    value, slope = rows.view(2, length.shape[0], rows.shape[1]).unbind()
    return _AttachDerivative.apply(length, value, slope)


def with_bias(layer: nn.Linear) -> Tensor:
    """[weight | bias] of a linear layer, for rows that bring their own last column."""
    return torch.cat([layer.weight, layer.bias.unsqueeze(-1)], 1)


def rows_of(length: Tensor, basis: RadialBasis, envelope: Envelope, *, smooth_bias: bool, slope: bool) -> Tensor:
    """Rows whose product with [weight | bias] is the filter of a linear layer, and below them those of its derivative.

    Args:
        length: [n] Å.
        basis: radial functions.
        envelope: multiplies the basis.
        smooth_bias: whether the envelope multiplies the layer's bias as well, so that the filter is zero at the cutoff.
        slope: append n rows for the derivative.

    Returns:
        [n, size + 1], or [2n, size + 1] with ``slope``.
    """
    if not slope:
        factor = envelope(length)
        last = factor if smooth_bias else torch.ones_like(factor)
        return torch.cat([basis(length) * factor.unsqueeze(-1), last.unsqueeze(-1)], -1)
    value, d_value = basis.value_and_derivative(length)
    factor, d_factor = envelope.value_and_derivative(length)
    last, d_last = (factor, d_factor) if smooth_bias else (torch.ones_like(factor), torch.zeros_like(factor))
    rows = value.new_empty(2 * value.shape[0], basis.size + 1)
    top, bottom = rows.tensor_split(2)
    torch.mul(value, factor.unsqueeze(-1), out=top[:, :-1])
    torch.addcmul(d_value * factor.unsqueeze(-1), value, d_factor.unsqueeze(-1), out=bottom[:, :-1])
    top[:, -1], bottom[:, -1] = last, d_last
    return rows
