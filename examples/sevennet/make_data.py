"""Silicon-germanium alloys in cells of eight atoms: composition, order, strain and displacements are drawn anew for every structure.

python -m examples.sevennet.make_data
"""

from __future__ import annotations

import sys

import numpy as np
from ase import Atoms
from ase.build import bulk

from examples.sampling import deformed, make_at_random, parse

#: Lattice constants, Å; between them Vegard's law.
SILICON, GERMANIUM = 5.43, 5.66
STRAIN = 0.03
#: Displacements, Å, from those of about 100 K to those of about 1000 K.
RATTLE = (0.03, 0.12)
COUNTS = {"train": 400, "val": 60, "test": 150}


def alloy(random: np.random.Generator) -> Atoms:
    """One structure, with 0 to 8 atoms of germanium at random sites."""
    germanium = int(random.integers(0, 9))
    atoms = bulk("Si", cubic=True, a=SILICON + (GERMANIUM - SILICON) * germanium / 8)
    atoms.numbers[random.permutation(8)[:germanium]] = 32
    return deformed(atoms, random, STRAIN, RATTLE)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and make the file."""
    args = parse(__doc__, "runs/sevennet/structures.h5", arguments)
    return make_at_random(args.out, alloy, COUNTS, args.seed, "SiGe", overwrite=args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
