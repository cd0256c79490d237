"""A teacher as an ASE calculator: energy and forces of one structure after the other, for relaxations and dynamics.

Example:
    >>> atoms.calc = TeacherCalculator(load_teacher("embedded"))
    >>> BFGS(atoms).run(fmax=0.03)
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms

from fastkd.data.batching import Pieces, collate
from fastkd.data.structure import Structure
from fastkd.errors import DataError
from fastkd.teachers.base import BaseTeacher, TeacherCost


class TeacherCalculator(Calculator):  # type: ignore[misc]
    """ASE's interface to any teacher that predicts energies and forces, in eV and eV/Å.

    Forces are the teacher's own on every atom; ASE takes those of fixed atoms away when it is asked with constraints.

    Args:
        teacher: to ask.
        cost: where its time is counted; None for a count of its own.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, teacher: BaseTeacher, cost: TeacherCost | None = None) -> None:
        super().__init__()
        self.teacher = teacher
        self.cost = TeacherCost() if cost is None else cost

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Energy and forces of a structure.

        Raises:
            DataError: if the teacher cannot take it, or gives numbers that are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        cutoffs = () if self.teacher.cutoff is None else (self.teacher.cutoff,)
        piece = Pieces.of(structure_of(self.atoms), 0, cutoffs, labelled=False)
        output = self.cost.measured(self.teacher, collate([piece], torch.float64).to(self.teacher.device), frozenset({"energy", "forces"}))
        if output.energy is None or output.forces is None:
            raise DataError(f"{self.teacher.source} gave no energy or forces")
        energy, forces = float(output.energy[0]), output.forces.double().cpu().numpy()
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise DataError(f"energy or forces of {self.teacher.source} are not finite")
        self.results = {"energy": energy, "forces": forces}


def structure_of(atoms: Any) -> Structure:
    """Atoms, cell, tags and fixed atoms of ASE's object, without labels."""
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
