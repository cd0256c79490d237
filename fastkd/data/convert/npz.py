"""npz files: structures laid end to end with ``natoms``, frames of one molecule, or frames padded with atomic number 0.

Tags, fixed atoms (as forces are: per atom, or one row for all frames) and bonds (pairs of atoms of their structure, end to end with
``nbonds``, or the same for all frames) are read too.

The names of rMD17 (``nuclear_charges``, ``coords``, ``energies``, ``forces``) and of sGDML (``z``, ``R``, ``E``, ``F``) are known, and the units
and the level of theory that sGDML files state are read from them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.data.convert.source import SourceFacts, SourceOptions, finite_or_none, numeric, periodicity, require_file, stress_matrix
from fastkd.data.structure import Structure
from fastkd.data.units import Units
from fastkd.errors import DataError

#: Names under which each property is looked for, in this order.
NAMES = {
    "atomic_numbers": ("atomic_numbers", "nuclear_charges", "numbers", "z", "Z"),
    "positions": ("positions", "coords", "coordinates", "R"),
    "energy": ("energy", "energies", "E"),
    "forces": ("forces", "F"),
    "stress": ("stress",),
    "natoms": ("natoms", "n_atoms"),
    "cell": ("cell", "lattice"),
    "pbc": ("pbc",),
    "tags": ("tags",),
    "fixed": ("fixed",),
    "bonds": ("bonds",),
    "nbonds": ("nbonds", "n_bonds"),
}

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Table:
    """The arrays of a file, found and checked; structure i owns atoms ``ptr[i]:ptr[i + 1]`` of the flattened per-atom arrays."""

    ptr: npt.NDArray[np.int64]
    atomic_numbers: Array  #: [n_atoms]
    positions: Array  #: [n_atoms, 3]
    forces: Array | None  #: [n_atoms, 3]
    per_atom: dict[str, Array]  #: tags and fixed, [n_atoms]
    bonds: list[Array] | None  #: of each structure, [n_bonds, 2]
    per_structure: dict[str, Array]  #: [n, …]


def read_npz(path: Path, options: SourceOptions, seen: set[str] | None = None) -> Iterator[Structure]:
    """Structures of an npz file, whose arrays are held in memory.

    Args:
        path: of the file.
        options: where labels are, and which structures are wanted.
        seen: names of all arrays are added to it.

    Raises:
        DataError: if the file is damaged or holds pickled objects, a property is missing, or shapes do not fit together.
    """
    arrays = _load(path)
    if seen is not None:
        seen.update(arrays)
    table = _table(arrays, path, options)
    for index in range(len(table.ptr) - 1)[options.select]:
        yield _structure(table, index, path, options)


def npz_facts(path: Path) -> SourceFacts:
    """Units and level of theory that a file states, as sGDML's do."""
    arrays = _load(path, only=("e_unit", "r_unit", "theory"))
    stated = {name: _text(value) for name, value in arrays.items()}
    units = Units(stated["e_unit"], stated["r_unit"]) if {"e_unit", "r_unit"} <= stated.keys() else None
    return SourceFacts(units, stated.get("theory", ""))


def npz_splits(path: Path, members: dict[str, str], size: int) -> list[str]:
    """Split of each structure, from arrays of structure numbers in the file.

    Args:
        path: of the npz file.
        members: name of the split → name of the array that lists its structures.
        size: number of structures.

    Raises:
        DataError: if an array is missing, out of range, or two splits share a structure.
    """
    arrays = _load(path)
    split = np.full(size, "", dtype=object)
    for name, key in members.items():
        if key not in arrays:
            raise DataError(f"{path} has no array {key!r} for the split {name!r}. It has {', '.join(arrays)}.")
        index = np.asarray(arrays[key])
        if index.dtype.kind not in "iu" or index.ndim != 1 or (index.size and (index.min() < 0 or index.max() >= size)):
            raise DataError(f"{path}: {key} must list structure numbers from 0 to {size - 1}. Choose another array with --split-index.")
        taken = index[split[index] != ""]
        if len(taken):
            raise DataError(
                f"{path}: structure {int(taken[0])} is in the splits {split[taken[0]]!r} and {name!r}. Splits must not overlap."
            )
        split[index] = name
    return [str(name) for name in split]


