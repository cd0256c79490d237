"""What MXMNet and PAMNet share: a global plane of all neighbours, a local plane of bonds, and the bases on both.

Global edges carry Bessel functions of their length with trainable frequencies, bonds carry the same, and paths of two bonds carry
functions of length and angle. A block passes messages on the global plane and then on the local one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from fastkd_kernels import CSRGraph, radial_basis, radial_envelope
from torch import Tensor, nn

from fastkd.data.batch import Batch, NeighborGraph

from .base import MAX_ATOMIC_NUMBER, FeatureKind, Potential
from .layers.local_graph import LocalEdges, LocalGraph, LocalRule, local_graph
from .layers.mlp import safe_length
from .layers.multiplex import EdgeMLP, at_source, mlp, rows_at
from .layers.path_basis import PathBasis, multiplex_envelope


@dataclass(frozen=True)
class MultiplexOptions:
    """Everything that determines a model of this family but its weights. Defaults are the authors' for QM9, except for ``local``."""

    width: int = 128  #: features per atom and edge
    layers: int = 6  #: blocks, each a global and a local layer
    cutoff: float = 5.0  #: Å, of the global plane; no bond is longer
    local_cutoff: float = 5.0  #: Å, scale of the functions on bonds
    radial: int = 16  #: Bessel functions of a length
    spherical: int = 7  #: degrees of the functions of a path
    spherical_radial: int = 6  #: functions of a path for each degree
    envelope_exponent: int = 5
    local: LocalEdges = "covalent"  #: which neighbours are bonded; the authors' QM9 models need `bonds`
    covalent_factor: float = 1.25  #: `covalent`: a bond is shorter than this times the sum of covalent radii
    local_distance: float = 2.0  #: `distance`: a bond is shorter than this, Å
    smooth: bool = False  #: fade edges and bonds out where they end, which the authors' models do not

    def __post_init__(self) -> None:
        if self.local not in ("covalent", "distance", "bonds"):
            raise ValueError(f"local must be covalent, distance or bonds, got {self.local!r}")
        if self.local == "distance" and self.local_distance > self.cutoff:
            raise ValueError(f"local_distance is {self.local_distance} Å, beyond the cutoff of {self.cutoff} Å")
        if self.smooth and self.local == "bonds":
            raise ValueError('smooth=True needs local="covalent" or "distance": bonds that are given end nowhere')


@dataclass(frozen=True, eq=False)
class GlobalEdges:
    """Features of the neighbour graph's edges: a row an undirected pair where there are pairs, else a row an edge."""

    graph: NeighborGraph
    rows: Tensor  #: [n_pairs or n_edges, width]
    fade: Tensor | None  #: [n_pairs or n_edges, 1], zero at the cutoff

    def terms(self, message: EdgeMLP, gate: nn.Linear) -> tuple[Tensor, Tensor]:
        """What a layer needs of each edge: its part of the message, and its gate; both [n_edges, width]."""
        part, factor = message.of_edges(self.rows), gate(self.rows)
        if self.fade is not None:
            factor = factor * self.fade
        pairs = self.graph.pairs
        if pairs is None:
            return part, factor
        order = pairs.pair_edges.view(-1)
        ptr = torch.arange(0, order.shape[0] + 1, 2, device=order.device)
        return rows_at(part, pairs.pair, ptr, order), rows_at(factor, pairs.pair, ptr, order)


@dataclass(frozen=True, eq=False)
class Bonds:
    """Features of bonds and of the paths over them."""

    graph: LocalGraph
    rows: Tensor  #: [n_bonds, width]
    fade: Tensor | None  #: [n_bonds, 1], zero where bonds end
    two_hop: Tensor | None  #: [n_paths, width], if the model has such paths
    one_hop: Tensor  #: [n_paths, width]

    @property
    def atoms(self) -> CSRGraph:
        return self.graph.atoms

    def gate(self, linear: nn.Linear) -> Tensor:
        """[n_bonds, width]."""
        factor: Tensor = linear(self.rows)
        return factor if self.fade is None else factor * self.fade


