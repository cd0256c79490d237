"""What a term is told where there are several teachers: one of them, or their mean; and where they agree.

Spread is the standard deviation over the M teachers, √( (1/M) Σ_m ‖y_m − ȳ‖² ): of energies per structure, of forces and of rows of Hessians
per atom with the norm of the 3-vector, of energies of atoms per atom. Two teachers of equal value are apart by twice their spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.distill.hessian import HessianTerm
from fastkd.distill.term import Term
from fastkd.teachers.committee import mean_of, spread_of
from fastkd.teachers.hessian import HESSIAN
from fastkd.teachers.output import Need, TeacherOutput, split_need


def told(term: Term, said: Mapping[str, TeacherOutput], batch: Batch, references: Mapping[str, Tensor | None]) -> TeacherOutput:
    """What a term hears of several teachers, with `TeacherOutput.agreed` where it only listens as far as they agree.

    Args:
        term: names a teacher, or takes the mean.
        said: the output of each teacher, by name.
        batch: the structures.
        references: energies of single atoms of each teacher, [119] eV; without them energies of atoms are compared as they are.

    Raises:
        ValueError: if a teacher did not say what the term needs.
    """
    output = said[term.teacher] if term.teacher else _mean(term, said)
    if not term.agree:
        return output
    (need,) = term.needs
    values = _all(term, need, said)
    if isinstance(term, HessianTerm):
        # another term of the step may look at more rows
        values = {name: value[: term.rows] for name, value in values.items()}
    return replace(output, agreed=_spread(need, values, batch, references) <= term.agree)


def share(output: TeacherOutput, batch: Batch) -> Tensor | None:
    """The part of all structures, atoms or atoms of rows on which teachers agree; of rows that a structure has."""
    if output.agreed is None:
        return None
    agreed = output.agreed
    if agreed.dim() == 2 and batch.hessian_rows is not None:
        there = (batch.hessian_rows[: agreed.shape[0]] >= 0)[:, batch.graph_index]
        return (agreed & there).sum() / there.sum().clamp(min=1)
    return agreed.double().mean()


def _all(term: Term, need: Need, said: Mapping[str, TeacherOutput]) -> dict[str, Tensor]:
    found = {}
    for name, output in said.items():
        value = output.get(need)
        if value is None:
            raise ValueError(f"term {term.name} needs {need} of every teacher, and {name} did not give it")
        found[name] = value
    return found


def _mean(term: Term, said: Mapping[str, TeacherOutput]) -> TeacherOutput:
    means: dict[str, Any] = {need: mean_of(list(_all(term, need, said).values())) for need in term.needs}
    rows = {need: means.pop(need) for need in list(means) if "@" in need}
    return TeacherOutput(layers=rows, **means)


def _spread(need: Need, values: Mapping[str, Tensor], batch: Batch, references: Mapping[str, Tensor | None]) -> Tensor:
    name = split_need(need)[0]
    if name == "atom_energy" and all(references.get(teacher) is not None for teacher in values):
        # parts of totals: other reference energies are no disagreement
        numbers = batch.atomic_numbers
        values = {
            teacher: value.double() + torch.as_tensor(references[teacher], device=value.device).double()[numbers]
            for teacher, value in values.items()
        }
    return spread_of(list(values.values()), vectors=name in ("forces", HESSIAN))
