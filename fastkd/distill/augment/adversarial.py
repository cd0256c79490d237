"""Adversarial displacements: a few steps uphill on the distillation loss, with the student in evaluation mode.

J(δ) = Σ_k λ_k L_KD,k(x + δ) − c · mean_free ‖F_t(x + δ)‖ is climbed from δ ~ N(0, σ²) (or from 0):

| ascent | step |
|---|---|
| ``adam`` | Adam uphill, rate η |
| ``sphere`` | α · g / ‖g‖ for each atom |
| ``ball`` | η · g for each atom, cut to length α |
| ``orthogonal`` | s · u, u the direction of g without its component along F; s is α, η ‖F‖ (prop) or η / ‖F‖ (inv_prop) |

g = dJ/dδ. Neighbours are found anew at every step; models are smooth there as far as their envelopes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.distill.augment.base import Perturbation, hold, random_numbers, unit
from fastkd.distill.augment.rattle import component
from fastkd.distill.terms import Terms
from fastkd.models.base import Potential
from fastkd.teachers.committee import LiveSource, ask_with, forces_of
from fastkd.teachers.output import Need

Ascent = Literal["adam", "sphere", "ball", "orthogonal"]
Rule = Literal["fixed", "prop", "inv_prop"]


class Adversarial(Perturbation):
    """Displacements that make the distillation loss large.

    Args:
        seed: of the run.
        cutoffs: Å, of the graphs of moved batches.
        sigma: Å, of the random start; 0 starts from the structure itself.
        ascent: how a step follows from the gradient.
        steps: uphill.
        rate: η.
        length: α, Å.
        rule: of ``orthogonal``.
        force_penalty: c, Å/eV.
        teacher_gradient: differentiate the teacher's side too; without, it is constant in each step.
        limit: Å.
    """

    def __init__(
        self,
        *,
        seed: int,
        cutoffs: Iterable[float],
        sigma: float = 0.1,
        ascent: Ascent = "sphere",
        steps: int = 1,
        rate: float = 0.1,
        length: float = 0.1,
        rule: Rule = "fixed",
        force_penalty: float = 0.0,
        teacher_gradient: bool = True,
        limit: float = 0.0,
    ) -> None:
        super().__init__(seed=seed, cutoffs=cutoffs, limit=limit)
        self.sigma, self.steps, self.rate, self.length, self.force_penalty = sigma, steps, rate, length, force_penalty
        self.ascent: Ascent = ascent
        self.rule: Rule = rule
        self.teacher_gradient = teacher_gradient
        #: what is left of, or follows from, each term's λ by its name, where gradients weigh terms (`Balance.scale`)
        self.scale: Callable[[str], float] = lambda name: 1.0
        self.wants_forces = ascent == "orthogonal"

    def displacement(self, batch: Batch, student: Potential, teacher: LiveSource | None, terms: Terms | None, step: int) -> Tensor:
        assert teacher is not None  # see build_perturbation
        assert terms is not None
        start = self.sigma * random_numbers(self.seed, step, batch.num_atoms).to(batch.positions.device)
        delta = self.kept(batch, start)
        forces = self.forces(batch, teacher) if self.wants_forces else torch.zeros_like(delta)
        climb = self._climber(delta, forces)
        with _evaluating(student), torch.enable_grad(), terms.through_teacher():
            for _ in range(self.steps):
                gradient = self.gradient(batch, delta, student, teacher, terms, step)
                delta = self.kept(batch, delta + hold(batch, climb(gradient)))
        return delta

    def gradient(self, batch: Batch, delta: Tensor, student: Potential, teacher: LiveSource, terms: Terms, step: int) -> Tensor:
        """dJ/dδ of a displaced batch, [n_atoms, 3] float64, 0 for fixed atoms."""
        place = delta.detach().requires_grad_(True)
        value = self.objective(self.moved(batch, place), student, teacher, terms, step)
        if not value.requires_grad:  # every weight is 0 at this step
            return torch.zeros_like(delta)
        (found,) = torch.autograd.grad(value, place)
        return hold(batch, found)

    def objective(self, moved: Batch, student: Potential, teacher: LiveSource, terms: Terms, step: int) -> Tensor:
        """J of a batch with moved atoms, a scalar, differentiable by its positions."""
        more = frozenset({"forces"}) if self.force_penalty else frozenset[Need]()
        targets = ask_with(teacher, moved, more, gradient=self.teacher_gradient)
        prediction = student(terms.student_batch(moved, targets), forces=terms.wants_forces, create_graph=True)
        values = terms(prediction, targets, moved, step, "taught")
        total: Tensor = sum(
            (self.scale(name) * value.weighted.double() for name, value in values.items()),
            torch.zeros((), dtype=torch.float64, device=moved.positions.device),
        )
        return total - self.force_penalty * _mean_force(forces_of(targets), moved) if self.force_penalty else total

    def _climber(self, delta: Tensor, forces: Tensor) -> Callable[[Tensor], Tensor]:
        """From a gradient to a step, [n_atoms, 3] Å."""
        if self.ascent != "adam":
            return lambda gradient: self.projected(gradient, forces)
        place = torch.zeros_like(delta).requires_grad_(True)
        adam = torch.optim.Adam([place], lr=self.rate, maximize=True)

        def climb(gradient: Tensor) -> Tensor:
            before = place.detach().clone()
            place.grad = gradient
            adam.step()
            return place.detach() - before

        return climb

    def projected(self, gradient: Tensor, forces: Tensor) -> Tensor:
        """The step of ``sphere``, ``ball`` or ``orthogonal``, [n_atoms, 3] Å, from g [n_atoms, 3] and forces [n_atoms, 3] eV/Å."""
        if self.ascent == "sphere":
            return self.length * unit(gradient)
        if self.ascent == "ball":
            step = self.rate * gradient
            length: Tensor = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
            return torch.where(length > self.length, self.length * unit(step), step)
        across = unit(gradient - component(gradient, forces))
        strength: Tensor = torch.linalg.vector_norm(forces, dim=-1, keepdim=True)
        if self.rule == "prop":
            return self.rate * strength * across
        if self.rule == "inv_prop":
            # an atom without any force would go infinitely far: it goes as far as the limit lets it, which is set where this rule is
            return self.rate / strength.clamp(min=self.rate / self.limit if self.limit else 1e-12) * across
        return self.length * across


def _mean_force(forces: Tensor, batch: Batch) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(forces.double(), dim=-1)
    return norm.mean() if batch.free is None else (norm * batch.free).sum() / batch.free.sum().clamp(min=1)


@contextmanager
def _evaluating(student: Potential) -> Iterator[None]:
    was = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(was)
