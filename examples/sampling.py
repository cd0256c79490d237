"""Structures to label: dynamics driven by the teacher itself, each trajectory in a split of its own; or crystals deformed at random.

In dynamics the teacher is asked about all trajectories in one batch, which costs much less than one after the other through an ASE calculator.

Example:
    >>> teacher = load_teacher("so3lr")
    >>> starts = [Start(molecule("CH3CH2OH"), "train", temperature=500.0), Start(molecule("CH3CH2OH"), "test", temperature=500.0)]
    >>> frames = run_dynamics(teacher, starts, Plan(frames=40))
    >>> write_frames(Path("ethanol.h5"), starts, frames, Plan(frames=40))
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms, units

from fastkd.data import DataWriter, Pieces, Structure, collate
from fastkd.errors import DataError, UserError
from fastkd.teachers import BaseTeacher, load_teacher

Floats = npt.NDArray[np.float64]
#: A trajectory with an atom that moves farther than this in one step has exploded, Å.
LARGEST_STEP = 1.0


@dataclass(frozen=True, eq=False)
class Start:
    """Where a trajectory starts, and what it is for."""

    atoms: Atoms
    split: str  #: of all its frames: train, val or test
    temperature: float  #: K
    system: str = ""  #: empty: the chemical formula

    @property
    def name(self) -> str:
        """Of its system."""
        return self.system or self.atoms.get_chemical_formula()


@dataclass(frozen=True)
class Plan:
    """How long, and how often."""

    frames: int  #: kept of each trajectory
    time_step: float = 0.5  #: fs
    interval: int = 50  #: steps between two frames
    equilibration: int = 200  #: steps before the first frame's interval
    friction: float = 0.02  #: 1/fs
    seed: int = 0
    at_once: int = 64  #: structures in a batch


def structure_of(atoms: Atoms, **more: Any) -> Structure:
    """An ASE structure as one of ours; ``more`` are its split, system and labels."""
    periodic = bool(atoms.pbc.any())
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array if periodic else None, atoms.pbc if periodic else None, **more)


def teacher_forces(teacher: BaseTeacher, structures: Sequence[Atoms], at_once: int = 64) -> Floats:
    """Forces of a teacher on some structures, end to end: [n_atoms, 3] eV/Å."""
    cutoffs = () if teacher.cutoff is None else (teacher.cutoff,)
    parts = []
    for first in range(0, len(structures), at_once):
        pieces = [Pieces.of(structure_of(atoms), k, cutoffs) for k, atoms in enumerate(structures[first : first + at_once])]
        forces = teacher(collate(pieces, torch.float64).to(teacher.device), frozenset({"forces"})).forces
        assert forces is not None
        parts.append(forces.double().cpu().numpy())
    return np.concatenate(parts)


def run_dynamics(
    teacher: BaseTeacher, starts: Sequence[Start], plan: Plan, progress: Callable[[int, int], None] | None = None
) -> list[list[Atoms]]:
    """Frames of every trajectory, at constant volume and temperature.

    The integrator is BAOAB (B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013)): half a kick, half a drift, friction and
    noise, half a drift, half a kick. Each trajectory has random numbers of its own.

    Args:
        teacher: predicts forces.
        starts: the trajectories.
        plan: see `Plan`.
        progress: called with the steps done and to do.

    Raises:
        DataError: if a trajectory explodes.
    """
    moving = [start.atoms.copy() for start in starts]
    sizes = np.cumsum([len(atoms) for atoms in moving])[:-1]
    random = [np.random.default_rng([plan.seed, k]) for k in range(len(moving))]
    mass = np.concatenate([atoms.get_masses() for atoms in moving])[:, None]
    # width of the velocities at each trajectory's temperature, Å per ASE's unit of time
    width = np.sqrt(units.kB * np.repeat([start.temperature for start in starts], [len(atoms) for atoms in moving])[:, None] / mass)

    def noise() -> Floats:
        return np.concatenate([generator.standard_normal((len(atoms), 3)) for generator, atoms in zip(random, moving, strict=True)])

    step = plan.time_step * units.fs
    kept = float(np.exp(-plan.friction * plan.time_step))
    velocity = width * noise()
    force = teacher_forces(teacher, moving, plan.at_once)
    frames: list[list[Atoms]] = [[] for _ in moving]
    total = plan.equilibration + plan.frames * plan.interval
    for number in range(1, total + 1):
        velocity += 0.5 * step * force / mass
        drift = 0.5 * step * velocity
        velocity = kept * velocity + np.sqrt(1.0 - kept**2) * width * noise()
        drift += 0.5 * step * velocity
        # not below the bound when it is NaN
        if not np.abs(drift).max() < LARGEST_STEP:
            raise DataError(f"a trajectory exploded in step {number}; take a shorter time step, or start from relaxed structures")
        for atoms, move in zip(moving, np.split(drift, sizes), strict=True):
            atoms.positions += move
        force = teacher_forces(teacher, moving, plan.at_once)
        velocity += 0.5 * step * force / mass
        if number > plan.equilibration and (number - plan.equilibration) % plan.interval == 0:
            for trajectory, atoms in zip(frames, moving, strict=True):
                trajectory.append(atoms.copy())
        if progress is not None:
            progress(number, total)
    return frames


def write_frames(
    path: Path, starts: Sequence[Start], frames: Sequence[Sequence[Atoms]], plan: Plan, note: str = "", *, overwrite: bool = False
) -> None:
    """All frames, without labels, molecules about their centre of mass: ``fastkd label`` comes next.

    Raises:
        DataError: if the file exists or cannot be written.
    """
    provenance = {"how": note, "plan": asdict(plan), "temperatures_K": [start.temperature for start in starts]}
    with DataWriter(path, level_of_theory="none", licence="CC0-1.0", provenance=provenance, overwrite=overwrite) as writer:
        for start, trajectory in zip(starts, frames, strict=True):
            for number, atoms in enumerate(trajectory, start=1):
                frame = atoms.copy()
                if not frame.pbc.any():
                    frame.positions -= frame.get_center_of_mass()
                time = (plan.equilibration + number * plan.interval) * plan.time_step
                writer.append(structure_of(frame, split=start.split, system=start.name, time_fs=time))


def deformed(atoms: Atoms, random: np.random.Generator, strain: float, rattle: tuple[float, float]) -> Atoms:
    """A crystal with a random symmetric strain and random displacements.

    Args:
        atoms: the crystal, which stays as it is.
        random: where numbers come from.
        strain: largest element of the strain.
        rattle: least and largest standard deviation of the displacements, Å, between which one is drawn.
    """
    found = atoms.copy()
    drawn = random.uniform(-strain, strain, (3, 3))
    found.set_cell(found.cell.array @ (np.eye(3) + 0.5 * (drawn + drawn.T)), scale_atoms=True)
    found.positions += random.uniform(*rattle) * random.standard_normal((len(found), 3))
    return found


def make_at_random(
    path: Path, draw: Callable[[np.random.Generator], Atoms], counts: Mapping[str, int], seed: int, system: str, *, overwrite: bool = False
) -> int:
    """Draw structures one by one and write them without labels; what goes wrong is a message, and 2 the answer.

    No structure is made from another, so that the splits share nothing but the recipe.

    Args:
        path: HDF5 file to write.
        draw: makes a structure.
        counts: structures of each split.
        seed: of all random numbers.
        system: what they are called.
        overwrite: replace an existing file.
    """
    random = np.random.default_rng(seed)
    try:
        with DataWriter(
            path, level_of_theory="none", licence="CC0-1.0", provenance={"how": f"random {system}", "seed": seed}, overwrite=overwrite
        ) as writer:
            for split, count in counts.items():
                for atoms in (draw(random) for _ in range(count)):
                    writer.append(structure_of(atoms, split=split, system=system))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {sum(counts.values())} structures, without labels")
    return 0


def parse(description: str | None, out: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a script that makes structures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="HDF5 file to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every random number (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser.parse_args(arguments)


def make_by_dynamics(path: Path, teacher: str, starts: Sequence[Start], plan: Plan, *, overwrite: bool = False) -> int:
    """Load a teacher, let it drive every trajectory, write the frames; what goes wrong is a message, and 2 the answer."""
    try:
        if path.exists() and not overwrite:
            raise DataError(f"{path} exists already; choose another name with --out, or add --overwrite")
        model = load_teacher(teacher)
        cutoffs = () if model.cutoff is None else (model.cutoff,)
        model.start(collate([Pieces.of(structure_of(starts[0].atoms), 0, cutoffs)], torch.float64))
        write_frames(path, starts, run_dynamics(model, starts, plan, tell), plan, f"dynamics driven by {teacher}", overwrite=overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {len(starts)} trajectories of {plan.frames} frames, without labels")
    return 0


def tell(done: int, total: int) -> None:
    """A line now and then."""
    if done % 100 == 0 or done == total:
        print(f"step {done} of {total}", flush=True)
