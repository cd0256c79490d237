"""The interactions of GemNet-OC and the block that they are part of (Gasteiger et al. 2022, section 3 and figure 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastkd_kernels import TripletIndex, triplet_reduce
from torch import Tensor, nn
from torch.nn import functional

from .bases import TwoAngles, weighted_sums
from .graphs import Graphs
from .layers import INV_SQRT_2, AtomUpdate, Dense, EdgeEmbedding, ScaleFactor, residuals, scaled_silu
from .memory import recomputed
from .options import GemNetOCOptions


@dataclass(frozen=True, eq=False)
class AngularBasis:
    """Bases of an interaction along one angle."""

    radial: Tensor  #: [n_in, radial_width], of the input edges
    weights: Tensor  #: [n_out, circular_width, degrees], of the output edges
    angular: Tensor  #: [n_triplets, degrees]


@dataclass(frozen=True, eq=False)
class AtomBasis:
    """Bases of the edge-to-atom interaction, both sums over neighbours folded into one matrix for each input edge."""

    radial: Tensor  #: [n_main, radial_width]
    onto_atom: Tensor  #: [n_main, circular_width]


@dataclass(frozen=True, eq=False)
class QuadBasis:
    """Bases of the quadruplet interaction."""

    radial: Tensor  #: [n_main, radial_width], of the edges d → b
    circular: Tensor  #: [n_inner, circular_width], of the triplets d → b → a
    weights: Tensor  #: [n_main, spherical_width, degrees²], of the edges c → a
    angles: TwoAngles


@dataclass(frozen=True, eq=False)
class Bases:
    """What all blocks share; None where an interaction is off."""

    atom_update: Tensor  #: [n_main, radial_width]
    output: Tensor  #: [n_main, radial_width]
    triplets: AngularBasis
    atom_to_edge: AngularBasis | None
    edge_to_atom: AtomBasis | None
    atoms: Tensor | None  #: [n_atom_edges, radial_width]
    quadruplets: QuadBasis | None


class _Triplets(nn.Module):
    """What the three interactions along one angle have in common: input layers, bilinear layer, scale factors."""

    def __init__(self, inputs: int, outputs: int, options: GemNetOCOptions, *, symmetric: bool) -> None:
        super().__init__()
        self.dense = Dense(inputs, inputs)
        self.radial = Dense(options.radial_width, inputs, act=False)
        self.radial_scale = ScaleFactor()
        self.down = Dense(inputs, options.triplet_in)
        self.bilinear = Dense(options.circular_width * options.triplet_in, options.triplet_out, act=False)
        self.sum_scale = ScaleFactor()
        self.up = Dense(options.triplet_out, outputs)
        self.up_reverse = Dense(options.triplet_out, outputs) if symmetric else None

    def message(self, features: Tensor, radial: Tensor, expand: Tensor | None = None) -> Tensor:
        """[n, inputs], [n_in, radial_width] → [n_in, triplet_in]; ``expand`` [n_in] as in `EdgeInteraction`."""
        return gated_message(self.dense.linear(features), radial, self.radial, self.radial_scale, self.down, expand)

    def combine(self, body: Callable[..., Tensor], message: Tensor, *bases: Tensor, edge_in: Tensor) -> Tensor:
        """``body(message, *bases)`` [n, circular_width · triplet_in] → [n, triplet_out]; messages serve as the scale's reference."""
        out: Tensor = self.sum_scale(recomputed(body, message, *bases, weight=self.bilinear.weight), lambda: message[edge_in])
        return out


def gated_message(y: Tensor, radial: Tensor, gate: Dense, scale: ScaleFactor, down: Dense, expand: Tensor | None = None) -> Tensor:
    """Features times a gate of their radial basis, and fewer channels: [n, inputs] before SiLU, [n_in, radial_width] → [n_in, outputs]."""

    def body(y: Tensor, radial: Tensor, weight: Tensor) -> Tensor:
        x = scaled_silu(y)
        x = x if expand is None else x.index_select(0, expand)
        return scale(x * functional.linear(radial, weight), lambda: x)

    return scaled_silu(recomputed(body, y, radial, gate.weight, weight=down.weight))