class Multiplex(Potential):
    """Base of MXMNet and PAMNet: embedding and bases. Feature: node, the embedding after the last block; edge, see the models."""

    def __init__(self, options: MultiplexOptions, *, two_hop: bool = True) -> None:
        super().__init__(options.cutoff, "conservative")
        self.options = options
        self.rule = LocalRule(options.local, options.covalent_factor, options.local_distance)
        width = options.width
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        # frequencies as the reference counts them: sin(frequency · r / cutoff)
        harmonics = torch.arange(1, options.radial + 1) * math.pi
        self.global_frequencies, self.local_frequencies = nn.Parameter(harmonics.clone()), nn.Parameter(harmonics.clone())
        self.path_basis = PathBasis(
            options.spherical, options.spherical_radial, options.local_cutoff, options.envelope_exponent, smooth=options.smooth
        )
        self.global_embedding, self.local_embedding = mlp(options.radial, width), mlp(options.radial, width)
        self.one_hop_embedding = mlp(self.path_basis.size, width)
        self.two_hop_embedding = mlp(self.path_basis.size, width) if two_hop else None

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        return {"node": self.options.width, "edge": self.options.width, "atom_energy": 1}

    @property
    def num_blocks(self) -> int:
        return self.options.layers

    def planes(self, batch: Batch, edge_vector: Tensor) -> tuple[GlobalEdges, Bonds]:
        """Both planes with their features, from the edges of ``batch.graph(self.cutoff)``."""
        graph, options = batch.graph(self.cutoff), self.options
        paired = graph.pairs is not None
        length = safe_length(edge_vector[graph.pair_edge] if paired else edge_vector)
        rows = self.global_embedding(self._radial(length, options.cutoff, self.global_frequencies))
        fade = None
        if options.smooth:
            fade = radial_envelope(length, "polynomial", options.cutoff, options.envelope_exponent).unsqueeze(-1)
        edge_length = length[graph.pair] if paired else length
        return GlobalEdges(graph, rows, fade), self._bonds(batch, graph, edge_vector, edge_length)

    def _bonds(self, batch: Batch, graph: NeighborGraph, edge_vector: Tensor, edge_length: Tensor) -> Bonds:
        options = self.options
        bonds = local_graph(batch, graph, self.rule, edge_vector, edge_length, two_hop=self.two_hop_embedding is not None)
        rows = self.local_embedding(self._radial(bonds.length, options.local_cutoff, self.local_frequencies))
        fade = bonds.fade() if options.smooth else None
        radial = self.path_basis.radial_part(bonds.length)
        one_hop = self.one_hop_embedding(self._path(radial, bonds.one_hop_cosine(), bonds.one_hop))
        two_hop = None
        if self.two_hop_embedding is not None:
            two_hop = self.two_hop_embedding(self._path(radial, bonds.two_hop_cosine(), bonds.two_hop))
        return Bonds(bonds, rows, None if fade is None else fade.unsqueeze(-1), two_hop, one_hop)

    def _radial(self, length: Tensor, cutoff: float, frequencies: Tensor) -> Tensor:
        """w(x)/x sin(frequency x), x = length/cutoff, w as in `multiplex_envelope`: [n] Å → [n, radial]."""
        options = self.options
        basis = radial_basis(length, "bessel", cutoff, options.radial, frequencies=frequencies / cutoff)
        envelope = multiplex_envelope(length / cutoff, options.envelope_exponent, smooth=options.smooth)
        # the kernel's functions are √(2/c) sin(wr)/r
        return basis * (envelope * (cutoff * math.sqrt(cutoff / 2))).unsqueeze(-1)

    def _path(self, radial: Tensor, cosine: Tensor, paths: CSRGraph) -> Tensor:
        return self.path_basis.combine(at_source(radial, paths), self.path_basis.angular_part(cosine))
