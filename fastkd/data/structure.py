"""One structure with its labels, as arrays, in eV and Å."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms, cell and labels. Labels that are missing are NaN (energy) or None."""

    atomic_numbers: npt.NDArray[np.integer[Any]]  #: [n_atoms]
    positions: Floats  #: [n_atoms, 3] Å
    cell: Floats | None = None  #: [3, 3] Å, rows are lattice vectors
    pbc: npt.NDArray[np.bool_] | None = None  #: [3]
    energy: float = float("nan")  #: eV
    forces: Floats | None = None  #: [n_atoms, 3] eV/Å
    stress: Floats | None = None  #: [3, 3] eV/Å³
    split: str = ""  #: name of its split, "" for none
    system: str = ""  #: name of the molecule or trajectory it belongs to
    time_fs: float = float("nan")  #: fs, within its trajectory
    tags: npt.NDArray[np.integer[Any]] | None = None  #: [n_atoms], OC20's: 0 fixed or below the surface, 1 free slab, 2 adsorbate
    fixed: npt.NDArray[np.bool_] | None = None  #: [n_atoms], atoms that are held in place
    bonds: npt.NDArray[np.integer[Any]] | None = None  #: [n_bonds, 2], atoms of this structure, each pair once

    @property
    def num_atoms(self) -> int:
        return len(self.atomic_numbers)
