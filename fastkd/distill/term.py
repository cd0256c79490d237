"""What every term is: a name, a weight, what it needs of the teacher, and a raw loss.

Subclasses: `OutputTerm` and `FeatureTerm` (fastkd.distill.terms), `EdgeTerm` (fastkd.distill.edges), `MixingTerm` (fastkd.distill.mixing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastkd.config import TermConfig
from fastkd.data.batch import Batch
from fastkd.distill.weighting import WeightSchedule
from fastkd.models.base import Prediction
from fastkd.teachers.output import Need, TeacherOutput

AUTO_LOSS = {
    "energy": "mae",
    "forces": "l2",
    "atom_energy": "mae",
    "n2n": "mse",
    "e2n": "mse",
    "e2e": "mse",
    "v2v": "mse",
    "v2v_geometric": "geometric",
    "lkm": "mae",
    "hessian": "l2",
}
#: Of a raw loss that is a mean of differences.
UNIT = {"energy": "eV", "forces": "eV/Å", "atom_energy": "eV", "hessian": "eV/Å²"}

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TermValue:
    """One term on one batch; both numbers are scalars that can be differentiated."""

    raw: Tensor  #: L_KD, before λ
    weighted: Tensor  #: λ · L_KD
    weight: float  #: λ
    unit: str  #: of the raw loss where it is mae or l2
    share: Tensor | None = None  #: part of the targets on which teachers agree, where only those count


class Term(nn.Module):
    """One term. Subclasses say what they need of the teacher and how they compare."""

    def __init__(self, name: str, config: TermConfig, needs: frozenset[Need], where: str = "distill.terms") -> None:
        super().__init__()
        self.name = name
        self.kind = config.kind
        self.teacher = config.teacher  #: name of one of several; empty: the only one, or the mean of all
        self.agree = config.agree  #: largest spread of the teachers, in the unit of the targets; 0: whatever they say
        self.weight = WeightSchedule.of(config, where)
        #: how λ follows gradients and the student's success, see `fastkd.distill.balance`
        self.rule, self.when_passed = config.weight_rule, config.when_passed
        self.loss: str = AUTO_LOSS[config.kind] if config.loss == "auto" else config.loss
        self.needs = needs
        #: layers of the student whose edge features it must hold on to, see `Potential.kept_layers`
        self.student_keeps: frozenset[str] = frozenset()
        #: whether gradients go into the teacher's side, for adversarial structures; see `Terms.through_teacher`
        self.through_teacher = False

    @property
    def unit(self) -> str:
        """Of the raw loss."""
        return UNIT.get(self.kind, "1") if self.loss in ("mae", "l2") else "1"

    def constant(self, target: Tensor) -> Tensor:
        """The teacher's side of a comparison, without gradient unless one is asked for."""
        return target if self.through_teacher else target.detach()

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        """L_KD, a scalar."""
        raise NotImplementedError

    def value(self, student: Prediction, teacher: TeacherOutput, batch: Batch, step: int) -> TermValue:
        """The raw loss and λ times it at an optimiser step; where λ is 0 no gradient is computed."""
        weight = self.weight(step)
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0.0):
            raw = self.raw(student, teacher, batch)
        return TermValue(raw, weight * raw, weight, self.unit)


def have(value: T | None, term: Term, what: str) -> T:
    """A value that must be there.

    Raises:
        ValueError: if it is not, saying what the term needs.
    """
    if value is None:
        raise ValueError(
            f"term {term.name} needs {what}, which is missing from what it was given; the teacher must supply {sorted(term.needs)}"
        )
    return value


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Where both masks are true; None is true everywhere."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
