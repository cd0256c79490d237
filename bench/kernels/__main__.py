"""``python -m bench.kernels``: every op of fastkd_kernels against plain torch, torch.compile and its peers.

Speeds of an op are printed only if its three orders agree with float64 in this same command; otherwise the exit code is 1. Ratios are of
medians measured in turns in one process. Memory on a CPU is the peak that torch's profiler sees, on a GPU that of torch's allocator.
"""

from __future__ import annotations

import argparse
import sys

import torch

from bench.kernels import goals
from bench.kernels.cases import MODES
from bench.kernels.run import Options, run
from bench.kernels.shapes import SHAPES
from bench.session import add_common_arguments, announce

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", default=(), metavar="NAME", help="ops whose name has one of these in it")
    parser.add_argument("--shapes", nargs="+", default=(), choices=SHAPES)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--providers", nargs="+", default=(), metavar="NAME", help="beside ours and the reference: compiled, pyg, …")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default: 1)")
    add_common_arguments(
        parser,
        seconds=2.0,
        what="the timing of one row",
        repeats=51,
        unit="row",
        quick="small input, without torch.compile: says that it runs, little about speed",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit status is returned."""
    parser = _parser()
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = announce(parser, args, args.dtype, f"{args.threads} threads")
    session = run(
        Options(
            device=device,
            ops=tuple(args.ops),
            shapes=tuple(args.shapes),
            modes=tuple(args.modes),
            providers=tuple(args.providers),
            dtype=DTYPES[args.dtype],
            seed=args.seed,
            quick=args.quick,
            seconds=args.seconds,
            repeats=args.repeats,
            budget=args.budget,
            json=args.json,
        ),
        say=lambda text: print(text, flush=True),
    )
    if device.type == "cuda":
        print(goals.report(session.rows))
    return 1 if session.failed or not session.rows else 0


if __name__ == "__main__":
    sys.exit(main())
