"""The projected loss in plain torch: the specification, on any device. Names and formulas are those of the README.

Half-precision input is computed in float32, as in the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kinds import accumulator

#: Rows of the projection that exist at once in `row_second_gradients_by_parts`.
PART_ROWS = 256


def projected_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str = "mse", node_weight: Tensor | None = None
) -> Tensor:
    """The public function by definition; autograd differentiates it to any order."""
    losses = row_losses(x, weight, bias, target, kind)
    if node_weight is None:
        return losses.sum() / max(target.numel(), 1)
    total = node_weight.sum()
    return (node_weight * losses).sum() / (target.shape[1] * torch.where(total == 0, 1.0, total))


def row_losses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str) -> Tensor:
    """ℓ_i = Σ_c ρ(r_ic), [N] in the accumulator's dtype."""
    residual = _residual(x, weight, bias, target)
    if kind == "mse":
        return residual.square().sum(1)
    # as `Tensor.abs`, but with the gradient NaN where the residual is
    size = residual * _slope(residual.detach(), "mae")
    return (size if kind == "mae" else torch.where(size <= 1, residual.square() / 2, size - 0.5)).sum(1)


def row_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i with respect to x, weight, bias and target, given h = ``upstream`` [N]."""
    pull = upstream.to(accumulator(x))[:, None] * _slope(_residual(x, weight, bias, target), kind)
    grad_x, grad_weight = pull @ weight.to(pull.dtype), pull.T @ x.to(pull.dtype)
    return grad_x.to(x.dtype), grad_weight.to(x.dtype), pull.sum(0).to(x.dtype), -pull.to(x.dtype)


def row_second_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    upstream: Tensor,
    kind: str,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ⟨tangents, `row_gradients`⟩ with respect to x, weight, bias, target and upstream; differentiable again."""
    dtype = accumulator(x)
    x, weight, upstream = x.to(dtype), weight.to(dtype), upstream.to(dtype)
    dx, dweight, dbias, dtarget = (None if tangent is None else tangent.to(dtype) for tangent in tangents)
    residual = _residual(x, weight, bias, target)
    slope = _slope(residual, kind)
    tangent = torch.zeros_like(residual)
    tangent = tangent if dx is None else tangent + dx @ weight.T
    tangent = tangent if dweight is None else tangent + x @ dweight.T
    tangent = tangent if dbias is None else tangent + dbias
    tangent = tangent if dtarget is None else tangent - dtarget
    pull = upstream[:, None] * slope
    curved = upstream[:, None] * _curvature(residual, kind) * tangent
    grad_x = curved @ weight if dweight is None else curved @ weight + pull @ dweight
    grad_weight = curved.T @ x if dx is None else curved.T @ x + pull.T @ dx
    return grad_x, grad_weight, curved.sum(0), -curved, (slope * tangent).sum(1)


def row_second_gradients_by_parts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    upstream: Tensor,
    kind: str,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    need_target: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same, a part of the rows at a time, so that nothing of size [N, D] is made but a gradient of the target."""
    dtype = accumulator(x)
    by_weight, by_bias = (weight.new_zeros(shape, dtype=dtype) for shape in (weight.shape, weight.shape[:1]))
    by_x, by_upstream = x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype)
    by_target = target.new_empty(target.shape if need_target else (0,))
    dx, dweight, dbias, dtarget = tangents
    for first in range(0, x.shape[0], PART_ROWS):
        part = slice(first, first + PART_ROWS)
        cut = (None if dx is None else dx[part], dweight, dbias, None if dtarget is None else dtarget[part])
        grads = row_second_gradients(x[part], weight, bias, target[part], upstream[part], kind, cut)
        by_x[part], by_upstream[part] = grads[0], grads[4]
        if need_target:
            by_target[part] = grads[3]
        by_weight += grads[1]
        by_bias += grads[2]
    return by_x, by_weight.to(x.dtype), by_bias.to(x.dtype), by_target, by_upstream


def _residual(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    dtype = accumulator(x)
    projected = x.to(dtype) @ weight.to(dtype).T
    return (projected if bias is None else projected + bias.to(dtype)) - target.to(dtype)


def _slope(residual: Tensor, kind: str) -> Tensor:
    """ψ = ρ′; NaN stays NaN, which `torch.sign` would make 0."""
    if kind == "mae":
        return torch.where(residual.isnan(), residual, residual.sign())
    return 2 * residual if kind == "mse" else residual.clamp(-1, 1)


def _curvature(residual: Tensor, kind: str) -> Tensor:
    """ψ′; 0 and 1 for MAE and at Huber's two corners, as autograd has it for `torch.sign` and `torch.clamp`."""
    if kind == "huber":
        return (residual.abs() <= 1).to(residual.dtype)
    return torch.full_like(residual, 2.0 if kind == "mse" else 0.0)
