"""``python -m bench.models``: our models against their public implementations, forces alone and in a training step.

Same weights, same structures, same edges, one process, in turns. Energies, forces and the gradients of all weights are compared first, in
float64 and in float32, at the size that is timed: where they differ no speed is printed and the exit code is 1. ``package`` in the list below means that the
twin is the package's own class; ``plain twin`` that it is ours, written once more in plain torch after the authors' code, which is in no package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench.common import provenance
from bench.models import goals, markdown, shapes
from bench.models.cases import CASES
from bench.models.run import Options, run
from bench.models.steps import MODES


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {case.name:<26}{case.model}, {case.forces} forces: {case.peer} ({case.kind})" for case in CASES.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench.models",
        description=f"{__doc__}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME", help="whose name starts with one of these")
    parser.add_argument("--shapes", nargs="+", default=(), choices=[*shapes.SHAPES, "frames"], help="default: those that suit a model")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of a CPU (default: 1)")
    parser.add_argument(
        "--frames", type=Path, metavar="FILE.npz", help="positions [n, atoms, 3] Å and atomic_numbers [atoms], for the droplet"
    )
    parser.add_argument("--molecules", type=int, default=2, help="frames of that file in a batch (default: 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the timing of one row (default: 2)")
    parser.add_argument("--repeats", type=int, default=31, help="at most so many (default: 31)")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="nothing starts later than this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny models on their first shape: says that it runs, nothing about speed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--markdown", type=Path, nargs="+", metavar="FILE", help="print one table of JSON files of this command, and measure nothing"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status is returned."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.markdown is not None:
        print(markdown.table(*args.markdown))
        return 0
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"there is no CUDA device for --device {args.device}; say --device cpu")
    if unknown := [name for name in args.models if not any(case.startswith(name) for case in CASES)]:
        parser.error(f"no model begins with {unknown[0]!r}; there are {', '.join(CASES)}")
    device = torch.device(args.device)
    about = provenance(args.seed, device)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    print(f"{about['device']}, {about['cores']} cores, {versions}, commit {about['commit']}, seed {args.seed}, float32")
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
