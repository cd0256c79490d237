"""What a finished run leaves on disk, and nothing else: the contract between training and reports.

A *run folder* holds

* ``summary.json``: `RunSummary`, who the run is and its test errors;
* ``predictions.npz``: `Predictions` on the test structures (no pickles);
* ``metrics.csv``: `Curve`, one row per evaluation; the first row are names, the second units. Empty cells are missing values.
  Optional for a teacher, which is only evaluated. Reports draw the columns of `CURVE_UNITS`; there may be more;
* ``config.yaml`` and ``data_card.txt``, optional: the resolved config and the card of the data, for reports to show.

A *comparison folder* holds run folders at any depth. Files are written to a temporary name and renamed, so that a folder never holds half
a file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastkd.analysis.metrics import METRIC_UNITS, Metrics, compute_metrics
from fastkd.errors import CheckpointError, DataError
from fastkd.files import write_bytes, write_text

SUMMARY, PREDICTIONS, CURVE = "summary.json", "predictions.npz", "metrics.csv"
CONFIG, DATA_CARD = "config.yaml", "data_card.txt"
SCHEMA_VERSION = 1
Role = Literal["teacher", "student"]

#: Columns of a curve that reports know, with their units.
CURVE_UNITS = {
    "step": "1",
    "seconds": "s",
    "loss_total": "1",
    "val_energy_mae": "meV/atom",
    "val_forces_mae": "meV/Å",
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and predictions of one run on its test structures, laid end to end."""

    structure_index: NDArray[np.int64]  #: [n_structures], position in the data set
    natoms: NDArray[np.int64]  #: [n_structures]
    energy: NDArray[np.float64]  #: [n_structures] eV
    energy_pred: NDArray[np.float64]  #: [n_structures] eV
    forces: NDArray[np.floating[Any]] | None = None  #: [n_atoms, 3] eV/Å; None where the structures have energies alone
    forces_pred: NDArray[np.floating[Any]] | None = None  #: [n_atoms, 3] eV/Å; None like ``forces``
    atomic_numbers: NDArray[np.int64] | None = None  #: [n_atoms]
    free: NDArray[np.bool_] | None = None  #: [n_atoms], whose forces count; None: all

    @property
    def both_forces(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Labels and predictions of forces in float64, each [n_atoms, 3] eV/Å.

        Raises:
            ValueError: if there are none.
        """
        if self.forces is None or self.forces_pred is None:
            raise ValueError("there are no forces")
        return self.forces.astype(np.float64), self.forces_pred.astype(np.float64)

    def metrics(self) -> Metrics:
        """Errors over all structures; those of forces over free atoms."""
        return compute_metrics(self.energy, self.energy_pred, self.forces, self.forces_pred, self.natoms, self.free)

    def save(self, folder: Path) -> None:
        """Write ``predictions.npz``."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(folder / PREDICTIONS, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Predictions:
        """Read ``predictions.npz``.

        Raises:
            DataError: if the file is missing or damaged, or its arrays do not fit together or are not finite.
        """
        path = folder / PREDICTIONS
        try:
            # read at once: numpy leaves the file open when it is not an archive
            archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive")
            arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read as predictions ({error}); evaluate the run again") from None
        names = {item.name for item in fields(cls)}
        missing = names - {"atomic_numbers", "free", "forces", "forces_pred"} - set(arrays)
        if {"forces", "forces_pred"} & set(arrays):
            missing |= {"forces", "forces_pred"} - set(arrays)
        if missing:
            raise DataError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by this version of fastkd")
        predictions = cls(**{name: value for name, value in arrays.items() if name in names})
        predictions._check(path)
        return predictions

    def _check(self, path: Path) -> None:
        structures, atoms = self.natoms.shape, (int(self.natoms.sum()), 3)
        shapes = {"structure_index": structures, "energy": structures, "energy_pred": structures}
        shapes |= {name: atoms for name in ("forces", "forces_pred") if getattr(self, name) is not None}
        shapes |= {name: atoms[:1] for name in ("atomic_numbers", "free") if getattr(self, name) is not None}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise DataError(f"{path}: {name} has shape {list(value.shape)}, expected {list(shape)} from natoms")
            if not np.isfinite(value).all():
                raise DataError(f"{path}: {name} holds NaN or infinity; the run diverged or its labels are missing")
        if not structures[0] or self.natoms.min() < 1:
            raise DataError(f"{path} holds no structure, or one without atoms")
        if self.free is not None and (self.free.dtype != np.bool_ or not self.free.any()):
            raise DataError(f"{path}: free must be true or false for each atom, and true for some; evaluate the run again")


@dataclass(frozen=True)
class RunSummary:
    """Who a run is and how well it did on the test structures."""

    name: str  #: of the arm, the same for all its seeds
    title: str  #: how tables call it
    role: Role
    seed: int
    order: int  #: place in tables; the first student is the baseline of 'gap closed'
    parameters: int  #: of the model that is used after training
    atoms_per_second: float  #: at inference, energies and forces; NaN if not measured
    test: Metrics
    train_seconds: float = math.nan  #: s
    versions: dict[str, str] = field(default_factory=dict)  #: package → version
    extra: dict[str, Any] = field(default_factory=dict)  #: anything that can be JSON; reports show it as it is

    def save(self, folder: Path) -> None:
        """Write ``summary.json``; NaN becomes null."""
        content = {"schema": SCHEMA_VERSION, "kind": "run", **asdict(self), "units": {"test": METRIC_UNITS, "atoms_per_second": "1/s"}}
        write_json(folder / SUMMARY, content)

    @classmethod
    def load(cls, folder: Path) -> RunSummary:
        """Read ``summary.json``.

        Raises:
            CheckpointError: if the file is missing, is not JSON, or is not the summary of a run.
        """
        path = folder / SUMMARY
        content = read_json(path)
        if content.get("kind") != "run" or content.get("schema") != SCHEMA_VERSION:
            raise CheckpointError(f"{path} is not the summary of a run (schema {SCHEMA_VERSION}); name the folder of a run or comparison")
        try:
            test = Metrics(**{item.name: _number(content["test"][item.name]) for item in fields(Metrics)})
            return cls(
                name=str(content["name"]),
                title=str(content["title"]),
                role=_role(content["role"]),
                seed=int(content["seed"]),
                order=int(content["order"]),
                parameters=int(content["parameters"]),
                atoms_per_second=_number(content["atoms_per_second"]),
                test=test,
                train_seconds=_number(content.get("train_seconds")),
                versions={str(name): str(version) for name, version in content.get("versions", {}).items()},
                extra=dict(content.get("extra", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} lacks or garbles {error}; run the evaluation again") from None


@dataclass(frozen=True, eq=False)
class Curve:
    """Columns over the course of training. ``step`` is required; losses and errors appear under any other name, with a unit."""

    units: dict[str, str]  #: column → unit, in order
    values: NDArray[np.float64]  #: [n_rows, n_columns], NaN where a cell is empty

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        """One column, [n_rows]."""
        return self.values[:, list(self.units).index(column)]

    @classmethod
    def load(cls, folder: Path) -> Curve:
        """Read ``metrics.csv``.

        Raises:
            DataError: if it is missing, has no units row, ragged rows or cells that are not numbers.
        """
        path = folder / CURVE
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error})") from None
        if len(rows) < 2 or "step" not in rows[0] or len(rows[0]) != len(rows[1]):
            raise DataError(f"{path} needs a row of names with 'step' among them and a row of as many units")
        try:
            values = [[_cell(cell) for cell in row] for row in rows[2:]]
            array = np.array(values, dtype=np.float64).reshape(len(values), len(rows[0]))
        except ValueError as error:
            raise DataError(f"{path} has a cell that is not a number or a row of another length ({error})") from None
        return cls(dict(zip(rows[0], rows[1], strict=True)), array)


class CurveWriter:
    """Appends rows to ``metrics.csv`` as training goes, each flushed to disk.

    Args:
        folder: of the run.
        units: column → unit; fixed for the run.
        resume_step: go on with an existing file and drop its rows beyond this step; None starts a new file.

    Raises:
        DataError: on resume, if the existing file cannot be read or has other columns.
    """

    def __init__(self, folder: Path, units: Mapping[str, str], resume_step: int | None = None) -> None:
        if "step" not in units:
            raise ValueError("a curve needs a column 'step'")
        self.path = folder / CURVE
        self.columns = tuple(units)
        kept: list[Sequence[str]] = []
        if resume_step is not None and self.path.exists():
            old = Curve.load(folder)
            if old.units != dict(units):
                raise DataError(f"{self.path} has columns {', '.join(old.units)}, but the resumed run writes {', '.join(units)}")
            kept = [[_text(cell) for cell in row] for row, step in zip(old.values, old["step"], strict=True) if step <= resume_step]
        write_csv(self.path, [list(units), list(units.values()), *kept])

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns that are not given stay empty.

        Raises:
            KeyError: if a column is unknown.
        """
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"no column {', '.join(sorted(unknown))} in {self.path}")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([_text(row.get(column, math.nan)) for column in self.columns])
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read."""

    folder: Path
    summary: RunSummary
    predictions: Predictions
    curve: Curve | None

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a run folder.

        Raises:
            CheckpointError: if it is not one, or its summary is damaged.
            DataError: if its predictions or curve are damaged, or contradict the summary.
        """
        summary = RunSummary.load(folder)
        predictions = Predictions.load(folder)
        curve = Curve.load(folder) if (folder / CURVE).exists() or summary.role == "student" else None
        return cls(folder, summary, predictions, curve)


def find_runs(root: Path) -> list[Run]:
    """Every run in a folder, itself included, in the order of tables: teacher, then arms by order, then seeds.

    Raises:
        CheckpointError: if there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; name the folder of a run or of a comparison")
    folders = sorted(path.parent for path in root.rglob(SUMMARY) if read_json(path).get("kind") == "run")
    if not folders:
        raise CheckpointError(f"{root} holds no finished run: a run folder has {SUMMARY}, {PREDICTIONS} and {CURVE}")
    runs = [Run.load(folder) for folder in folders]
    return sorted(runs, key=lambda run: (run.summary.role != "teacher", run.summary.order, run.summary.name, run.summary.seed))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that any reader takes: NaN and infinity become null."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write rows of text."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_text(path, buffer.getvalue())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _role(value: Any) -> Role:
    if value not in ("teacher", "student"):
        raise ValueError(f"role {value!r}")
    return cast("Role", value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _cell(cell: str) -> float:
    return float(cell) if cell else math.nan


def _text(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
