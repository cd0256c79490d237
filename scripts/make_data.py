"""Make the embedded data set: GFN2-xTB molecular dynamics of three organic molecules, labelled and split by time.

Geometries start from SMILES (RDKit), are relaxed and driven by Langevin dynamics at 500 K on the GFN2-xTB surface. Frames are
kept every 50 fs. Each trajectory is cut into ten blocks of time; whole blocks go to train, val or test, and the frames next to a
border between splits are dropped, so that neighbours in time never straddle train and test.

    python scripts/make_data.py                                # writes fastkd/assets/xtb_md.h5, about 20 minutes on one core
    python scripts/make_data.py --frames 20 --out small.h5     # a quick twin

Needs the extra ``fastkd[labels]`` (ase, tblite, rdkit). Same seed, same machine, same versions: same frames.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from fastkd.data import DataFile, DataWriter, Structure, make_card

TEMPERATURE_K = 500.0
TIME_STEP_FS = 0.5
STEPS_BETWEEN_FRAMES = 100
EQUILIBRATION_STEPS = 10_000
FRICTION_PER_FS = 0.01
BLOCKS = "TTTVTTETTE"  # ten blocks of time: T train, V val, E test (evaluation)
LABEL_ACCURACY = 0.01  # thresholds a hundred times tighter than the program's default
LABEL_TOLERANCE = 1e-5  # eV, eV/Å, for --check; forces are stored in float32
GUARD_FRAMES = 10  # dropped at each end of a val or test block: 0.5 ps on either side


@dataclass(frozen=True)
class Molecule:
    name: str
    smiles: str
    frames: int


MOLECULES = (
    Molecule("ethanol", "CCO", 2000),
    Molecule("malonaldehyde", r"O/C=C\C=O", 2000),
    Molecule("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 1000),
)


@dataclass(frozen=True)
class Trajectory:
    """Frames of one molecule: positions [n_frames, n_atoms, 3] Å, as float32, which is what is labelled and stored."""

    name: str
    atomic_numbers: np.ndarray
    positions: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.positions)

    @property
    def time_fs(self) -> np.ndarray:
        return np.arange(self.num_frames) * STEPS_BETWEEN_FRAMES * TIME_STEP_FS


def start_geometry(smiles: str, seed: int) -> Atoms:
    """3-D coordinates from SMILES with explicit hydrogens, by RDKit's distance geometry."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise RuntimeError(f"RDKit found no 3-D geometry for {smiles}")
    return Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())


