"""DimeNet++: messages on edges, exchanged over angles (Gasteiger, Giri, Margraf, Günnemann 2020, arXiv:2011.14115).

A message m_ji of each directed edge collects those of the edges k → j, filtered by distance d_kj and angle (k, j, i). Each block of messages,
the embedding included, gives an embedding of the atoms and a part of their energies.

The basis of a triplet is a product of a radial part of k → j and a Legendre polynomial of the angle's cosine. So the sum over triplets is
taken with [n_triplets, degrees] numbers that all blocks share (`triplet_filter`); the reference makes [n_triplets, degrees · radial] and, in each
block, [n_triplets, triplet_width] numbers. No angle is computed: the cosine is a product of two directions, smooth for collinear edges too.

Example:
    >>> model = DimeNetPP(DimeNetPPOptions(width=64, layers=2))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from fastkd_kernels import CSRGraph, TripletIndex, edge_product, gated_edge_to_node, radial_basis, radial_envelope, triplet_filter
from fastkd_kernels.backends import runs_directly
from torch import Tensor, nn

from fastkd.data.batch import Batch

from .base import MAX_ATOMIC_NUMBER, BlockOutput, EdgeGraph, FeatureKind, Features, Potential, Readout, held
from .layers import SiLU, SphericalRadial, first_order_geometry, legendre, node_to_edge, safe_length
from .layers.blocks import Blocks
from .ocp_graph import limited_graph


@dataclass(frozen=True)
class DimeNetPPOptions:
    """Everything that determines a DimeNet++ but its weights. The defaults are the authors' for QM9, and PyTorch Geometric's."""

    width: int = 128  #: F, features per edge
    layers: int = 4  #: interaction blocks
    triplet_width: int = 64  #: features that are exchanged over triplets
    basis_width: int = 8  #: between the bases and their filters
    output_width: int = 256  #: features per atom
    degrees: int = 7  #: of spherical harmonics, l = 0 … degrees − 1
    radial: int = 6  #: radial functions, of the distance basis and of each degree
    cutoff: float = 5.0  #: Å
    envelope_exponent: int = 5  #: the envelope is 1/x + a xᵖ + b xᵖ⁺¹ + c xᵖ⁺² with this p, zero to third order at the cutoff
    before_skip: int = 1  #: residual layers of a block before the skip connection
    after_skip: int = 2  #: and after
    output_layers: int = 3  #: hidden layers per atom
    output_bias: bool = False  #: of the layer that widens atoms, as OCP has it
    output_init: Literal["zeros", "glorot_orthogonal"] = "glorot_orthogonal"  #: of the last layers; with zeros energies begin at zero
    angle_forces: bool = True  #: False leaves angles out of the forces, as OCP does; then they are no gradient of the energy
    rounded_basis: bool = False  #: zeros of Bessel functions and their norms in float32, as in all public implementations
    max_neighbors: int = 0  #: OCP's limit: each atom hears its nearest neighbours only, and energies jump when those change; 0 for all

    @classmethod
    def ocp(cls, width: int = 192, layers: int = 3, output_width: int = 192, cutoff: float = 6.0) -> DimeNetPPOptions:
        """DimeNet++ of the Open Catalyst Project, with the sizes of its configuration for forces (S2EF).

        Forces there leave angles out; ``replace(options, angle_forces=True)`` conserves energy.
        """
        return cls(
            width=width,
            layers=layers,
            output_width=output_width,
            cutoff=cutoff,
            output_bias=True,
            output_init="zeros",
            angle_forces=False,
            rounded_basis=True,
        )


def glorot_orthogonal(weight: Tensor, scale: float = 2.0) -> None:
    """An orthogonal matrix with the variance scale / (inputs + outputs), in place."""
    nn.init.orthogonal_(weight)
    with torch.no_grad():
        weight.mul_(torch.sqrt(scale / ((weight.shape[-2] + weight.shape[-1]) * weight.var())))


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    glorot_orthogonal(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _dense(inputs: int, outputs: int, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, outputs, bias=bias), SiLU())


class ResidualLayer(nn.Module):
    """x + σ(W₂ σ(W₁ x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(_dense(width, width), _dense(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] → the same."""
        return x + self.dense(x)


class EmbeddingBlock(nn.Module):
    """First messages: σ(W [h_i, h_j, σ(W_rbf e)]), where h_i is the receiving atom (DimeNet, fig. 4)."""

    def __init__(self, options: DimeNetPPOptions) -> None:
        super().__init__()
        self.radial = nn.Sequential(nn.Linear(options.radial, options.width), SiLU())
        self.combine = nn.Linear(3 * options.width, options.width)
        self.act = SiLU()

    def forward(self, atom: Tensor, basis: Tensor, graph: CSRGraph) -> Tensor:
        """[n_atoms, width], [n_edges, radial] → [n_edges, width]."""
        of_target, of_source, of_radial = self.combine.weight.chunk(3, 1)
        # the two products of atoms are made once an atom, not once an edge
        target, source = node_to_edge(atom @ of_target.T, graph), node_to_edge(atom @ of_source.T, graph, source=True)
        return self.act(target + source + nn.functional.linear(self.radial(basis), of_radial, self.combine.bias))


class InteractionBlock(nn.Module):
    """From messages to messages, over triplets (DimeNet++, fig. 1)."""

    def __init__(self, options: DimeNetPPOptions) -> None:
        super().__init__()
        width, triplet, basis = options.width, options.triplet_width, options.basis_width
        self.degrees = options.degrees
        self.radial = nn.Sequential(_linear(options.radial, basis, bias=False), _linear(basis, width, bias=False))
        self.spherical = Blocks([_linear(options.degrees * options.radial, basis, bias=False), _linear(basis, triplet, bias=False)])
        self.neighbor, self.direct = _dense(width, width), _dense(width, width)
        self.down, self.up = _dense(width, triplet, bias=False), _dense(triplet, width, bias=False)
        self.before = nn.Sequential(*(ResidualLayer(width) for _ in range(options.before_skip)))
        self.skip = _dense(width, width)
        self.after = nn.Sequential(*(ResidualLayer(width) for _ in range(options.after_skip)))

    def forward(self, x: Tensor, basis: Tensor, radial: Tensor, angular: Tensor, triplets: TripletIndex) -> Tensor:
        """Messages after the block.

        Args:
            x: messages, [n_edges, width].
            basis: [n_edges, radial].
            radial: radial part of the spherical basis, [n_edges, degrees, radial].
            angular: Legendre polynomials of each triplet, [n_triplets, degrees].
            triplets: k → j → i.
        """
        message = self.down(self.neighbor(x) * self.radial(basis))
        first, second = (linear.weight for linear in self.spherical)
        # columns of the first matrix are (degree, radial function)
        inner = torch.einsum("eln,bln->elb", radial, first.unflatten(1, radial.shape[1:]))
        summed = triplet_filter(message, inner, second.T, angular, triplets)
        h = self.before(self.direct(x) + self.up(summed))
        out: Tensor = self.after(self.skip(h) + x)
        return out


class OutputBlock(nn.Module):
    """Messages to atoms: Σ_j (W_rbf e_ji) ∘ m_ji, widened, and dense layers (DimeNet++, fig. 1)."""

    def __init__(self, options: DimeNetPPOptions) -> None:
        super().__init__()
        wide = options.output_width
        self.gate = _linear(options.radial, options.width, bias=False)
        self.up = _linear(options.width, wide, bias=False)
        if options.output_bias:
            # the reference draws it as torch does
            self.up = nn.Linear(options.width, wide)
            glorot_orthogonal(self.up.weight)
        self.dense = nn.Sequential(*(_dense(wide, wide) for _ in range(options.output_layers)))
        self.last = _linear(wide, 1, bias=False)
        if options.output_init == "zeros":
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, basis: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
        """[n_edges, width], [n_edges, radial] → [n_atoms, output_width], what the last layer sees, and the sum before, [n_atoms, width]."""
        total = gated_edge_to_node(x, basis, self.gate.weight, graph)
        return self.dense(self.up(total)), total


class DimeNetPP(Potential):
    """DimeNet++ with conservative forces.

    Features: layers, the input of the last layer of each output block, that of the embedding first; node, the last of these; edge, the
    messages after the last interaction. The model has no embeddings of atoms besides its output blocks', so that ``regular_k`` and
    ``x_k`` name the same atoms; edges of ``regular_k`` are the messages. Mixing: ``outputs``, the layers; ``sums``, messages summed into
    atoms, before they are widened.
    """

    def __init__(self, options: DimeNetPPOptions | None = None) -> None:
        options = options or DimeNetPPOptions()
        super().__init__(options.cutoff, "conservative")
        if options.layers < 0 or options.degrees < 1 or options.radial < 1 or options.envelope_exponent < 1:
            raise ValueError("DimeNet++ needs layers of 0 or more; degrees, radial and envelope_exponent of 1 or more")
        self.options = options
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, options.width)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        #: of the distance basis sin(f x) / x, trained; x is the distance in units of the cutoff
        self.frequencies = nn.Parameter(torch.arange(1, options.radial + 1) * math.pi)
        self.spherical = SphericalRadial(options.degrees, options.radial, options.cutoff, rounded=options.rounded_basis)
        self.embed = EmbeddingBlock(options)
        self.interactions = Blocks(InteractionBlock(options) for _ in range(options.layers))
        self.outputs = Blocks(OutputBlock(options) for _ in range(options.layers + 1))

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        return {"node": self.options.output_width, "edge": self.options.width, "atom_energy": 1}

    @property
    def edge_rule(self) -> str:
        limit = self.options.max_neighbors
        return f"the {limit} nearest neighbours within {self.cutoff:g} Å" if limit else super().edge_rule

    @property
    def layer_widths(self) -> dict[str, dict[FeatureKind, int]]:
        widths = super().layer_widths
        for number in range(self.num_blocks + 1):
            widths[f"x_{number}"] = {"node": self.options.output_width}
            widths[f"regular_{number}"]["edge"] = self.options.width
        return widths

    @property
    def mixing(self) -> dict[str, tuple[int, int]]:
        number = self.num_blocks + 1
        return {"outputs": (number, self.options.output_width), "sums": (number, self.options.width)}

    @property
    def num_blocks(self) -> int:
        return self.options.layers

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        graph, kept = limited_graph(batch.graph(self.cutoff), edge_vector, self.options.max_neighbors, symmetric=False)
        edge_vector = edge_vector if kept is None else edge_vector[kept]
        csr = graph.csr
        triplets = graph.triplets if self.interactions else None
        length, radial, angular = self._geometry(edge_vector, triplets)
        basis = self._distance_basis(length)
        x: Tensor = self.embed(self.embedding(batch.atomic_numbers), basis, csr)
        first, total = self.outputs[0](x, basis, csr)
        layers, sums, edge_layers = [first], [total], [held(x, "regular_0", self.kept_layers)]
        for number, (block, output) in enumerate(zip(self.interactions, self.outputs[1:], strict=True), 1):
            x = block(x, basis, radial, angular, triplets)
            layer, total = output(x, basis, csr)
            layers.append(layer)
            sums.append(total)
            edge_layers.append(held(x, f"regular_{number}", self.kept_layers))
        energies = torch.stack([output.last(layer) for output, layer in zip(self.outputs, layers, strict=True)])
        features = Features(
            layers[-1],
            lambda: x,
            layers=tuple(layers),
            edge_graph=None if kept is None else EdgeGraph(csr, edge_vector / length.unsqueeze(-1), length, graph.edge_shift),
            edge_layers=tuple(edge_layers),
            outputs=tuple(BlockOutput(layer) for layer in layers),
            mixing={"outputs": tuple(layers), "sums": tuple(sums)},
        )
        return Readout(energies.sum(0).squeeze(-1), None, features)

    def _geometry(self, edge_vector: Tensor, triplets: TripletIndex | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Lengths [n_edges], radial rows [n_edges, degrees, radial] and polynomials [n_triplets, degrees] of the angles' cosines."""
        options, exponent = self.options, self.options.envelope_exponent + 1
        if edge_vector.requires_grad and edge_vector.is_leaf and runs_directly((edge_vector,)):
            return first_order_geometry(edge_vector, self.spherical, triplets, exponent, angle_forces=options.angle_forces)
        length = safe_length(edge_vector)
        if triplets is None:
            return length, None, None
        angular = legendre(self._cosines(edge_vector, length, triplets), options.degrees)
        envelope = radial_envelope(length, "polynomial", self.cutoff, exponent)
        return length, self.spherical(length, envelope), angular

    def _distance_basis(self, length: Tensor) -> Tensor:
        """u(x) sin(f x) / x of each edge (DimeNet, eq. 7, without its constant factor), [n_edges, radial]."""
        cutoff, size = self.cutoff, self.options.radial
        exponent = self.options.envelope_exponent + 1
        frequencies = self.frequencies.to(length.dtype) / cutoff
        rows = radial_basis(length, "bessel", cutoff, size, envelope="polynomial", envelope_exponent=exponent, frequencies=frequencies)
        return rows * (cutoff * math.sqrt(cutoff / 2))

    def _cosines(self, edge_vector: Tensor, length: Tensor, triplets: TripletIndex) -> Tensor:
        """Of the angle between j → i and k → j of each triplet, [n_triplets]: 1 where the three lie in line, k ≠ i at the ends."""
        direction = edge_vector / length.unsqueeze(-1)
        if not self.options.angle_forces:
            direction = direction.detach()
        # triplets are the edges of a graph whose nodes are edges
        return edge_product(direction, direction, CSRGraph(*triplets.tensors)).sum(-1)
