"""extxyz, ASE databases, and everything else that ASE reads, one structure at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian

from fastkd.data.convert.source import SourceOptions, finite_or_none, numeric, require_file, stress_matrix
from fastkd.data.structure import Structure
from fastkd.errors import DataError


def read_ase(path: Path, options: SourceOptions, seen: set[str] | None = None) -> Iterator[Structure]:
    """Structures of a file that ASE reads; compressed extxyz too.

    Labels come from the calculator that ASE attaches to each structure, which holds what the file calls energy, forces and stress; or
    from the keys in ``options``. Forces are those of the file: constraints of the structure do not remove any.

    Tags are read as OC20's; tags that are all zero are ASE's way to have none. Atoms are fixed that a constraint holds in all directions
    (`FixAtoms`, `FixCartesian`; in extxyz the column ``move_mask``), or that a column ``fixed`` names.

    Args:
        path: of the file.
        options: where labels are, and which structures are wanted.
        seen: names of all properties met on the way are added to it.

    Raises:
        DataError: if ASE cannot read the file, or a key that was asked for is in no structure.
    """
    require_file(path)
    yield from _structures(_frames(path), path, options, set() if seen is None else seen)


def read_ase_db(path: Path, options: SourceOptions, seen: set[str] | None = None) -> Iterator[Structure]:
    """Structures of an ASE database, by ascending id; keys are looked up among key–value pairs and data of each row.

    Raises:
        DataError: as `read_ase`.
    """
    require_file(path)
    yield from _structures(_rows(path), path, options, set() if seen is None else seen)


def _frames(path: Path) -> Iterator[Atoms]:
    from ase.io import iread

    # by itself, ASE takes what follows an @ in a file's name for a choice of structures
    yield from iread(path, index=":", do_not_split_by_at_sign=True)


def _rows(path: Path) -> Iterator[Atoms]:
    from ase.db import connect

    with connect(path) as database:
        for row in database.select(sort="id"):
            atoms = row.toatoms()
            atoms.info = {"id": row.id, **row.data, **row.key_value_pairs}
            yield atoms


def _structures(frames: Iterator[Atoms], path: Path, options: SourceOptions, seen: set[str]) -> Iterator[Structure]:
    wanted = {key for key in (options.energy_key, options.forces_key, options.stress_key, options.system_key, options.split_key) if key}
    part = options.select
    for number, atoms in _numbered(islice(_guarded(frames, path), part.start, part.stop, part.step), part):
        where = f"{path}, structure {number}"
        properties = _properties(atoms)
        seen.update(properties)
        yield _structure(atoms, properties, options, where)
    absent = sorted(wanted - seen)
    if absent:
        raise DataError(f"{path}: no structure has a property {absent[0]!r}. They have {', '.join(sorted(seen)) or 'none'}.")


def _numbered(frames: Iterator[Atoms], part: slice) -> Iterator[tuple[int, Atoms]]:
    start, step = part.start or 0, part.step or 1
    for count, atoms in enumerate(frames):
        yield start + count * step, atoms


def _guarded(frames: Iterator[Atoms], path: Path) -> Iterator[Atoms]:
    number = 0
    while True:
        try:
            atoms = next(frames)
        except StopIteration:
            return
        # the readers of ASE raise whatever their parsing runs into
        except Exception as error:
            mend = f"Mend the file, or stop before with --select 0:{number}." if number else "Is it in a format that ASE reads, and whole?"
            raise DataError(f"{path}, structure {number}: ASE cannot read it ({type(error).__name__}: {error}). {mend}") from error
        yield atoms
        number += 1


def _properties(atoms: Atoms) -> dict[str, Any]:
    """Everything that is known of a structure, by name: what the file says beside the calculator's results goes first."""
    results = atoms.calc.results if atoms.calc is not None else {}
    return {**results, **{name: array for name, array in atoms.arrays.items() if name not in ("numbers", "positions")}, **atoms.info}


def _structure(atoms: Atoms, properties: dict[str, Any], options: SourceOptions, where: str) -> Structure:
    results = atoms.calc.results if atoms.calc is not None else {}
    energy = properties.get(options.energy_key) if options.energy_key else results.get("energy")
    forces = properties.get(options.forces_key) if options.forces_key else results.get("forces")
    forces = finite_or_none(forces, f"{where}: forces", "--forces-key")
    stress = properties.get(options.stress_key) if options.stress_key else results.get("stress")
    stress = finite_or_none(stress, f"{where}: a stress", "--stress-key")
    if energy is not None and numeric(energy, f"{where}: the energy", "--energy-key").size != 1:
        raise DataError(
            f"{where}: the energy has shape {np.shape(energy)}, it must be one number. Name the right property with --energy-key."
        )
    if forces is not None and forces.shape != (len(atoms), 3):
        raise DataError(
            f"{where}: forces have shape {forces.shape}, {len(atoms)} atoms need {(len(atoms), 3)}. Name the right one with --forces-key."
        )
    has_cell = bool(np.any(atoms.cell.array))
    return Structure(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array if has_cell else None,
        pbc=atoms.pbc if has_cell or atoms.pbc.any() else None,
        energy=float("nan") if energy is None else float(np.asarray(energy).item()),
        forces=forces,
        stress=None if stress is None else stress_matrix(stress, where),
        split=str(properties.get(options.split_key, "")) if options.split_key else "",
        system=str(properties.get(options.system_key, "")) if options.system_key else options.system,
        tags=atoms.get_tags() if options.tags and atoms.has("tags") and atoms.get_tags().any() else None,
        fixed=_fixed(atoms) if options.tags else None,
    )


def _fixed(atoms: Atoms) -> npt.NDArray[Any] | None:
    """Atoms that are held in all directions, [n_atoms]; None if the structure says nothing of it."""
    column = atoms.arrays.get("fixed")
    fixed = np.zeros(len(atoms), dtype=bool) if column is None else np.array(column)
    held = [
        constraint.index
        for constraint in atoms.constraints
        if isinstance(constraint, FixAtoms) or (isinstance(constraint, FixCartesian) and np.all(constraint.mask))
    ]
    if column is None and not held:
        return None
    for index in held:
        fixed[index] = True
    return fixed
