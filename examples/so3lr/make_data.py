"""Four small molecules with the bonds of proteins, at 500 K on SO3LR's surface: five trajectories of each, split by trajectory.

python -m examples.so3lr.make_data
"""

from __future__ import annotations

import sys

from ase.build import molecule

from examples.sampling import Plan, Start, make_by_dynamics, parse

#: Acetamide, ethanol, dimethyl ether, ethylamine: names of ASE's G2 collection.
MOLECULES = ("CH3CONH2", "CH3CH2OH", "CH3OCH3", "CH3CH2NH2")
SPLITS = ("train", "train", "train", "val", "test")
TEMPERATURE = 500.0


def starts() -> list[Start]:
    """Every molecule once for each of its trajectories."""
    return [Start(molecule(name), split, TEMPERATURE, system=name) for name in MOLECULES for split in SPLITS]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and make the file."""
    args = parse(__doc__, "runs/so3lr/structures.h5", arguments)
    plan = Plan(frames=60, time_step=0.5, interval=20, equilibration=200, seed=args.seed)
    return make_by_dynamics(args.out, "so3lr", starts(), plan, overwrite=args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
