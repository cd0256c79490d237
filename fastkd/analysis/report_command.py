"""``fastkd report``: arguments, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastkd.analysis.report import HTML, build_joint_report, build_report
from fastkd.errors import CheckpointError


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd report``."""
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run or of a comparison; several make one report (--out)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report (default: the run's, if there is one)")
    parser.add_argument(
        "--baseline",
        default="",
        metavar="NAME",
        help="student that 'gap closed' or 'MAE reduced' is measured from: title, name or folder (default: the first arm; of several folders the first not distilled)",
    )
    parser.add_argument(
        "--teacher",
        default="",
        metavar="NAME",
        help="teacher that it is measured to: title, file, or folder of any finished run (default: the only one)",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples for the intervals (default 1000)")
    parser.add_argument("--html", action=argparse.BooleanOptionalAction, default=True, help="write report.html (default yes)")
    parser.add_argument(
        "--format",
        choices=("table", "text", "markdown"),
        default="table",
        help="what is printed: a table for the terminal, plain text, or Markdown",
    )


def run_report(arguments: argparse.Namespace) -> int:
    """Do what ``fastkd report`` was asked; returns the exit code.

    Raises:
        UserError: as `build_report`; the command line prints it and exits with 2.
    """
    from rich.console import Console

    console = Console()
    if arguments.bootstrap < 1:
        raise CheckpointError(f"--bootstrap must be at least 1, got {arguments.bootstrap}")
    folders, out = arguments.run, arguments.out
    if out is None and len(folders) > 1:
        raise CheckpointError("several folders make one report, which needs a folder of its own; name it by --out DIR")
    if out is None and not (arguments.baseline or arguments.teacher):
        report = build_report(folders[0], resamples=arguments.bootstrap, html=arguments.html)
    else:
        report = build_joint_report(
            folders,
            out or folders[0],
            baseline=arguments.baseline,
            teacher=arguments.teacher,
            resamples=arguments.bootstrap,
            html=arguments.html,
        )
    if arguments.format == "table":
        console.print(report.table())
    else:
        console.print(report.text() if arguments.format == "text" else report.markdown(), markup=False, highlight=False, soft_wrap=True)
    if arguments.html:
        console.print(f"report: {report.root / HTML}", markup=False, highlight=False, soft_wrap=True)
    return 0
