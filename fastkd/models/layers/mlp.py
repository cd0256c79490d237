"""Dense and gated equivariant blocks, and norms that can be differentiated twice at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .activations import Activation, activation

#: Added under square roots, in squared units. It vanishes in the rounding of any physical length, and keeps 0/0 out of derivatives.
TINY = 1e-24


def dense(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def safe_length(vector: Tensor) -> Tensor:
    """Euclidean norm over the last axis: [n, 3] → [n]. Value and all derivatives are finite at zero."""
    return torch.sqrt(vector.square().sum(-1) + TINY)


def vector_norm(vector: Tensor, epsilon: float = TINY) -> Tensor:
    """Norm over the axis of components: [n, 3, c] → [n, c], as √(Σ v² + epsilon)."""
    return torch.sqrt(vector.square().sum(-2) + epsilon)


class GatedEquivariantBlock(nn.Module):
    """Scalars and vectors to fewer of each; vectors are mixed linearly and gated by scalars (PaiNN, fig. 3)."""

    def __init__(self, inputs: int, outputs: int, act: Activation) -> None:
        super().__init__()
        self.outputs = outputs
        self.norm_mix = dense(inputs, inputs, bias=False)
        self.vector_mix = dense(inputs, outputs, bias=False)
        self.gate = nn.Sequential(dense(2 * inputs, inputs), activation(act), dense(inputs, 2 * outputs))
        self.act = activation(act)

    def forward(self, scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Map [n, inputs] and [n, 3, inputs] to [n, outputs] and [n, 3, outputs]."""
        norm = vector_norm(self.norm_mix(vector))
        scalar, gate = self.gate(torch.cat([scalar, norm], -1)).split(self.outputs, -1)
        return self.act(scalar), gate.unsqueeze(1) * self.vector_mix(vector)