def _load(path: Path, only: tuple[str, ...] | None = None) -> dict[str, Array]:
    require_file(path)
    try:
        # opened here, because numpy leaves a damaged file open
        with path.open("rb") as handle:
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path} is a single array, not an npz file. Save positions, atomic numbers and labels together with np.savez."
                )
            return {name: archive[name] for name in archive.files if only is None or name in only}
    except ValueError as error:
        raise DataError(
            f"{path} holds Python objects, which are not loaded, or is no npz file. Save it again with plain arrays."
        ) from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as npz ({error}). Copy it again.") from error


def _text(value: Array) -> str:
    item = value.item() if value.size == 1 else ""
    return item.decode("utf-8", errors="replace") if isinstance(item, bytes) else str(item)


def _find(arrays: dict[str, Array], name: str, path: Path, key: str = "") -> Array | None:
    if key:
        if key not in arrays:
            raise DataError(f"{path} has no array {key!r}. It has {', '.join(arrays)}.")
        return arrays[key]
    return next((arrays[candidate] for candidate in NAMES[name] if candidate in arrays), None)


def _need(arrays: dict[str, Array], name: str, path: Path) -> Array:
    found = _find(arrays, name, path)
    if found is None:
        raise DataError(
            f"{path} has no {name.replace('_', ' ')} (looked for {', '.join(NAMES[name])}). It has {', '.join(arrays) or 'nothing'}."
        )
    return found


def _whole(value: Array, what: str) -> Array:
    """Whole numbers, which some programs keep as floats."""
    numbers = numeric(value, what)
    good = np.isfinite(numbers) & (numbers == np.floor(numbers))
    if not good.all():
        raise DataError(f"{what} must be whole numbers, got {numbers[~good][0]}. Mend the source.")
    return numbers.astype(np.int64)


def _table(arrays: dict[str, Array], path: Path, options: SourceOptions) -> _Table:
    positions = numeric(_need(arrays, "positions", path), f"{path}: positions")
    numbers = _whole(_need(arrays, "atomic_numbers", path), f"{path}: atomic numbers")
    natoms = _find(arrays, "natoms", path)
    forces = _find(arrays, "forces", path, options.forces_key)
    if positions.ndim not in (2, 3) or positions.shape[-1] != 3:
        raise DataError(f"{path}: positions have shape {positions.shape}, must be [n_atoms, 3] with natoms, or [n_frames, n_atoms, 3].")
    if forces is not None and forces.shape != positions.shape:
        raise DataError(f"{path}: forces have shape {forces.shape}, positions {positions.shape}; they must be equal.")
    flat = positions.reshape(-1, 3)
    if positions.ndim == 2:
        counts = np.array([len(positions)]) if natoms is None else _whole(natoms, f"{path}: natoms").reshape(-1)
        real = np.ones(len(flat), dtype=bool)
    else:
        frames, atoms = positions.shape[:2]
        if numbers.shape == (atoms,):
            numbers = np.broadcast_to(numbers, (frames, atoms))
        # padding: atomic number 0
        real = np.asarray(numbers).reshape(-1) != 0
        counts = real.reshape(frames, atoms).sum(axis=1) if numbers.shape == (frames, atoms) else np.zeros(0)
    numbers = np.asarray(numbers).reshape(-1)
    if len(numbers) != len(flat) or counts.sum() != real.sum() or (counts < 0).any():
        raise DataError(
            f"{path}: positions {positions.shape}, atomic numbers and natoms do not fit together: {len(numbers)} atomic numbers, natoms sum "
            f"to {int(counts.sum())}. Atomic numbers must be [n_atoms], or [n_frames, n_atoms] padded with 0."
        )
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    per_structure = _per_structure(arrays, len(counts), path, options)
    return _Table(
        ptr,
        numbers[real],
        flat[real],
        None if forces is None else forces.reshape(-1, 3)[real],
        _per_atom(arrays, positions.shape[:-1], real, path) if options.tags else {},
        _bonds(arrays, len(counts), path) if options.tags else None,
        per_structure,
    )


def _per_atom(arrays: dict[str, Array], shape: tuple[int, ...], real: Array, path: Path) -> dict[str, Array]:
    """Tags and fixed atoms without padding; ``shape`` is [n_atoms] or [n_frames, n_atoms] of the positions."""
    found = {}
    for name in ("tags", "fixed"):
        value = _find(arrays, name, path)
        if value is None:
            continue
        # one row for all frames, as atomic numbers may have
        rows = np.broadcast_to(value, shape) if value.shape == shape[-1:] else value
        if rows.shape != shape:
            raise DataError(
                f"{path}: {name} has shape {value.shape}, must be {list(shape)}, one for each atom. Mend the source, or --no-tags."
            )
        found[name] = rows.reshape(-1)[real]
    return found


