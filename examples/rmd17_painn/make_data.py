"""A molecule of rMD17 as a data file of fastkd: the official training split becomes train and val, the official test split test.

    python -m examples.rmd17_painn.make_data rmd17/npz_data/rmd17_ethanol.npz --splits rmd17/splits
    python -m examples.rmd17_painn.make_data rmd17_ethanol.npz

The first reads the public archive (A. S. Christensen and O. A. von Lilienfeld, doi:10.6084/m9.figshare.12672038, CC0): arrays in kcal/mol, and a
folder of index files. The second reads an npz in eV with the splits inside, as arrays ``train_01`` and ``test_01``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.data import DataWriter, Structure, Units
from fastkd.errors import DataError, UserError

#: Of the 1000 frames of the official training split, those that choose the best checkpoint.
VALIDATION = 100
#: What an array is called in the public archive and in an npz of our own.
NAMES = {"numbers": ("nuclear_charges", "atomic_numbers"), "positions": ("coords", "positions"), "energy": ("energies", "energy")}


def read_indices(arrays: Any, folder: Path | None, name: str) -> npt.NDArray[np.int64]:
    """Frames of an official split.

    Args:
        arrays: of the npz.
        folder: of the archive's index files, or None for arrays in the npz.
        name: such as train_01.

    Raises:
        DataError: if they are not there.
    """
    if folder is None:
        if name not in arrays.files:
            raise DataError(f"the file has no array {name}; give the archive's folder of index files with --splits")
        return np.asarray(arrays[name], dtype=np.int64)
    path = folder / f"index_{name}.csv"
    if not path.is_file():
        raise DataError(f"there is no {path}; --splits is the archive's folder of index files")
    return np.loadtxt(path, dtype=np.int64)


def make_file(source: Path, out: Path, splits: Path | None = None, *, number: int = 1, overwrite: bool = False) -> dict[str, int]:
    """Write the data file.

    Args:
        source: npz of one molecule.
        out: HDF5 file to write.
        splits: folder of the archive's index files; None: the npz has them.
        number: which of the five official splits, from 1.
        overwrite: replace an existing file.

    Returns:
        Structures of each split.

    Raises:
        DataError: if something is missing, or the file exists.
    """
    with np.load(source, allow_pickle=False) as arrays:
        named = {key: next((name for name in names if name in arrays.files), "") for key, names in NAMES.items()}
        if not all(named.values()) or "forces" not in arrays.files:
            raise DataError(f"{source} has {', '.join(arrays.files)}; it is no npz of rMD17")
        train, test = (read_indices(arrays, splits, f"{name}_{number:02d}") for name in ("train", "test"))
        numbers, positions, energy = (arrays[named[key]] for key in NAMES)
        forces, public = arrays["forces"], named["energy"] == "energies"
    if set(train.tolist()) & set(test.tolist()) or max(train.max(), test.max()) >= len(positions):
        raise DataError(f"{source}: splits that overlap, or that have more frames than its {len(positions)}; they are of another file")
    kept = min(VALIDATION, len(train) // 2)
    system = source.stem.removeprefix("rmd17_")
    members = {"train": train[:-kept], "val": train[-kept:], "test": test}
    writer = DataWriter(
        out,
        level_of_theory="PBE/def2-SVP (rMD17)",
        licence="CC0-1.0",
        units=Units("kcal/mol", "Å") if public else Units(),
        provenance={"source": source.name, "split": number},
        overwrite=overwrite,
    )
    with writer:
        for split, frames in members.items():
            for k in frames.tolist():
                writer.append(Structure(numbers, positions[k], energy=float(energy[k]), forces=forces[k], split=split, system=system))
    return {split: len(frames) for split, frames in members.items()}


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, write the file, say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="rmd17_ethanol.npz")
    parser.add_argument("--splits", type=Path, help="the archive's folder of index files")
    parser.add_argument("--out", type=Path, default=Path("runs/rmd17_painn/ethanol.h5"), help="HDF5 file to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(arguments)
    try:
        counts = make_file(args.source, args.out, args.splits, overwrite=args.overwrite)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
