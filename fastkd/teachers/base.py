"""What every teacher is, whoever wrote its model: frozen, lazy, and in the units, shapes and names of this library.

A teacher takes our `Batch` and gives a `TeacherOutput` on the batch's device. Its own precision, device and graph are its own business:
the batch is moved and cast for it. Subclasses: `Teacher` (our models), `ModuleTeacher` (any torch module), `AseTeacher` (labels only).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError
from fastkd.models.base import MAX_ATOMIC_NUMBER
from fastkd.teachers.hessian import EXACT, HESSIAN, difference_rows
from fastkd.teachers.output import Need, Offer, TeacherOutput, split_need


@dataclass
class TeacherCost:
    """What a teacher has cost so far."""

    seconds: float = 0.0  #: s, spent in the teacher
    structures: int = 0  #: computed, counting repeats
    atoms: int = 0
    bytes: int = 0  #: kept in memory; 0 for a live teacher
    batches: int = 0
    _pending: deque[tuple[Any, Any]] = field(default_factory=deque, repr=False)

    def __str__(self) -> str:
        kept = f", {self.bytes / 1e6:.1f} MB kept" if self.bytes else ""
        return f"teacher: {self.structures} structures ({self.atoms} atoms) in {self.seconds:.1f} s{kept}"

    def settle(self) -> float:
        """Seconds so far, those that a GPU was busy with included; waits for the device, so ask seldom."""
        while self._pending:
            begin, end = self._pending.popleft()
            end.synchronize()
            self.seconds += 1e-3 * begin.elapsed_time(end)
        return self.seconds

    def measured(self, teacher: BaseTeacher, batch: Batch, needs: frozenset[Need], *, gradient: bool = False) -> TeacherOutput:
        """Ask the teacher about a batch, and count it; ``gradient`` takes `BaseTeacher.with_gradient`."""
        ask = teacher.with_gradient if gradient else teacher.ask
        self.batches += 1
        self.structures += batch.num_graphs
        self.atoms += batch.num_atoms
        if teacher.device.type != "cuda":
            started = time.perf_counter()
            output = ask(batch, needs)
            self.seconds += time.perf_counter() - started
            return output
        # between two events on the device's own clock: launching takes far less time than computing
        with torch.cuda.device(teacher.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            output = ask(batch, needs)
            end.record()
        self._pending.append((begin, end))
        return output


class BaseTeacher(ABC):
    """Base of all teachers. Subclasses set the attributes and write `__call__`."""

    source: str  #: where it came from, for messages and reports
    licence: str  #: of the weights, copied into the cards of students; empty if it is not known
    hash: str  #: SHA-256, equal for teachers that say the same
    offer: Offer  #: complete after `start`
    cutoff: float | None  #: Å, batches must hold the neighbour graph of it; None if the teacher finds neighbours itself
    num_parameters: int
    dtype: torch.dtype
    device: torch.device
    known_element: Tensor  #: [119] bool
    reference_energy: Tensor | None  #: [119] float64, eV, on the CPU; None if nobody knows
    energy_scale: Tensor  #: [] float64, eV

    @property
    def energy_offset(self) -> Tensor:
        """What a structure's energy has beside those of its atoms, [] float64, eV."""
        return torch.zeros((), dtype=torch.float64)

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """Å, of the neighbour graphs that batches must hold."""
        return () if self.cutoff is None else (self.cutoff,)

    @abstractmethod
    def __call__(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Outputs and features for a batch, detached; only what was asked for, on the batch's device."""

    def ask(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """As a call, with rows of the Hessian where ``needs`` has them; these are in ``layers``, and `Batch.hessian_rows` says which."""
        rows = frozenset(need for need in needs if split_need(need)[0] == HESSIAN)
        output = self(batch, needs - rows)
        if not rows:
            return output
        return replace(output, layers={**output.layers, **{need: self.hessian_rows(batch, split_need(need)[1]) for need in sorted(rows)}})

    def hessian_rows(self, batch: Batch, method: str) -> Tensor:
        """Rows ``batch.hessian_rows`` of the Hessian, [s, n_atoms, 3] eV/Å², on the batch's device.

        Args:
            batch: with ``hessian_rows`` [s, n_graphs].
            method: ``exact``, where the teacher can be differentiated, or the step of central differences of its forces in Å.

        Raises:
            ValueError: if the batch names no rows, or the teacher does not have the method.
        """
        if batch.hessian_rows is None:
            raise ValueError("the batch does not say which rows of the Hessian are wanted (Batch.hessian_rows)")
        if method == EXACT:
            raise ValueError(f"{self.offer.name} has no exact rows of the Hessian")

        def forces(moved: Batch) -> Tensor:
            found = self(moved, frozenset({"forces"})).forces
            assert found is not None
            return found

        # small steps want the precision of the teacher, which may be more than the batch's
        batch = batch.to(dtype=torch.promote_types(batch.positions.dtype, self.dtype))
        assert batch.hessian_rows is not None
        return difference_rows(forces, batch, batch.hessian_rows, float(method))

    @abstractmethod
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the model in place."""

    #: whether `with_gradient` works
    differentiable = False

    def with_gradient(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Outputs and features that can be differentiated by ``batch.positions``, which require a gradient; weights get none.

        Raises:
            ConfigError: if the teacher cannot.
        """
        raise ConfigError(f"{self.offer.name} cannot be differentiated by positions; set augment.teacher_gradient=false")

    def start(self, batch: Batch) -> None:  # noqa: B027 - our own models have nothing to check
        """Look at a first batch, check every shape, and complete the offer.

        Raises:
            ConfigError: if something has another shape or kind than was declared.
        """

    @property
    def complete(self) -> bool:
        """Whether it predicts energies and forces, so that it can be tested like a model."""
        return {"energy", "forces"} <= self.offer.outputs

    def card(self) -> dict[str, str]:
        """Name, licence and hash, for the card of a student."""
        return {"path": self.source, "model": self.offer.name, "licence": self.licence, "sha256": self.hash}


def all_elements() -> Tensor:
    """[119] bool: every element is known."""
    known = torch.ones(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
    known[0] = False
    return known
