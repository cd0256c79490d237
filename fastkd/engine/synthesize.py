"""Synthetic structures: relax starting structures with a teacher, or let them move for a while, and keep the frames with its labels.

After the authors' code for arXiv:2306.14818: BFGS until the largest force is below 0.03 eV/Å or 200 steps are done; a trajectory is
dropped whole if in any frame its adsorbate has left the surface; frames stay where |E| *and* the largest force are moderate (the code
says "or", which keeps nearly everything; "and" is what it means); a seeded choice of so many frames.

Trajectories run side by side in groups, so that the teacher is asked about a batch. Each finished one is a small file in ``OUT.h5.synthesis``: a killed
run goes on after the last finished group.

Example:
    >>> synthesize(DataFile("starts.h5"), Path("synthetic.h5"), load_teacher("embedded"), SynthesisOptions())
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols

from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure
from fastkd.data.writer import DataWriter
from fastkd.engine.trajectories import BROKEN, DESORBED, DONE, Trajectory, run_trajectories
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.files import write_bytes, write_json
from fastkd.teachers import BaseTeacher, TeacherCost

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SynthesisOptions:
    """How structures are made, and which are kept."""

    method: Literal["relax", "md"] = "relax"
    fmax: float = 0.03  #: eV/Å, relax: stop below
    steps: int = 200  #: relax: at most; md: exactly
    every: int = 1  #: keep every so many-th frame of a trajectory, the first included
    temperature: float = 300.0  #: K, md
    timestep: float = 0.5  #: fs, md
    friction: float = 0.01  #: 1/fs, md
    desorbed: float = 3.0  #: Å above the highest surface atom at which the lowest of the adsorbate has left; 0 never looks
    max_energy: float = 10.0  #: eV, frames further from the zero of energy go; 0 for no limit
    max_force: float = 50.0  #: eV/Å, frames with a larger force on an atom go; 0 for no limit
    zero: Literal["start", "absolute"] = "start"  #: energies are counted from the trajectory's first frame, or as the teacher gives them
    split: str = ""  #: start from this split; empty: from "train" if there is one, else from all, because nothing tested may be trained on
    limit: int = 0  #: frames to keep at most; 0 for all
    at_once: int = 16  #: trajectories that run side by side
    seed: int = 123  #: of the choice of frames and of dynamics
    level_of_theory: str = ""  #: empty: the teacher's source
    licence: str = ""  #: of the data; empty: the source's
    overwrite: bool = False
    restart: bool = False  #: forget what an interrupted run has finished


@dataclass(frozen=True)
class SynthesisReport:
    """What was done."""

    starts: int
    resumed: int  #: trajectories found finished
    frames: int  #: of trajectories that were not dropped
    kept: int
    desorbed: int  #: trajectories dropped because the adsorbate left
    broken: int  #: trajectories that ended because the teacher failed; dropped
    filtered: int  #: frames with too large an energy or force
    cost: TeacherCost


def synthesize(
    source: DataFile, out: Path, teacher: BaseTeacher, options: SynthesisOptions, progress: Callable[[int, int], None] | None = None
) -> SynthesisReport:
    """Make a data file of synthetic structures, all in the split ``train``.

    Args:
        source: starting structures; labels are not looked at, the file is not changed.
        out: the data file to write.
        teacher: moves the atoms and gives the labels.
        options: see `SynthesisOptions`.
        progress: called with the trajectories done and to do.

    Raises:
        ConfigError: if the teacher predicts no energies and forces, or options make no sense.
        DataError: if no frame is left, or a file cannot be read or written.
    """
    _check(source, out, teacher, options)
    starts = _starts(source, options)
    folder = out.with_name(out.name + ".synthesis")
    _open_folder(folder, source, teacher, options)
    cost, resumed = TeacherCost(), 0
    verdicts: Counter[str] = Counter()
    pairs: list[tuple[int, int]] = []  # start and frame of all that may stay
    frames = 0
    for first in range(0, len(starts), options.at_once):
        numbers = starts[first : first + options.at_once]
        done, trajectories = _group(source, folder, numbers, teacher, options, cost)
        resumed += len(numbers) if done else 0
        for number, trajectory in trajectories.items():
            verdicts[trajectory.verdict] += 1
            if trajectory.verdict == DONE:
                good = moderate(trajectory, options)
                frames += len(good)
                pairs += [(number, int(frame)) for frame in np.flatnonzero(good)]
        if progress is not None:
            progress(first + len(numbers), len(starts))
    cost.settle()
    chosen = choose(pairs, options)
    if not chosen:
        raise DataError(
            f"no frame is left of {len(starts)} trajectories ({verdicts[DESORBED]} desorbed, {verdicts[BROKEN]} broken, {frames} frames with "
            "too large an energy or force); raise --max-energy or --max-force, or choose --zero start"
        )
    report = SynthesisReport(
        starts=len(starts),
        resumed=resumed,
        frames=frames,
        kept=len(chosen),
        desorbed=verdicts[DESORBED],
        broken=verdicts[BROKEN],
        filtered=frames - len(pairs),
        cost=cost,
    )
    _assemble(source, out, folder, teacher, options, chosen, report)
    shutil.rmtree(folder)
    return report


def _starts(source: DataFile, options: SynthesisOptions) -> list[int]:
    """Numbers of the structures to start from.

    Raises:
        DataError: if there are none of the split.
    """
    splits = source.splits
    wanted = options.split or ("train" if (splits == "train").any() else "")
    found: list[int] = np.flatnonzero(splits == wanted).tolist() if wanted else list(range(len(source)))
    if not found:
        raise DataError(f"{source.path} has no structures in split {wanted!r} to start from")
    return found


def _group(
    source: DataFile, folder: Path, numbers: list[int], teacher: BaseTeacher, options: SynthesisOptions, cost: TeacherCost
) -> tuple[bool, dict[int, Trajectory]]:
    """Trajectories that run side by side, and whether all were there already.

    A group of which something is missing is made anew, whole: what the teacher says may differ in its last digits in a smaller batch.
    """
    files = {number: folder / f"{number:08d}.npz" for number in numbers}
    if all(file.exists() for file in files.values()):
        return True, {number: _read(file) for number, file in files.items()}
    starts = dict(zip(numbers, source.read(numbers), strict=True))
    trajectories = run_trajectories(starts, teacher, options, cost)
    for number, trajectory in trajectories.items():
        _write(files[number], trajectory)
    return False, trajectories


def moderate(trajectory: Trajectory, options: SynthesisOptions) -> npt.NDArray[np.bool_]:
    """Frames whose energy *and* largest force (norm, over all atoms) are within the limits, [frames] bool."""
    energy = trajectory.energy - (trajectory.energy[0] if options.zero == "start" else 0.0)
    force = np.linalg.norm(trajectory.forces, axis=-1).max(axis=-1)
    calm = np.abs(energy) < options.max_energy if options.max_energy else np.ones(len(energy), dtype=bool)
    soft = force < options.max_force if options.max_force else np.ones(len(energy), dtype=bool)
    kept: npt.NDArray[np.bool_] = calm & soft
    return kept


def choose(pairs: list[tuple[int, int]], options: SynthesisOptions) -> list[tuple[int, int]]:
    """The first ``limit`` of the shuffled frames, in the order in which they were made: the order of a file does not matter."""
    if not options.limit or options.limit >= len(pairs):
        return pairs
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    return [pairs[index] for index in np.sort(order[: options.limit]).tolist()]


def _check(source: DataFile, out: Path, teacher: BaseTeacher, options: SynthesisOptions) -> None:
    if not teacher.complete:
        raise ConfigError(f"{teacher.source} does not predict energies and forces; choose another teacher")
    for name in ("steps", "every", "at_once"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for name in ("fmax", "temperature", "timestep", "friction"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"--{name} must be positive, got {getattr(options, name)}")
    for name in ("desorbed", "max_energy", "max_force", "limit", "seed"):
        if not getattr(options, name) >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")
    if not len(source):
        raise DataError(f"{source.path} has no structures to start from")
    if out.exists() and out.samefile(source.path):
        raise DataError(f"{out} is the source itself, which stays as it is; choose another name")
    if out.exists() and not options.overwrite:
        raise DataError(f"{out} exists already. Choose another name, remove it, or ask to overwrite it (--overwrite).")
    strange = [chemical_symbols[int(z)] for z in np.unique(source.rows("atomic_numbers")) if not bool(teacher.known_element[int(z)])]
    if strange:
        raise DataError(f"{source.path} has {', '.join(strange)}, which the teacher {teacher.source} does not know")


def _open_folder(folder: Path, source: DataFile, teacher: BaseTeacher, options: SynthesisOptions) -> None:
    # what is filtered and chosen afterwards may change between two attempts
    later = ("limit", "max_energy", "max_force", "zero", "level_of_theory", "licence", "overwrite", "restart")
    made = {name: value for name, value in asdict(options).items() if name not in later}
    job = {"source": source.content_hash, "teacher": teacher.hash, "dtype": str(teacher.dtype), "options": made}
    if options.restart and folder.exists():
        shutil.rmtree(folder)
    try:
        if (folder / "job.json").exists():
            if json.loads((folder / "job.json").read_text()) != job:
                raise DataError(f"{folder} holds trajectories of another source, teacher or method; ask for the same, or add --restart")
            return
        write_json(folder / "job.json", job)
    except (CheckpointError, OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used: {error}; choose another OUT, or add --restart") from error


def _write(file: Path, trajectory: Trajectory) -> None:
    stream = io.BytesIO()
    np.savez(stream, **vars(trajectory))
    try:
        write_bytes(file, stream.getvalue())
    except CheckpointError as error:
        raise DataError(f"{file.parent}: {error}; what is finished is kept, the same command goes on from there") from error


def _read(file: Path) -> Trajectory:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        return Trajectory(**(values | {"verdict": str(values["verdict"])}))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}); remove it, and the same command makes its trajectory again") from error


def _assemble(
    source: DataFile,
    out: Path,
    folder: Path,
    teacher: BaseTeacher,
    options: SynthesisOptions,
    chosen: list[tuple[int, int]],
    report: SynthesisReport,
) -> None:
    counts: dict[str, Any] = {name: value for name, value in asdict(report).items() if name not in ("cost", "resumed")}
    provenance = {
        "synthesized_by": teacher.card(),
        "source": source.path.name,
        "source_hash": source.content_hash,
        "source_provenance": source.provenance,
        "options": {name: value for name, value in asdict(options).items() if name not in ("overwrite", "restart")},
        "counts": counts,
    }
    writer = DataWriter(
        out,
        level_of_theory=options.level_of_theory or teacher.source,
        licence=options.licence or source.licence,
        provenance=provenance,
        overwrite=options.overwrite,
        positions_dtype="float64",
    )
    known = -1
    with writer:
        for number, frame in chosen:
            if number != known:
                (start,), trajectory, known = source.read([number]), _read(folder / f"{number:08d}.npz"), number
            writer.append(_frame(start, trajectory, frame))


def _frame(start: Structure, trajectory: Trajectory, frame: int) -> Structure:
    return replace(
        start,
        positions=trajectory.positions[frame],
        energy=float(trajectory.energy[frame]),
        forces=trajectory.forces[frame],
        stress=None,
        split="train",
        time_fs=float(trajectory.time_fs[frame]),
    )
