"""Several teachers: each asked for itself, live or from a cache of its own, and all together as one model that predicts their mean.

Example:
    >>> committee = Committee({"a": load_teacher("runs/a"), "b": load_teacher("runs/b")})
    >>> committee(batch, frozenset({"energy", "forces"})).forces  # the mean of both
    >>> source = Council({name: LiveTeacher(member, terms.needs_of(name)) for name, member in committee.members.items()})
    >>> source(batch)["b"].forces
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.cache import CachedTeacher
from fastkd.teachers.hessian import EXACT
from fastkd.teachers.output import Need, Offer, TeacherOutput
from fastkd.teachers.teacher import LiveTeacher

#: What teachers have in common, whatever they are made of; of these there is a mean.
MEANS = ("energy", "forces", "stress", "atom_energy")


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """The mean of equally shaped tensors, in the widest of their dtypes."""
    wide = reduce(torch.promote_types, (value.dtype for value in values))
    return torch.stack([value.to(wide) for value in values]).mean(0)


def spread_of(values: Sequence[Tensor], *, vectors: bool) -> Tensor:
    """√( (1/M) Σ_m ‖y_m − ȳ‖² ), the standard deviation over M teachers, in float64.

    Args:
        values: one tensor for each teacher, equally shaped.
        vectors: whether the last axis holds the components of vectors, over which the norm runs; it is then gone from the result.
    """
    stacked = torch.stack([value.double() for value in values])
    square = (stacked - stacked.mean(0)).square()
    return (square.sum(-1) if vectors else square).mean(0).sqrt()


class Committee(BaseTeacher):
    """Several teachers as one, whose outputs are the means of theirs; it has no features, because those of different models have no mean.

    Args:
        members: by name, at least two, whose outputs share the batch's order of atoms and our units as every teacher's do.

    Raises:
        ConfigError: if there are fewer than two.
    """

    def __init__(self, members: Mapping[str, BaseTeacher]) -> None:
        if len(members) < 2:
            raise ConfigError(f"several teachers are at least two, got {len(members)}: use teacher.path for one")
        self.members = dict(members)
        self.source = ", ".join(member.source for member in self.members.values())
        self.licence = ", ".join(dict.fromkeys(member.licence for member in self.members.values() if member.licence))
        digest = hashlib.sha256()
        for name, member in self.members.items():
            digest.update(f"{name} {member.hash}".encode())
        self.hash = digest.hexdigest()
        self.cutoff = None
        self.num_parameters = sum(member.num_parameters for member in self.members.values())
        self.known_element = torch.stack([member.known_element.cpu() for member in self.members.values()]).all(0)
        self._combine()

    def _combine(self) -> None:
        members = list(self.members.values())
        references = [member.reference_energy for member in members]
        known = [reference.cpu() for reference in references if reference is not None]
        self.reference_energy = mean_of(known) if len(known) == len(members) else None
        self.energy_scale = mean_of([member.energy_scale.cpu().double() for member in members])
        first = all(member.offer.hessian[0] == EXACT for member in members)
        both = all(EXACT in member.offer.hessian for member in members)
        self.offer = Offer(
            f"the mean of {len(members)} teachers",
            reference_energy=self.reference_energy,
            outputs=frozenset.intersection(*(frozenset(member.offer.outputs) for member in members)),
            hessian=(EXACT, "difference") if first else ("difference", EXACT) if both else ("difference",),
        )

    @property
    def cutoffs(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(cutoff for member in self.members.values() for cutoff in member.cutoffs))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return reduce(torch.promote_types, (member.dtype for member in self.members.values()))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return next(iter(self.members.values())).device

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(member.differentiable for member in self.members.values())

    @property
    def energy_offset(self) -> Tensor:
        return mean_of([member.energy_offset.cpu().double() for member in self.members.values()])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move every member in place."""
        for member in self.members.values():
            member.to(device, dtype)
        return self

    def start(self, batch: Batch) -> None:
        """Let every member look at a first batch."""
        for member in self.members.values():
            member.start(batch)
        self._combine()

    def __call__(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Means of outputs.

        Raises:
            ValueError: if something is asked for of which there is no mean.
        """
        lacking = needs - frozenset(MEANS)
        if lacking:
            raise ValueError(f"there is no mean of {', '.join(sorted(lacking))}; ask one of {', '.join(self.members)}")
        said = [member(batch, needs) for member in self.members.values()]
        means: dict[str, Any] = {}
        for need in needs:
            values = [output.get(need) for output in said]
            means[need] = mean_of([value for value in values if value is not None])
        return TeacherOutput(**means)

    def hessian_rows(self, batch: Batch, method: str) -> Tensor:
        """The mean of the members' rows."""
        return mean_of([member.hessian_rows(batch, method) for member in self.members.values()])

    def cards(self) -> dict[str, dict[str, str]]:
        """The card of each member, by name."""
        return {name: member.card() for name, member in self.members.items()}


class Council:
    """Where a run gets the outputs of several teachers: for each its own source, live or cached.

    Args:
        sources: by name of the teacher; those that no term asks are left out.
    """

    def __init__(self, sources: Mapping[str, LiveTeacher | CachedTeacher]) -> None:
        self.sources = dict(sources)

    def __call__(self, batch: Batch) -> Mapping[str, TeacherOutput]:
        """The outputs of each teacher for a batch, by name."""
        return {name: source(batch) for name, source in self.sources.items()}


LiveSource = LiveTeacher | Council


def ask_with(
    source: LiveSource, batch: Batch, more: frozenset[Need], *, gradient: bool = False
) -> TeacherOutput | Mapping[str, TeacherOutput]:
    """What terms need of live teachers, and more; with ``gradient`` differentiable by positions, see `BaseTeacher.with_gradient`."""
    if isinstance(source, LiveTeacher):
        return source.ask(batch, source.needs | more, gradient=gradient)
    return {name: live.ask(batch, live.needs | more, gradient=gradient) for name, live in live_sources(source).items()}


def ask_forces(source: LiveSource, batch: Batch) -> Tensor:
    """Forces of live teachers and nothing else, [n_atoms, 3] eV/Å; of several teachers their mean."""
    return mean_of([have_forces(live.ask(batch, frozenset({"forces"}))) for live in live_sources(source).values()])


def have_forces(output: TeacherOutput) -> Tensor:
    """Forces that were asked for.

    Raises:
        ValueError: if they are not there.
    """
    if output.forces is None:
        raise ValueError("a teacher was asked for forces and did not give them")
    return output.forces


def forces_of(said: TeacherOutput | Mapping[str, TeacherOutput]) -> Tensor:
    """Forces that were asked for, [n_atoms, 3] eV/Å; of several teachers their mean.

    Raises:
        ValueError: if they were not.
    """
    return mean_of([have_forces(output) for output in ([said] if isinstance(said, TeacherOutput) else said.values())])


def live_sources(source: object) -> dict[str, LiveTeacher]:
    """The live teachers of a source by name; that of a single teacher is empty."""
    found = source.sources if isinstance(source, Council) else {"": source}
    return {name: item for name, item in found.items() if isinstance(item, LiveTeacher)}
