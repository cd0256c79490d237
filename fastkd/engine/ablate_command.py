"""``fastkd ablate BASE.yaml``: losses, layers, projections and λ swept on a budget, and one table."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from rich.console import Console

from fastkd.analysis.ablation import MARKDOWN, PAGE, TABLE
from fastkd.config_loading import load_config
from fastkd.engine.ablate import ablate
from fastkd.engine.signals import Interrupted
from fastkd.errors import ConfigError

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def add_ablate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd ablate``."""
    parser.add_argument("config", metavar="BASE.yaml", help="config of a single distilled run, with or without a section ablate")
    parser.add_argument("options", nargs="*", metavar="a.b=c", help="options to change, such as ablate.losses=[mse,mae] or run.resume=true")
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="N | 30min",
        help="optimiser steps of each trial, or time for all training together (s, min, h); may be given twice, once each",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for everything; the same as run.dir=DIR")


def run_ablate(args: argparse.Namespace) -> int:
    """Run it, print the table, and say where it is; the exit code.

    Raises:
        UserError: for a config, data, teacher or folder that does not serve.
    """
    options = [*args.options, *(budget(text) for text in args.budget), *([f"run.dir={args.out}"] if args.out is not None else [])]
    config = load_config(args.config, options)
    console = Console(highlight=False, soft_wrap=True)
    try:
        found = ablate(config, console)
    except Interrupted as stopped:
        given = [args.config, *(option for option in options if not option.startswith("run.resume="))]
        again = shlex.join(["fastkd", "ablate", *given, "run.resume=true"])
        print(f"stopped at step {stopped.step}; checkpoint in {stopped.run_dir}\ngo on with: {again}", file=sys.stderr)
        return stopped.exit_code
    console.print(found.markdown(), markup=False)
    console.print(f"table: {', '.join(str(config.run.dir / name) for name in (MARKDOWN, TABLE, PAGE))}", markup=False)
    return 0


def budget(text: str) -> str:
    """A budget as an option: ``500`` are steps of each trial, ``30min`` is time for all.

    Raises:
        ConfigError: if it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)?", text.strip())
    if not match or (match[2] is None and "." in match[1]) or float(match[1]) <= 0:
        raise ConfigError(f"--budget {text!r}: must be a number of steps such as 500, or a time such as 90s, 30min or 2h")
    return f"ablate.steps={match[1]}" if match[2] is None else f"ablate.seconds={float(match[1]) * _SECONDS[match[2]]}"
