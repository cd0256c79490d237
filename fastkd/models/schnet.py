"""SchNet: continuous-filter convolutions (Schütt et al. 2017, arXiv:1706.08566), as in PyTorch Geometric and OCP.

A filter depends on a distance alone, so an undirected pair of atoms shares one: filters are made once per pair, not per edge, with
their radial slope carried along (see `fastkd.models.layers.filters`).

Example:
    >>> model = SchNet(SchNetOptions(width=64, layers=3))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from fastkd_kernels import cfconv, paired_cfconv
from fastkd_kernels.radial_conv.op import radial_conv
from fastkd_kernels.radial_conv.places import RadialIndex
from fastkd_kernels.radial_specs import BasisSpec, EnvelopeSpec, FilterMLP
from torch import Tensor, nn
from torch.nn import functional

from fastkd.data.batch import Batch, NeighborGraph

from .base import MAX_ATOMIC_NUMBER, FeatureKind, Features, Potential, Readout, block_mixing
from .layers import (
    BasisKind,
    ElementTable,
    Envelope,
    EnvelopeKind,
    FilterTables,
    RadialBasis,
    ShiftedSoftplus,
    attach_derivative,
    dense,
    safe_length,
    with_bias,
)
from .layers.blocks import Blocks
from .ocp_graph import limited_graph

LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class SchNetOptions:
    """Everything that determines a SchNet but its weights."""

    width: int = 128  #: F, features per atom
    filters: int = 128  #: channels of the convolution
    layers: int = 6  #: interaction blocks
    radial: int = 50  #: radial basis functions
    cutoff: float = 5.0  #: Å
    basis: BasisKind = "gaussian"
    envelope: EnvelopeKind = "cosine"  #: `polynomial` makes the gradient of forces continuous at the cutoff as well
    envelope_exponent: int = 6
    readout: Literal["sum", "mean"] = "sum"  #: over the atoms of a graph
    first_element: int = 0  #: atomic number of the first row of the table of elements
    last_element: int = MAX_ATOMIC_NUMBER  #: of its last row
    max_neighbors: int = 0  #: OCP's limit: each atom hears its nearest neighbours only, and energies jump when those change; 0 for all


class _CutSoftplus(torch.autograd.Function):
    """Shifted softplus times cutoff, on rows of values and, below them, rows of radial slopes (product and chain rule).

    z, z′ [2n, F] and c, c′ [n, 1] → ssp(z) c and σ(z) z′ c + ssp(z) c′, [2n, F]. Differentiable once: the slopes are the first
    derivative already, and weights need one more.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cut: Tensor, slope: Tensor) -> Tensor:
        z, dz = rows.tensor_split(2)
        gate, act = torch.sigmoid(z), functional.softplus(z).sub_(LOG_2)
        out = torch.empty_like(rows)
        top, bottom = out.tensor_split(2)
        torch.mul(act, cut, out=top)
        torch.mul(gate, dz, out=bottom).mul_(cut).addcmul_(act, slope)
        ctx.save_for_backward(gate, dz, cut, slope)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        gate, dz, cut, slope = ctx.saved_tensors
        g_value, g_slope = g.tensor_split(2)
        g_rows = torch.empty_like(g, memory_format=torch.contiguous_format)
        g_z, g_dz = g_rows.tensor_split(2)
        torch.mul(g_slope, cut, out=g_dz).mul_(gate)
        torch.mul(g_value, cut, out=g_z).addcmul_(g_slope, slope).mul_(gate)
        curved = g_dz * dz
        g_z.add_(curved).addcmul_(curved, gate, value=-1)
        return g_rows, None, None


