"""What the benchmarks of kernels, models and steps share: the options that all have, a run's rows as they come, and where they come from."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from bench.common import provenance, write_json

Row = dict[str, Any]


class CommonOptions(Protocol):
    """What every benchmark is told."""

    @property
    def device(self) -> torch.device: ...
    @property
    def seed(self) -> int: ...
    @property
    def budget(self) -> float: ...
    @property
    def json(self) -> Path | None: ...


OptionsT = TypeVar("OptionsT", bound=CommonOptions)


@dataclass
class Session(Generic[OptionsT]):
    """One run: rows so far, and what was not measured."""

    name: str  #: of the benchmark, in its JSON
    options: OptionsT
    start: float = field(default_factory=time.perf_counter)
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def out_of_time(self) -> bool:
        """Whether nothing may start any more."""
        return time.perf_counter() - self.start > self.options.budget

    def about(self) -> Row:
        """What the JSON holds beside rows."""
        return {"failed": self.failed, "skipped": self.skipped, "seconds": round(time.perf_counter() - self.start, 1)}

    def write(self) -> None:
        """Everything so far, so that a run that is stopped leaves what it found."""
        write_json(self.options.json, self.name, self.rows, self.options.seed, device=self.options.device, **self.about())


def add_common_arguments(parser: argparse.ArgumentParser, *, seconds: float, what: str, repeats: int, unit: str, quick: str) -> None:
    """Device, time, seed and output.

    Args:
        parser: to add them to.
        seconds: default, for ``what``.
        what: is timed for so long.
        repeats: default, at most.
        unit: what does not start after the budget.
        quick: what ``--quick`` does.
    """
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"for {what} (default: {seconds:g})")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"at most so many (default: {repeats})")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help=f"no {unit} starts later than this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE")


def add_markdown_argument(parser: argparse.ArgumentParser) -> None:
    """``--markdown FILE …``."""
    parser.add_argument(
        "--markdown", type=Path, nargs="+", metavar="FILE", help="print one table of JSON files of this command, and measure nothing"
    )


def announce(parser: argparse.ArgumentParser, args: argparse.Namespace, *more: object) -> torch.device:
    """Say what is measured on what, and give the device; ends the program if there is none such."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"there is no CUDA device for --device {args.device}; say --device cpu")
    device = torch.device(args.device)
    about = provenance(args.seed, device)
    versions = (f"{name} {version}" for name, version in about["versions"].items() if version)
    print(
        ", ".join(
            map(str, (about["device"], f"{about['cores']} cores", *versions, f"commit {about['commit']}", f"seed {args.seed}", *more))
        )
    )
    return device


def only_known(parser: argparse.ArgumentParser, asked: Sequence[str], known: Sequence[str], what: str) -> None:
    """Ends the program if something is asked for that no known name begins with."""
    if unknown := [name for name in asked if not any(one.startswith(name) for one in known)]:
        parser.error(f"no {what} begins with {unknown[0]!r}; there are {', '.join(known)}")


def origin(about: dict[str, Any]) -> str:
    """A ``provenance`` in a line, for tables."""
    return f"{about['device']}, {about['cores']} cores, torch {about['versions']['torch']}, commit {about['commit']}, seed {about['seed']}"
