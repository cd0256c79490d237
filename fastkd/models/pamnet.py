"""PAMNet and PAMNet-s: physics-aware multiplex networks (Zhang, Liu and Xie 2023, Sci. Rep. 13, 19171), as in the authors' code.

Example:
    >>> model = PAMNet(PAMNetOptions(width=64, layers=3, local="distance"))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastkd.data.batch import Batch

from .base import Features, Readout, block_mixing
from .layers.blocks import Blocks
from .layers.multiplex import EdgeMLP, Residual, mlp, sum_at_target, sum_over_paths
from .multiplex import Bonds, GlobalEdges, Multiplex, MultiplexOptions


@dataclass(frozen=True)
class PAMNetOptions(MultiplexOptions):
    """Everything that determines a PAMNet but its weights."""

    simple: bool = False  #: PAMNet-s: bonds hear bonds that end in the same atom, and no paths of two hops

    @classmethod
    def qm9(cls, *, width: int = 128, layers: int = 6, simple: bool = False) -> PAMNetOptions:
        """The authors' settings for QM9: bonds come with the data."""
        return cls(width=width, layers=layers, local="bonds", simple=simple)


class Block(nn.Module):
    """What layers of both planes do before and after their messages: dense; then dense, residuals, and the two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = mlp(width, width), mlp(width, width)
        self.first, self.second, self.third = Residual(width), Residual(width), Residual(width)
        self.head = mlp(width, width, width, width)
        self.energy = nn.Linear(width, 1)
        self.attention = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.attention.weight)

    def update(self, h: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n_atoms, width] both → the same, what the output layers make of it, energies [n_atoms, 1], scores [n_atoms, 1]."""
        x = self.third(self.second(self.first(self.after(h)) + before))
        head = self.head(x)
        return x, head, self.energy(head), self.attention(head)


class GlobalLayer(Block):
    """Messages between all neighbours (eq. 5)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.message = EdgeMLP(width)
        self.gate = nn.Linear(width, width, bias=False)

    def messages(self, x: Tensor, edges: GlobalEdges) -> tuple[Tensor, Tensor]:
        """[n_atoms, width] → the same after the first dense layer, and messages [n_edges, width]."""
        part, gate = edges.terms(self.message, self.gate)
        h: Tensor = self.before(x)
        return h, self.message(h, part, edges.graph.csr) * gate

    def forward(self, x: Tensor, edges: GlobalEdges) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Block.update`."""
        h, message = self.messages(x, edges)
        return self.update(h + sum_at_target(message, edges.graph.csr), x)


class LocalLayer(Block):
    """Messages between bonds over paths of two hops and of one, then to atoms (eq. 6 to 8)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.own, self.neighbor = EdgeMLP(width), EdgeMLP(width)
        self.path_filter = mlp(width, width, width)
        self.path_gate, self.gate = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, bonds: Bonds) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Block.update`."""
        graph, h = bonds.atoms, self.before(x)
        sent = self.neighbor(h, self.neighbor.of_edges(bonds.rows), graph) * bonds.gate(self.path_gate)
        m = self.own(h, self.own.of_edges(bonds.rows), graph)
        for features, paths in ((bonds.two_hop, bonds.graph.two_hop), (bonds.one_hop, bonds.graph.one_hop)):
            if features is not None:
                m = m + sum_over_paths(sent, self.path_filter(features), paths)
        return self.update(h + sum_at_target(m * bonds.gate(self.gate), graph), x)


class PAMNet(Multiplex):
    """PAMNet with conservative forces; in each block attention weighs the energies of both planes (eq. 9 and 10).

    Features: node, the embedding after the last local layer; edge, the messages of the last global layer. Mixing: ``blocks``, after each
    local layer; ``planes``, after each global and each local layer; ``outputs`` and ``plane_outputs``, what is made of these before the
    energies and attention.
    """

    options: PAMNetOptions

    def __init__(self, options: PAMNetOptions | None = None) -> None:
        options = options or PAMNetOptions()
        super().__init__(options, two_hop=not options.simple)
        self.global_layers = Blocks(GlobalLayer(options.width) for _ in range(options.layers))
        self.local_layers = Blocks(LocalLayer(options.width) for _ in range(options.layers))

    @property
    def mixing(self) -> dict[str, tuple[int, int]]:
        layers, width = self.options.layers, self.options.width
        more = {"planes": (2 * layers, width), "outputs": (layers, width), "plane_outputs": (2 * layers, width)}
        return super().mixing | more

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        edges, bonds = self.planes(batch, edge_vector)
        x: Tensor = self.embedding(batch.atomic_numbers)
        layers, planes, outputs = [x], [], []
        atom_energy, messages = x.new_zeros(x.shape[0]), None
        for global_layer, local_layer in zip(self.global_layers, self.local_layers, strict=True):
            messages = partial(_messages, global_layer, x, edges)
            x, head, *of_global = global_layer(x, edges)
            planes.append(x)
            outputs.append(head)
            x, head, *of_local = local_layer(x, bonds)
            planes.append(x)
            layers.append(x)
            outputs.append(head)
            energy, score = (torch.cat(columns, -1) for columns in zip(of_global, of_local, strict=True))
            atom_energy = atom_energy + (energy * torch.softmax(self._leaky(score), -1)).sum(-1)
        mixing = block_mixing(layers)
        mixing |= {"planes": tuple(planes), "outputs": tuple(outputs[1::2]), "plane_outputs": tuple(outputs)}
        return Readout(atom_energy, None, Features(x, messages, layers=tuple(layers), mixing=mixing))

    def _leaky(self, score: Tensor) -> Tensor:
        """Leaky ReLU of slope 0.2; its kink makes forces jump where a score is zero, so the smooth option rounds it off."""
        return 0.2 * score + 0.8 * functional.silu(score) if self.options.smooth else functional.leaky_relu(score, 0.2)


def _messages(layer: GlobalLayer, x: Tensor, edges: GlobalEdges) -> Tensor:
    return layer.messages(x, edges)[1]
