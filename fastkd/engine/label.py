"""Label a data file with a teacher: structures in, energies and forces out, in bounded memory, and resumable after any interruption.

Labels are kept in small files in ``OUT.h5.labels`` as they come; a killed run goes on after the last of them. When all are there, they
are streamed into ``OUT.h5`` together with their structures, and the folder goes.

Example:
    >>> label_file(DataFile("in.h5"), Path("out.h5"), load_teacher("ase:ase.calculators.emt:EMT"), LabelOptions())
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from ase.data import chemical_symbols

from fastkd.data.batching import Pieces, collate
from fastkd.data.reader import DataFile
from fastkd.data.writer import DataWriter
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.files import write_bytes, write_json
from fastkd.teachers import BaseTeacher, Need, TeacherCost

#: Structures per file of finished labels: what a kill can cost at most.
CHUNK = 64
Labels = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class LabelOptions:
    """What to label, and how."""

    stress: bool = False
    existing: Literal["refuse", "keep", "replace"] = "refuse"  #: labels that the file has already
    skip_failed: bool = False  #: leave structures that the teacher cannot label without labels, instead of stopping
    batch_size: int = 8
    level_of_theory: str = ""  #: empty: the teacher's source
    licence: str = ""  #: of the data; empty: the source's
    overwrite: bool = False
    restart: bool = False  #: forget what an interrupted run has finished


@dataclass(frozen=True)
class LabelReport:
    """What was done."""

    structures: int
    labelled: int  #: by the teacher, those of an interrupted run included
    kept: int  #: that had labels, and still have them
    resumed: int  #: found finished
    failed: tuple[int, ...]
    cost: TeacherCost


def label_file(
    source: DataFile, out: Path, teacher: BaseTeacher, options: LabelOptions, progress: Callable[[int, int], None] | None = None
) -> LabelReport:
    """Label a file.

    Args:
        source: structures; the file is not changed.
        out: the data file to write.
        teacher: whose energies and forces (and stress) become the labels.
        options: see `LabelOptions`.
        progress: called with the structures done and to do.

    Raises:
        ConfigError: if the teacher lacks what is asked for, or there are labels already and ``existing`` is ``refuse``.
        DataError: if a structure cannot be labelled, or a file cannot be read or written.
    """
    needs = _needs(teacher, options)
    todo = _todo(source, options)
    if out.exists() and out.samefile(source.path):
        raise DataError(f"{out} is the source itself, which stays as it is; choose another name")
    if out.exists() and not options.overwrite:
        raise DataError(f"{out} exists already. Choose another name, remove it, or ask to overwrite it (--overwrite).")
    _require_elements(source, todo, teacher)
    folder = out.with_name(out.name + ".labels")
    job = {
        "source": source.content_hash,
        "teacher": teacher.hash,
        "dtype": str(teacher.dtype),
        "needs": sorted(needs),
        "existing": options.existing,
        "chunk": CHUNK,
    }
    _open_folder(folder, job, restart=options.restart)
    cost, resumed, failed = TeacherCost(), 0, []
    chunks = [todo[first : first + CHUNK] for first in range(0, len(todo), CHUNK)]
    done = 0
    for number, chunk in enumerate(chunks):
        file = folder / f"{number:08d}.npz"
        if file.exists():
            resumed += len(chunk)
            failed += _failed_of(_read(file), chunk)
        else:
            labels = _label(source, chunk, teacher, needs, options, cost)
            failed += _failed_of(labels, chunk)
            _write(file, labels)
        done += len(chunk)
        if progress is not None:
            progress(done, len(todo))
    if len(failed) == len(todo):
        raise DataError(f"the teacher {teacher.source} could label none of {len(todo)} structures")
    _assemble(source, out, folder, teacher, options, chunks, failed)
    shutil.rmtree(folder)
    return LabelReport(
        structures=len(source),
        labelled=len(todo) - len(failed),
        kept=len(source) - len(todo),
        resumed=resumed,
        failed=tuple(failed),
        cost=cost,
    )


def _needs(teacher: BaseTeacher, options: LabelOptions) -> frozenset[Need]:
    needs: frozenset[Need] = frozenset({"energy", "forces", "stress"}) if options.stress else frozenset({"energy", "forces"})
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {options.batch_size}")
    lacking = needs - teacher.offer.outputs
    if lacking:
        have = ", ".join(sorted(teacher.offer.outputs)) or "features only"
        raise ConfigError(f"{teacher.source} gives no {', '.join(sorted(lacking))} (it predicts {have}); choose another teacher")
    return needs


def _todo(source: DataFile, options: LabelOptions) -> list[int]:
    missing = source.missing_labels().tolist()
    if options.existing == "replace":
        return list(range(len(source)))
    if not missing:
        raise ConfigError(f"{source.path}: every structure has labels already, and they stay; --existing replace computes new ones")
    if len(missing) < len(source) and options.existing == "refuse":
        raise ConfigError(
            f"{source.path}: {len(source) - len(missing)} of {len(source)} structures have labels already; --existing keep keeps those "
            "(two levels of theory in one file, unless the labels are the same teacher's), --existing replace computes all anew"
        )
    return [int(number) for number in missing]


def _require_elements(source: DataFile, todo: Sequence[int], teacher: BaseTeacher) -> None:
    for number in todo:
        atoms = slice(int(source.atom_ptr[number]), int(source.atom_ptr[number + 1]))
        strange = sorted({int(z) for z in np.unique(source.rows("atomic_numbers", atoms)) if not bool(teacher.known_element[int(z)])})
        if strange:
            symbols = ", ".join(chemical_symbols[z] for z in strange)
            raise DataError(f"{source.path}: structure {number} has {symbols}, which the teacher {teacher.source} does not know")


def _open_folder(folder: Path, job: dict[str, Any], *, restart: bool) -> None:
    if restart and folder.exists():
        shutil.rmtree(folder)
    try:
        if (folder / "job.json").exists():
            if json.loads((folder / "job.json").read_text()) != job:
                raise DataError(
                    f"{folder} holds labels of another source, teacher or choice of options; ask for the same as before, or add --restart"
                )
            return
        write_json(folder / "job.json", job)
    except (CheckpointError, OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used: {error}; choose another OUT, or add --restart") from error


def _label(
    source: DataFile, chunk: Sequence[int], teacher: BaseTeacher, needs: frozenset[Need], options: LabelOptions, cost: TeacherCost
) -> Labels:
    """Labels of some structures, end to end; NaN where the teacher failed and may."""
    cutoffs = () if teacher.cutoff is None else (teacher.cutoff,)
    structures = source.read(chunk)
    parts: dict[str, list[npt.NDArray[np.float64]]] = {need: [] for need in needs}

    def ask(first: int, last: int) -> None:
        pieces = [Pieces.of(structures[k], chunk[k], cutoffs, labelled=False) for k in range(first, last)]
        # positions as they are stored: a float32 batch would round those of a float64 file
        output = cost.measured(teacher, collate(pieces, torch.float64).to(teacher.device), needs)
        found = {need: getattr(output, need).double().cpu().numpy() for need in needs}
        for need, values in found.items():
            if not np.isfinite(values).all():
                raise DataError(f"structures {chunk[first]} to {chunk[last - 1]}: {need} of {teacher.source} is not finite")
        for need, values in found.items():
            parts[need].append(values)

    for first in range(0, len(chunk), options.batch_size):
        last = min(first + options.batch_size, len(chunk))
        try:
            ask(first, last)
        except DataError as error:
            if not options.skip_failed:
                raise DataError(f"{source.path}: {error}; mend or remove it, or add --skip-failed") from error
            for k in range(first, last):  # one at a time, to lose only those that fail
                try:
                    ask(k, k + 1)
                except DataError:
                    shapes = {"energy": (1,), "forces": (structures[k].num_atoms, 3), "stress": (1, 3, 3)}
                    for need in needs:
                        parts[need].append(np.full(shapes[need], np.nan))
    cost.settle()
    return {need: np.concatenate(values) for need, values in parts.items()}


def _failed_of(labels: Labels, chunk: Sequence[int]) -> list[int]:
    return [chunk[k] for k in np.flatnonzero(~np.isfinite(labels["energy"])).tolist()]


def _write(file: Path, labels: Labels) -> None:
    stream = io.BytesIO()
    np.savez(stream, **labels)  # type: ignore[arg-type]
    try:
        write_bytes(file, stream.getvalue())
    except CheckpointError as error:
        raise DataError(f"{file.parent}: {error}; what is finished is kept, the same command goes on from there") from error


def _read(file: Path) -> Labels:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}); remove it, and the same command labels its structures again") from error


def _assemble(
    source: DataFile,
    out: Path,
    folder: Path,
    teacher: BaseTeacher,
    options: LabelOptions,
    chunks: Sequence[Sequence[int]],
    failed: list[int],
) -> None:
    """Structures of the source with their labels, in the source's order, into the finished file."""
    theory = options.level_of_theory or teacher.source
    if options.existing == "keep":
        theory = f"{source.level_of_theory or 'unknown'}; {len(source)} structures, some labelled by {theory}"
    provenance = {
        "labelled_by": teacher.card(),
        "source": source.path.name,
        "source_hash": source.content_hash,
        "source_provenance": source.provenance,
        "options": {name: value for name, value in asdict(options).items() if name in ("stress", "existing", "skip_failed")},
        "failed": failed,
    }
    writer = DataWriter(
        out,
        level_of_theory=theory,
        licence=options.licence or source.licence,
        provenance=provenance,
        overwrite=options.overwrite,
        positions_dtype=str(source.file["positions"].dtype),
    )
    fresh = _labels(folder, chunks, source)
    upcoming = next(fresh, None)
    with writer:
        for first in range(0, len(source), CHUNK):
            block = range(first, min(first + CHUNK, len(source)))
            for number, structure in zip(block, source.read(list(block)), strict=True):
                if upcoming is None or upcoming[0] != number:
                    writer.append(structure)
                    continue
                writer.append(replace(structure, **upcoming[1]))
                upcoming = next(fresh, None)


def _labels(folder: Path, chunks: Sequence[Sequence[int]], source: DataFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and labels of each structure that was labelled, ascending."""
    for part, chunk in enumerate(chunks):
        labels = _read(folder / f"{part:08d}.npz")
        first = 0
        for k, number in enumerate(chunk):
            last = first + int(source.atom_ptr[number + 1] - source.atom_ptr[number])
            # what the source said goes, in any case: labels of one structure are of one origin
            found: dict[str, Any] = {"energy": float(labels["energy"][k]), "forces": None, "stress": None}
            if np.isfinite(found["energy"]):
                found["forces"] = labels["forces"][first:last]
                found["stress"] = labels["stress"][k] if "stress" in labels else None
            yield number, found
            first = last
