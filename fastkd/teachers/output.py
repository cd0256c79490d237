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

from fastkd.models.base import FINAL, Potential

#: What can be asked of a teacher. ``edge_sum`` and ``edge_vector_sum`` are edge features already summed into their target atoms:
#: no student takes part in that sum, so it is done once, and a cache keeps [n_atoms, …] instead of [n_edges, …]. ``edge`` is for terms
#: that compare edges with edges. ``degree`` turns the sums into means.
#: ``graph_feature`` is one vector of numbers per structure; ``stress`` is what only some teachers have, and no term asks for it.
NeedName = Literal[
    "energy", "forces", "stress", "atom_energy", "node", "vector", "edge", "edge_sum", "edge_vector_sum", "degree", "graph_feature"
]
#: Beside these there are ``hessian_rows@exact`` and ``hessian_rows@STEP``: rows of the Hessian that `Batch.hessian_rows` names, [s, n_atoms, 3].

#: A name, or for features of another layer than the last ``name@layer``, such as ``node@regular_2`` (see `at_layer`).
Need = str

#: Kinds of features that can be captured in a foreign module.
CaptureKind = Literal["node", "edge", "vector", "graph", "atom_energy"]

#: What a model of ours always predicts.
OUTPUTS: frozenset[Need] = frozenset({"energy", "forces", "atom_energy"})


def at_layer(name: NeedName, layer: str = FINAL) -> Need:
    """The need of a feature at a layer (``final``, ``regular_k``, ``x_k``): ``node``, ``node@regular_2``."""
    return name if layer == FINAL else f"{name}@{layer}"


def split_need(need: Need) -> tuple[str, str]:
    """Name and layer of a need, the inverse of `at_layer`."""
    name, _, layer = need.partition("@")
    return name, layer or FINAL


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """Output of a teacher for a batch, without gradients; only what was asked for is there.

    ``edge``, ``edge_direction`` and ``edge_shift`` are in the order of the edges of ``graph``, the neighbour graph of the *teacher's*
    cutoff or the one that it cut out of it, which need not be the student's. Read needs with `get`, which knows about layers.
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
    edge_shift: Tensor | None = None  #: [n_edges, 3] int64, periodic image of each edge's source; where ``edge`` was asked for
    #: where several teachers agree, for a term that asks for it: [n_graphs], [n_atoms] or [s, n_atoms] bool
    agreed: Tensor | None = None
    layers: Mapping[Need, Tensor] = field(default_factory=dict)  #: features of other layers than the last, and Hessian rows, by need

    def get(self, need: Need) -> Tensor | None:
        """What was asked for by a need, or None."""
        value: Tensor | None = self.layers.get(need) if "@" in need else getattr(self, need)
        return value

    def to(self, device: torch.device | str) -> TeacherOutput:
        """The same output on another device."""
        moved: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor | CSRGraph):
                moved[name] = value.to(device)
        moved["layers"] = {need: value.to(device) for need, value in self.layers.items()}
        return TeacherOutput(**moved)


@dataclass(frozen=True, eq=False)
class Offer:
    """What a model has for distillation: the widths of its features, the number of its blocks, its reference energies."""

    name: str  #: how messages call it, e.g. "teacher (PaiNN)"
    widths: Mapping[str, int] = field(default_factory=dict)  #: channels by kind of feature, of the last layer
    blocks: int = 0  #: blocks whose features can be taken one by one; 0 if it does not say
    reference_energy: Tensor | None = None  #: [119] float64, eV by atomic number
    outputs: frozenset[Need] = OUTPUTS  #: predictions it can be asked for
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  #: the same as ``widths`` by layer, see `Features.at`
    mixing: Mapping[str, tuple[int, int]] = field(default_factory=dict)  #: see `Potential.mixing`; empty if it does not say
    cutoff: float | None = None  #: Å, of its neighbour graph
    edge_rule: str = ""  #: which edges it has features of, see `Potential.edge_rule`; empty if it does not say
    takes_any_graph: bool = False  #: whether it can compute on another model's edges
    hessian: tuple[str, ...] = ("difference",)  #: how rows of its Hessian can be had: ``exact``, ``difference``; the first is the default

    @classmethod
    def of(cls, model: Potential, role: str) -> Offer:
        """The offer of a model; ``role`` (student, teacher) goes into messages."""
        blocks = getattr(getattr(model, "options", None), "layers", 0)
        return cls(
            f"{role} ({type(model).__name__})",
            {str(kind): width for kind, width in model.feature_widths.items()},
            int(blocks),
            model.reference_energy.detach().to("cpu", torch.float64, copy=True),
            layers={layer: {str(kind): width for kind, width in widths.items()} for layer, widths in model.layer_widths.items()},
            mixing=model.mixing,
            cutoff=model.cutoff,
            edge_rule=model.edge_rule if "edge" in model.feature_widths else "",
            takes_any_graph=model.takes_any_graph,
            hessian=("exact", "difference"),
        )

    def at(self, layer: str = FINAL) -> Mapping[str, int]:
        """Channels by kind of feature at a layer; nothing if there is no such layer."""
        return self.widths if layer == FINAL else self.layers.get(layer, {})

    def __str__(self) -> str:
        return feature_list(self.widths)


def feature_list(widths: Mapping[str, int]) -> str:
    """Features and their channels in words."""
    return ", ".join(f"{kind} [{width}]" for kind, width in sorted(widths.items())) or "no features"
