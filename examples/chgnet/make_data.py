"""Mixed alkali halides (Li, Na)(F, Cl) in cells of eight ions: composition, order, strain and displacements are drawn for every structure.

python -m examples.chgnet.make_data
"""

from __future__ import annotations

import sys

import numpy as np
from ase import Atoms
from ase.build import bulk

from examples.sampling import deformed, make_at_random, parse

#: Lattice constants of rock salt, Å; a mixture has their mean over its pairs of ions.
LATTICE = {("Li", "F"): 4.03, ("Li", "Cl"): 5.13, ("Na", "F"): 4.63, ("Na", "Cl"): 5.64}
STRAIN = 0.03
#: Displacements, Å.
RATTLE = (0.03, 0.15)
COUNTS = {"train": 400, "val": 60, "test": 150}


def halide(random: np.random.Generator) -> Atoms:
    """One structure: four sites of either sodium or lithium, four of either chlorine or fluorine."""
    cations = random.choice(("Li", "Na"), 4, p=_share(random))
    anions = random.choice(("F", "Cl"), 4, p=_share(random))
    length = float(np.mean([LATTICE[cation, anion] for cation in cations.tolist() for anion in anions.tolist()]))
    atoms = bulk("NaCl", "rocksalt", a=length, cubic=True)
    sodium = atoms.numbers == 11
    atoms.symbols[np.flatnonzero(sodium)] = list(cations)
    atoms.symbols[np.flatnonzero(~sodium)] = list(anions)
    return deformed(atoms, random, STRAIN, RATTLE)


def _share(random: np.random.Generator) -> tuple[float, float]:
    # drawn for each structure, so that pure salts are as frequent as mixtures
    first = float(random.uniform())
    return first, 1.0 - first


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and make the file."""
    args = parse(__doc__, "runs/chgnet/structures.h5", arguments)
    return make_at_random(args.out, halide, COUNTS, args.seed, "(Li,Na)(F,Cl)", overwrite=args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
