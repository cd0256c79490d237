"""Distillation terms: strategy, weight, loss and projection put together from a config.

Example:
    >>> terms = build_terms(config.distill, Offer.of(student, "student"), teacher.offer, seed=0)
    >>> values = terms(student(batch), source(batch), batch)
    >>> loss = label_loss + sum(value.weighted for value in values.values())

The source must supply ``terms.needs``. λ is constant. Terms run in float32 (float64 for float64 parameters) even under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from fastkd_kernels import edge_to_node, edge_to_node_vector
from torch import Tensor, nn

from fastkd.config import DistillConfig, TermConfig
from fastkd.data.batch import Batch
from fastkd.distill import strategies
from fastkd.distill.projections import FeatureLoss, IdentityProjection, LinearProjection, MLPProjection, Projection
from fastkd.distill.strategies import ForcesLoss
from fastkd.errors import ConfigError
from fastkd.models.base import FeatureKind, Prediction
from fastkd.teachers.output import Need, Offer, TeacherOutput

AUTO_LOSS: dict[str, ForcesLoss] = {"energy": "mae", "forces": "l2", "atom_energy": "mae", "n2n": "mse", "e2n": "mse", "v2v": "mse"}
UNIT = {"energy": "eV", "forces": "eV/Å", "atom_energy": "eV", "n2n": "1", "e2n": "1", "v2v": "1"}
OUTPUT_KINDS: tuple[Need, ...] = ("energy", "forces", "atom_energy")

#: Sets the projections' random numbers apart from those of a student with the same seed.
SEED_STREAM = 0x6B64_7072_6F6A

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TermValue:
    """One term on one batch; both numbers are scalars that can be differentiated."""

    raw: Tensor  #: L_KD, before λ
    weighted: Tensor  #: λ · L_KD
    weight: float  #: λ
    unit: str  #: of the raw loss where it is mae or l2


class Term(nn.Module):
    """One term. Subclasses say what they need of the teacher and how they compare."""

    def __init__(self, name: str, config: TermConfig, needs: frozenset[Need]) -> None:
        super().__init__()
        self.name = name
        self.kind = config.kind
        self.weight = float(config.weight)
        self.loss: ForcesLoss = AUTO_LOSS[config.kind] if config.loss == "auto" else config.loss
        self.needs = needs

    @property
    def feature_loss(self) -> FeatureLoss:
        """The loss of everything but forces."""
        assert self.loss != "l2", "the config was not checked"
        return self.loss

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        """L_KD, a scalar."""
        raise NotImplementedError


class OutputTerm(Term):
    """energy, forces or atom_energy: outputs against outputs, no projection."""

    reference_shift: Tensor | None

    def __init__(self, name: str, config: TermConfig, student: Offer, teacher: Offer, *, free_atoms: bool = True) -> None:
        super().__init__(name, config, frozenset(need for need in OUTPUT_KINDS if need == config.kind))
        self.free_atoms = free_atoms
        shift = None
        if config.kind == "atom_energy" and student.reference_energy is not None and teacher.reference_energy is not None:
            # atoms are compared as parts of the totals, so that different reference energies do not count as an error
            shift = teacher.reference_energy - student.reference_energy
        self.register_buffer("reference_shift", shift)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # reference energies stay in float64 whatever the module is cast to
        shift = self.reference_shift
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if shift is not None and self.reference_shift is not None:
            self.reference_shift = shift.to(self.reference_shift.device)
        return self

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        if self.kind == "energy":
            return strategies.energy_loss(student.energy, _have(teacher.energy, self, "energy"), self.feature_loss)
        if self.kind == "forces":
            predicted = _have(student.forces, self, "forces of the student")
            free = batch.free if self.free_atoms else None
            return strategies.forces_loss(predicted, _have(teacher.forces, self, "forces"), self.loss, free)
        shift = None if self.reference_shift is None else self.reference_shift[batch.atomic_numbers]
        target = _have(teacher.atom_energy, self, "atom_energy")
        return strategies.atom_energy_loss(student.atom_energy, target, shift, self.feature_loss)


class FeatureTerm(Term):
    """n2n, e2n or v2v: a projected student feature against a teacher's."""

    def __init__(self, name: str, config: TermConfig, need: Need, projection: Projection, blocks: int) -> None:
        mean = config.reduce == "mean" and need in ("edge_sum", "edge_vector_sum")
        super().__init__(name, config, frozenset({need, "degree"} if mean else {need}))
        self.target: Need = need
        self.mean = mean
        # counted from the end: scalars have an entry for the embedding before the first block, vectors have none
        self.layers = tuple(layer - blocks - 1 for layer in config.student_layers)
        self.projection = projection

    def student_feature(self, student: Prediction) -> Tensor:
        """The student's feature, layers concatenated along channels, [n_atoms, k·c] or [n_atoms, 3, k·c]."""
        features = student.features
        vector = self.kind == "v2v"
        if not self.layers:
            return _have(features.vector if vector else features.node, self, f"{'vector' if vector else 'node'} of the student")
        stack = features.vector_layers if vector else features.layers
        return torch.cat([stack[layer] for layer in self.layers], dim=-1)

    def teacher_feature(self, teacher: TeacherOutput) -> Tensor:
        """The teacher's feature, edges reduced into atoms, [n_atoms, d] or [n_atoms, 3, d]."""
        value: Tensor | None = getattr(teacher, self.target)
        if value is None and self.target == "edge_sum" and teacher.edge is not None:
            value = edge_to_node(teacher.edge, _have(teacher.graph, self, "graph"))
        if value is None and self.target == "edge_vector_sum" and teacher.edge is not None:
            direction = _have(teacher.edge_direction, self, "edge_direction")
            value = edge_to_node_vector(teacher.edge, direction, _have(teacher.graph, self, "graph"))
        value = _have(value, self, self.target)
        if not self.mean:
            return value
        degree = teacher.graph.edge_ptr.diff() if teacher.degree is None and teacher.graph is not None else teacher.degree
        return strategies.mean_of_sum(value, _have(degree, self, "degree"))

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        compare = {"n2n": strategies.node_to_node, "e2n": strategies.edge_to_node, "v2v": strategies.vector_to_vector}[self.kind]
        return compare(self.student_feature(student), self.teacher_feature(teacher).detach(), self.projection, self.feature_loss)


