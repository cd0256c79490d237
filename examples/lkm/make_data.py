"""QM9 as a data file of fastkd: one energy of each molecule, no forces; splits drawn at random.

    python -m examples.lkm.make_data qm9_30k.npz --out runs/lkm/qm9.h5

The source is an npz with ``atomic_numbers`` and positions of all atoms end to end (``positions`` in Å, or ``positions_1e4A``, whole numbers of 1e-4 Å),
``natoms`` of each molecule, and the properties of the archive (R. Ramakrishnan et al., doi:10.6084/m9.figshare.c.978904, CC0) under the names of `TARGETS`, in hartree.

Total energies of molecules are hundreds of times larger than what tells them apart. What is written is the energy less one number for each element, fitted
by least squares to the training molecules alone: an atomisation energy up to a constant for each atom. The numbers are in the file's provenance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import units
from ase.data import chemical_symbols

from fastkd.data import DataWriter, Structure
from fastkd.data.reference import compositions, fit_reference
from fastkd.errors import DataError, UserError

#: Energies that add up over atoms, by the name that --target takes: array in the npz, and what it is.
TARGETS = {
    "u0": ("InternalEnergy_0K_au", "internal energy at 0 K"),
    "u298": ("InternalEnergy_298K_au", "internal energy at 298.15 K"),
    "h298": ("Enthalphy_298K_au", "enthalpy at 298.15 K"),
    "g298": ("GibbsFreeEnergy_298K_au", "Gibbs free energy at 298.15 K"),
    "zpve": ("ZPVE_au", "zero-point vibrational energy"),
}
LEVEL = "B3LYP/6-31G(2df,p) (QM9)"
#: Å, one unit of ``positions_1e4A``.
GRID = 1e-4


def read_molecules(source: Path, target: str) -> list[Structure]:
    """Every molecule of the npz, with a total energy in eV.

    Raises:
        DataError: if an array is missing, or arrays do not fit together.
    """
    name = TARGETS[target][0]
    with np.load(source, allow_pickle=False) as arrays:
        places = "positions_1e4A" if "positions_1e4A" in arrays.files else "positions"
        missing = [key for key in (places, "atomic_numbers", "natoms", name) if key not in arrays.files]
        if missing:
            raise DataError(f"{source} lacks {', '.join(missing)}; it has {', '.join(arrays.files)}")
        positions = arrays[places] * (GRID if places == "positions_1e4A" else 1.0)
        numbers, counts, energy = arrays["atomic_numbers"], arrays["natoms"].astype(np.int64), arrays[name].astype(np.float64)
    if positions.shape != (counts.sum(), 3) or numbers.shape != (counts.sum(),) or energy.shape != counts.shape:
        raise DataError(
            f"{source}: positions {positions.shape}, atomic numbers {numbers.shape} and natoms {counts.shape} do not fit together"
        )
    ends = np.cumsum(counts)
    return [
        Structure(numbers[last - count : last], positions[last - count : last].astype(np.float32), energy=units.Hartree * float(value))
        for count, last, value in zip(counts.tolist(), ends.tolist(), energy, strict=True)
    ]


def draw(size: int, val: int, test: int, seed: int) -> npt.NDArray[Any]:
    """Split of each of ``size`` molecules, drawn at random.

    Raises:
        DataError: if nothing is left to train on.
    """
    if val < 1 or test < 1 or val + test >= size:
        raise DataError(f"{val} molecules to validate and {test} to test on leave none of {size} to train on; ask for fewer")
    order = np.random.default_rng(seed).permutation(size)
    split = np.full(size, "train", dtype=object)
    split[order[:test]], split[order[test : test + val]] = "test", "val"
    return split


def make_file(
    source: Path, out: Path, *, target: str = "u0", val: int = 3000, test: int = 3000, seed: int = 0, overwrite: bool = False
) -> dict[str, int]:
    """Write the data file.

    Args:
        source: npz of molecules.
        out: HDF5 file to write.
        target: one of `TARGETS`.
        val: molecules that choose the best checkpoint.
        test: molecules to test on; the rest is to train on.
        seed: of the splits.
        overwrite: replace an existing file.

    Returns:
        Molecules of each split.

    Raises:
        DataError: if something is missing, or the file exists.
    """
    molecules = read_molecules(source, target)
    split = draw(len(molecules), val, test, seed)
    counts, energy = compositions(molecules), np.array([molecule.energy for molecule in molecules])
    training = split == "train"
    references = fit_reference(counts[training], energy[training])
    strange = np.flatnonzero(counts.any(axis=0) & ~references.known)
    if len(strange):
        raise DataError(f"{source}: no training molecule has {', '.join(chemical_symbols[z] for z in strange)}; take another seed")
    relative = energy - counts @ references.energies
    provenance = {
        "source": source.name,
        "target": f"{TARGETS[target][0]}, {TARGETS[target][1]}, less a reference energy for each atom",
        "reference_energies_eV": {chemical_symbols[z]: float(references.energies[z]) for z in np.flatnonzero(references.known)},
        "split_seed": seed,
    }
    with DataWriter(out, level_of_theory=LEVEL, licence="CC0-1.0", provenance=provenance, overwrite=overwrite) as writer:
        for molecule, value, name in zip(molecules, relative.tolist(), split.tolist(), strict=True):
            writer.append(Structure(molecule.atomic_numbers, molecule.positions, energy=value, split=name, system="QM9"))
    return {name: int((split == name).sum()) for name in ("train", "val", "test")}


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, write the file, say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="qm9_30k.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/lkm/qm9.h5"), help="HDF5 file to write (default: %(default)s)")
    parser.add_argument("--target", choices=tuple(TARGETS), default="u0", help="which energy (default: %(default)s)")
    parser.add_argument("--val", type=int, default=3000, help="molecules that choose the best checkpoint (default: %(default)s)")
    parser.add_argument("--test", type=int, default=3000, help="molecules to test on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(arguments)
    try:
        counts = make_file(
            args.source, args.out, target=args.target, val=args.val, test=args.test, seed=args.seed, overwrite=args.overwrite
        )
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
