"""Random rattling: Gaussian displacements, of a fixed length if wanted, free or in relation to the force on each atom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.distill.augment.base import Perturbation, random_numbers, unit
from fastkd.distill.terms import Terms
from fastkd.models.base import Potential
from fastkd.teachers.committee import LiveSource

AlongForce = Literal["any", "remove", "only", "around"]


class Rattle(Perturbation):
    """δ ~ N(0, σ² I), its part along or across the force, or δ ~ N(a F, σ² I); then of one length per atom if that is asked for.

    Args:
        seed: of the run.
        cutoffs: Å, of the graphs of moved batches.
        sigma: σ, Å.
        length: Å, of every displacement; 0 leaves it as drawn.
        along_force: ``any`` direction, ``remove`` the component along the force or keep it ``only``, or draw ``around`` the force.
        force_scale: a, Å²/eV (1 in the authors' code).
        limit: Å.
        for_labels: the noise baseline, without a teacher: labels are learned on moved atoms as if these stood in their places.
    """

    def __init__(
        self,
        *,
        seed: int,
        cutoffs: Iterable[float],
        sigma: float,
        length: float = 0.0,
        along_force: AlongForce = "any",
        force_scale: float = 1.0,
        limit: float = 0.0,
        for_labels: bool = False,
    ) -> None:
        super().__init__(seed=seed, cutoffs=cutoffs, limit=limit)
        self.sigma, self.length, self.force_scale, self.for_labels = sigma, length, force_scale, for_labels
        self.along_force: AlongForce = along_force
        self.wants_forces = along_force != "any"

    def displacement(self, batch: Batch, student: Potential, teacher: LiveSource | None, terms: Terms | None, step: int) -> Tensor:
        delta = self.sigma * random_numbers(self.seed, step, batch.num_atoms).to(batch.positions.device)
        if self.wants_forces:
            forces = self.forces(batch, teacher)
            if self.along_force == "around":
                delta = delta + self.force_scale * forces
            else:
                along = component(delta, forces)
                delta = along if self.along_force == "only" else delta - along
        return self.length * unit(delta) if self.length else delta


def component(vectors: Tensor, forces: Tensor) -> Tensor:
    """The part of each vector [n, 3] along a force [n, 3], whatever its unit; 0 where there is no force."""
    direction = unit(forces)
    return (vectors * direction).sum(dim=-1, keepdim=True) * direction
