"""A teacher, a student, a batch, and what a step of training needs of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from bench.models.shapes import Shape
from bench.step.cases import Pair, Terms
from bench.step.plain import plain_teacher, plain_terms
from fastkd.config import DistillConfig, LossConfig, TrainConfig
from fastkd.data.batch import Batch
from fastkd.distill import Terms as TermModules
from fastkd.distill import build_terms
from fastkd.engine.ema import Average
from fastkd.engine.step import Trainee, make_optimizer, trainable
from fastkd.models.base import Potential
from fastkd.teachers import CachedTeacher, Teacher, TeacherOutput
from fastkd.teachers.base import TeacherCost
from fastkd.teachers.output import Need, Offer
from fastkd.teachers.store import Block, MemoryStore

#: A cache holds so many times the structures of a batch, and a step gathers from all over it.
CACHED_BATCHES = 16
#: As the public configs have it.
CLIP, DECAY, AMSGRAD = 10.0, 0.999, True


@dataclass(eq=False)
class Workbench:
    """Both models on one batch, in one dtype."""

    teacher: Teacher
    student: Potential
    batch: Batch
    needs: frozenset[Need]  #: of all terms of the pair
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, pair: Pair, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool) -> Workbench:
        """Models of a pair on structures of a shape, with random labels."""
        teacher, student = pair.models(seed, small=small)
        structures = shape.structures(seed)
        batches = [structures.batch(cutoff, dtype, device) for cutoff in sorted({teacher.cutoff, student.cutoff})]
        graphs = {cutoff: graph for batch in batches for cutoff, graph in batch.graphs.items()}
        random = torch.Generator().manual_seed(seed + 1)
        energy = torch.randn(batches[0].energy.shape, generator=random, dtype=torch.float64)
        forces = 0.1 * torch.randn(batches[0].forces.shape, generator=random, dtype=torch.float64)
        batch = replace(batches[0], graphs=graphs, energy=energy.to(device), forces=forces.to(device, dtype))
        student = student.to(device, dtype).train()
        bench = cls(Teacher(teacher).to(device, dtype), student, batch, frozenset())
        bench.needs = frozenset().union(*(bench.terms(terms, seed)[0].needs for terms in pair.terms))
        return bench

    def double(self) -> Workbench:
        """The same weights and positions in float64."""
        double = torch.float64
        teacher = Teacher(copy.deepcopy(self.teacher.potential)).to(dtype=double)
        return Workbench(teacher, copy.deepcopy(self.student).to(double), self.batch.to(dtype=double), self.needs)

    def fresh(self) -> Batch:
        """The batch as a loader gives it: nothing of an earlier step is kept in its graphs, and its structures lie anywhere in the cache."""
        graphs = {cutoff: replace(graph) for cutoff, graph in self.batch.graphs.items()}
        graphs_of = self.batch.num_graphs
        drawn = torch.randint(CACHED_BATCHES, (graphs_of,), generator=self.generator) * graphs_of + torch.arange(graphs_of)
        return replace(self.batch, graphs=graphs, structure_index=drawn.to(self.batch.structure_index.device))

    def terms(self, chosen: Terms, seed: int) -> tuple[TermModules, TermModules]:
        """Ours, and the same in plain torch with the same projections."""
        config = DistillConfig(terms=list(chosen.items))
        dtype, device = self.batch.positions.dtype, self.batch.positions.device
        ours = build_terms(config, Offer.of(self.student, "student"), self.teacher.offer, seed=seed).to(device, dtype)
        return ours, plain_terms(ours, chosen.items)

    @cached_property
    def said(self) -> TeacherOutput:
        """What the teacher says of the batch, for all terms of the pair."""
        return self.teacher(self.fresh(), self.needs)

    @cached_property
    def plainly_said(self) -> TeacherOutput:
        """The same with sums of generic operators."""
        return plain_teacher(self.teacher, self.needs)(self.fresh())

    def cache(self, needs: frozenset[Need]) -> CachedTeacher:
        """A cache in memory of what some terms need, that holds the batch `CACHED_BATCHES` times, as so many other structures."""
        graphs = self.batch.num_graphs
        copies = [replace(self.batch, structure_index=self.batch.structure_index + number * graphs) for number in range(CACHED_BATCHES)]
        store = MemoryStore.of([Block.of(batch, self.said, needs) for batch in copies])
        about = {"teacher_hash": self.teacher.hash, "dataset_hash": "bench", "cutoff": self.teacher.cutoff}
        return CachedTeacher(store, needs=needs, cost=TeacherCost(), **about)  # type: ignore[arg-type]

    def trainee(self, terms: TermModules | None) -> Trainee:
        """The student's job with some terms, and no teacher yet. Its rate of learning is up to `train_step`."""
        parameters = trainable(self.student, terms)
        optimizer = make_optimizer(parameters, TrainConfig(amsgrad=AMSGRAD))
        return Trainee(self.student, terms, None, optimizer, Average(parameters, DECAY), LossConfig(), CLIP)
