"""GemNet-OC: embeddings of edges and atoms that exchange messages over edges, triplets and quadruplets.

Source: J. Gasteiger et al., GemNet-OC: Developing Graph Neural Networks for Large and Diverse Molecular Simulation Datasets, TMLR 2022,
arXiv:2204.02782; J. Gasteiger, F. Becker, S. Günnemann, GemNet, NeurIPS 2021, arXiv:2106.08903.

Example:
    >>> model = GemNetOC(GemNetOCOptions(width=16, edge_width=24, layers=1, radial=8, cutoff=5.0))
"""

from __future__ import annotations

import math

import torch
from fastkd_kernels import TripletIndex, edge_to_node_vector, triplet_contract
from torch import Tensor, nn

from fastkd.data.batch import Batch

from ..base import BlockOutput, EdgeGraph, FeatureKind, Features, Potential, Readout, block_mixing, held
from ..layers import safe_length
from .bases import AngularWeights, RadialBasis, TwoAngles, angular_basis, cosine, legendre
from .graphs import EdgeSet, Graphs, Quadruplets, make_graphs
from .interaction import AngularBasis, AtomBasis, AtomIndices, Bases, InteractionBlock, QuadBasis
from .layers import Dense, EdgeEmbedding, OutputBlock, residuals
from .options import GemNetOCOptions


class GemNetOC(Potential):
    """GemNet-OC with direct or conservative forces.

    Features: ``node`` is what the global output layers make of all blocks' atoms (the last layer before the energy), ``edge`` what they
    make of all blocks' edges (the last layer before direct forces; with conservative forces, the edge embedding after the last block).
    The edges are those of the model's main graph, given as ``features.edge_graph``. ``layers`` are the atom embeddings h and
    ``edge_layers`` the edge embeddings m; ``outputs`` are x_E and, with direct forces, x_F of each output block.
    """

    def __init__(self, options: GemNetOCOptions | None = None) -> None:
        options = options or GemNetOCOptions()
        super().__init__(options.reach, options.forces)
        self.options = options
        atom, edge, blocks = options.width, options.edge_width, options.layers
        direct = options.forces == "direct"
        self.known_element[options.elements + 1 :] = False
        self.embedding = nn.Embedding(options.elements, atom)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.edge_embedding = EdgeEmbedding(atom, options.radial, edge)
        self.bases = SharedBases(options)
        self.blocks = nn.ModuleList(InteractionBlock(options) for _ in range(blocks))
        self.outputs = nn.ModuleList(
            OutputBlock(atom, edge, options.radial_width, options.atom_update, options.after_atom, edges=direct) for _ in range(blocks + 1)
        )
        self.energy_mlp = nn.Sequential(Dense(atom * (blocks + 1), atom), residuals(atom, options.global_layers))
        self.energy_head = Dense(atom, 1, act=False)
        if direct:
            self.force_mlp = nn.Sequential(Dense(edge * (blocks + 1), edge), residuals(edge, options.global_layers))
            self.force_head = Dense(edge, 1, act=False)
        if options.output_init == "zeros":
            nn.init.zeros_(self.energy_head.weight)
            if direct:
                nn.init.zeros_(self.force_head.weight)

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        return {"node": self.options.width, "edge": self.options.edge_width, "atom_energy": 1}

    @property
    def edge_rule(self) -> str:
        options = self.options
        if not options.neighbors:
            return f"all neighbours within {options.cutoff:g} Å"
        strict = "strictly " if options.strict_neighbors else ""
        return f"{strict}the {options.neighbors} nearest neighbours within {options.cutoff:g} Å, mirrored"

    @property
    def layer_widths(self) -> dict[str, dict[FeatureKind, int]]:
        widths, atom, edge = super().layer_widths, self.options.width, self.options.edge_width
        for number in range(self.num_blocks + 1):
            widths[f"regular_{number}"]["edge"] = edge
            widths[f"x_{number}"] = {"node": atom, "edge": edge} if self.force_mode == "direct" else {"node": atom}
        return widths

    @property
    def mixing(self) -> dict[str, tuple[int, int]]:
        return super().mixing | {"outputs": (self.num_blocks + 1, self.options.width)}

    @property
    def num_blocks(self) -> int:
        return self.options.layers

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        graph = batch.graph(self.cutoff)
        length = safe_length(edge_vector)
        graphs = make_graphs(batch, graph, edge_vector, self.options)
        direction = edge_vector / length.unsqueeze(-1)
        main = graphs.main.csr
        main_direction, main_length = graphs.main.vectors(direction), graphs.main.lengths(length)
        radial, bases = self.bases(graphs, direction, length, main_direction, main_length)
        indices = _atom_indices(graphs)

        atoms = self.embedding(batch.atomic_numbers - 1)
        edges = self.edge_embedding(atoms, radial, main)
        del radial
        kept = self.kept_layers
        layers, edge_layers, atom_outs, edge_outs = [atoms], [held(edges, "regular_0", kept)], [], []
        for number, output in enumerate(self.outputs):
            if number:
                atoms, edges = self.blocks[number - 1](atoms, edges, bases, graphs, indices)
                layers.append(atoms)
                edge_layers.append(held(edges, f"regular_{number}", kept))
            atom_out, edge_out = output(atoms, edges, bases.output, main)
            atom_outs.append(atom_out)
            edge_outs.append(edge_out)

        # what is not needed any more is freed before the widest layers
        del bases, indices, edge_out
        outputs = tuple(BlockOutput(out, edge_outs[k] if f"x_{k}" in kept else None) for k, out in enumerate(atom_outs))
        node = self.energy_mlp(torch.cat(atom_outs, 1))
        atom_energy = self.energy_head(node).squeeze(-1)
        if self.options.readout == "mean":
            count = batch.atom_ptr.diff().to(atom_energy.dtype)
            atom_energy = atom_energy / count[batch.graph_index]
        forces = None
        if self.force_mode == "direct":
            edges = self.force_mlp(_joined(edge_outs))
            forces = self._direct_forces(edges, main_direction, graphs)
        edge_graph = EdgeGraph(main, main_direction, main_length, graphs.main.shift)
        features = Features(
            node,
            lambda: edges,
            layers=tuple(layers),
            edge_graph=edge_graph,
            edge_layers=tuple(edge_layers),
            outputs=outputs,
            mixing=block_mixing(layers) | {"outputs": tuple(atom_outs)},
        )
        return Readout(atom_energy, forces, features)

    def _direct_forces(self, edges: Tensor, direction: Tensor, graphs: Graphs) -> Tensor:
        """Σ over incoming edges of a scalar along each edge, [n_atoms, 3]."""
        size = self.force_head(edges)
        if self.options.coupled_forces:
            size = 0.5 * (size + size.index_select(0, graphs.swap))
        return edge_to_node_vector(size, direction, graphs.main.csr).squeeze(-1)


