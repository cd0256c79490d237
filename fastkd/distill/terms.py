"""Distillation terms: strategy, weight, loss and projection put together from a config.

Example:
    >>> terms = build_terms(config.distill, Offer.of(student, "student"), teacher.offer, seed=0)
    >>> values = terms(student(batch), source(batch), batch, step)
    >>> loss = label_loss + sum(value.weighted for value in values.values())

The source must supply ``terms.needs``. Terms run in float32 (float64 for float64 parameters) even under autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, Self, cast

import torch
from fastkd_kernels import edge_to_node, edge_to_node_vector
from torch import Tensor, nn

from fastkd.config import DistillConfig, TermConfig
from fastkd.data.batch import Batch
from fastkd.distill import strategies
from fastkd.distill.checks import (
    OUTPUT_KINDS,
    STRUCTURE_LOSSES,
    VECTOR_KINDS,
    check_edges,
    check_options,
    student_feature,
    teacher_feature,
)
from fastkd.distill.edges import EdgeTerm, on_teachers_edges
from fastkd.distill.mixing import MixingTerm
from fastkd.distill.projections import FeatureLoss, IdentityProjection, LinearProjection, MLPProjection, Projection
from fastkd.distill.strategies import ForcesLoss
from fastkd.distill.term import Term, TermValue, have
from fastkd.errors import ConfigError
from fastkd.models.base import Prediction
from fastkd.teachers.output import Need, Offer, TeacherOutput, at_layer, split_need

__all__ = ["FeatureTerm", "OutputTerm", "Term", "TermValue", "Terms", "build_terms"]

#: Sets the projections' random numbers apart from those of a student with the same seed.
SEED_STREAM = 0x6B64_7072_6F6A
#: Which terms of a run.
Which = Literal["all", "taught", "own"]


class OutputTerm(Term):
    """energy, forces or atom_energy: outputs against outputs, no projection."""

    reference_shift: Tensor | None

    def __init__(self, name: str, config: TermConfig, where: str, student: Offer, teacher: Offer, *, free_atoms: bool = True) -> None:
        super().__init__(name, config, frozenset({config.kind}), where)
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
            target = have(teacher.energy, self, "energy")
            return strategies.energy_loss(student.energy, target, cast("FeatureLoss", self.loss), batch.weight)
        if self.kind == "forces":
            predicted = have(student.forces, self, "forces of the student")
            free = batch.free if self.free_atoms else None
            target = have(teacher.forces, self, "forces")
            return strategies.forces_loss(predicted, target, cast("ForcesLoss", self.loss), free, batch.atom_weight)
        shift = None if self.reference_shift is None else self.reference_shift[batch.atomic_numbers]
        target = have(teacher.atom_energy, self, "atom_energy")
        return strategies.atom_energy_loss(student.atom_energy, target, shift, cast("FeatureLoss", self.loss), batch.atom_weight)


class FeatureTerm(Term):
    """n2n, e2n, v2v or v2v_geometric: a projected feature of the student's atoms against a teacher's."""

    def __init__(self, name: str, config: TermConfig, where: str, need: Need, projection: Projection, student: Offer) -> None:
        self.base = split_need(need)[0]
        mean = config.reduce == "mean" and self.base in ("edge_sum", "edge_vector_sum")
        super().__init__(name, config, frozenset({need, "degree"} if mean else {need}), where)
        self.target = need
        self.mean = mean
        # counted from the end: scalars have an entry for the embedding before the first block, vectors may have none
        self.layers = tuple(layer - student.blocks - 1 for layer in config.student_layers)
        self.projection = projection
        self.mix = config.geometric_mix
        self.cutoff = student.cutoff  # Å, of the graph whose edges lsp looks along

    def student_feature(self, student: Prediction) -> Tensor:
        """The student's feature, layers concatenated along channels, [n_atoms, k·c] or [n_atoms, 3, k·c]."""
        features = student.features
        vector = self.kind in VECTOR_KINDS
        if not self.layers:
            return have(features.vector if vector else features.node, self, f"{'vector' if vector else 'node'} of the student")
        stack = features.vector_layers if vector else features.layers
        return torch.cat([stack[layer] for layer in self.layers], dim=-1)

    def teacher_feature(self, teacher: TeacherOutput) -> Tensor:
        """The teacher's feature, edges reduced into atoms, [n_atoms, d] or [n_atoms, 3, d]."""
        value = teacher.get(self.target)
        if value is None and self.target == "edge_sum" and teacher.edge is not None:
            value = edge_to_node(teacher.edge, have(teacher.graph, self, "graph"))
        if value is None and self.target == "edge_vector_sum" and teacher.edge is not None:
            direction = have(teacher.edge_direction, self, "edge_direction")
            value = edge_to_node_vector(teacher.edge, direction, have(teacher.graph, self, "graph"))
        value = have(value, self, self.target)
        if not self.mean:
            return value
        degree = teacher.graph.edge_ptr.diff() if teacher.degree is None and teacher.graph is not None else teacher.degree
        return strategies.mean_of_sum(value, have(degree, self, "degree"))

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        own, target, projection = self.student_feature(student), self.constant(self.teacher_feature(teacher)), self.projection
        match self.loss:
            case "cka":
                return strategies.alignment(own, target, projection)
            case "lsp":
                graph = batch.graph(have(self.cutoff, self, "the student's cutoff"))
                return strategies.local_structure(own, target, projection, graph.csr)
            case "gsp":
                return strategies.global_structure(own, target, projection, batch.atom_ptr)
            case "geometric":
                return strategies.vector_geometric(own, target, projection, batch.atom_ptr, self.mix)
        kind = cast("FeatureLoss", self.loss)
        compare = {"n2n": strategies.node_to_node, "e2n": strategies.edge_to_node, "v2v": strategies.vector_to_vector}[self.kind]
        return compare(own, target, projection, kind, batch.atom_weight)


