"""Make the embedded data set: GFN2-xTB molecular dynamics of three organic molecules, labelled and split by time.

Geometries start from SMILES (RDKit), are relaxed and driven by Langevin dynamics at 500 K on the GFN2-xTB surface. Frames are
kept every 50 fs. Each trajectory is cut into ten blocks of time; whole blocks go to train, val or test, and the frames next to a
border between splits are dropped, so that neighbours in time never straddle train and test.

    python scripts/make_data.py                                # writes fastkd/assets/xtb_md.h5, 30 to 60 minutes on one core
    python scripts/make_data.py --frames 20 --out small.h5     # a quick twin

Needs the extra ``fastkd[labels]`` (ase, tblite, rdkit). Same seed, same machine, same versions: same frames.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS

TEMPERATURE_K = 500.0
TIME_STEP_FS = 0.5
STEPS_BETWEEN_FRAMES = 100
EQUILIBRATION_STEPS = 10_000
FRICTION_PER_FS = 0.01
BLOCKS = "TTTVTTETTE"  # ten blocks of time: T train, V val, E test (evaluation)
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
    """Frames of one molecule: positions [n_frames, n_atoms, 3] Å (float32), energy [n_frames] eV, forces eV/Å (float32)."""

    name: str
    atomic_numbers: np.ndarray
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray

    @property
    def time_fs(self) -> np.ndarray:
        return np.arange(len(self.energy)) * STEPS_BETWEEN_FRAMES * TIME_STEP_FS


def start_geometry(smiles: str, seed: int) -> Atoms:
    """3-D coordinates from SMILES with explicit hydrogens, by RDKit's distance geometry."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise RuntimeError(f"RDKit found no 3-D geometry for {smiles}")
    return Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())


def run_dynamics(molecule: Molecule, frames: int, seed: int) -> Trajectory:
    """Relax, equilibrate, then record ``frames`` frames; labels belong to the float32 positions that are stored."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = start_geometry(molecule.smiles, seed)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=500)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE_K, rng=rng)
    dynamics = Langevin(
        atoms, TIME_STEP_FS * units.fs, temperature_K=TEMPERATURE_K, friction=FRICTION_PER_FS / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    probe = atoms.copy()
    probe.calc = TBLite(method="GFN2-xTB", verbosity=0)
    positions, energy, forces = [], [], []
    for frame in range(frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        stored = (atoms.positions - atoms.get_center_of_mass()).astype(np.float32)
        probe.positions = stored
        positions.append(stored)
        energy.append(probe.get_potential_energy())
        forces.append(probe.get_forces().astype(np.float32))
        if (frame + 1) % 100 == 0:
            print(f"{molecule.name}: {frame + 1}/{frames} frames", flush=True)
    return Trajectory(molecule.name, atoms.numbers, np.stack(positions), np.array(energy), np.stack(forces))


def split_by_blocks(frames: int) -> np.ndarray:
    """'train', 'val', 'test' or '' (dropped) of each frame: whole blocks of time, with guards around val and test."""
    names = {"T": "train", "V": "val", "E": "test"}
    bounds = np.linspace(0, frames, len(BLOCKS) + 1).astype(int)
    split = np.empty(frames, dtype="U5")
    guard = min(GUARD_FRAMES, frames // (4 * len(BLOCKS)))
    for block, (first, last) in zip(BLOCKS, zip(bounds[:-1], bounds[1:], strict=True), strict=True):
        split[first:last] = names[block]
        if block != "T":
            split[first : first + guard] = ""
            split[last - guard : last] = ""
    return split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fastkd/assets/xtb_md.h5"), help="HDF5 file to write")
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="finished trajectories are kept here and used again")
    parser.add_argument("--frames", type=int, help="frames per molecule, instead of each molecule's own number")
    parser.add_argument("--molecules", nargs="*", default=[m.name for m in MOLECULES], help="only simulate these; write nothing if not all")
    parser.add_argument("--seed", type=int, default=20230601)
    args = parser.parse_args()

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
        trajectories.append(Trajectory(molecule.name, **np.load(cached)))


if __name__ == "__main__":
    main()