def _bonds(arrays: dict[str, Array], size: int, path: Path) -> list[Array] | None:
    bonds, counts = _find(arrays, "bonds", path), _find(arrays, "nbonds", path)
    if bonds is None:
        return None
    if bonds.ndim != 2 or bonds.shape[1] != 2:
        raise DataError(f"{path}: bonds have shape {bonds.shape}, must be [n_bonds, 2], two atoms of the structure for each bond.")
    if counts is None:
        return [bonds] * size
    whole = _whole(counts, f"{path}: nbonds").reshape(-1)
    if len(whole) != size or (whole < 0).any() or whole.sum() != len(bonds):
        raise DataError(
            f"{path}: nbonds has {len(whole)} numbers that sum to {int(whole.sum())}, but there are {size} structures and {len(bonds)} bonds."
        )
    return np.split(bonds, np.cumsum(whole)[:-1])


def _per_structure(arrays: dict[str, Array], size: int, path: Path, options: SourceOptions) -> dict[str, Array]:
    found = {
        "energy": _find(arrays, "energy", path, options.energy_key),
        "stress": _find(arrays, "stress", path, options.stress_key),
        "cell": _find(arrays, "cell", path),
        "pbc": _find(arrays, "pbc", path),
    }
    for name, key in (("system", options.system_key), ("split", options.split_key)):
        if key:
            found[name] = _find(arrays, name, path, key)
    table = {}
    for name, value in found.items():
        if value is None:
            continue
        row = {"cell": (3, 3), "pbc": (3,)}.get(name)
        # one cell, or one set of periodic directions, for all frames
        rows = np.broadcast_to(value, (size, *value.shape)) if value.shape == row else value
        if rows.ndim == 0 or len(rows) != size:
            raise DataError(f"{path}: {name} has shape {value.shape}, but there are {size} structures.")
        if row is not None and rows.shape[1:] != row:
            raise DataError(f"{path}: {name} has shape {value.shape}, must be {list(row)} or {[size, *row]}.")
        if name == "cell":
            numeric(rows, f"{path}: cell")
        if name == "pbc" and rows.dtype.kind not in "biu":
            raise DataError(f"{path}: pbc holds {rows.dtype}, must hold true and false. Mend the source, or tell with --pbc.")
        table[name] = rows
    energy = table.get("energy")
    if energy is not None:
        numeric(energy, f"{path}: energy", "--energy-key")
        if energy.size != size:
            raise DataError(
                f"{path}: energy has shape {energy.shape}, {size} structures need one number each. Name another with --energy-key."
            )
        table["energy"] = energy.reshape(size)
    return table


def _structure(table: _Table, index: int, path: Path, options: SourceOptions) -> Structure:
    atoms = slice(int(table.ptr[index]), int(table.ptr[index + 1]))
    row = {name: rows[index] for name, rows in table.per_structure.items()}
    cell = row.get("cell")
    where = f"{path}, structure {index}"
    stress = finite_or_none(row.get("stress"), f"{where}: a stress", "--stress-key")
    return Structure(
        atomic_numbers=table.atomic_numbers[atoms],
        positions=table.positions[atoms],
        cell=None if cell is None else np.asarray(cell, dtype=np.float64),
        pbc=np.asarray(row["pbc"], dtype=bool) if "pbc" in row and not options.pbc else periodicity(cell, options.pbc),
        energy=float(row.get("energy", np.nan)),
        forces=finite_or_none(None if table.forces is None else table.forces[atoms], f"{where}: forces", "--forces-key"),
        stress=None if stress is None else stress_matrix(stress, where),
        split=_text(np.asarray(row.get("split", ""))),
        system=_text(np.asarray(row["system"])) if "system" in row else options.system,
        tags=table.per_atom["tags"][atoms] if "tags" in table.per_atom else None,
        fixed=table.per_atom["fixed"][atoms] if "fixed" in table.per_atom else None,
        bonds=None if table.bonds is None else table.bonds[index],
    )
