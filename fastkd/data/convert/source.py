"""What every source of structures has in common: where its labels are, which part of it is wanted, what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.data.units import Units
from fastkd.errors import ConfigError, DataError


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source. An empty key means the usual place: calculator results in ASE, the common names in npz."""

    energy_key: str = ""
    forces_key: str = ""
    stress_key: str = ""
    system_key: str = ""  #: property that names the system or trajectory of each structure
    split_key: str = ""  #: property that names the split of each structure
    system: str = ""  #: one name for all structures
    pbc: str = ""  #: such as TTF, for sources that give a cell alone; empty: periodic along every lattice vector that is there
    tags: bool = True  #: read tags, fixed atoms and bonds where the source has them
    select: slice = field(default_factory=lambda: slice(None))  #: of the source's structures


@dataclass(frozen=True)
class SourceFacts:
    """What a source says of itself."""

    units: Units | None = None
    level_of_theory: str = ""


def parse_slice(text: str) -> slice:
    """A Python slice such as ``0:1000``, ``::10`` or ``500:``.

    Raises:
        ConfigError: if it is none, or counts from the end.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if (
        len(numbers) not in (2, 3)
        or any(number is not None and number < 0 for number in numbers)
        or (len(numbers) == 3 and numbers[2] == 0)
    ):
        raise ConfigError(f"--select {text!r}: must be START:STOP or START:STOP:STEP, counted from 0, such as 0:1000 or ::10")
    return slice(*numbers)


def parse_pbc(text: str) -> npt.NDArray[np.bool_]:
    """Three letters T or F.

    Raises:
        ConfigError: if it is anything else.
    """
    if len(text) != 3 or set(text.upper()) - {"T", "F"}:
        raise ConfigError(f"--pbc {text!r}: must be three letters T or F, one for each lattice vector, such as TTF")
    return np.array([letter == "T" for letter in text.upper()])


def periodicity(cell: npt.NDArray[np.floating[Any]] | None, text: str) -> npt.NDArray[np.bool_] | None:
    """Periodic directions of a source that gives a cell alone: as told, else along every lattice vector that is not zero."""
    if text:
        return parse_pbc(text)
    return None if cell is None else np.linalg.norm(cell, axis=1) > 0


def stress_matrix(value: npt.ArrayLike, where: str) -> npt.NDArray[np.float64]:
    """A stress as [3, 3], from that, from nine numbers, or from six in Voigt order (xx, yy, zz, yz, xz, xy).

    Raises:
        DataError: if it has another shape.
    """
    stress = numeric(value, f"{where}: a stress", "--stress-key")
    if stress.size == 6:
        xx, yy, zz, yz, xz, xy = stress.ravel()
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if stress.size == 9:
        return stress.reshape(3, 3)
    raise DataError(f"{where}: a stress has 6 or 9 numbers, this one has shape {stress.shape}. Name the right property with --stress-key.")


def require_file(path: Path) -> None:
    """Raise DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the path of an extxyz, npz or ASE database file, or of anything else that ASE reads.")


def numeric(value: npt.ArrayLike, what: str, option: str = "") -> npt.NDArray[Any]:
    """An array of real numbers.

    Args:
        value: anything that a source holds.
        what: it is, for the message.
        option: that names another property, for the message.

    Raises:
        DataError: if it holds text, complex numbers or anything else.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        example = str(array.ravel()[0]) if array.size else ""
        mend = f"Name another property with {option}." if option else "Mend the source."
        raise DataError(f"{what} must hold real numbers, not {array.dtype} such as {example[:40]!r}. {mend}")
    return array


def finite_or_none(value: npt.ArrayLike | None, what: str, option: str) -> npt.NDArray[Any] | None:
    """An array, or None where it is missing or not finite: such a label is no label.

    Raises:
        DataError: if it holds anything but real numbers; ``what`` and ``option`` are those of `numeric`.
    """
    if value is None:
        return None
    array = numeric(value, what, option)
    return array if np.isfinite(array).all() else None
