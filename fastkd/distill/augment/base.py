"""What every perturbation is: from a batch to the same batch with moved atoms, and its neighbour graphs found anew.

Random numbers follow from the seed of the run and the number of the step alone, and are drawn on the CPU in float64: a resumed run, and a
run on another device, sees the same displacements.

Example:
    >>> moved = Rattle(seed=0, cutoffs=(5.0,), sigma=0.1)(batch, student, source, terms, step)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.data.batching import find_graphs
from fastkd.distill.terms import Terms
from fastkd.errors import DataError, TrainingError
from fastkd.models.base import Potential
from fastkd.teachers.committee import LiveSource, ask_forces

#: Sets the random numbers apart from all others with the same seed.
SEED_STREAM = 0x6175_676D


def random_numbers(seed: int, step: int, atoms: int) -> Tensor:
    """Standard normal numbers of one step, [atoms, 3] float64 on the CPU."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, SEED_STREAM, step]))
    return torch.from_numpy(np.random.Generator(bits).standard_normal((atoms, 3)))


class Perturbation(ABC):
    """Base of all perturbations.

    Args:
        seed: of the run.
        cutoffs: Å, of the neighbour graphs that moved batches get: the student's, and the teacher's if it wants one.
        limit: Å, no atom is moved further; 0 for no limit.
    """

    #: whether the student learns the labels on the moved batch (the noise baseline) instead of distilling on it
    for_labels = False
    #: whether forces of structures are looked at
    wants_forces = False

    def __init__(self, *, seed: int, cutoffs: Iterable[float], limit: float = 0.0) -> None:
        self.seed, self.limit = seed, limit
        self.cutoffs = tuple(sorted({float(cutoff) for cutoff in cutoffs}))

    @abstractmethod
    def displacement(self, batch: Batch, student: Potential, teacher: LiveSource | None, terms: Terms | None, step: int) -> Tensor:
        """Where atoms shall go, [n_atoms, 3] Å, float64; those of fixed atoms are not looked at."""

    def __call__(self, batch: Batch, student: Potential, teacher: LiveSource | None, terms: Terms | None, step: int) -> Batch:
        """The batch with moved atoms; labels, cell and all else are the batch's own.

        Args:
            batch: the structures; atoms that it holds fixed stay.
            student: as it is at this step; it is not changed.
            teacher: live, one or several, for forces of structures without labels and for adversaries.
            terms: of the run.
            step: optimiser step, counted from 0.

        Raises:
            TrainingError: if two atoms meet.
        """
        return self.moved(batch, self.kept(batch, self.displacement(batch, student, teacher, terms, step)))

    def kept(self, batch: Batch, displacement: Tensor) -> Tensor:
        """A displacement without that of fixed atoms, and within the limit."""
        displacement = hold(batch, displacement)
        if not self.limit:
            return displacement
        length: Tensor = torch.linalg.vector_norm(displacement, dim=-1, keepdim=True)
        return displacement * (self.limit / length.clamp(min=self.limit))

    def moved(self, batch: Batch, displacement: Tensor) -> Batch:
        """The batch displaced by [n_atoms, 3] Å, differentiable, with exactly the neighbours that it then has."""
        positions = (batch.positions.double() + displacement).to(batch.positions.dtype)
        batch = replace(batch, positions=positions, graphs={})
        try:
            return replace(batch, graphs=find_graphs(batch, self.cutoffs))
        except DataError as error:
            raise TrainingError(f"augment moved two atoms onto each other ({error}); lower augment.sigma, its lengths or rates") from error

    def forces(self, batch: Batch, teacher: LiveSource | None) -> Tensor:
        """Forces of the unmoved batch, [n_atoms, 3] eV/Å, float64: labels, and the teacher's where a structure has none.

        Raises:
            TrainingError: if there are neither labels nor a teacher.
        """
        forces = batch.forces.double()
        if bool(batch.with_forces.all()):
            return forces
        if teacher is None:
            raise TrainingError("augment.along_force: a structure has no labelled forces and there is no teacher to ask for its forces")
        said = ask_forces(teacher, batch)
        return torch.where(batch.with_forces[batch.graph_index][:, None], forces, said.double())


def hold(batch: Batch, displacement: Tensor) -> Tensor:
    """A displacement without that of fixed atoms."""
    return displacement if batch.free is None else displacement * batch.free[:, None]


def unit(vectors: Tensor) -> Tensor:
    """Vectors [n, 3] of length 1; those of length 0 stay."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > 0, vectors / torch.where(length > 0, length, 1.0), 0.0)