def both_ways(out: Tensor, up: Dense, up_reverse: Dense, swap: Tensor) -> Tensor:
    """What an edge gets from its own sum and from that of its reverse."""

    def body(out: Tensor, own: Tensor, other: Tensor) -> Tensor:
        reverse = scaled_silu(functional.linear(out, other)).index_select(0, swap)
        return (scaled_silu(functional.linear(out, own)) + reverse) * INV_SQRT_2

    return recomputed(body, out, up.weight, up_reverse.weight)


class EdgeInteraction(_Triplets):
    """Edges b → a, or atoms b, to edges c → a."""

    def forward(self, features: Tensor, basis: AngularBasis, triplets: TripletIndex, swap: Tensor, expand: Tensor | None = None) -> Tensor:
        """[n, inputs] → [n_main, outputs]; ``expand`` [n_in] are the atoms that input edges come from, if the features are of atoms."""

        def body(message: Tensor, angular: Tensor, weights: Tensor) -> Tensor:
            return weighted_sums(weights, message, angular, triplets).flatten(1)

        message = self.message(features, basis.radial, expand)
        out = self.combine(body, message, basis.angular, basis.weights, edge_in=triplets.edge_in)
        assert self.up_reverse is not None
        return both_ways(out, self.up, self.up_reverse, swap)


class EdgeToAtom(_Triplets):
    """Edges b → a to atom a, over all edges c → a between them."""

    def forward(self, edge: Tensor, basis: AtomBasis, into_atom: TripletIndex, triplets: TripletIndex) -> Tensor:
        """[n_main, inputs] → [n_atoms, outputs]; ``into_atom`` are the main edges and their targets."""

        def body(message: Tensor, onto_atom: Tensor) -> Tensor:
            return triplet_reduce(message, onto_atom, into_atom).flatten(1)

        message = self.message(edge, basis.radial)
        out: Tensor = self.up(self.combine(body, message, basis.onto_atom, edge_in=triplets.edge_in))
        return out


class QuadInteraction(nn.Module):
    """Edges d → b to edges c → a over paths d → b → a ← c."""

    def __init__(self, options: GemNetOCOptions) -> None:
        super().__init__()
        edge = options.edge_width
        self.dense = Dense(edge, edge)
        self.radial = Dense(options.radial_width, edge, act=False)
        self.radial_scale = ScaleFactor()
        self.down = Dense(edge, options.quad_in)
        self.circular = Dense(options.circular_width, options.quad_in, act=False)
        self.circular_scale = ScaleFactor()
        self.bilinear = Dense(options.spherical_width * options.quad_in, options.quad_out, act=False)
        self.sum_scale = ScaleFactor()
        self.up = Dense(options.quad_out, edge)
        self.up_reverse = Dense(options.quad_out, edge)

    def forward(self, edge: Tensor, basis: QuadBasis, graphs: Graphs) -> Tensor:
        """[n_main, edge_width] → the same."""
        quads = graphs.quadruplets
        assert quads is not None
        angles, inner_in, references = basis.angles, quads.inner_in, []

        def body(x: Tensor, circular: Tensor, gate: Tensor, path_basis: Tensor, edge_basis: Tensor, weights: Tensor) -> Tensor:
            inner = x.index_select(0, inner_in)
            message = self.circular_scale(inner * functional.linear(circular, gate), lambda: inner)
            if self.sum_scale.observer is not None:
                references.append(message)
            return angles.project(weights, message, quads.paths, quads.onto_edges, (path_basis, edge_basis)).flatten(1)

        x = gated_message(self.dense.linear(edge), basis.radial, self.radial, self.radial_scale, self.down)
        bases = (basis.circular, self.circular.weight, angles.path_basis, angles.edge_basis, basis.weights)
        out = recomputed(body, x, *bases, weight=self.bilinear.weight)
        out = self.sum_scale(out, lambda: references[0][quads.paths.edge_in])
        return both_ways(out, self.up, self.up_reverse, graphs.swap)


