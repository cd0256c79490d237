"""``python -m bench.models``: our models against their public implementations, forces alone and in a training step.

Same weights, same structures, same edges, one process, in turns. Energies, forces and the gradients of all weights are compared first, in
float64 and in float32, at the size that is timed: where they differ no speed is printed and the exit code is 1. ``package`` in the list below means that the
twin is the package's own class; ``plain twin`` that it is ours, written once more in plain torch after the authors' code, which is in no package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.models import goals, markdown, shapes
from bench.models.cases import CASES
from bench.models.run import Options, run
from bench.models.steps import MODES
from bench.session import add_common_arguments, add_markdown_argument, announce, only_known


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {case.name:<26}{case.model}, {case.forces} forces: {case.peer} ({case.kind})" for case in CASES.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench.models",
        description=f"{__doc__}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME", help="whose name starts with one of these")
    parser.add_argument("--shapes", nargs="+", default=(), choices=[*shapes.SHAPES, "frames"], help="default: those that suit a model")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of a CPU (default: 1)")
    parser.add_argument(
        "--frames", type=Path, metavar="FILE.npz", help="positions [n, atoms, 3] Å and atomic_numbers [atoms], for the droplet"
    )
    parser.add_argument("--molecules", type=int, default=2, help="frames of that file in a batch (default: 2)")
    add_common_arguments(
        parser,
        seconds=2.0,
        what="the timing of one row",
        repeats=31,
        unit="shape of a model",
        quick="tiny models on their first shape: says that it runs, nothing about speed",
    )
    add_markdown_argument(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status is returned."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.markdown is not None:
        print(markdown.table(*args.markdown))
        return 0
    only_known(parser, args.models, tuple(CASES), "model")
    device = announce(parser, args, "float32")
    session = run(
        Options(
            device=device,
            models=tuple(args.models),
            shapes=tuple(args.shapes),
            modes=tuple(args.modes),
            threads=tuple(args.threads),
            frames=None if args.frames is None else shapes.frames(args.frames, args.molecules),
            seed=args.seed,
            quick=args.quick,
            seconds=0.1 if args.quick else args.seconds,
            repeats=args.repeats,
            budget=args.budget,
            json=args.json,
        ),
        say=lambda text: print(text, flush=True),
    )
    if session.rows and not args.quick:
        print(goals.report(session.rows))
    return 1 if session.failed or not session.rows else 0


if __name__ == "__main__":
    sys.exit(main())