class _CutLinear(torch.autograd.Function):
    """rows · weightᵀ + factor ⊗ bias: a linear layer of rows that carry a factor (the cutoff, or its slope) already.

    A column of factors beside the rows would do the same, but products of odd widths run a third slower.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, factor: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, factor, weight)
        return torch.mm(rows, weight.t()).addcmul_(factor, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
        rows, factor, weight = ctx.saved_tensors
        g_rows = torch.mm(g, weight) if ctx.needs_input_grad[0] else None
        return g_rows, None, torch.mm(g.t(), rows), torch.mv(g.t(), factor.squeeze(-1))


class FilterNetwork(nn.Module):
    """Distance → filter: basis, dense, shifted softplus, dense, times the cutoff (SchNet, fig. 2 right)."""

    def __init__(self, options: SchNetOptions) -> None:
        super().__init__()
        self.first = dense(options.radial, options.filters)
        self.second = dense(options.filters, options.filters)
        self.act = ShiftedSoftplus()

    def forward(self, basis: Tensor, cut: Tensor) -> Tensor:
        """[n, radial], [n, 1] → [n, filters]."""
        return self.second(self.act(self.first(basis))) * cut

    @property
    def network(self) -> FilterMLP:
        """The two layers as the kernels take them."""
        return FilterMLP(self.first.weight, self.first.bias, self.second.weight, self.second.bias, "shifted_softplus")

    def carried(self, length: Tensor, basis: Tensor, factor: Tensor) -> Tensor:
        """The same with its derivative attached to ``length`` [n].

        Args:
            length: the variable, [n] Å.
            basis: [2n, radial + 1]: values with a column of ones, then slopes with a column of zeros.
            factor: the cutoff, and below it its slope, [2n, 1].
        """
        rows = functional.linear(basis, with_bias(self.first))
        # the cutoff enters before the last linear map, where one pass does it together with the activation
        rows = _CutSoftplus.apply(rows, *factor.tensor_split(2))
        return attach_derivative(length, _CutLinear.apply(rows, factor, self.second.weight, self.second.bias))


class Interaction(nn.Module):
    """Atom-wise dense, convolution, dense, activation, dense (SchNet, fig. 2 middle)."""

    def __init__(self, options: SchNetOptions) -> None:
        super().__init__()
        self.filter = FilterNetwork(options)
        self.before = dense(options.width, options.filters, bias=False)
        self.after = dense(options.filters, options.width)
        self.act = ShiftedSoftplus()
        self.last = dense(options.width, options.width)


class SchNet(Potential):
    """SchNet with conservative forces. Feature: node, after the last interaction and before the head."""

    tables: FilterTables

    def __init__(self, options: SchNetOptions | None = None) -> None:
        options = options or SchNetOptions()
        super().__init__(options.cutoff, "conservative")
        self.options = options
        self.embedding = ElementTable(options.first_element, options.last_element, options.width)
        self.know_elements(range(max(1, options.first_element), options.last_element + 1))
        self.basis = RadialBasis(options.basis, options.radial, options.cutoff)
        self.envelope = Envelope(options.envelope, options.cutoff, options.envelope_exponent)
        self.interactions = Blocks(Interaction(options) for _ in range(options.layers))
        self.tables = FilterTables(
            BasisSpec(options.basis, options.radial, options.cutoff),
            EnvelopeSpec(options.envelope, options.cutoff, options.envelope_exponent),
        )
        half = max(1, options.width // 2)
        self.energy_head = nn.Sequential(dense(options.width, half), ShiftedSoftplus(), dense(half, 1))

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        return {"node": self.options.width, "atom_energy": 1}

    @property
    def num_blocks(self) -> int:
        return self.options.layers

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        carried = edge_vector.is_leaf and edge_vector.requires_grad
        graph, kept = limited_graph(batch.graph(self.cutoff), edge_vector, self.options.max_neighbors, symmetric=False)
        pairs, edge_vector = graph.pairs, edge_vector if kept is None else edge_vector[kept]
        length = safe_length(edge_vector if pairs is None else edge_vector[graph.pair_edge])
        convolve = self._convolutions(length, graph, carried=carried)

        scalar: Tensor = self.embedding(batch.atomic_numbers)
        layers = [scalar]
        for block, convolution in zip(self.interactions, convolve, strict=True):
            message = convolution(block.before(scalar))
            scalar = scalar + block.last(block.act(block.after(message)))
            layers.append(scalar)

        atom_energy = self.energy_head(scalar).squeeze(-1)
        if self.options.readout == "mean":
            atoms = (batch.atom_ptr[1:] - batch.atom_ptr[:-1]).to(atom_energy.dtype)
            atom_energy = atom_energy / atoms[batch.graph_index]
        return Readout(atom_energy, None, Features(scalar, layers=tuple(layers), mixing=block_mixing(layers)))

    def _convolutions(self, length: Tensor, graph: NeighborGraph, *, carried: bool) -> list[Callable[[Tensor], Tensor]]:
        """One per block, [n_atoms, filters] → the same."""
        pairs, csr = graph.pairs, graph.csr
        found = self.tables([block.filter.network for block in self.interactions], length)
        if found is not None:
            grid, tables = found
            index = RadialIndex.from_lengths(length, grid, csr, pairs)
            return [partial(radial_conv, edge_length=length, table=table, index=index, length_once=carried) for table in tables]
        weights = self._filters(length, carried=carried)
        if pairs is None:
            return [partial(cfconv, weight=weight, graph=csr) for weight in weights]
        return [partial(paired_cfconv, pair_weight=weight, pairs=pairs, graph=csr) for weight in weights]

    def _filters(self, length: Tensor, *, carried: bool) -> list[Tensor]:
        """[n_pairs] Å → one [n_pairs, filters] per block."""
        if not carried:
            basis, cut = self.basis(length), self.envelope(length).unsqueeze(-1)
            return [block.filter(basis, cut) for block in self.interactions]
        source = length.detach()
        value, d_value = self.basis.value_and_derivative(source)
        basis = value.new_zeros(2 * source.shape[0], self.options.radial + 1)
        top, bottom = basis.tensor_split(2)
        top[:, :-1], top[:, -1], bottom[:, :-1] = value, 1, d_value
        factor = torch.cat(self.envelope.value_and_derivative(source)).unsqueeze(-1)
        return [block.filter.carried(length, basis, factor) for block in self.interactions]
