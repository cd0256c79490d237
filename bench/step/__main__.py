"""``python -m bench.step``: what a step of distillation costs, against the student's own step and against the same of generic operators.

Whole steps of the training loop, in one process, in turns, ratios within a round: the student alone; with terms and features from a cache; with a live teacher; the
teacher's forward pass alone; and with and without a cache the same with terms and sums in plain torch. Losses and gradients of both are compared first, in
float64 and in float32, at the size that is timed: where they differ no time is printed and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys

from bench.session import add_common_arguments, add_markdown_argument, announce, only_known
from bench.step import goals, markdown, measure
from bench.step.cases import PAIRS
from bench.step.run import Options, run


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {pair.name:<20}{pair.text}: {', '.join(terms.name for terms in pair.terms)}" for pair in PAIRS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description=f"{__doc__}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    terms = list(dict.fromkeys(terms.name for pair in PAIRS.values() for terms in pair.terms))
    shapes = list(dict.fromkeys(name for pair in PAIRS.values() for name in (*pair.shapes, *pair.large)))
    parser.add_argument("--pairs", nargs="+", default=(), metavar="NAME", help="whose name starts with one of these")
    parser.add_argument("--terms", nargs="+", default=(), choices=terms)
    parser.add_argument("--shapes", nargs="+", default=(), choices=shapes, help="default: those that suit a pair")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of a CPU (default: 1)")
    parser.add_argument(
        "--clock", default="wall", choices=measure.CLOCKS, help="cpu: processor time of one thread, where others use the machine too"
    )
    add_common_arguments(
        parser,
        seconds=8.0,
        what="steps from a cache, and again with a live teacher",
        repeats=41,
        unit="row",
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
    only_known(parser, args.pairs, tuple(PAIRS), "pair")
    if args.clock == "cpu" and (args.device != "cpu" or args.threads != [1]):
        parser.error("--clock cpu counts the work of all threads together, and none of a GPU: it is for --device cpu --threads 1")
    device = announce(parser, args, "float32")
    session = run(
        Options(
            device=device,
            pairs=tuple(args.pairs),
            terms=tuple(args.terms),
            shapes=tuple(args.shapes),
            threads=tuple(args.threads),
            seed=args.seed,
            quick=args.quick,
            seconds=0.1 if args.quick else args.seconds,
            repeats=args.repeats,
            clock=args.clock,
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