class Terms(nn.Module):
    """All terms of a run. Its parameters are the projections; they are optimised with the student and dropped after training."""

    def __init__(self, terms: list[Term]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({term.name: term for term in terms})
        #: what the teacher has to supply
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in terms))
        #: layers whose edge features the student has to hold on to, see `Potential.kept_layers`
        self.student_keeps: frozenset[str] = frozenset().union(*(term.student_keeps for term in terms))
        #: name → unit of the raw loss, for logs
        self.units = {term.name: term.unit for term in terms}
        handed = [term.cutoff for term in terms if isinstance(term, EdgeTerm) and term.handed]
        self._handed_cutoff = handed[0] if handed else None

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self) -> Iterator[Term]:
        return (cast("Term", term) for term in self.terms.values())

    def student_batch(self, batch: Batch, teacher: TeacherOutput) -> Batch:
        """What the student is to be asked about: the batch, with the teacher's edges for its own where a term hands them on."""
        return batch if self._handed_cutoff is None else on_teachers_edges(batch, teacher, self._handed_cutoff)

    @contextlib.contextmanager
    def through_teacher(self) -> Iterator[None]:
        """Inside, gradients reach the teacher's outputs, if these have any."""
        for term in self:
            term.through_teacher = True
        try:
            yield
        finally:
            for term in self:
                term.through_teacher = False

    def forward(
        self, student: Prediction, teacher: TeacherOutput | None, batch: Batch, step: int = 0, which: Which = "all"
    ) -> dict[str, TermValue]:
        """Every term on one batch, by name (the strategy, numbered from the second of a kind on).

        Args:
            student: prediction and features, with gradients.
            teacher: output of the frozen teacher for the same batch, holding `needs`; None where no term needs any.
            batch: the structures, with the student's own graph.
            step: optimiser step, counted from 0, for scheduled weights.
            which: all terms, those that need a teacher (``taught``), or those that do not (``own``).

        Raises:
            ValueError: if the teacher output or the student's prediction lacks what a term needs.
        """
        values = {}
        said = TeacherOutput() if teacher is None else teacher
        with torch.autocast(batch.positions.device.type, enabled=False):
            for term in self:
                if which != "all" and bool(term.needs) != (which == "taught"):
                    continue
                values[term.name] = term.value(student, said, batch, step)
        return values


def build_terms(config: DistillConfig, student: Offer, teacher: Offer | None, *, seed: int = 0, free_atoms: bool = True) -> Terms:
    """Terms of a config, with projections of the right widths.

    Args:
        config: list of terms.
        student: what the student offers.
        teacher: what the teacher offers; None if there is no teacher.
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
        check_options(item, where)
        if item.kind == "lkm":
            terms.append(MixingTerm.of(name, item, where, student))
            continue
        if teacher is None:
            raise ConfigError(f"{where} needs a teacher: set teacher.path (a folder, or 'embedded'), or drop the term")
        if item.kind in OUTPUT_KINDS:
            if item.kind not in teacher.outputs:
                predicts = ", ".join(sorted(teacher.outputs)) or "features only"
                raise ConfigError(f"{where} needs {item.kind} of the teacher, but {teacher.name} predicts {predicts}; drop the term")
            terms.append(OutputTerm(name, item, where, student, teacher, free_atoms=free_atoms))
        else:
            terms.append(_feature_term(name, item, where, student, teacher, generator))
    _check_handed(config)
    return Terms(terms)


def _check_handed(config: DistillConfig) -> None:
    if len({item.edges for item in config.terms if item.kind == "e2e"}) > 1:
        raise ConfigError("distill.terms: all terms of kind e2e must have the same edges, because the student computes on one graph")


def _feature_term(name: str, item: TermConfig, where: str, student: Offer, teacher: Offer, generator: torch.Generator) -> Term:
    kind, inputs = student_feature(item, where, student)
    base, outputs = teacher_feature(item, where, teacher)
    if item.kind == "e2e":
        check_edges(item, where, student, teacher)
    projection = _projection(item, where, kind, (student.widths[kind], inputs, outputs), generator)
    need = at_layer(base, item.teacher_layer)
    if item.kind == "e2e":
        return EdgeTerm(name, item, where, need, projection, student.cutoff)
    return FeatureTerm(name, item, where, need, projection, student)


def _projection(item: TermConfig, where: str, kind: str, widths: tuple[int, int, int], generator: torch.Generator) -> Projection:
    """The map of a term, with ``widths`` of one student layer, of all of them, and of the teacher."""
    width, inputs, outputs = widths
    if item.projection == "identity":
        if inputs != outputs and item.loss not in STRUCTURE_LOSSES:
            raise ConfigError(
                f"{where}: projection identity needs equal widths, but the student's {kind} feature has {inputs} channels and the "
                f"teacher's has {outputs}; choose projection linear, or model.width = {outputs}"
            )
        return IdentityProjection()
    if item.projection == "mlp":
        return MLPProjection(inputs, width, outputs, generator=generator)
    return LinearProjection(inputs, outputs, bias=kind != "vector", generator=generator)
