"""PaiNN: scalar and vector features, exchanged along edges (Schütt, Unke, Gastegger 2021, arXiv:2102.03150).

The defaults are the energy-conserving model of the paper with a polynomial envelope over the whole filter, so that forces are
continuously differentiable at the cutoff. `PaiNNOptions.ocp` is the variant of the Open Catalyst Project: scaled activations,
layer norm, residual scalings and a direct force head.

Example:
    >>> model = PaiNN(PaiNNOptions(width=32, layers=2))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from fastkd_kernels import (
    BasisSpec,
    CSRGraph,
    EnvelopeSpec,
    FilterLinear,
    edge_product,
    painn_context,
    painn_message,
    painn_radial,
    painn_update,
)
from fastkd_kernels.radial_conv.places import RadialIndex
from torch import Tensor, nn

from fastkd.data.batch import Batch, NeighborGraph

from .base import MAX_ATOMIC_NUMBER, FeatureKind, Features, ForceMode, Potential, Readout, block_mixing
from .layers import (
    Activation,
    BasisKind,
    ElementTable,
    Envelope,
    EnvelopeKind,
    FilterTables,
    GatedEquivariantBlock,
    RadialBasis,
    activation,
    attach_derivative,
    dense,
    rows_of,
    safe_length,
    with_bias,
)
from .layers.blocks import Blocks
from .ocp_graph import limited_graph

#: phi [n_atoms, 3F] and vector [n_atoms, 3, F] or None → what atoms receive, [n_atoms, F] and [n_atoms, 3, F].
Message = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PaiNNOptions:
    """Everything that determines a PaiNN but its weights."""

    width: int = 64  #: F, features per atom
    layers: int = 3  #: message + update blocks
    radial: int = 20  #: radial basis functions
    cutoff: float = 5.0  #: Å
    forces: ForceMode = "conservative"
    basis: BasisKind = "gaussian"
    envelope: EnvelopeKind = "polynomial"
    envelope_exponent: int = 5
    smooth_bias: bool = True  #: the envelope multiplies the filter with its bias; otherwise only the basis, and the filter jumps
    activation: Activation = "silu"
    layer_norm: bool = False  #: of scalars before each message
    residual_scaling: bool = False  #: OCP's factors 1/√3, 1/√F, 1/√2 that keep variances near one
    fitted_scales: bool = False  #: one fitted factor on the scalars after each update block
    norm_epsilon: float = 1e-8  #: under the square root of vector norms; this value in every public PaiNN
    shared_filters: bool = False  #: one filter for all blocks
    shared_blocks: bool = False  #: one message block (but for its filter) and one update block, used again and again
    first_element: int = 0  #: atomic number of the first row of the table of elements
    last_element: int = MAX_ATOMIC_NUMBER  #: of its last row
    max_neighbors: int = 0  #: OCP's limit: each atom hears its nearest neighbours only, and energies jump when those change; 0 for all
    mirrored: bool = False  #: with that limit: the graph is made undirected again, from its edges from lower to higher atoms

    @classmethod
    def ocp(cls, width: int = 512, layers: int = 6, radial: int = 128, cutoff: float = 12.0) -> PaiNNOptions:
        """PaiNN of the Open Catalyst Project, with a direct force head; see `fastkd.models.presets` for its published sizes."""
        return cls(
            width=width,
            layers=layers,
            radial=radial,
            cutoff=cutoff,
            forces="direct",
            smooth_bias=False,
            activation="scaled_silu",
            layer_norm=True,
            residual_scaling=True,
        )


class PaiNNMessage(nn.Module):
    """Eq. 7 and 8: what neighbours send, filtered by distance; the three parts are ordered scalar, direction, vector."""

    def __init__(self, options: PaiNNOptions) -> None:
        super().__init__()
        width = options.width
        self.norm = nn.LayerNorm(width) if options.layer_norm else nn.Identity()
        self.context = nn.Sequential(dense(width, width), activation(options.activation), dense(width, 3 * width))
        self.filter = dense(options.radial, 3 * width)
        self.smooth_bias = options.smooth_bias
        self.parts = (1.0, 1 / math.sqrt(width), 1 / math.sqrt(3 * width)) if options.residual_scaling else None

    def weight(self, length: Tensor, rows: Tensor, *, carried: bool) -> Tensor:
        """The filter [n_edges, 3F] from `rows_of`, with its derivative attached to ``length`` if that was ``carried``."""
        product = nn.functional.linear(rows, with_bias(self.filter))
        return attach_derivative(length, product) if carried else product

    @property
    def network(self) -> FilterLinear:
        """The filter as the kernels take it."""
        return FilterLinear(self.filter.weight, self.filter.bias, self.smooth_bias)

    def phi(self, scalar: Tensor) -> Tensor:
        """[n_atoms, F] → [n_atoms, 3F]."""
        phi = self.context(self.norm(scalar))
        if self.parts is None:
            return phi
        return torch.cat([part * factor for part, factor in zip(phi.chunk(3, -1), self.parts, strict=True)], -1)


class PaiNNUpdate(nn.Module):
    """Eq. 9 and 10: scalars and vectors of one atom act on each other."""

    def __init__(self, options: PaiNNOptions) -> None:
        super().__init__()
        width = options.width
        self.vector_mix = dense(width, 2 * width, bias=False)
        self.context = nn.Sequential(dense(2 * width, width), activation(options.activation), dense(width, 3 * width))
        self.norm_epsilon = options.norm_epsilon
        self.dot_scale = 1 / math.sqrt(width) if options.residual_scaling else 1.0
        self.scalar_scale = 1 / math.sqrt(2.0) if options.residual_scaling else 1.0

    def forward(self, scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of the scalars [n_atoms, F] and vectors [n_atoms, 3, F]."""
        mixed = self.vector_mix(vector)
        gates = self.context(painn_context(scalar, mixed, epsilon=self.norm_epsilon))
        d_scalar, d_vector = painn_update(gates, mixed, dot_scale=self.dot_scale, scalar_scale=self.scalar_scale)
        return d_scalar, d_vector


