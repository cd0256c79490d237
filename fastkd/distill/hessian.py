"""hessian: sampled rows of the student's energy Hessian against the teacher's.

Source: Amin, Raja and Krishnapriyan, Towards Fast, Specialized Machine Learning Force Fields: Distilling Foundation Models via Energy
Hessians, ICLR 2025 (arXiv:2501.09009), and the authors' public code for what is compared: rows drawn uniformly and without replacement from
those of free atoms, anew in every step; norms of 3-vectors, one for each row and atom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from fastkd.config import TermConfig
from fastkd.data.batch import Batch
from fastkd.distill.strategies import ForcesLoss, hessian_loss
from fastkd.distill.term import Term, both, have
from fastkd.errors import ConfigError
from fastkd.models.base import Prediction
from fastkd.teachers.hessian import EXACT, difference_rows, exact_rows, hessian_need, stacked_rows
from fastkd.teachers.output import Offer, TeacherOutput


class HessianTerm(Term):
    """Rows of −∂F/∂x of the student, by vector–Jacobian products or finite differences of its forces, against the teacher's."""

    def __init__(self, name: str, config: TermConfig, where: str, need: str, *, free_atoms: bool = True) -> None:
        super().__init__(name, config, frozenset({need}), where)
        self.target = need
        self.rows = config.rows
        self.exact = config.student_rows == EXACT
        self.step = config.difference_step
        self.free_atoms = free_atoms
        #: the student, as a function from a batch to forces, for finite differences; whoever runs the steps sets it
        self.student_forces: Callable[[Batch], Tensor] | None = None

    @classmethod
    def of(cls, name: str, config: TermConfig, where: str, teacher: Offer, *, free_atoms: bool = True) -> HessianTerm:
        """The term for a teacher.

        Raises:
            ConfigError: if the teacher has no forces, or not the kind of rows that is asked for.
        """
        if "forces" not in teacher.outputs:
            predicts = ", ".join(sorted(teacher.outputs)) or "features only"
            raise ConfigError(f"{where} needs forces of the teacher, whose slopes are the Hessian, but {teacher.name} predicts {predicts}")
        method = teacher.hessian[0] if config.teacher_rows == "auto" else config.teacher_rows
        if method not in teacher.hessian:
            raise ConfigError(
                f"{where}: teacher_rows = {method}, but {teacher.name} has no forces that autograd can differentiate again; take "
                "teacher_rows=difference"
            )
        return cls(name, config, where, hessian_need(method, config.difference_step), free_atoms=free_atoms)

    def student_rows(self, student: Prediction, batch: Batch) -> Tensor:
        """Rows of the student, [s, n_atoms, 3] eV/Å², differentiable where grad is enabled.

        Raises:
            ValueError: if the prediction, or the batch, was not made for it.
        """
        rows = have(batch.hessian_rows, self, "hessian_rows of the batch (Terms.student_batch)")[: self.rows]
        if not self.exact:
            forces_of = have(self.student_forces, self, "student_forces")
            still = replace(batch, positions=batch.positions.detach())
            return difference_rows(forces_of, still, rows, self.step, at_once=stacked_rows(batch))
        forces = have(student.forces, self, "forces of the student")
        return exact_rows(forces, batch.positions, rows, batch, create_graph=torch.is_grad_enabled())

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        own = self.student_rows(student, batch)
        target = have(teacher.get(self.target), self, self.target)[: self.rows].detach()
        rows = cast("Tensor", batch.hessian_rows)[: self.rows]
        free = both(batch.free if self.free_atoms else None, teacher.agreed)
        return hessian_loss(own, target, rows >= 0, batch.graph_index, cast("ForcesLoss", self.loss), free, batch.atom_weight)
