"""Distillation terms: strategy, weight, loss and projection put together from a config.

Example:
    >>> terms = build_terms(config.distill, Offer.of(student, "student"), teacher.offer, seed=0)
    >>> values = terms(student(batch), source(batch), batch, step)
    >>> loss = label_loss + sum(value.weighted for value in values.values())

The source must supply ``terms.needs``. Terms run in float32 (float64 for float64 parameters) even under autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
    choose_teacher,
    student_feature,
    teacher_feature,
)
from fastkd.distill.consensus import share, told
from fastkd.distill.edges import EdgeTerm, on_teachers_edges
from fastkd.distill.hessian import HessianTerm
from fastkd.distill.mixing import MixingTerm
from fastkd.distill.projections import FeatureLoss, IdentityProjection, LinearProjection, MLPProjection, Projection
from fastkd.distill.strategies import ForcesLoss
from fastkd.distill.term import Term, TermValue, both, have
from fastkd.errors import ConfigError
from fastkd.models.base import Potential, Prediction
from fastkd.teachers.hessian import sample_rows
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
            return strategies.energy_loss(student.energy, target, cast("FeatureLoss", self.loss), teacher.agreed, batch.weight)
        if self.kind == "forces":
            predicted = have(student.forces, self, "forces of the student")
            free = both(batch.free if self.free_atoms else None, teacher.agreed)
            target = have(teacher.forces, self, "forces")
            return strategies.forces_loss(predicted, target, cast("ForcesLoss", self.loss), free, batch.atom_weight)
        shift = None if self.reference_shift is None else self.reference_shift[batch.atomic_numbers]
        target, kind = have(teacher.atom_energy, self, "atom_energy"), cast("FeatureLoss", self.loss)
        return strategies.atom_energy_loss(student.atom_energy, target, shift, kind, teacher.agreed, batch.atom_weight)


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

    def __init__(self, terms: list[Term], *, seed: int = 0, references: Mapping[str, Tensor | None] | None = None) -> None:
        super().__init__()
        self.references = dict(references or {})  #: of several teachers, by name: energies of single atoms, [119] eV
        self.seed = seed  #: of the rows of Hessians
        self._hessian = [term for term in terms if isinstance(term, HessianTerm)]
        self.terms = nn.ModuleDict({term.name: term for term in terms})
        #: what the teacher has to supply
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in terms))
        #: layers whose edge features the student has to hold on to, see `Potential.kept_layers`
        self.student_keeps: frozenset[str] = frozenset().union(*(term.student_keeps for term in terms))
        #: name → unit of the raw loss, for logs
        self.units = {term.name: term.unit for term in terms}
        handed = [term for term in terms if isinstance(term, EdgeTerm) and term.handed]
        self._handed_cutoff = handed[0].cutoff if handed else None
        self._handed_by = handed[0].teacher if handed else ""

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self) -> Iterator[Term]:
        return (cast("Term", term) for term in self.terms.values())

    @property
    def differentiates_forces(self) -> bool:
        """Whether positions have to require a gradient."""
        return any(term.exact for term in self._hessian)

    @property
    def wants_forces(self) -> bool:
        """Whether a term compares the student's forces, or differentiates them."""
        return "forces" in self.needs or self.differentiates_forces

    def teacher_batch(self, batch: Batch, step: int) -> Batch:
        """What the teacher is to be asked about: the batch, with the rows of Hessians that this step looks at where a term needs any."""
        if not self._hessian:
            return batch
        count, free_atoms = max(term.rows for term in self._hessian), self._hessian[0].free_atoms
        return replace(batch, hessian_rows=sample_rows(batch, count, seed=self.seed, step=step, free_atoms=free_atoms))

    def needs_of(self, teacher: str) -> frozenset[Need]:
        """What one of several teachers has to supply: for terms that name it, for means, and where agreement counts."""
        asked = (term.needs for term in self if term.teacher in ("", teacher) or term.agree)
        return frozenset[Need]().union(*asked)

    def student_batch(self, batch: Batch, teacher: TeacherOutput | Mapping[str, TeacherOutput]) -> Batch:
        """What the student is to be asked about, from `teacher_batch`.

        The teacher's edges take the place of its own where a term hands them on, and positions require a gradient where a term differentiates forces.
        """
        if self.differentiates_forces:
            batch = replace(batch, positions=batch.positions.detach().requires_grad_(True))
        if self._handed_cutoff is None:
            return batch
        output = teacher if isinstance(teacher, TeacherOutput) else teacher[self._handed_by]
        return on_teachers_edges(batch, output, self._handed_cutoff)

    def attach(self, student: Potential) -> None:
        """Tell the terms which model they will see, for those that ask it about more than one batch in a step."""
        for term in self._hessian:
            term.student_forces = lambda batch: student(batch).forces

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
        self,
        student: Prediction,
        teacher: TeacherOutput | Mapping[str, TeacherOutput] | None,
        batch: Batch,
        step: int = 0,
        which: Which = "all",
    ) -> dict[str, TermValue]:
        """Every term on one batch, by name (the strategy, numbered from the second of a kind on).

        Args:
            student: prediction and features, with gradients.
            teacher: output of the frozen teacher for the same batch, holding `needs`, or of several by name, each holding its `needs_of`;
                None where no term needs any.
            batch: the structures, with the student's own graph; with terms on Hessians also with the rows of `teacher_batch` and the
                positions of `student_batch`.
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
                output = said if isinstance(said, TeacherOutput) else self._told(term, said, batch)
                value = term.value(student, output, batch, step)
                values[term.name] = value if output.agreed is None else replace(value, share=share(output, batch))
        return values

    def _told(self, term: Term, said: Mapping[str, TeacherOutput], batch: Batch) -> TeacherOutput:
        return told(term, said, batch, self.references) if term.needs else TeacherOutput()


def build_terms(
    config: DistillConfig,
    student: Offer,
    teacher: Offer | None,
    *,
    seed: int = 0,
    free_atoms: bool = True,
    teachers: Mapping[str, Offer] | None = None,
) -> Terms:
    """Terms of a config, with projections of the right widths.

    Args:
        config: list of terms.
        student: what the student offers.
        teacher: what the teacher offers, or several as one (`Committee`); None if there is no teacher.
        seed: of the projections' initial weights and of the rows of Hessians, which no other random number generator influences.
        free_atoms: leave atoms that the data holds fixed out of force terms (features are compared on all atoms, as in the papers).
        teachers: what each of several teachers offers, by name.

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
        offer = choose_teacher(item, where, teacher, teachers or {})
        if item.kind in OUTPUT_KINDS:
            if item.kind not in offer.outputs:
                predicts = ", ".join(sorted(offer.outputs)) or "features only"
                raise ConfigError(f"{where} needs {item.kind} of the teacher, but {offer.name} predicts {predicts}; drop the term")
            terms.append(OutputTerm(name, item, where, student, offer, free_atoms=free_atoms))
        elif item.kind == "hessian":
            terms.append(HessianTerm.of(name, item, where, (item.agree and teacher) or offer, free_atoms=free_atoms))
        else:
            terms.append(_feature_term(name, item, where, student, offer, generator))
    _check_handed(config)
    references = {name: offer.reference_energy for name, offer in (teachers or {}).items()}
    return Terms(terms, seed=seed, references=references)


def _check_handed(config: DistillConfig) -> None:
    if len({item.edges for item in config.terms if item.kind == "e2e"}) > 1:
        raise ConfigError("distill.terms: all terms of kind e2e must have the same edges, because the student computes on one graph")
    if len({item.teacher for item in config.terms if item.kind == "e2e" and item.edges == "teacher"}) > 1:
        raise ConfigError("distill.terms: edges=teacher can hand on the edges of one teacher only; name the same in all terms of kind e2e")
    handed = any(item.kind == "e2e" and item.edges == "teacher" for item in config.terms)
    if handed and any(item.kind == "hessian" and item.student_rows == "difference" for item in config.terms):
        raise ConfigError("distill.terms: student_rows=difference moves atoms on the student's own graph, which edges=teacher takes away")


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
