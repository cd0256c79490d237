"""Write a data file, a structure or a block at a time, in bounded memory; the finished file appears under its name at once.

Example:
    >>> with DataWriter("water.h5", level_of_theory="GFN2-xTB") as writer:
    ...     writer.append(Structure(np.array([8, 1, 1]), positions, energy=-137.9, forces=forces))
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

import fastkd
from fastkd.data.extras import bonds_fault, fixed_fault, tags_fault
from fastkd.data.format import FIELDS, FORMAT_NAME, SCHEMA_VERSION, Field, content_hash
from fastkd.data.sink import Sink
from fastkd.data.structure import Structure
from fastkd.data.units import Units
from fastkd.errors import DataError

_TEXT = h5py.string_dtype("utf-8")
_BUFFERED_ATOMS = 1 << 16


class DataWriter:
    """A file in the making: ``name.partial`` until `close`, then renamed. An exception inside the ``with`` block leaves no file.

    Args:
        path: of the file; an existing one is an error unless ``overwrite``.
        level_of_theory: how labels were computed, e.g. ``"PBE/def2-SVP"``.
        units: of what is appended; converted to eV and Å here.
        licence: of the data, as an SPDX identifier or a sentence.
        provenance: anything that JSON can hold; kept as an attribute.
        overwrite: replace an existing file, when the new one is finished.
        positions_dtype: float32 (1e-6 Å) or float64.

    Raises:
        DataError: if the file exists, cannot be written, or a structure is malformed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        level_of_theory: str,
        units: Units | None = None,
        licence: str = "",
        provenance: dict[str, Any] | None = None,
        overwrite: bool = False,
        positions_dtype: str = "float32",
    ) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._factors = (units or Units()).factors(str(path))
        self._positions_dtype = positions_dtype
        for name, text in (("level of theory", level_of_theory), ("licence", licence)):
            _refuse_text(text, f"{path}: the {name}")
        if self.path.exists() and not overwrite:
            raise DataError(f"{path} exists already. Choose another name, remove it, or ask to overwrite it (--overwrite).")
        self._buffer: list[Structure] = []
        self._buffered_atoms = 0
        self.num_structures = 0
        self.num_atoms = 0
        self._num_bonds = 0
        self._has_bonds: bool | None = None  # of all structures alike, told by the first
        self._sink: Sink | None = None
        self._file: h5py.File | None = None
        attributes = {
            "format": FORMAT_NAME,
            "schema_version": SCHEMA_VERSION,
            "level_of_theory": level_of_theory,
            "licence": licence,
            "creator": f"fastkd {fastkd.__version__}",
            "provenance": json.dumps(provenance or {}, sort_keys=True),
        }
        with self._giving_up():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = Sink(self._partial)
            self._file = h5py.File(self._sink, "w")
            self._file.attrs.update(attributes)
            self._create("atom_ptr", (), "int64", "1", rows=1, fill=0)

    def append(self, structure: Structure, where: str = "") -> None:
        """Add a copy of one structure, in the writer's units.

        Args:
            structure: with labels as far as there are any.
            where: it comes from, for messages; empty: its number in this file.

        Raises:
            DataError: if shapes do not fit, positions or the cell are not finite, tags or bonds are not as docs/file-format.md wants them,
                some structures come with bonds and others without, or the file cannot be written.
        """
        self._check(structure, where or f"{self.path}: structure {self.num_structures + len(self._buffer)}")
        self._has_bonds = structure.bonds is not None
        # copied, because simulations move atoms in place
        arrays: dict[str, Any] = {name: np.array(value) for name, value in vars(structure).items() if isinstance(value, np.ndarray)}
        self._buffer.append(replace(structure, **arrays))
        self._buffered_atoms += structure.num_atoms
        if self._buffered_atoms >= _BUFFERED_ATOMS:
            self._flush()

    def extend(self, structures: Iterable[Structure]) -> None:
        """Add many structures, one at a time."""
        for structure in structures:
            self.append(structure)

    def set_splits(self, names: Sequence[str]) -> None:
        """Name the split of every structure so far, in place of the names they came with; "" for none.

        Raises:
            ValueError: if there is not one name for each structure.
            DataError: if the file cannot be written.
        """
        self._flush()
        if len(names) != self.num_structures:
            raise ValueError(f"{len(names)} split names for {self.num_structures} structures")
        with self._giving_up() as file:
            if "split" in file:
                del file["split"]
            self._create("split", (), "text", FIELDS["split"].unit)
            self._extend("split", np.array(names, dtype=object))

    def close(self) -> None:
        """Write the content hash, flush to disk and put the file in place.

        Raises:
            DataError: if the file cannot be written.
        """
        self._flush()
        with self._giving_up() as file:
            for name in (name for name, field in FIELDS.items() if field.required and name not in file):
                self._create_field(name, FIELDS[name])
            file.attrs["content_hash"] = content_hash(file)
            file.close()
            assert self._sink is not None
            self._sink.sync()
            self._sink.close()
            self._partial.replace(self.path)

    def discard(self) -> None:
        """Give up: remove the unfinished file."""
        if self._file is not None:
            self._file.close()
        if self._sink is not None:
            self._sink.close()
            self._partial.unlink(missing_ok=True)
            self._sink = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _check(self, structure: Structure, where: str) -> None:
        atoms = structure.num_atoms
        if atoms == 0:
            raise DataError(f"{where} has no atoms. Leave it out.")
        expected = {"positions": (atoms, 3), "forces": (atoms, 3), "cell": (3, 3), "pbc": (3,), "stress": (3, 3)}
        for name, shape in expected.items():
            value = getattr(structure, name)
            if value is not None and np.shape(value) != shape:
                raise DataError(f"{where}: {name} has shape {np.shape(value)}, {atoms} atoms need {shape}.")
        for name, verb in (("positions", "are"), ("cell", "is")):
            value = getattr(structure, name)
            if value is not None and not np.isfinite(value).all():
                raise DataError(f"{where}: {name} {verb} not finite. Leave it out, or mend its source.")
        numbers = np.asarray(structure.atomic_numbers)
        # NaN fails the comparisons too
        good = (numbers >= 1) & (numbers <= 118) & (numbers == np.floor(numbers))
        if not good.all():
            raise DataError(f"{where}: atomic numbers must be 1 to 118, got {numbers[~good][0]}.")
        for name, fault_of in (("tags", tags_fault), ("fixed", fixed_fault), ("bonds", bonds_fault)):
            value = getattr(structure, name)
            fault = "" if value is None else fault_of(np.asarray(value), atoms)
            if fault:
                raise DataError(f"{where}: {fault}")
        has_bonds = structure.bonds is not None
        if self._has_bonds is not None and has_bonds != self._has_bonds:
            raise DataError(
                f"{where} has {'' if has_bonds else 'no '}bonds, but those before it have {'none' if has_bonds else 'some'}. Give them to every "
                "structure ([0, 2] where there are none), or to none."
            )
        _refuse_text(structure.split, f"{where}: its split")
        _refuse_text(structure.system, f"{where}: its system")

    def _flush(self) -> None:
        if not self._buffer:
            return
        block, self._buffer, self._buffered_atoms = self._buffer, [], 0
        atoms = sum(s.num_atoms for s in block)
        with self._giving_up():
            for name, field in FIELDS.items():
                self._write_field(name, field, block)
            self._extend("atom_ptr", self.num_atoms + np.cumsum([s.num_atoms for s in block]))
            if self._has_bonds:
                bonds = np.cumsum([0 if s.bonds is None else len(s.bonds) for s in block])
                self._extend("bond_ptr", self._num_bonds + bonds)
                self._num_bonds += int(bonds[-1])
        self.num_structures += len(block)
        self.num_atoms += atoms

    def _write_field(self, name: str, field: Field, block: list[Structure]) -> None:
        assert self._file is not None
        values = [getattr(s, name) for s in block]
        if name not in self._file:
            if all(_absent(value) for value in values):
                return
            self._create_field(name, field)
        counts = [_count(s, field) for s in block]
        parts = [
            np.full((count, *field.shape), _fill(field), dtype=_numpy_dtype(field.store))
            if value is None
            else np.reshape(np.asarray(value, dtype=bool if field.kind == "bool" else None), (count, *field.shape))
            for value, count in zip(values, counts, strict=True)
        ]
        rows = np.concatenate(parts)
        factor = self._factors.get(name, 1.0)
        self._extend(name, rows * factor if factor != 1.0 else rows)

    def _create_field(self, name: str, field: Field) -> None:
        # with rows for the structures before the first that has this property
        rows = {"atom": self.num_atoms, "structure": self.num_structures, "bond": self._num_bonds}[field.per]
        if field.per == "bond":
            self._create("bond_ptr", (), "int64", "1", rows=1, fill=0)
        self._create(name, field.shape, self._positions_dtype if name == "positions" else field.store, field.unit, rows, _fill(field))

    def _create(self, name: str, shape: tuple[int, ...], dtype: str, unit: str, rows: int = 0, fill: Any = None) -> None:
        assert self._file is not None
        text = dtype == "text"
        dataset = self._file.create_dataset(
            name,
            shape=(rows, *shape),
            dtype=_TEXT if text else dtype,
            fillvalue=None if text else fill,
            maxshape=(None, *shape),
            # moderate chunks: training reads scattered structures, and a chunk is decompressed whole
            chunks=(4096 if np.prod(shape, dtype=int) < 9 else 1024, *shape),
            compression="gzip",
            shuffle=not text,
        )
        dataset.attrs["unit"] = unit

    def _extend(self, name: str, rows: np.ndarray[Any, Any]) -> None:
        assert self._file is not None
        dataset = self._file[name]
        first = dataset.shape[0]
        dataset.resize(first + len(rows), axis=0)
        dataset[first:] = rows

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[h5py.File]:
        """The open file; whatever goes wrong, it is removed, and if it cannot be written, DataError is raised."""
        try:
            yield self._file
            if self._sink is not None and self._sink.error is not None:
                raise self._sink.error
        except OSError as error:
            self.discard()
            raise self._cannot_write(error) from error
        except BaseException:
            self.discard()
            raise

    def _cannot_write(self, error: OSError) -> DataError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DataError(
                f"{self.path}: the disk is full ({error.strerror}). Free some space or write elsewhere; no half-written file is left."
            )
        return DataError(f"{self.path} cannot be written ({error.strerror or error}). Choose a folder that you may write to.")


def _refuse_text(text: str, what: str) -> None:
    # HDF5 ends texts at a zero character; a lone surrogate is how Python shows bytes that are no UTF-8
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{what} {text!r} cannot be kept as UTF-8 text. Write it without zero bytes, in UTF-8.")


def _count(structure: Structure, field: Field) -> int:
    """Rows of a structure in an array of the file."""
    if field.per == "bond":
        return 0 if structure.bonds is None else len(structure.bonds)
    return structure.num_atoms if field.per == "atom" else 1


def _absent(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return not value
    return bool(np.ndim(value) == 0 and np.isnan(value))


def _fill(field: Field) -> Any:
    return {
        "integer": field.fill,
        "float": np.nan if field.label or (field.per == "structure" and not field.shape) else 0.0,
        "bool": False,
        "text": "",
    }[field.kind]


def _numpy_dtype(store: str) -> Any:
    return object if store == "text" else store
