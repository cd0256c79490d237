"""A teacher as an ASE calculator: energy and forces of one structure after the other, for relaxations and dynamics.

Example:
    >>> atoms.calc = TeacherCalculator(load_teacher("embedded"))
    >>> BFGS(atoms).run(fmax=0.03)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

from fastkd.data.batching import Pieces, collate
from fastkd.data.structure import Structure
from fastkd.errors import DataError
from fastkd.teachers.base import BaseTeacher, TeacherCost

Labels = tuple[float, npt.NDArray[np.float64]]
#: What a teacher raises far outside of what it knows, beside `DataError`.
FAILURES = (DataError, FloatingPointError, np.linalg.LinAlgError, ValueError)


def energies_and_forces(teacher: BaseTeacher, structures: Sequence[Structure], cost: TeacherCost) -> list[Labels | Exception]:
    """Energy [eV] and forces [n_atoms, 3] eV/Å of each structure, asked for in one batch, or why there are none.

    A teacher that fails on the batch is asked about one structure after the other.
    """
    pieces: list[Pieces | Exception] = []
    for structure in structures:
        try:
            pieces.append(Pieces.of(structure, 0, teacher.cutoffs, labelled=False))
        except FAILURES as error:
            pieces.append(error)
    whole = [piece for piece in pieces if isinstance(piece, Pieces)]
    answers = iter(_ask(teacher, whole, cost))
    return [piece if isinstance(piece, Exception) else next(answers) for piece in pieces]


def _ask(teacher: BaseTeacher, pieces: list[Pieces], cost: TeacherCost) -> list[Labels | Exception]:
    if not pieces:
        return []
    batch = collate(pieces, torch.float64)
    try:
        output = cost.measured(teacher, batch.to(teacher.device), frozenset({"energy", "forces"}))
    except FAILURES as error:
        return [error] if len(pieces) == 1 else [answer for piece in pieces for answer in _ask(teacher, [piece], cost)]
    if output.energy is None or output.forces is None:
        raise DataError(f"{teacher.source} gave no energy or forces")
    found: list[Labels | Exception] = []
    forces = np.split(output.forces.double().cpu().numpy(), batch.atom_ptr[1:-1].tolist())
    for energy, part in zip(output.energy.double().cpu().tolist(), forces, strict=True):
        finite = np.isfinite(energy) and bool(np.isfinite(part).all())
        found.append((energy, part) if finite else DataError(f"energy or forces of {teacher.source} are not finite"))
    return found


class TeacherCalculator(Calculator):  # type: ignore[misc]
    """ASE's interface to any teacher that predicts energies and forces, in eV and eV/Å.

    Forces are the teacher's own on every atom; ASE takes those of fixed atoms away when it is asked with constraints.

    Args:
        teacher: to ask.
        cost: where its time is counted; None for a count of its own.
        ask: who asks it instead, see `fastkd.engine.together`.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, teacher: BaseTeacher, cost: TeacherCost | None = None, ask: Callable[[Structure], Labels] | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.cost = TeacherCost() if cost is None else cost
        self._ask = ask or self._ask_alone

    def _ask_alone(self, structure: Structure) -> Labels:
        (answer,) = energies_and_forces(self.teacher, [structure], self.cost)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Energy and forces of a structure.

        Raises:
            DataError: if the teacher cannot take it, or gives numbers that are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        energy, forces = self._ask(structure_of(self.atoms))
        self.results = {"energy": energy, "forces": forces}


def structure_of(atoms: Any) -> Structure:
    """Atoms, cell and tags of ASE's object, without labels."""
    tags = atoms.get_tags()
    return Structure(
        atomic_numbers=atoms.get_atomic_numbers(),
        positions=atoms.get_positions(),
        cell=np.asarray(atoms.cell, dtype=np.float64) if atoms.pbc.any() else None,
        pbc=np.asarray(atoms.pbc) if atoms.pbc.any() else None,
        tags=tags if tags.any() else None,
    )


def atoms_of(structure: Structure) -> Atoms:
    """The structure as ASE's object; atoms that are held fixed get a constraint."""
    atoms = Atoms(
        structure.atomic_numbers.astype(int),
        np.asarray(structure.positions, dtype=np.float64),
        cell=None if structure.cell is None else np.asarray(structure.cell, dtype=np.float64),
        pbc=structure.pbc,
        tags=structure.tags,
    )
    if structure.fixed is not None and structure.fixed.any():
        atoms.set_constraint(FixAtoms(mask=structure.fixed))
    return atoms