def run_dynamics(molecule: Molecule, frames: int, seed: int) -> Trajectory:
    """Relax, equilibrate, then record ``frames`` frames, each about its centre of mass."""
    rng = np.random.default_rng(seed)
    atoms = start_geometry(molecule.smiles, seed)
    atoms.calc = xtb(accuracy=1.0)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=500)
    thermalize_momenta(atoms, temperature_K=TEMPERATURE_K, rng=rng)
    dynamics = Langevin(
        atoms, TIME_STEP_FS * units.fs, temperature_K=TEMPERATURE_K, friction=FRICTION_PER_FS / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    positions = []
    for frame in range(frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        positions.append((atoms.positions - atoms.get_center_of_mass()).astype(np.float32))
        if (frame + 1) % 100 == 0:
            print(f"{molecule.name}: {frame + 1}/{frames} frames", flush=True)
    return Trajectory(molecule.name, atoms.numbers, np.stack(positions))


def xtb(accuracy: float) -> Calculator:
    """GFN2-xTB; ``accuracy`` scales the thresholds of its self-consistency (1 is the program's default, smaller is tighter)."""
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", accuracy=accuracy, verbosity=0)


def label(atomic_numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of one frame, converged tightly from scratch: the same whichever frame came before."""
    atoms = Atoms(atomic_numbers, positions, calculator=xtb(LABEL_ACCURACY))
    return atoms.get_potential_energy(), atoms.get_forces()


def split_by_blocks(frames: int) -> np.ndarray:
    """'train', 'val', 'test' or '' (dropped) of each frame: whole blocks of time, with guards around val and test."""
    names = {"T": "train", "V": "val", "E": "test"}
    bounds = np.linspace(0, frames, len(BLOCKS) + 1).astype(int)
    split = np.empty(frames, dtype="U5")
    guard = min(GUARD_FRAMES, frames // (4 * len(BLOCKS)))
    for block, (first, last) in zip(BLOCKS, itertools.pairwise(bounds), strict=True):
        split[first:last] = names[block]
        if block != "T":
            split[first : first + guard] = ""
            split[last - guard : last] = ""
    return split


def write_file(path: Path, trajectories: list[Trajectory], seed: int) -> None:
    """Label and store every frame that has a split."""
    writer = DataWriter(
        path,
        level_of_theory=f"GFN2-xTB (tblite {version('tblite')})",
        licence="CC0-1.0",
        provenance=provenance(trajectories, seed),
        overwrite=True,
    )
    with writer:
        for trajectory in trajectories:
            splits = split_by_blocks(trajectory.num_frames)
            for frame in np.flatnonzero(splits):
                energy, forces = label(trajectory.atomic_numbers, trajectory.positions[frame])
                writer.append(
                    Structure(
                        trajectory.atomic_numbers,
                        trajectory.positions[frame],
                        energy=energy,
                        forces=forces,
                        split=str(splits[frame]),
                        system=trajectory.name,
                        time_fs=float(trajectory.time_fs[frame]),
                    )
                )


def provenance(trajectories: list[Trajectory], seed: int) -> dict[str, Any]:
    """How the frames were made."""
    return {
        "command": "python scripts/make_data.py",
        "molecules": {m.name: m.smiles for m in MOLECULES if m.name in {t.name for t in trajectories}},
        "frames": {t.name: t.num_frames for t in trajectories},
        "temperature_K": TEMPERATURE_K,
        "time_step_fs": TIME_STEP_FS,
        "frame_spacing_fs": STEPS_BETWEEN_FRAMES * TIME_STEP_FS,
        "friction_per_fs": FRICTION_PER_FS,
        "blocks": BLOCKS,
        "guard_frames": GUARD_FRAMES,
        "seed": seed,
        "versions": {name: version(name) for name in ("ase", "tblite", "rdkit", "numpy")},
    }


def check_labels(path: Path, frames: int = 5) -> float:
    """Largest difference of stored labels from GFN2-xTB computed now, over a few frames of each system: eV and eV/Å."""
    worst = 0.0
    with DataFile(path) as data:
        data.check_hash()
        for system in dict.fromkeys(data.systems.tolist()):
            for index in np.flatnonzero(data.systems == system)[:: max(1, int((data.systems == system).sum()) // frames)]:
                structure = data[int(index)]
                energy, forces = label(structure.atomic_numbers, structure.positions)
                assert structure.forces is not None
                worst = max(worst, abs(energy - structure.energy), np.abs(forces - structure.forces).max())
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fastkd/assets/xtb_md.h5"), help="HDF5 file to write")
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="finished trajectories are kept here and used again")
    parser.add_argument("--frames", type=int, help="frames per molecule, instead of each molecule's own number")
    parser.add_argument("--molecules", nargs="*", choices=[m.name for m in MOLECULES], default=[m.name for m in MOLECULES])
    parser.add_argument("--seed", type=int, default=20230601)
    parser.add_argument("--check", action="store_true", help="simulate nothing: compare a few labels of --out with GFN2-xTB computed now")
    args = parser.parse_args()
    if args.check:
        worst = check_labels(args.out)
        print(f"{args.out}: largest difference {worst:.1e} eV or eV/Å")
        return 0 if worst < LABEL_TOLERANCE else 1

    trajectories = []
    for number, molecule in enumerate(MOLECULES):
        if molecule.name not in args.molecules:
            continue
        frames = args.frames or molecule.frames
        cached = args.cache / f"{molecule.name}-{frames}-{args.seed}.npz"
        if not cached.exists():
            trajectory = run_dynamics(molecule, frames, args.seed + number)
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_suffix(".partial.npz")
            np.savez(partial, **{k: v for k, v in vars(trajectory).items() if k != "name"})
            partial.rename(cached)
        stored = np.load(cached)
        trajectories.append(Trajectory(molecule.name, stored["atomic_numbers"], stored["positions"]))
    write_file(args.out, trajectories, args.seed)
    with DataFile(args.out) as data:
        print(make_card(data).text())
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
