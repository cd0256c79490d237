"""Trajectories: relaxations or short pieces of dynamics with a teacher, through ASE, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from fastkd.data.structure import Structure
from fastkd.engine.together import together
from fastkd.teachers import BaseTeacher, TeacherCost
from fastkd.teachers.calculator import FAILURES, Labels, TeacherCalculator, atoms_of, energies_and_forces

if TYPE_CHECKING:
    from fastkd.engine.synthesize import SynthesisOptions

Floats = npt.NDArray[np.float64]
Ask = Callable[[Structure], Labels]

#: What became of a trajectory.
DONE, DESORBED, BROKEN = "done", "desorbed", "broken"
#: OC20's tags.
SURFACE, ADSORBATE = 1, 2


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Frames with the teacher's labels; a trajectory that was dropped has none."""

    positions: Floats  #: [frames, n_atoms, 3] Å
    energy: Floats  #: [frames] eV
    forces: Floats  #: [frames, n_atoms, 3] eV/Å, of all atoms, fixed ones included
    time_fs: Floats  #: [frames] fs, NaN in relaxations
    verdict: str  #: done, desorbed or broken


def run_trajectories(
    starts: Mapping[int, Structure], teacher: BaseTeacher, options: SynthesisOptions, cost: TeacherCost
) -> dict[int, Trajectory]:
    """Move structures side by side, the teacher asked about all of them at once.

    Args:
        starts: where each begins, by number of the structure in its file, which random numbers of dynamics depend on.
        teacher: gives forces and labels.
        options: of the synthesis.
        cost: where the teacher's time is counted.
    """

    def task(number: int) -> Callable[[Ask], Trajectory]:
        start = starts[number]
        # ASE's atoms know no bonds
        return lambda ask: _run(
            start, number, TeacherCalculator(teacher, cost, lambda structure: ask(replace(structure, bonds=start.bonds))), options
        )

    found = together([task(number) for number in starts], lambda structures: energies_and_forces(teacher, structures, cost))
    return dict(zip(starts, found, strict=True))


def _run(start: Structure, number: int, calculator: TeacherCalculator, options: SynthesisOptions) -> Trajectory:
    """Move one structure, and look at every frame that it passes through."""
    atoms = atoms_of(start)
    atoms.calc = calculator
    frames: list[tuple[Floats, float, Floats]] = []
    times: list[float] = []
    dropped = Trajectory(np.zeros((0, len(atoms), 3)), np.zeros(0), np.zeros((0, len(atoms), 3)), np.zeros(0), BROKEN)
    try:
        for step in _moving(atoms, number, options):
            if options.desorbed and has_desorbed(atoms.get_positions(), start.tags, options.desorbed):
                return Trajectory(dropped.positions, dropped.energy, dropped.forces, dropped.time_fs, DESORBED)
            if step % options.every == 0:
                # with constraints ASE would report no force on fixed atoms
                frames.append((atoms.get_positions(), atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)))
                times.append(step * options.timestep if options.method == "md" else float("nan"))
    except FAILURES:
        # atoms on top of each other, or numbers that are not finite: a teacher far outside of what it knows
        return dropped
    positions, energy, forces = (np.array([frame[part] for frame in frames], dtype=np.float64) for part in range(3))
    return Trajectory(positions, energy, forces, np.array(times), DONE)


def has_desorbed(positions: Floats, tags: npt.NDArray[Any] | None, height: float) -> bool:
    """Whether the lowest atom of the adsorbate (tag 2) is more than ``height`` Å above the highest of the surface (tag 1), along z."""
    if tags is None or not (tags == ADSORBATE).any() or not (tags == SURFACE).any():
        return False
    return bool(positions[tags == ADSORBATE, 2].min() > positions[tags == SURFACE, 2].max() + height)


def _moving(atoms: Atoms, number: int, options: SynthesisOptions) -> Iterator[int]:
    """Step numbers, 0 first, with the atoms where they are then."""
    if options.method == "relax":
        with BFGS(atoms, logfile=None) as relaxation:
            for step, _ in enumerate(relaxation.irun(fmax=options.fmax, steps=options.steps)):
                yield step
        return
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([options.seed, number])))
    # Maxwell and Boltzmann's; ASE's own function has changed its name, and constraints hold in any case
    spread = np.sqrt(atoms.get_masses() * units.kB * options.temperature)
    atoms.set_momenta(random.standard_normal((len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms,
        timestep=options.timestep * units.fs,
        temperature_K=options.temperature,
        friction=options.friction / units.fs,
        rng=random,
        fixcm=False,
        logfile=None,
    )
    for step in range(options.steps + 1):
        if step:
            dynamics.run(1)
        yield step