class AtomInteraction(nn.Module):
    """Atoms b to atoms a."""

    def __init__(self, options: GemNetOCOptions) -> None:
        super().__init__()
        self.down = Dense(options.width, options.pair_in)
        self.bilinear = Dense(options.radial_width * options.pair_in, options.pair_out, act=False)
        self.sum_scale = ScaleFactor()
        self.up = Dense(options.pair_out, options.width)

    def forward(self, atom: Tensor, radial: Tensor, pairs: TripletIndex) -> Tensor:
        """[n_atoms, width], [n_atom_edges, radial_width] → [n_atoms, width]; ``pairs`` are atoms b and a."""
        x = self.down(atom)
        summed = triplet_reduce(x, radial, pairs)
        out: Tensor = self.up(self.sum_scale(self.bilinear(summed.flatten(1)), lambda: x[pairs.edge_in]))
        return out


class InteractionBlock(nn.Module):
    """All interactions, then the updates of edges and atoms."""

    def __init__(self, options: GemNetOCOptions) -> None:
        super().__init__()
        atom, edge = options.width, options.edge_width
        self.skip = Dense(edge, edge)
        self.edge_to_edge = EdgeInteraction(edge, edge, options, symmetric=True)
        self.quadruplets = QuadInteraction(options) if options.quadruplets else None
        self.atom_to_edge = EdgeInteraction(atom, edge, options, symmetric=True) if options.atom_edge else None
        self.edge_to_atom = EdgeToAtom(edge, atom, options, symmetric=False) if options.edge_atom else None
        self.atom_to_atom = AtomInteraction(options) if options.atom_atom else None
        self.before_skip = residuals(edge, options.before_skip)
        self.after_skip = residuals(edge, options.after_skip)
        self.atom_layers = residuals(atom, options.atom_layers)
        self.atom_update = AtomUpdate(atom, edge, options.radial_width, options.atom_update)
        self.concat = EdgeEmbedding(atom, edge, edge)
        self.after_concat = residuals(edge, options.concat)
        self.edge_norm = 1 / math.sqrt(2 + options.quadruplets + options.atom_edge)
        self.atom_norm = 1 / math.sqrt(1 + options.edge_atom + options.atom_atom)

    def forward(self, atom: Tensor, edge: Tensor, bases: Bases, graphs: Graphs, indices: AtomIndices) -> tuple[Tensor, Tensor]:
        """[n_atoms, width], [n_main, edge_width] → the same."""
        x = self.skip(edge) + self.edge_to_edge(edge, bases.triplets, graphs.triplets, graphs.swap)
        if self.quadruplets is not None and bases.quadruplets is not None:
            x = x + self.quadruplets(edge, bases.quadruplets, graphs)
        if self.atom_to_edge is not None and bases.atom_to_edge is not None:
            assert graphs.mixed is not None
            sources = graphs.mixed.csr.edge_src
            x = x + self.atom_to_edge(atom, bases.atom_to_edge, graphs.atom_to_edge, graphs.swap, sources)
        h = atom
        if self.edge_to_atom is not None and bases.edge_to_atom is not None:
            h = h + self.edge_to_atom(edge, bases.edge_to_atom, indices.edges, graphs.edge_to_atom)
        if self.atom_to_atom is not None and bases.atoms is not None:
            h = h + self.atom_to_atom(atom, bases.atoms, indices.atoms)
        h = self.atom_layers(h * self.atom_norm)

        edge = self.after_skip((edge + self.before_skip(x * self.edge_norm)) * INV_SQRT_2)
        # edges update their atoms, and are then updated by them
        h = (h + self.atom_update(edge, bases.atom_update, graphs.main.csr)) * INV_SQRT_2
        return h, (edge + self.after_concat(self.concat(h, edge, graphs.main.csr))) * INV_SQRT_2


@dataclass(frozen=True, eq=False)
class AtomIndices:
    """Edges as triplets that end in atoms, for `triplet_reduce`."""

    edges: TripletIndex | None  #: main edge → its target
    atoms: TripletIndex | None  #: source → target of the edges between atoms
