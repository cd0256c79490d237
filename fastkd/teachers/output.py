"""What a teacher says about a batch, and what a model has on offer for distillation.

Shapes and units follow the table of canonical names in docs/architecture.md: eV and Å everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.models.base import Potential

#: What a term may ask of a teacher. ``edge_sum`` and ``edge_vector_sum`` are edge features already summed into their target atoms:
#: no student takes part in that sum, so it is done once, and a cache keeps [n_atoms, …] instead of [n_edges, …].
#: ``degree`` turns those sums into means.
#: ``graph_feature`` is one vector of numbers per structure; ``stress`` is what only some teachers have, and no term asks for it.
Need = Literal["energy", "forces", "stress", "atom_energy", "node", "vector", "edge_sum", "edge_vector_sum", "degree", "graph_feature"]

#: Kinds of features that can be captured in a foreign module.
CaptureKind = Literal["node", "edge", "vector", "graph", "atom_energy"]

#: What a model of ours always predicts.
OUTPUTS: frozenset[Need] = frozenset({"energy", "forces", "atom_energy"})


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """Output of a teacher for a batch, without gradients; only what was asked for is there.

    ``edge`` and ``edge_direction`` are in the order of the edges of ``graph``, the neighbour graph of the *teacher's* cutoff or the one
    that it cut out of it, which need not be the student's.
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
    graph_feature: Tensor | None = None  #: [n_graphs, d]
    stress: Tensor | None = None  #: [n_graphs, 3, 3] eV/Å³
    graph: CSRGraph | None = None  #: None if the teacher makes its own, or if there are only labels
    cutoff: float | None = None  #: Å, of graph

    def to(self, device: torch.device | str) -> TeacherOutput:
        """The same output on another device."""
        moved: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor | CSRGraph):
                moved[name] = value.to(device)
        return TeacherOutput(**moved)


@dataclass(frozen=True, eq=False)
class Offer:
    """What a model has for distillation: the widths of its features, the number of its blocks, its reference energies."""

    name: str  #: how messages call it, e.g. "teacher (PaiNN)"
    widths: Mapping[str, int] = field(default_factory=dict)  #: channels by kind of feature
    blocks: int = 0  #: blocks whose features can be taken one by one; 0 if it does not say
    reference_energy: Tensor | None = None  #: [119] float64, eV by atomic number
    outputs: frozenset[Need] = OUTPUTS  #: predictions it can be asked for

    @classmethod
    def of(cls, model: Potential, role: str) -> Offer:
        """The offer of a model; ``role`` (student, teacher) goes into messages."""
        blocks = getattr(getattr(model, "options", None), "layers", 0)
        reference = model.reference_energy.detach().to("cpu", torch.float64, copy=True)
        return cls(
            f"{role} ({type(model).__name__})", {str(kind): width for kind, width in model.feature_widths.items()}, int(blocks), reference
        )

    def __str__(self) -> str:
        features = ", ".join(f"{kind} [{width}]" for kind, width in sorted(self.widths.items()))
        return features or "no features"
