"""MXMNet: molecular mechanics-driven message passing on two planes (Zhang, Liu and Xie 2020, arXiv:2011.07457), as in the authors' code.

Example:
    >>> model = MXMNet(MXMNetOptions(width=64, layers=3, local="distance"))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor, nn

from fastkd.data.batch import Batch

from .base import Features, Readout, block_mixing
from .layers.blocks import Blocks
from .layers.multiplex import EdgeMLP, Residual, mlp, sum_at_target, sum_over_paths
from .multiplex import Bonds, GlobalEdges, Multiplex, MultiplexOptions


@dataclass(frozen=True)
class MXMNetOptions(MultiplexOptions):
    """Everything that determines an MXMNet but its weights."""

    @classmethod
    def qm9(cls, *, width: int = 128, layers: int = 6, cutoff: float = 5.0) -> MXMNetOptions:
        """The authors' settings for QM9: bonds come with the data. Their other global cutoff is 10 Å."""
        return cls(width=width, layers=layers, cutoff=cutoff, local="bonds")


class Update(nn.Module):
    """Residual, dense, skip, two residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = Residual(width), Residual(width), Residual(width)
        self.dense = mlp(width, width)

    def forward(self, message: Tensor, before: Tensor) -> Tensor:
        """[n_atoms, width] both → the same."""
        result: Tensor = self.third(self.second(self.dense(self.first(message)) + before))
        return result


class GlobalLayer(nn.Module):
    """Messages between all neighbours, twice with the same weights (eq. 4 and 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = mlp(width, width)
        self.message = EdgeMLP(width)
        self.gate = nn.Linear(width, width, bias=False)
        self.update = Update(width)

    def forward(self, x: Tensor, edges: GlobalEdges) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n_atoms, width] → the same; and what makes the messages of the second pass: atoms, the edges' part, their gate."""
        graph, (part, gate) = edges.graph.csr, edges.terms(self.message, self.gate)
        h = self.before(x)
        h = h + sum_at_target(self.message(h, part, graph) * gate, graph)
        h = self.update(h, x)
        return h + sum_at_target(self.message(h, part, graph) * gate, graph), h, part, gate


class LocalLayer(nn.Module):
    """Messages between bonds over paths of two hops, then of one, then to atoms (eq. 6 to 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = mlp(width, width)
        self.two_hop, self.own_first = EdgeMLP(width), EdgeMLP(width)
        self.one_hop, self.own_second = mlp(width, width), mlp(width, width)
        self.two_hop_filter, self.one_hop_filter = mlp(width, width, width), mlp(width, width, width)
        self.two_hop_gate, self.one_hop_gate, self.gate = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.update = Update(width)
        self.head = mlp(width, width, width, width)
        self.energy = nn.Linear(width, 1)

    def forward(self, x: Tensor, bonds: Bonds) -> tuple[Tensor, Tensor, Tensor]:
        """[n_atoms, width] → the same, what the output layers make of it, and energies [n_atoms]."""
        assert bonds.two_hop is not None
        graph, h = bonds.atoms, self.before(x)
        sent = self.two_hop(h, self.two_hop.of_edges(bonds.rows), graph) * bonds.gate(self.two_hop_gate)
        m = self.own_first(h, self.own_first.of_edges(bonds.rows), graph)
        m = m + sum_over_paths(sent, self.two_hop_filter(bonds.two_hop), bonds.graph.two_hop)
        sent = self.one_hop(m) * bonds.gate(self.one_hop_gate)
        m = self.own_second(m) + sum_over_paths(sent, self.one_hop_filter(bonds.one_hop), bonds.graph.one_hop)
        h = self.update(sum_at_target(m * bonds.gate(self.gate), graph), x)
        head = self.head(h)
        return h, head, self.energy(head).squeeze(-1)


class MXMNet(Multiplex):
    """MXMNet with conservative forces; the energy is the sum of all local layers' outputs.

    Features: node, the embedding after the last local layer; edge, the messages of the last global layer's second pass. Mixing: ``blocks``,
    after each local layer; ``planes``, after each global and each local layer; ``outputs``, what is made of local ones before the energy.
    """

    options: MXMNetOptions

    def __init__(self, options: MXMNetOptions | None = None) -> None:
        options = options or MXMNetOptions()
        super().__init__(options)
        self.global_layers = Blocks(GlobalLayer(options.width) for _ in range(options.layers))
        self.local_layers = Blocks(LocalLayer(options.width) for _ in range(options.layers))

    @property
    def mixing(self) -> dict[str, tuple[int, int]]:
        layers, width = self.options.layers, self.options.width
        return super().mixing | {"planes": (2 * layers, width), "outputs": (layers, width)}

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        edges, bonds = self.planes(batch, edge_vector)
        h: Tensor = self.embedding(batch.atomic_numbers)
        layers, planes, outputs = [h], [], []
        atom_energy, messages = h.new_zeros(h.shape[0]), None
        for global_layer, local_layer in zip(self.global_layers, self.local_layers, strict=True):
            h, *inputs = global_layer(h, edges)
            messages = partial(_messages, global_layer.message, inputs, edges.graph.csr)
            planes.append(h)
            h, head, energy = local_layer(h, bonds)
            planes.append(h)
            layers.append(h)
            outputs.append(head)
            atom_energy = atom_energy + energy
        mixing = block_mixing(layers) | {"planes": tuple(planes), "outputs": tuple(outputs)}
        return Readout(atom_energy, None, Features(h, messages, layers=tuple(layers), mixing=mixing))


def _messages(message: EdgeMLP, inputs: list[Tensor], graph: CSRGraph) -> Tensor:
    h, part, gate = inputs
    return torch.mul(message(h, part, graph), gate)