class PaiNN(Potential):
    """PaiNN with conservative or direct forces. Features: node and vector after the last update, edge vᵢ·vⱼ per channel."""

    tables: FilterTables
    takes_any_graph = True
    scales: Tensor  #: OCP's fitted factor of each layer

    def __init__(self, options: PaiNNOptions | None = None) -> None:
        options = options or PaiNNOptions()
        super().__init__(options.cutoff, options.forces)
        self.options = options
        width = options.width
        self.embedding = ElementTable(options.first_element, options.last_element, width)
        self.know_elements(range(max(1, options.first_element), options.last_element + 1))
        self.basis = RadialBasis(options.basis, options.radial, options.cutoff)
        self.envelope = Envelope(options.envelope, options.cutoff, options.envelope_exponent)
        self.tables = FilterTables(
            BasisSpec(options.basis, options.radial, options.cutoff),
            EnvelopeSpec(options.envelope, options.cutoff, options.envelope_exponent),
        )
        self.messages = Blocks(PaiNNMessage(options) for _ in range(options.layers))
        self.updates = Blocks(PaiNNUpdate(options) for _ in range(options.layers))
        _share(self.messages, self.updates, options)
        half = max(1, width // 2)
        self.energy_head = nn.Sequential(dense(width, half), activation(options.activation), dense(half, 1))
        if options.forces == "direct":
            blocks = (GatedEquivariantBlock(width, half, options.activation), GatedEquivariantBlock(half, 1, options.activation))
            self.force_head = Blocks(blocks)
        if options.fitted_scales:
            self.register_buffer("scales", torch.ones(options.layers))

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        width = self.options.width
        return {"node": width, "edge": width, "vector": width, "atom_energy": 1}

    @property
    def layer_widths(self) -> dict[str, dict[FeatureKind, int]]:
        widths = super().layer_widths
        for number in range(1, self.num_blocks + 1):
            widths[f"regular_{number}"]["edge"] = self.options.width
        return widths

    @property
    def num_blocks(self) -> int:
        return self.options.layers

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        graph, carried = batch.graph(self.cutoff), edge_vector.is_leaf and edge_vector.requires_grad
        heard, kept = limited_graph(graph, edge_vector, self.options.max_neighbors, symmetric=self.options.mirrored)
        messages = self._messages(edge_vector if kept is None else edge_vector[kept], heard, carried=carried)

        scalar: Tensor = self.embedding(batch.atomic_numbers)
        vector: Tensor | None = None
        layers, vector_layers = [scalar], [scalar.new_zeros(()).expand(scalar.shape[0], 3, scalar.shape[1])]
        mix = 1 / math.sqrt(2.0) if self.options.residual_scaling else 1.0
        for number, (block, message, update) in enumerate(zip(self.messages, messages, self.updates, strict=True)):
            d_scalar, d_vector = message(block.phi(scalar), vector)
            scalar = (scalar + d_scalar) * mix
            vector = d_vector if vector is None else vector + d_vector
            d_scalar, d_vector = update(scalar, vector)
            scalar, vector = scalar + d_scalar, vector + d_vector
            if self.options.fitted_scales:
                scalar = scalar * self.scales[number]
            layers.append(scalar)
            vector_layers.append(vector)

        # messages of zero layers leave no vectors: nothing to take products of before the first block
        edges = (None, *(partial(_edge_dot, layer, graph.csr) for layer in vector_layers[1:]))
        features = Features(
            scalar,
            lambda: _edge_dot(vector_layers[-1], graph.csr),
            vector,
            layers=tuple(layers),
            vector_layers=tuple(vector_layers),
            edge_layers=edges,
            mixing=block_mixing(layers),
        )
        return Readout(self.energy_head(scalar).squeeze(-1), self._direct_forces(scalar, vector), features)

    def _messages(self, edge_vector: Tensor, graph: NeighborGraph, *, carried: bool) -> list[Message]:
        """One per block."""
        pairs, csr = graph.pairs, graph.csr
        # both edges of a pair share the place in the table; the first one's direction serves both
        unit_vector = edge_vector if pairs is None else edge_vector[pairs.pair_edges[:, 0]]
        length = safe_length(unit_vector)
        found = self.tables([block.network for block in self.messages], length)
        if found is not None:
            grid, tables = found
            index, direction = RadialIndex.from_lengths(length, grid, csr, pairs), unit_vector / length.unsqueeze(-1)
            message = partial(painn_radial, edge_length=length, direction=direction, index=index, places_once=carried)
            return [partial(message, table=table) for table in tables]
        length = length if pairs is None else safe_length(edge_vector)
        direction = edge_vector / length.unsqueeze(-1)
        source = length.detach() if carried else length
        rows = rows_of(source, self.basis, self.envelope, smooth_bias=self.options.smooth_bias, slope=carried)
        weights = (block.weight(length, rows, carried=carried) for block in self.messages)
        return [partial(painn_message, weight=weight, direction=direction, graph=csr) for weight in weights]

    def _direct_forces(self, scalar: Tensor, vector: Tensor | None) -> Tensor | None:
        if self.force_mode != "direct":
            return None
        for block in self.force_head:
            scalar, vector = block(scalar, vector)
        assert vector is not None
        return vector.squeeze(-1)


def _share(messages: Blocks[PaiNNMessage], updates: Blocks[PaiNNUpdate], options: PaiNNOptions) -> None:
    """Let blocks hold the same parameters; the state dict keeps a name for each block, so that sharing changes no name."""
    first, update = messages[0], updates[0]
    for number in range(1, options.layers):
        message = messages[number]
        if options.shared_blocks:
            message.norm, message.context = first.norm, first.context
            updates[number] = update
        if options.shared_filters:
            message.filter = first.filter


def _edge_dot(vector: Tensor, graph: CSRGraph) -> Tensor:
    """Σ over x, y, z of v_dst ∘ v_src: [n_atoms, 3, c] → [n_edges, c]."""
    x, y, z = (component.contiguous() for component in vector.unbind(1))
    return edge_product(x, x, graph) + edge_product(y, y, graph) + edge_product(z, z, graph)
