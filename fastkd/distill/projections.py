"""Maps from a student's feature to the width of a teacher's, and their losses.

Projections belong to a term, not to the student: they are trained with it and dropped after training, so that the student's state
dict is exactly the model's, before, during and after distillation.

Example:
    >>> projection = LinearProjection(32, 64, bias=True, generator=torch.Generator().manual_seed(0))
    >>> loss = projection.node_loss(student_node, teacher_node, "mse")
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from fastkd_kernels import projected_loss, vector_geometric_loss, vector_loss
from torch import Tensor, nn

FeatureLoss = Literal["mse", "mae", "huber"]


def elementwise(residual: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
    """Mean over all elements of ρ(residual): r², |r|, or Huber's with δ = 1; 0 for an empty tensor.

    Huber is r²/2 where |r| ≤ 1 and |r| − 1/2 beyond. ``weight`` [n] multiplies the rows of ``residual`` [n, …] after ρ.
    """
    if weight is not None:
        rows = weight.to(residual.dtype).view(-1, *(1,) * (residual.dim() - 1))
        if kind == "huber":
            each = nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="none")
            return (rows * each).sum() / max(residual.numel(), 1)
        residual = residual * _inside(rows, kind)
    if kind == "mse":
        total = residual.square().sum()
    elif kind == "mae":
        total = residual.abs().sum()
    else:
        total = nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="sum")
    return total / max(residual.numel(), 1)


def _inside(weight: Tensor, kind: FeatureLoss) -> Tensor:
    """What a residual is multiplied with so that ρ of it is multiplied by a weight: √w within squares."""
    return weight.sqrt() if kind == "mse" else weight


def _linear_init(outputs: int, inputs: int, *, bias: bool, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight [outputs, inputs] and bias [outputs] as `torch.nn.Linear` draws them: U(−k, k) with k = 1/√inputs."""
    weight = torch.empty(outputs, inputs)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    if not bias:
        return nn.Parameter(weight), None
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(weight), nn.Parameter(nn.init.uniform_(torch.empty(outputs), -bound, bound, generator=generator))


class Projection(nn.Module):
    """Base of all projections: from a student's feature to the loss against a teacher's."""

    def map(self, feature: Tensor) -> Tensor:
        """M(feature), [n, c] → [n, d] or [n, 3, c] → [n, 3, d]; for losses that are not a mean over elements."""
        raise NotImplementedError

    def node_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        """Mean over rows and channels of w ρ(M(feature) − target); ``feature`` [n, c], ``target`` [n, d], ``weight`` [n]."""
        raise NotImplementedError

    def vector_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        """Mean over atoms, axes and channels of w ρ(M(feature) − target); ``feature`` [n_atoms, 3, c], ``target`` [n_atoms, 3, d]."""
        raise NotImplementedError

    def geometric_loss(self, feature: Tensor, target: Tensor, atom_ptr: Tensor, mix: float) -> Tensor:
        """`fastkd_kernels.vector_geometric_loss` of M(feature) and target, shaped as in `vector_loss`; ``atom_ptr`` [n_graphs + 1]."""
        raise NotImplementedError


class LinearProjection(Projection):
    """x · weightᵀ + bias. For vectors there is no bias: mixing channels alone commutes with rotations."""

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, drawn = _linear_init(outputs, inputs, bias=bias, generator=generator)
        self.register_parameter("bias", drawn)

    def map(self, feature: Tensor) -> Tensor:
        return nn.functional.linear(feature.to(self.weight.dtype), self.weight, self.bias)

    def node_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        dtype = self.weight.dtype
        feature, target = feature.to(dtype), target.to(dtype)
        if weight is None:
            return projected_loss(feature, self.weight, self.bias, target, kind)
        if kind == "huber":
            return elementwise(self.map(feature) - target, kind, weight)
        rows = _inside(weight.to(dtype), kind)[:, None]
        if self.bias is None:
            return projected_loss(rows * feature, self.weight, None, rows * target, kind)
        # w (M x + b − t) is linear in (w x, w): the bias becomes a column, and the residual is still never in memory
        wider = torch.cat([self.weight, self.bias[:, None]], dim=1)
        return projected_loss(torch.cat([rows * feature, rows], dim=1), wider, None, rows * target, kind)

    def vector_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        if self.bias is not None:
            raise RuntimeError("a projection of vectors must not have a bias")
        dtype = self.weight.dtype
        feature, target = feature.to(dtype), target.to(dtype)
        if weight is None:
            return vector_loss(feature, self.weight, target, kind)
        if kind == "huber":
            return elementwise(self.map(feature) - target, kind, weight)
        rows = _inside(weight.to(dtype), kind)[:, None, None]
        return vector_loss(rows * feature, self.weight, rows * target, kind)

    def geometric_loss(self, feature: Tensor, target: Tensor, atom_ptr: Tensor, mix: float) -> Tensor:
        dtype = self.weight.dtype
        return vector_geometric_loss(feature.to(dtype), self.weight, target.to(dtype), mix=mix, graph_ptr=atom_ptr)


class MLPProjection(Projection):
    """Linear(inputs → 2 · width) – ReLU – Linear(2 · width → outputs), for scalar features only; ``width`` is that of one student layer."""

    def __init__(self, inputs: int, width: int, outputs: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden_weight, self.hidden_bias = _linear_init(2 * width, inputs, bias=True, generator=generator)
        self.out = LinearProjection(2 * width, outputs, bias=True, generator=generator)

    def map(self, feature: Tensor) -> Tensor:
        return self.out.map(self._hidden(feature))

    def _hidden(self, feature: Tensor) -> Tensor:
        return nn.functional.linear(feature.to(self.hidden_weight.dtype), self.hidden_weight, self.hidden_bias).relu()

    def node_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        return self.out.node_loss(self._hidden(feature), target, kind, weight)


class IdentityProjection(Projection):
    """No map at all: student and teacher have the same width, unless the loss compares structures (cka, lsp, gsp)."""

    def map(self, feature: Tensor) -> Tensor:
        return feature.to(torch.promote_types(feature.dtype, torch.float32))

    def node_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        mapped = self.map(feature)
        return elementwise(mapped - target.to(mapped.dtype), kind, weight)

    def vector_loss(self, feature: Tensor, target: Tensor, kind: FeatureLoss, weight: Tensor | None = None) -> Tensor:
        return self.node_loss(feature, target, kind, weight)

    def geometric_loss(self, feature: Tensor, target: Tensor, atom_ptr: Tensor, mix: float) -> Tensor:
        mapped = self.map(feature)
        one = torch.eye(mapped.shape[-1], dtype=mapped.dtype, device=mapped.device)
        return vector_geometric_loss(mapped, one, target.to(mapped.dtype), mix=mix, graph_ptr=atom_ptr)
