"""What every model is: a module from a batch to energies, forces and named features.

A model predicts an energy per atom; the sum over a graph plus fixed per-element reference energies is the total energy. Forces are
−dE/dx, or a direct head where the model has one. Features are what distillation compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from fastkd_kernels import segment_reduce
from torch import Tensor, nn

from fastkd.data.batch import Batch

MAX_ATOMIC_NUMBER = 118
ForceMode = Literal["conservative", "direct"]
FeatureKind = Literal["node", "edge", "vector", "atom_energy"]


@dataclass(frozen=True, eq=False)
class Features:
    """What a model offers to distillation, each optional.

    ``edge`` belongs to the edges of the graph with the model's own cutoff, in that graph's order; ``layers`` are the scalar node
    embeddings after each block, from the embedding (first) to the last.
    """

    node: Tensor | None = None  #: [n_atoms, c]
    edge: Tensor | None = None  #: [n_edges, c]
    vector: Tensor | None = None  #: [n_atoms, 3, c]
    layers: tuple[Tensor, ...] = ()  #: each [n_atoms, c]
    vector_layers: tuple[Tensor, ...] = ()  #: each [n_atoms, 3, c]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Output of a model for a batch."""

    energy: Tensor  #: [n_graphs] float64, eV, reference energies included
    forces: Tensor | None  #: [n_atoms, 3] eV/Å
    atom_energy: Tensor  #: [n_atoms] eV, reference energies *not* included
    features: Features


@dataclass(frozen=True, eq=False)
class Readout:
    """What a model's `represent` returns: energies before scaling, direct forces if it has a head for them, features."""

    atom_energy: Tensor  #: [n_atoms], in units of the model's energy_scale
    forces: Tensor | None
    features: Features


class Potential(nn.Module):
    """Base of all models. Subclasses write `represent`; energies, references, scaling and forces are done here.

    Buffers ``reference_energy`` [119] (eV by atomic number, 0 for elements never seen), ``known_element`` [119] (bool) and
    ``energy_scale`` [] (eV, multiplies predictions so that the network works with numbers near one) are part of the state dict.
    """

    reference_energy: Tensor
    known_element: Tensor
    energy_scale: Tensor

    def __init__(self, cutoff: float, force_mode: ForceMode = "conservative") -> None:
        super().__init__()
        self.cutoff = float(cutoff)  #: Å
        self.force_mode: ForceMode = force_mode
        self.register_buffer("reference_energy", torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64))
        self.register_buffer("known_element", torch.ones(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool))
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))

    def represent(self, batch: Batch, edge_vector: Tensor) -> Readout:
        """Network proper: ``edge_vector`` [n_edges, 3] Å in the order of ``batch.graph(self.cutoff)``."""
        raise NotImplementedError

    @property
    def feature_widths(self) -> dict[FeatureKind, int]:
        """Channels of each feature the model offers."""
        raise NotImplementedError

    def forward(self, batch: Batch, *, forces: bool = True, create_graph: bool | None = None) -> Prediction:
        """Energies, forces and features of a batch.

        Args:
            batch: must hold the neighbour graph of ``self.cutoff``.
            forces: whether to compute forces.
            create_graph: whether conservative forces can be differentiated again; default: while training with grad enabled.
        """
        differentiate = forces and self.force_mode == "conservative"
        if create_graph is None:
            create_graph = self.training and torch.is_grad_enabled()
        with torch.set_grad_enabled(torch.is_grad_enabled() or differentiate):
            positions = batch.positions.detach().requires_grad_(True) if differentiate else batch.positions
            graph = batch.graph(self.cutoff)
            readout = self.represent(batch, batch.edge_vectors(graph, positions))
            atom_energy = readout.atom_energy * self.energy_scale.to(readout.atom_energy.dtype)
            interaction = segment_reduce(atom_energy, batch.atom_ptr, "sum")
            predicted_forces = readout.forces
            if differentiate:
                (gradient,) = torch.autograd.grad(interaction.sum(), positions, create_graph=create_graph, allow_unused=True)
                predicted_forces = torch.zeros_like(positions) if gradient is None else -gradient
            elif readout.forces is not None:
                predicted_forces = readout.forces * self.energy_scale.to(readout.forces.dtype)
        reference = self.reference_energy[batch.atomic_numbers]
        # totals are large and differences small: references are added in float64
        energy = interaction.double() + segment_reduce(reference, batch.atom_ptr, "sum")
        return Prediction(energy, predicted_forces if forces else None, atom_energy, readout.features)
