"""What a teacher says about a batch, and what a model has on offer for distillation.

Shapes and units follow the table of canonical names in docs/architecture.md: eV and Å everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.models.base import FeatureKind, Potential

#: What a term may ask of a teacher. ``edge_sum`` and ``edge_vector_sum`` are edge features already summed into their target atoms:
#: no student takes part in that sum, so it is done once, and a cache keeps [n_atoms, …] instead of [n_edges, …].
#: ``degree`` turns those sums into means.
Need = Literal["energy", "forces", "atom_energy", "node", "vector", "edge_sum", "edge_vector_sum", "degree"]


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """Output of a teacher for a batch, without gradients; only what was asked for is there.

    ``edge`` and ``edge_direction`` are in the order of the edges of ``graph``, the neighbour graph of the *teacher's* cutoff, which need
    not be the student's.
    """

    energy: Tensor | None = None  #: [n_graphs] float64, eV, the teacher's reference energies included
    forces: Tensor | None = None  #: [n_atoms, 3] eV/Å
    atom_energy: Tensor | None = None  #: [n_atoms] eV, reference energies *not* included
    node: Tensor | None = None  #: [n_atoms, d]
    vector: Tensor | None = None  #: [n_atoms, 3, d]
    edge: Tensor | None = None  #: [n_edges, d_edge]
    edge_direction: Tensor | None = None  #: [n_edges, 3] unit vectors from source to target
    edge_sum: Tensor | None = None  #: [n_atoms, d_edge] Σ over incoming edges of edge
    edge_vector_sum: Tensor | None = None  #: [n_atoms, 3, d_edge] Σ over incoming edges of edge_direction ⊗ edge
    degree: Tensor | None = None  #: [n_atoms] int64, incoming edges of each atom
    graph: CSRGraph | None = None
    cutoff: float | None = None  #: Å, of graph


@dataclass(frozen=True, eq=False)
class Offer:
    """What a model has for distillation: the widths of its features, the number of its blocks, its reference energies."""

    name: str  #: how messages call it, e.g. "teacher (PaiNN)"
    widths: dict[FeatureKind, int] = field(default_factory=dict)  #: channels by kind of feature
    blocks: int = 0  #: blocks whose features can be taken one by one; 0 if it does not say
    reference_energy: Tensor | None = None  #: [119] float64, eV by atomic number

    @classmethod
    def of(cls, model: Potential, role: str) -> Offer:
        """The offer of a model; ``role`` (student, teacher) goes into messages."""
        blocks = getattr(getattr(model, "options", None), "layers", 0)
        reference = model.reference_energy.detach().to("cpu", torch.float64, copy=True)
        return cls(f"{role} ({type(model).__name__})", dict(model.feature_widths), int(blocks), reference)

    def __str__(self) -> str:
        features = ", ".join(f"{kind} [{width}]" for kind, width in sorted(self.widths.items()))
        return features or "no features"
