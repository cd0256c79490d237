"""Read a data file: checked when opened, random access, safe in worker processes.

Example:
    >>> with DataFile("water.h5") as data:
    ...     data[0].energy, data.level_of_theory
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from fastkd.data.extras import first_bad_bond
from fastkd.data.format import BLOCK_ROWS, FIELDS, FORMAT_NAME, SCHEMA_VERSION, TAGS, Field, content_hash
from fastkd.data.structure import Structure
from fastkd.errors import DataError

Ints = npt.NDArray[np.int64]

#: What h5py raises when HDF5 meets bytes that make no sense, depending on where it meets them.
_DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)

_NUMPY_KINDS = {"integer": "iu", "float": "f", "bool": "b", "text": "OS"}


class DataFile:
    """A data file of format v1. Each process that reads opens the file for itself: a handle never crosses a fork or a pickle.

    Opening checks everything that can be checked without reading all of it: format, version, arrays, shapes, types, units, pointers.
    `check_values` looks at every number, `check_hash` at every byte.

    Raises:
        DataError: if the file is not there, truncated, of another format or version, or inconsistent.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}  # of the open file; looking them up takes longer than reading a structure
        self._pid = -1
        if not self.path.is_file():
            raise DataError(f"{path}: no such file. Give the path of an HDF5 data file, or 'embedded' for the data that ships with fastkd.")
        file = self._open()
        try:
            with self._damage("its header"):
                self._check_header(file)
                #: properties that the file has
                self.fields: tuple[str, ...] = tuple(name for name in FIELDS if name in file)
                self.atom_ptr: Ints = self._pointers(file, "atom_ptr")
                #: first bond of each structure, [n + 1]; None if the file has no bonds
                self.bond_ptr: Ints | None = self._pointers(file, "bond_ptr") if "bonds" in self.fields else None
                self._check_arrays(file)
        except BaseException:
            # while a refused file stays open, HDF5 hands out what it remembers of it, even when a good copy has taken its place
            self.close()
            raise

    @property
    def file(self) -> h5py.File:
        """The open file of this process."""
        if self._file is None or self._pid != os.getpid():
            self._open()
        assert self._file is not None
        return self._file

    def _open(self) -> h5py.File:
        # handles inherited through a fork go first: while they are open, HDF5 would hand out the parent's file descriptor again
        self._datasets, self._file = {}, None
        try:
            # best effort: some network and read-only file systems cannot lock, and nobody writes a finished file
            self._file, self._pid = h5py.File(self.path, "r", locking="best-effort"), os.getpid()
        except FileNotFoundError as error:
            raise DataError(f"{self.path} is not there any more. Put it back, or give another path.") from error
        except PermissionError as error:
            raise DataError(f"{self.path} may not be read by this user. Change its permissions, or copy it.") from error
        except OSError as error:
            size = self.path.stat().st_size
            raise DataError(
                f"{self.path} cannot be read as HDF5 ({size:,} bytes): {error}. It is truncated or not an HDF5 file; copy it again, "
                "or convert its source with `fastkd convert`."
            ) from error
        return self._file

    @contextlib.contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Report failures of HDF5 as DataError."""
        try:
            yield
        except _DAMAGE as error:
            reason = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError quotes its message
            raise DataError(
                f"{self.path}: {what} cannot be read ({reason}). The file is damaged; copy it again, or convert its source."
            ) from error

    def close(self) -> None:
        """Close this process's handle; the next access opens it again."""
        self._datasets = {}
        if self._file is not None and self._pid == os.getpid():
            # HDF5 may fail to close a damaged file; it was only read, so nothing is lost
            with contextlib.suppress(*_DAMAGE):
                self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_datasets": {}, "_pid": -1}

    # what a file says of itself

    def attribute(self, name: str, default: str = "") -> str:
        with self._damage(f"the attribute {name!r}"):
            value = self.file.attrs.get(name, default)
            return value.decode("utf-8") if isinstance(value, bytes) else str(value)

    @property
    def level_of_theory(self) -> str:
        return self.attribute("level_of_theory")

    @property
    def licence(self) -> str:
        return self.attribute("licence")

    @property
    def content_hash(self) -> str:
        """SHA-256 as stored; `check_hash` computes it again."""
        return self.attribute("content_hash")

    @property
    def provenance(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.attribute("provenance") or "{}"))
        except ValueError as error:
            raise DataError(f"{self.path}: the attribute 'provenance' is no JSON object ({error}). Convert its source again.") from error

    def rows(self, name: str, part: slice = slice(None)) -> npt.NDArray[Any]:
        """Rows of one array of the file: atoms, structures or bonds, whichever it counts.

        Raises:
            DataError: if they cannot be read, because the file is damaged or went away.
        """
        with self._damage(name):
            file = self.file
            if name not in self._datasets:
                self._datasets[name] = file[name]
            rows: npt.NDArray[Any] = self._datasets[name][part]
        return rows

    def __len__(self) -> int:
        return len(self.atom_ptr) - 1

    @cached_property
    def splits(self) -> npt.NDArray[np.str_]:
        """Split of each structure, "" for none."""
        return self._texts("split")

    @cached_property
    def systems(self) -> npt.NDArray[np.str_]:
        """System of each structure, "" for none."""
        return self._texts("system")

    def _texts(self, name: str) -> npt.NDArray[np.str_]:
        if name not in self.fields:
            return np.full(len(self), "", dtype=str)
        return np.array([_text(item) for item in self.rows(name)], dtype=str).reshape(len(self))

    # structures

    def num_atoms(self, index: int) -> int:
        """Atoms of one structure."""
        return int(self.atom_ptr[index + 1] - self.atom_ptr[index])

    def __getitem__(self, index: int) -> Structure:
        return self.read([range(len(self))[index]])[0]

    def read(self, indices: Sequence[int] | Ints) -> list[Structure]:
        """Structures by number, in the order asked for; neighbouring numbers are read in one go.

        Raises:
            IndexError: if a number is out of range.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.path} has {len(self)} structures, number {int(wanted.max())} was asked for")
        found: dict[int, Structure] = {}
        unique = np.unique(wanted)
        for run in np.split(unique, np.flatnonzero(np.diff(unique) > 1) + 1):
            if len(run):
                self._read_run(int(run[0]), int(run[-1]) + 1, found)
        return [found[index] for index in wanted.tolist()]

    def _read_run(self, first: int, last: int, found: dict[int, Structure]) -> None:
        start, stop = int(self.atom_ptr[first]), int(self.atom_ptr[last])
        # a file without bonds has no array that is cut by it
        bonds = self.atom_ptr if self.bond_ptr is None else self.bond_ptr
        first_bond = int(bonds[first])
        parts = {"atom": slice(start, stop), "structure": slice(first, last), "bond": slice(first_bond, int(bonds[last]))}
        arrays = {name: self.rows(name, parts[FIELDS[name].per]) for name in self.fields}
        for index in range(first, last):
            place: dict[str, slice | int] = {
                "atom": slice(int(self.atom_ptr[index]) - start, int(self.atom_ptr[index + 1]) - start),
                "structure": index - first,
                "bond": slice(int(bonds[index]) - first_bond, int(bonds[index + 1]) - first_bond),
            }
            found[index] = _structure({name: array[place[FIELDS[name].per]] for name, array in arrays.items()})

    def missing_labels(self, *, forces: bool = True) -> Ints:
        """Numbers of the structures whose energy or forces are missing or NaN; without ``forces`` an energy is enough."""
        missing = np.zeros(len(self), dtype=bool)
        wanted = {"energy", "forces"} if forces else {"energy"}
        if not wanted <= set(self.fields):
            missing[:] = True
            return np.flatnonzero(missing).astype(np.int64)
        missing |= ~np.isfinite(self.rows("energy"))
        if forces:
            for first in range(0, int(self.atom_ptr[-1]), BLOCK_ROWS):
                rows = self.rows("forces", slice(first, first + BLOCK_ROWS))
                bad = first + np.flatnonzero(~np.isfinite(rows).all(axis=1))
                missing[np.searchsorted(self.atom_ptr, bad, side="right") - 1] = True
        return np.flatnonzero(missing).astype(np.int64)

    # checks

    def check_hash(self) -> None:
        """Compare the content with its stored hash.

        Raises:
            DataError: if they differ.
        """
        with self._damage("its content"):
            found = content_hash(self.file)
        if found != self.content_hash:
            raise DataError(
                f"{self.path}: the content hash is {found[:12]}…, the file says {self.content_hash[:12] or 'nothing'}…: it was changed after "
                "it was written, or damaged. Copy or convert it again."
            )

    def check_values(self) -> None:
        """Look at every position, atomic number, cell, tag and bond.

        Raises:
            DataError: naming the first structure that is wrong.
        """
        for first in range(0, int(self.atom_ptr[-1]), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            bad = ~np.isfinite(self.rows("positions", part)).all(axis=1)
            self._refuse_atoms(bad, first, "positions are not finite")
            numbers = self.rows("atomic_numbers", part)
            self._refuse_atoms((numbers < 1) | (numbers > 118), first, "atomic numbers are not between 1 and 118")
            if "tags" in self.fields:
                self._refuse_atoms(
                    ~np.isin(self.rows("tags", part), TAGS),
                    first,
                    "tags are not 0, 1 or 2",
                    "Mend the source, or convert it with --no-tags.",
                )
        if "cell" in self.fields:
            bad = np.flatnonzero(~np.isfinite(self.rows("cell")).all(axis=(1, 2)))
            if len(bad):
                raise DataError(f"{self.path}: the cell of structure {bad[0]} is not finite. Remove it from the source and convert again.")
        for first in range(0, len(self) if self.bond_ptr is not None else 0, BLOCK_ROWS):
            self._check_bonds(first, min(first + BLOCK_ROWS, len(self)))

    def _check_bonds(self, first: int, last: int) -> None:
        """Look at all bonds of some structures."""
        assert self.bond_ptr is not None
        counts = np.diff(self.bond_ptr[first : last + 1])
        bonds = self.rows("bonds", slice(int(self.bond_ptr[first]), int(self.bond_ptr[last])))
        structure = np.repeat(np.arange(last - first), counts)
        found = first_bad_bond(bonds, structure, np.diff(self.atom_ptr[first : last + 1]))
        if found is not None:
            raise DataError(f"{self.path}: structure {first + int(structure[found[0]])}: {found[1]}")

    def _refuse_atoms(
        self, bad: npt.NDArray[np.bool_], first: int, what: str, mend: str = "Remove it from the source and convert again."
    ) -> None:
        if bad.any():
            atom = first + int(np.flatnonzero(bad)[0])
            structure = int(np.searchsorted(self.atom_ptr, atom, side="right")) - 1
            raise DataError(f"{self.path}: {what} in structure {structure} (atom {atom}). {mend}")

    def _check_header(self, file: h5py.File) -> None:
        name = file.attrs.get("format")
        if (name.decode() if isinstance(name, bytes) else name) != FORMAT_NAME:
            raise DataError(
                f"{self.path} is an HDF5 file, but not one of fastkd's (its attribute 'format' is {name!r}, not {FORMAT_NAME!r}). "
                "Convert its source with `fastkd convert`; docs/file-format.md describes the format."
            )
        version = file.attrs.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{self.path} has schema version {version}, this release reads version {SCHEMA_VERSION}. Use a matching release, or convert again."
            )
        missing = [name for name in ("atom_ptr", *(n for n, field in FIELDS.items() if field.required)) if name not in file]
        missing += ["bond_ptr"] if "bonds" in file and "bond_ptr" not in file else []
        if missing:
            raise DataError(f"{self.path} lacks {', '.join(missing)}. Convert its source again.")

    def _pointers(self, file: h5py.File, name: str) -> Ints:
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or len(dataset.shape or ()) != 1 or dataset.dtype.kind not in "iu":
            raise DataError(f"{self.path}: {name} must be a one-dimensional array of integers. Convert its source again.")
        ptr: Ints = self.rows(name).astype(np.int64)
        bonds = name == "bond_ptr"
        if len(ptr) < 1 or ptr[0] != 0 or (np.diff(ptr) < (0 if bonds else 1)).any():
            how = "never shrink" if bonds else "grow with every structure"
            raise DataError(f"{self.path}: {name} must begin with 0 and {how}. Convert its source again.")
        if bonds and len(ptr) != len(self) + 1:
            raise DataError(
                f"{self.path}: bond_ptr has {len(ptr)} entries, {len(self)} structures need {len(self) + 1}. Convert its source again."
            )
        return ptr

    def _check_arrays(self, file: h5py.File) -> None:
        rows = {"atom": int(self.atom_ptr[-1]), "structure": len(self), "bond": 0 if self.bond_ptr is None else int(self.bond_ptr[-1])}
        for name in self.fields:
            self._check_array(name, FIELDS[name], file[name], rows[FIELDS[name].per])

    def _check_array(self, name: str, field: Field, dataset: Any, rows: int) -> None:
        expected = (rows, *field.shape)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != expected:
            shape = getattr(dataset, "shape", "a group")
            pointer = "bond_ptr" if field.per == "bond" else "atom_ptr"
            raise DataError(f"{self.path}: {name} has shape {shape}, {pointer} needs {expected}. Convert its source again.")
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        if dataset.dtype.kind not in _NUMPY_KINDS[field.kind] or is_text != (field.kind == "text"):
            raise DataError(f"{self.path}: {name} holds {dataset.dtype}, but must hold {field.kind} values. Convert its source again.")
        unit = dataset.attrs.get("unit", field.unit)
        unit = unit.decode("utf-8") if isinstance(unit, bytes) else unit
        if unit != field.unit:
            raise DataError(
                f"{self.path}: {name} is in {unit!r}, format v1 keeps {field.unit!r}. Convert with --energy-unit and --length-unit."
            )


def _text(item: bytes) -> str:
    return item.decode("utf-8", errors="replace")


def _structure(row: dict[str, Any]) -> Structure:
    values: dict[str, Any] = dict(row)
    for name, value in row.items():
        if FIELDS[name].kind == "text":
            values[name] = _text(value)
        elif FIELDS[name].per == "structure" and not FIELDS[name].shape:
            values[name] = float(value)
        elif FIELDS[name].label and not np.isfinite(value).all():
            values[name] = None
    values["atomic_numbers"] = row["atomic_numbers"].astype(np.int64)
    return Structure(**values)