class SharedBases(nn.Module):
    """Radial and angular bases with their projections, which all blocks share."""

    def __init__(self, options: GemNetOCOptions) -> None:
        super().__init__()
        self.options = options
        angle = options.angle_basis or options.basis
        main, mixed = options.cutoff, options.atom_edge_reach

        def basis(kind: str, cutoff: float) -> RadialBasis:
            return RadialBasis(kind, options.radial, cutoff, options.envelope, options.envelope_exponent)  # type: ignore[arg-type]

        def project() -> Dense:
            return Dense(options.radial, options.radial_width, act=False)

        def circular() -> AngularWeights:
            return AngularWeights(options.radial, options.spherical, options.circular_width)

        # Gaussians of equal cutoffs are the same functions; Bessel functions with frequencies of their own are not
        self.main = basis(options.basis, main)
        self.main_angle = basis(angle, main)
        self.atom_update, self.output, self.triplet_radial, self.triplet_circular = project(), project(), project(), circular()
        if options.has_mixed_graph:
            self.mixed = basis(options.basis, mixed)
        if options.atom_edge:
            self.atom_to_edge_radial, self.atom_to_edge_circular = project(), circular()
        if options.edge_atom:
            self.mixed_angle = basis(angle, mixed)
            self.edge_to_atom_radial, self.edge_to_atom_circular = project(), circular()
        if options.atom_atom:
            self.atoms = basis(options.basis, options.reach)
            self.atoms_radial = project()
        if options.quadruplets:
            self.middle_angle = basis(angle, options.quad_reach)
            self.quad_radial, self.quad_circular = project(), circular()
            self.quad_spherical = AngularWeights(options.radial, options.two_angle_size, options.spherical_width)

    def forward(
        self, graphs: Graphs, direction: Tensor, length: Tensor, main_direction: Tensor, main_length: Tensor
    ) -> tuple[Tensor, Bases]:
        """The raw radial basis of main edges [n_main, radial], and what the blocks need.

        Args:
            graphs: of the batch.
            direction: [n_edges, 3] unit vectors, and ``length`` [n_edges] Å, in the order of the batch's graph.
            length: see there.
            main_direction: the same in the order of the main graph.
            main_length: see there.
        """
        degrees = self.options.spherical
        radial = self.main(main_length)
        same = self.main_angle.kind == self.main.kind == "gaussian"
        beside_angle = radial if same else self.main_angle(main_length)
        triplets = graphs.triplets
        angles = angular_basis(main_direction, main_direction, triplets, degrees)
        edge_to_edge = AngularBasis(self.triplet_radial(radial), self.triplet_circular(beside_angle), angles)
        atom_to_edge, edge_to_atom, quadruplets, atoms = None, None, None, None
        if graphs.mixed is not None:
            mixed_direction, mixed_length = graphs.mixed.vectors(direction), graphs.mixed.lengths(length)
            index = graphs.atom_to_edge
            if index is not None:
                own = self.atom_to_edge_radial(self.mixed(mixed_length))
                angles = angular_basis(main_direction, mixed_direction, index, degrees)
                atom_to_edge = AngularBasis(own, self.atom_to_edge_circular(beside_angle), angles)
            index = graphs.edge_to_atom
            if index is not None:
                angles = angular_basis(mixed_direction, main_direction, index, degrees)
                weights = self.edge_to_atom_circular(self.mixed_angle(mixed_length))
                # no feature takes part in the sum over edges c → a: it is done once for all blocks
                onto_atom = triplet_contract(weights.transpose(1, 2).contiguous(), angles, index.transpose)
                edge_to_atom = AtomBasis(self.edge_to_atom_radial(radial), onto_atom)
        if graphs.atoms is not None:
            atoms = self.atoms_radial(self.atoms(graphs.atoms.lengths(length)))
        if graphs.quadruplets is not None and graphs.middle is not None:
            middle = self._middle(graphs.middle, direction, length)
            quadruplets = self._quadruplets(graphs.quadruplets, main_direction, *middle, radial, beside_angle)
        bases = Bases(self.atom_update(radial), self.output(radial), edge_to_edge, atom_to_edge, edge_to_atom, atoms, quadruplets)
        return radial, bases

    def _middle(self, middle: EdgeSet, direction: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Directions [n_middle, 3] and circular weights [n_middle, circular_width, degrees] of middle edges."""
        return middle.vectors(direction), self.quad_circular(self.middle_angle(middle.lengths(length)))

    def _quadruplets(
        self, quads: Quadruplets, main: Tensor, middle: Tensor, weights: Tensor, radial: Tensor, beside_angle: Tensor
    ) -> QuadBasis:
        degrees = self.options.spherical
        inner_middle, inner_edge = middle[quads.inner_middle], main[quads.inner_in]
        angular = legendre(cosine(inner_middle, inner_edge), degrees)
        circular = (weights[quads.inner_middle] @ angular.unsqueeze(-1)).squeeze(-1)
        outer_edge, outer_middle = main[quads.outer_out], middle[quads.outer_middle]
        # normals of the two planes that share the middle edge
        outer = torch.linalg.cross(outer_edge, outer_middle)[quads.paths.edge_out]
        inner = torch.linalg.cross(inner_edge, inner_middle)[quads.paths.edge_in]
        angles = TwoAngles(self.options.angular, degrees, cosine(outer_edge, outer_middle), outer, inner)
        return QuadBasis(self.quad_radial(radial), circular, self.quad_spherical(beside_angle), angles)


def _joined(parts: list[Tensor]) -> Tensor:
    """Side by side; the list is emptied."""
    whole = torch.cat(parts, 1)
    parts.clear()
    return whole


def _atom_indices(graphs: Graphs) -> AtomIndices:
    main, atoms = graphs.main.csr, graphs.atoms
    numbers = torch.arange(main.num_edges, device=main.edge_dst.device)
    edges = TripletIndex.from_triplets(numbers, main.edge_dst, main.num_nodes, num_in=main.num_edges)
    if atoms is None:
        return AtomIndices(edges, None)
    return AtomIndices(edges, TripletIndex.from_triplets(atoms.csr.edge_src, atoms.csr.edge_dst, main.num_nodes))