class Terms(nn.Module):
    """All terms of a run. Its parameters are the projections; they are optimised with the student and dropped after training."""

    def __init__(self, terms: list[Term]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({term.name: term for term in terms})
        #: what the teacher has to supply
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in terms))
        #: name → unit of the raw loss, for logs
        self.units = {term.name: UNIT[term.kind] if term.loss in ("mae", "l2") else "1" for term in terms}

    def __len__(self) -> int:
        return len(self.terms)

    def forward(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> dict[str, TermValue]:
        """Every term on one batch, by name (the strategy, numbered from the second of a kind on).

        Args:
            student: prediction and features, with gradients.
            teacher: output of the frozen teacher for the same batch, holding `needs`.
            batch: the structures.

        Raises:
            ValueError: if the teacher output or the student's prediction lacks what a term needs.
        """
        values = {}
        with torch.autocast(batch.positions.device.type, enabled=False):
            for name, term in self.terms.items():
                assert isinstance(term, Term)
                raw = term.raw(student, teacher, batch)
                values[name] = TermValue(raw, term.weight * raw, term.weight, self.units[name])
        return values


def build_terms(config: DistillConfig, student: Offer, teacher: Offer, *, seed: int = 0, free_atoms: bool = True) -> Terms:
    """Terms of a config, with projections of the right widths.

    Args:
        config: list of terms.
        student: what the student offers.
        teacher: what the teacher offers.
        seed: of the projections' initial weights, which no other random number generator influences.
        free_atoms: leave atoms that the data holds fixed out of force terms (features are compared on all atoms, as in the papers).

    Raises:
        ConfigError: if the student or the teacher does not offer what a term needs, or the options of a term exclude each other.
    """
    generator = torch.Generator().manual_seed(seed ^ SEED_STREAM)
    terms: list[Term] = []
    counts: dict[str, int] = {}
    for i, item in enumerate(config.terms):
        counts[item.kind] = counts.get(item.kind, 0) + 1
        name = item.kind if counts[item.kind] == 1 else f"{item.kind}_{counts[item.kind]}"
        where = f"distill.terms[{i}] ({item.kind})"
        _check_options(item, where)
        if item.kind in OUTPUT_KINDS:
            if item.kind not in teacher.outputs:
                have = ", ".join(sorted(teacher.outputs)) or "features only"
                raise ConfigError(f"{where} needs {item.kind} of the teacher, but {teacher.name} predicts {have}; drop the term")
            terms.append(OutputTerm(name, item, student, teacher, free_atoms=free_atoms))
        else:
            terms.append(_feature_term(name, item, where, student, teacher, generator))
    return Terms(terms)


def _check_options(item: TermConfig, where: str) -> None:
    if item.loss == "l2" and item.kind != "forces":
        raise ConfigError(f"{where}: loss l2 is the mean norm of force errors and belongs to kind forces; choose mse, mae or huber")
    if item.kind in OUTPUT_KINDS and (item.projection != "linear" or item.student_layers):
        raise ConfigError(f"{where}: outputs are compared as they are; leave projection and student_layers away")
    if item.kind == "v2v" and item.projection == "mlp":
        raise ConfigError(f"{where}: an MLP acts on components and breaks rotational symmetry; choose projection linear or identity")


def _feature_term(name: str, item: TermConfig, where: str, student: Offer, teacher: Offer, generator: torch.Generator) -> FeatureTerm:
    kind: FeatureKind = "vector" if item.kind == "v2v" else "node"
    if kind not in student.widths:
        mend = "use a student with vector features (painn), or drop the term" if kind == "vector" else "drop the term"
        raise ConfigError(f"{where} needs {kind} features of the student, but {student.name} offers {student}; {mend}")
    for layer in item.student_layers:
        if not 1 <= layer <= student.blocks:
            raise ConfigError(
                f"{where}: student_layers has {layer}, but the blocks of {student.name} are numbered from 1 to {student.blocks}"
            )
    need, outputs = _teacher_feature(item, where, teacher)
    width = student.widths[kind]
    inputs = width * max(len(item.student_layers), 1)
    if item.projection == "identity":
        if inputs != outputs:
            raise ConfigError(
                f"{where}: projection identity needs equal widths, but the student's {kind} feature has {inputs} channels and the "
                f"teacher's has {outputs}; choose projection linear, or model.width = {outputs}"
            )
        return FeatureTerm(name, item, need, IdentityProjection(), student.blocks)
    if item.projection == "mlp":
        return FeatureTerm(name, item, need, MLPProjection(inputs, width, outputs, generator=generator), student.blocks)
    return FeatureTerm(name, item, need, LinearProjection(inputs, outputs, bias=kind == "node", generator=generator), student.blocks)


def _teacher_feature(item: TermConfig, where: str, teacher: Offer) -> tuple[Need, int]:
    """What to ask of the teacher, and its channels."""
    wanted: dict[str, tuple[tuple[FeatureKind, Need], ...]] = {
        "n2n": (("node", "node"),),
        "e2n": (("edge", "edge_sum"),),
        "v2v": (("vector", "vector"), ("edge", "edge_vector_sum")),
    }
    mends = {
        "n2n": "use a term on outputs (energy, forces, atom_energy)",
        "e2n": "use n2n, or a teacher with edge features",
        "v2v": "use n2n, or a teacher with vector or edge features",
    }
    for kind, need in wanted[item.kind]:
        if kind in teacher.widths:
            return need, teacher.widths[kind]
    kinds = " or ".join(kind for kind, _ in wanted[item.kind])
    raise ConfigError(f"{where} needs {kinds} features of the teacher, but {teacher.name} offers {teacher}; {mends[item.kind]}")


def _have(value: T | None, term: Term, what: str) -> T:
    if value is None:
        raise ValueError(
            f"term {term.name} needs {what}, which is missing from what it was given; the teacher must supply {sorted(term.needs)}"
        )
    return value
