"""What the layers of MXMNet and PAMNet are made of."""

from __future__ import annotations

from itertools import pairwise

from fastkd_kernels import CSRGraph, backends, cfconv, edge_to_node
from fastkd_kernels.segment_reduce.op import segment_gather
from torch import Tensor, nn
from torch.nn import functional

from .activations import SiLU


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers, each with its SiLU, initialised as torch does, like the reference."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), SiLU()]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """x + two layers of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mlp(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] → the same."""
        return x + self.layers(x)


class EdgeMLP(nn.Module):
    """SiLU(W [x_dst, x_src, e] + b) on edges.

    The first two blocks of W act on atoms, before they are gathered: atoms are fewer than edges, and nothing [n_edges, 3 width] is made.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(3 * width, width)
        self.act = SiLU()

    def of_edges(self, edge: Tensor) -> Tensor:
        """The part of the sum that edges alone contribute: [n, width] → the same."""
        return functional.linear(edge, self.linear.weight[:, 2 * self.width :], self.linear.bias)

    def forward(self, x: Tensor, edge_part: Tensor, graph: CSRGraph) -> Tensor:
        """[n_atoms, width] and `of_edges` [n_edges, width] → [n_edges, width]."""
        weight = self.linear.weight
        target = functional.linear(x, weight[:, : self.width])
        source = functional.linear(x, weight[:, self.width : 2 * self.width])
        out: Tensor = self.act(at_target(target, graph) + at_source(source, graph) + edge_part)
        return out


def at_target(x: Tensor, graph: CSRGraph) -> Tensor:
    """Each edge takes its destination's row: [n_nodes, c] → [n_edges, c]."""
    return rows_at(x, graph.edge_dst, graph.edge_ptr, graph.edge_order)


def at_source(x: Tensor, graph: CSRGraph) -> Tensor:
    """Each edge takes its source's row: [n_nodes, c] → [n_edges, c]."""
    return rows_at(x, graph.edge_src, graph.src_ptr, graph.src_order)


def rows_at(x: Tensor, index: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """``x[index]``, whose derivative is a sum over segments: deterministic, to every order.

    Args:
        x: [m, c].
        index: [n] int64.
        ptr: [m + 1] int64, CSR over ``index``.
        order: [n] int64, entries grouped by their index.
    """
    if backends.plain_is_faster(None, x, index.shape[0] * x.shape[1]):
        return x.index_select(0, index)
    rows: Tensor = segment_gather(x, ptr, order, index, index.shape[0], False, backends.resolve(None, x))
    return rows


def sum_at_target(edge: Tensor, graph: CSRGraph) -> Tensor:
    """[n_edges, c] → [n_nodes, c]."""
    return edge_to_node(edge, graph)


def sum_over_paths(edge: Tensor, weight: Tensor, paths: CSRGraph) -> Tensor:
    """Σ over the paths into each edge of weight ∘ the row of the path's first edge: [n_edges, c], [n_paths, c] → [n_edges, c]."""
    return cfconv(edge, weight, paths)
