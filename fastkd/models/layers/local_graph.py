"""Bonds and the paths over them: the second plane of a molecule's multiplex graph (Zhang, Liu and Xie 2020, section 3).

Data without bonds gets them from distances. A list of bonds is hard: when an atom crosses the border, a bond appears at once, and with
it a jump of the energy, unless the model fades bonds in with `LocalGraph.fade`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.errors import DataError

LocalEdges = Literal["covalent", "distance", "bonds"]

#: From this share of a bond's reach on it fades out.
FADE_FROM = 0.8


@dataclass(frozen=True)
class LocalRule:
    """Which neighbours are bonded.

    - ``covalent``: closer than ``factor`` times the sum of both covalent radii (Cordero et al. 2008, as in ASE).
    - ``distance``: closer than ``reach`` Å; PAMNet's recipe for PDBbind takes 2 Å.
    - ``bonds``: those that the batch brings.
    """

    kind: LocalEdges
    factor: float
    reach: float


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """Bonds of a batch, both directions, sorted by destination; ``two_hop`` and ``one_hop`` are paths, bonds being their nodes.

    A path of ``two_hop`` leads k → j into j → i with k other than i; one of ``one_hop`` leads j′ → i into j → i, j′ = j included.
    """

    edges: Tensor  #: [n_bonds] int64, their numbers in the neighbour graph, ascending
    length: Tensor  #: [n_bonds] Å, differentiable
    direction: Tensor  #: [n_bonds, 3], differentiable
    reach: Tensor | None  #: [n_bonds] Å, where each bond ends; None where the data decides
    atoms: CSRGraph
    two_hop: CSRGraph
    one_hop: CSRGraph

    def fade(self) -> Tensor | None:
        """A factor that takes each bond to zero at its end, with two continuous derivatives: [n_bonds]; None for given bonds.

        1 up to 0.8 of the reach, then 1 − 10t³ + 15t⁴ − 6t⁵.
        """
        if self.reach is None:
            return None
        t = ((self.length / self.reach - FADE_FROM) / (1 - FADE_FROM)).clamp(0, 1)
        return 1 - t.pow(3) * (10 + t * (6 * t - 15))

    def two_hop_cosine(self) -> Tensor:
        """Cosine of the angle by which a path of two bonds turns, 1 for a straight one: [n_paths]."""
        return self._product(self.two_hop)

    def one_hop_cosine(self) -> Tensor:
        """Minus the cosine of the angle between two bonds that meet in an atom, −1 for a bond with itself: [n_paths].

        The reference takes the first bond towards the shared atom and the second away from it.
        """
        return -self._product(self.one_hop)

    def _product(self, paths: CSRGraph) -> Tensor:
        return (self.direction[paths.edge_src] * self.direction[paths.edge_dst]).sum(-1)


def local_graph(
    batch: Batch, graph: NeighborGraph, rule: LocalRule, edge_vector: Tensor, edge_length: Tensor, *, two_hop: bool = True
) -> LocalGraph:
    """The bonds among the edges of a neighbour graph, and the paths over them.

    Args:
        batch: its ``bonds`` are used if the rule says so.
        graph: at least as wide as the longest bond.
        rule: which edges are bonds.
        edge_vector: [n_edges, 3] Å.
        edge_length: [n_edges] Å.
        two_hop: whether paths of two hops are wanted; else there are none.

    Raises:
        DataError: if bonds are asked for and the batch has none, or one is no edge of the graph.
    """
    csr = graph.csr
    reach = None
    with torch.no_grad():
        if rule.kind == "bonds":
            edges = _given(batch, graph, edge_length)
        else:
            reach = _reach(batch, csr, rule, edge_length).clamp(max=graph.cutoff)
            edges = (edge_length < reach).nonzero().flatten()
            reach = reach[edges]
        source, target = csr.edge_src[edges], csr.edge_dst[edges]
        atoms = CSRGraph.from_edges(source, target, csr.num_nodes)
        number = edges.shape[0]
        first, second = _into(target, atoms)
        one_hop_paths = CSRGraph.from_edges(first, second, number)
        first, second = _into(source, atoms) if two_hop else (edges[:0], edges[:0])
        shift = graph.edge_shift[edges]
        back = (source[first] == target[second]) & (shift[first] + shift[second] == 0).all(-1)
        two_hop_paths = CSRGraph.from_edges(first[~back], second[~back], number)
    length = edge_length[edges]
    direction = edge_vector[edges] / length.unsqueeze(-1)
    return LocalGraph(edges, length, direction, reach, atoms, two_hop_paths, one_hop_paths)


def _into(node: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    """For each of the nodes [m] all edges that enter it: (edge, place of the node in the list)."""
    start, count = graph.edge_ptr[node], graph.edge_ptr[node + 1] - graph.edge_ptr[node]
    place = torch.arange(node.shape[0], device=node.device).repeat_interleave(count)
    offset = torch.arange(place.shape[0], device=node.device) - (count.cumsum(0) - count)[place]
    return graph.edge_order[start[place] + offset], place


def _reach(batch: Batch, csr: CSRGraph, rule: LocalRule, edge_length: Tensor) -> Tensor:
    if rule.kind == "distance":
        return torch.full_like(edge_length, rule.reach)
    radius = _covalent_radii().to(edge_length)[batch.atomic_numbers]
    return rule.factor * (radius[csr.edge_src] + radius[csr.edge_dst])


def _given(batch: Batch, graph: NeighborGraph, edge_length: Tensor) -> Tensor:
    """Numbers of the edges that are the batch's bonds; of several periodic images the nearest."""
    if batch.bonds is None:
        raise DataError(
            'the model takes its local edges from the data (local="bonds"), but this batch has none; use "covalent" or "distance"'
        )
    csr = graph.csr
    source, target = batch.bonds
    # of equal keys the shortest edge comes first
    order = torch.sort(edge_length, stable=True).indices
    key = csr.edge_dst * csr.num_nodes + csr.edge_src
    order = order[torch.sort(key[order], stable=True).indices]
    ordered = key[order]
    wanted = (target * csr.num_nodes + source)[source != target].unique()
    place = torch.searchsorted(ordered, wanted).clamp(max=max(0, ordered.shape[0] - 1))
    found = ordered[place] == wanted if ordered.numel() else torch.zeros_like(wanted, dtype=torch.bool)
    if not bool(found.all()):
        missing = int(wanted[~found][0])
        raise DataError(
            f"the bond of atoms {missing % csr.num_nodes} and {missing // csr.num_nodes} of the batch is longer than the model's cutoff, "
            f"{graph.cutoff} Å"
        )
    return order[place].sort().values


@cache
def _covalent_radii() -> Tensor:
    from ase.data import covalent_radii

    with torch.inference_mode(False):
        return torch.from_numpy(covalent_radii.copy())
