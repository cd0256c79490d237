"""Dense and residual layers, fitted scale factors, and the blocks that take edges to atoms.

All layers are without bias, so that an edge which the envelope has taken to zero adds nothing, whatever follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from fastkd_kernels import CSRGraph, gated_edge_to_node
from torch import Tensor, nn
from torch.nn import functional

from .memory import forgetting

INV_SQRT_2 = 1 / math.sqrt(2.0)
#: SiLU is divided by this, which keeps the variance of a standard normal input near one.
SILU_SCALE = 0.6


def he_orthogonal(weight: Tensor) -> Tensor:
    """Fill with a random orthogonal matrix whose rows are standardised, of He's variance (GemNet's code; Saxe et al. 2014)."""
    nn.init.orthogonal_(weight)
    dims, fan_in = ((0, 1), weight.shape[0] * weight.shape[1]) if weight.dim() == 3 else ((1,), weight.shape[1])
    with torch.no_grad():
        variance, mean = torch.var_mean(weight, dim=dims, unbiased=True, keepdim=True)
        weight.sub_(mean).div_(torch.sqrt(variance + 1e-6)).mul_(1 / math.sqrt(fan_in))
    return weight


class Dense(nn.Linear):
    """A linear map without bias, and SiLU/0.6 if ``act``."""

    def __init__(self, inputs: int, outputs: int, *, act: bool = True) -> None:
        self.act = act
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        he_orthogonal(self.weight)

    def linear(self, x: Tensor) -> Tensor:
        """Without the activation."""
        return functional.linear(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return scaled_silu(y) if self.act else y


def scaled_silu(y: Tensor) -> Tensor:
    """SiLU/0.6."""
    return functional.silu(y).mul_(1 / SILU_SCALE)


class Residual(nn.Module):
    """(x + two dense layers of x) / √2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first.linear(x)
        z = scaled_silu(y)
        kept = y.detach()
        with forgetting(z, lambda: scaled_silu(kept)):
            second = self.second.linear(z)
        del z
        return (x + scaled_silu(second)) * INV_SQRT_2


def residuals(width: int, count: int) -> nn.Sequential:
    """``count`` residual layers."""
    return nn.Sequential(*(Residual(width) for _ in range(count)))


class ScaleFactor(nn.Module):
    """Times a fixed number that keeps the variance of what it scales that of a reference; 1 until it is fitted, see `scales.fit_scales`."""

    factor: Tensor
    #: sees values and reference while factors are fitted
    observer: Callable[[Tensor, Tensor], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor, reference: Callable[[], Tensor]) -> Tensor:
        """``reference`` is only called while the factor is fitted."""
        x = x * self.factor
        if self.observer is not None:
            self.observer(x, reference())
        return x


class EdgeEmbedding(nn.Module):
    """Dense layer of an edge's two atoms and its own features."""

    def __init__(self, width: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.width = width
        self.dense = Dense(2 * width + inputs, outputs)

    def forward(self, atom: Tensor, edge: Tensor, graph: CSRGraph) -> Tensor:
        """[n_atoms, width], [n_edges, inputs] → [n_edges, outputs]."""
        # atoms go through their part of the matrix before they are gathered: there are fewer of them
        source, target, own = self.dense.weight.split([self.width, self.width, edge.shape[1]], 1)
        y = functional.linear(edge, own)
        y = (
            y
            + functional.linear(atom, source).index_select(0, graph.edge_src)
            + functional.linear(atom, target).index_select(0, graph.edge_dst)
        )
        return scaled_silu(y)


class AtomUpdate(nn.Module):
    """Edges, gated by their radial basis, summed into atoms, and dense layers."""

    def __init__(self, width: int, edge_width: int, radial_width: int, layers: int) -> None:
        super().__init__()
        self.gate = Dense(radial_width, edge_width, act=False)
        self.scale = ScaleFactor()
        first = [Dense(edge_width, width)] if edge_width != width else []
        self.layers = nn.Sequential(*first, *(Residual(width) for _ in range(layers)))

    def forward(self, edge: Tensor, radial: Tensor, graph: CSRGraph) -> Tensor:
        """[n_edges, edge_width], [n_edges, radial_width] → [n_atoms, width]."""
        total = gated_edge_to_node(edge, radial, self.gate.weight, graph)
        updated: Tensor = self.layers(self.scale(total, lambda: edge))
        return updated


class OutputBlock(nn.Module):
    """What the embeddings after one block say about atoms and, for direct forces, about edges."""

    def __init__(self, width: int, edge_width: int, radial_width: int, layers: int, after_atom: int, *, edges: bool) -> None:
        super().__init__()
        self.atoms = AtomUpdate(width, edge_width, radial_width, layers)
        self.after_atom = residuals(width, after_atom) if after_atom else None
        self.edges = residuals(edge_width, layers) if edges else None
        if edges:
            self.edge_gate = Dense(radial_width, edge_width, act=False)
            self.edge_scale = ScaleFactor()

    def forward(self, atom: Tensor, edge: Tensor, radial: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor | None]:
        """[n_atoms, width], [n_edges, edge_width] → the same, the second only if the block has a part for edges."""
        out = self.atoms(edge, radial, graph)
        if self.after_atom is not None:
            out = self.after_atom((out + atom) * INV_SQRT_2)
        if self.edges is None:
            return out, None
        own = self.edges(edge)
        return out, self.edge_scale(own * self.edge_gate(radial), lambda: own)
