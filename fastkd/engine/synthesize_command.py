"""``fastkd synthesize``: arguments, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastkd.data.select import open_data_file
from fastkd.engine.synthesize import SynthesisOptions, synthesize
from fastkd.engine.teacher_commands import add_teacher_arguments, first_structures, progress_bar, teacher_of

_DEFAULT = SynthesisOptions()


def add_synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd synthesize``."""
    parser.add_argument("source", metavar="STARTS.h5", help="HDF5 file (format v1) of structures to start from, or 'embedded'; not changed")
    parser.add_argument("out", type=Path, metavar="OUT.h5", help="HDF5 file to write (format v1), for augment.synthetic")
    add_teacher_arguments(parser, required=True)
    parser.add_argument(
        "--method", choices=("relax", "md"), default=_DEFAULT.method, help="BFGS, or Langevin dynamics (default: %(default)s)"
    )
    parser.add_argument("--split", default="", help="split to start from (default: train, if the file has one, else all structures)")
    parser.add_argument("--zero", choices=("start", "absolute"), default=_DEFAULT.zero, help=_ZERO)
    for name, text in _NUMBERS.items():
        value = getattr(_DEFAULT, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} (default: %(default)s)")
    parser.add_argument("--level-of-theory", default="", metavar="TEXT", help="what the file will say of its labels (default: the teacher)")
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the data (default: the source's)")
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run has finished")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 if it exists")


_ZERO = "from where --max-energy counts: the first frame of a trajectory, or the teacher's zero, as for OC20's (default: %(default)s)"
_NUMBERS = {
    "fmax": "relax: stop when no force is larger [eV/Å]",
    "steps": "relax: at most; md: exactly",
    "every": "keep every so many-th frame",
    "temperature": "md [K]",
    "timestep": "md [fs]",
    "friction": "md [1/fs]",
    "desorbed": "drop a trajectory whose adsorbate (tag 2) is ever so far above the surface (tag 1), 0: never [Å]",
    "max_energy": "drop frames with a larger |energy|, 0: none [eV]",
    "max_force": "drop frames with a larger force on an atom, 0: none [eV/Å]",
    "limit": "frames to keep at most, chosen at random, 0: all",
    "seed": "of that choice and of dynamics",
    "at_once": "trajectories that run side by side, the teacher asked about all at once",
}


def run_synthesize(args: argparse.Namespace) -> int:
    """Make synthetic structures, and say what was done.

    Raises:
        UserError: for a teacher, a file or options that do not serve.
    """
    options = SynthesisOptions(
        method=args.method,
        zero=args.zero,
        split=args.split,
        level_of_theory=args.level_of_theory,
        licence=args.licence,
        overwrite=args.overwrite,
        restart=args.restart,
        **{name: getattr(args, name) for name in _NUMBERS},
    )
    with open_data_file(args.source) as source:
        teacher = teacher_of(args)
        teacher.start(first_structures(source, teacher, 1))
        with progress_bar(Path(args.source).name) as progress:
            report = synthesize(source, args.out, teacher, options, progress)
    print(
        f"{args.out}: {report.kept:,} of {report.frames:,} frames of {report.starts:,} trajectories, labelled by {teacher.source} [eV, eV/Å]; "
        f"dropped: {report.desorbed:,} trajectories desorbed, {report.broken:,} broken, {report.filtered:,} frames by energy or force"
    )
    print(report.cost)
    print(f"mix them in with augment.synthetic={args.out}")
    if teacher.licence:
        print(f"licence of the teacher: {teacher.licence}")
    return 0
