"""MXMNet, PAMNet and PAMNet-s once more in plain torch, layer by layer as the authors' code has them, which is in no package.

Every edge has a row of its own, atoms are gathered and joined with it before a linear layer, every path has its product of radial and angular
functions, and sums are `index_add`: no operator of fastkd_kernels, no factor taken out of a sum. Bonds and paths are found in every step, as
in both models. The radial functions of a path are those of our model, which are plain torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, silu

from bench.models.packages import target_of
from bench.models.shapes import Structures
from bench.training_step import Pair
from fastkd.data.batch import Batch
from fastkd.models import MXMNet, MXMNetOptions, PAMNet, PAMNetOptions
from fastkd.models.layers.local_graph import LocalGraph, local_graph
from fastkd.models.layers.multiplex import EdgeMLP
from fastkd.models.layers.path_basis import multiplex_envelope

Edges = tuple[Tensor, Tensor, Tensor]  #: source, target, row of each


class Plain(nn.Module):
    """What both twins share: the two planes with their features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model)

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        """Energies, [n_graphs]."""
        model = self.model
        csr = batch.graph(model.cutoff).csr
        vector = positions[csr.edge_dst] - positions[csr.edge_src]
        length = vector.norm(dim=1)
        rows = model.global_embedding(self._radial(length, model.options.cutoff, model.global_frequencies))
        with torch.no_grad():
            graph = local_graph(batch, batch.graph(model.cutoff), model.rule, vector, length, two_hop=model.two_hop_embedding is not None)
        length, vector = length[graph.edges], vector[graph.edges]
        bonds = model.local_embedding(self._radial(length, model.options.local_cutoff, model.local_frequencies))
        paths = self._paths(graph, length, vector / length[:, None])
        atom = self.layers(batch, (csr.edge_src, csr.edge_dst, rows), (graph.atoms.edge_src, graph.atoms.edge_dst, bonds), paths)
        return atom.new_zeros(batch.num_graphs).index_add(0, batch.graph_index, atom)

    def layers(self, batch: Batch, wide: Edges, near: Edges, paths: dict[str, Edges]) -> Tensor:
        """Energies of atoms, [n_atoms]."""
        raise NotImplementedError

    def _radial(self, length: Tensor, cutoff: float, frequencies: Tensor) -> Tensor:
        x = length[:, None] / cutoff
        return multiplex_envelope(x, self.model.options.envelope_exponent, smooth=False) / x * torch.sin(frequencies * x)

    def _paths(self, graph: LocalGraph, length: Tensor, direction: Tensor) -> dict[str, Edges]:
        """First bond, second bond and features of the paths of two hops and of one."""
        basis, found = self.model.path_basis, {}
        radial = basis.radial_part(length)
        for name, paths, sign in (("two_hop", graph.two_hop, 1), ("one_hop", graph.one_hop, -1)):
            embed = getattr(self.model, f"{name}_embedding")
            if embed is not None:
                first, second = paths.edge_src, paths.edge_dst
                cosine = sign * (direction[first] * direction[second]).sum(1)
                found[name] = (first, second, embed(basis.combine(radial[first], basis.angular_part(cosine))))
        return found


class PlainMXMNet(Plain):
    """Zhang, Liu and Xie 2020, eq. 4 to 8."""

    def layers(self, batch: Batch, wide: Edges, near: Edges, paths: dict[str, Edges]) -> Tensor:
        h = self.model.embedding(batch.atomic_numbers)
        energy = h.new_zeros(h.shape[0])
        for wider, nearer in zip(self.model.global_layers, self.model.local_layers, strict=True):
            x, h = h, wider.before(h)
            h = wider.update(h + self._heard(wider, h, wide), x)
            h = h + self._heard(wider, h, wide)
            x, bonds = h, near[2]
            before = nearer.before(h)
            m = _joined(nearer.own_first, before, near)
            sent = _joined(nearer.two_hop, before, near) * nearer.two_hop_gate(bonds)
            m = m + _over(sent, paths["two_hop"], nearer.two_hop_filter)
            sent = nearer.one_hop(m) * nearer.one_hop_gate(bonds)
            m = nearer.own_second(m) + _over(sent, paths["one_hop"], nearer.one_hop_filter)
            h = nearer.update(_summed(m * nearer.gate(bonds), near[1], h), x)
            energy = energy + nearer.energy(nearer.head(h)).squeeze(-1)
        return energy

    def _heard(self, layer: Any, h: Tensor, edges: Edges) -> Tensor:
        return _summed(_joined(layer.message, h, edges) * layer.gate(edges[2]), edges[1], h)


class PlainPAMNet(Plain):
    """Zhang, Liu and Xie 2023, eq. 5 to 10; PAMNet-s has no paths of two hops."""

    def layers(self, batch: Batch, wide: Edges, near: Edges, paths: dict[str, Edges]) -> Tensor:
        x = self.model.embedding(batch.atomic_numbers)
        energy = x.new_zeros(x.shape[0])
        for wider, nearer in zip(self.model.global_layers, self.model.local_layers, strict=True):
            h = wider.before(x)
            message = _joined(wider.message, h, wide) * wider.gate(wide[2])
            x, _, *of_global = wider.update(h + _summed(message, wide[1], h), x)
            h = nearer.before(x)
            m = _joined(nearer.own, h, near)
            sent = _joined(nearer.neighbor, h, near) * nearer.path_gate(near[2])
            for found in paths.values():
                m = m + _over(sent, found, nearer.path_filter)
            x, _, *of_local = nearer.update(h + _summed(m * nearer.gate(near[2]), near[1], h), x)
            energies, scores = (torch.cat(columns, -1) for columns in zip(of_global, of_local, strict=True))
            energy = energy + (energies * torch.softmax(leaky_relu(scores, 0.2), -1)).sum(-1)
        return energy


def _joined(mlp: EdgeMLP, x: Tensor, edges: Edges) -> Tensor:
    """SiLU(W [x_dst, x_src, e] + b) of each edge."""
    source, target, rows = edges
    return silu(mlp.linear(torch.cat([x[target], x[source], rows], 1)))


def _over(sent: Tensor, paths: Edges, path_filter: nn.Module) -> Tensor:
    """Σ over the paths into each bond."""
    first, second, features = paths
    return _summed(sent[first] * path_filter(features), second, sent)


def _summed(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).index_add(0, index, rows)


def mxmnet(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Pair:
    """128 features and six blocks as published; bonds from covalent radii."""
    torch.manual_seed(seed)
    return _pair(MXMNet(MXMNetOptions(**_sizes(small))), PlainMXMNet, structures, dtype, device, seed)


def pamnet(structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool, simple: bool = False) -> Pair:
    """The same; PAMNet-s if ``simple``."""
    torch.manual_seed(seed)
    return _pair(PAMNet(PAMNetOptions(simple=simple, **_sizes(small))), PlainPAMNet, structures, dtype, device, seed)


def _sizes(small: bool) -> dict[str, Any]:
    return {"width": 12, "layers": 2, "radial": 4, "spherical": 3, "spherical_radial": 2} if small else {}


def _pair(model: MXMNet | PAMNet, twin: type[Plain], structures: Structures, dtype: torch.dtype, device: torch.device, seed: int) -> Pair:
    ours = model.to(device, dtype)
    theirs = twin(ours)
    batch = structures.batch(ours.cutoff, dtype, device)

    def as_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("model."): weight for name, weight in weights.items()}

    return Pair(ours, theirs, lambda positions: theirs(batch, positions), as_ours, batch, target_of(batch, seed))
