"""``fastkd label`` and ``fastkd inspect teacher``: arguments, and what they print."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastkd.data.batch import Batch
from fastkd.data.batching import Pieces, collate
from fastkd.data.select import open_data_file
from fastkd.engine.devices import DTYPES, choose_device
from fastkd.engine.label import LabelOptions, label_file
from fastkd.errors import ConfigError, DataError
from fastkd.teachers import BaseTeacher, load_teacher
from fastkd.teachers.inspect import inspect_teacher
from fastkd.teachers.sample import sample_batch
from fastkd.teachers.torch_module import ModuleTeacher

#: Structures of a data file that `fastkd inspect teacher --data` looks at.
_LOOKED_AT = 3


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd label``."""
    parser.add_argument("source", metavar="SOURCE.h5", help="HDF5 file (format v1; `fastkd convert` makes one), or 'embedded'; not changed")
    parser.add_argument("out", type=Path, metavar="OUT.h5", help="HDF5 file to write (format v1)")
    add_teacher_arguments(parser, required=True)
    parser.add_argument("--stress", action="store_true", help="label stresses too [eV/Å³]")
    parser.add_argument(
        "--existing",
        choices=("refuse", "keep", "replace"),
        default="refuse",
        help="what to do with labels that the file has (default: %(default)s)",
    )
    parser.add_argument("--skip-failed", action="store_true", help="go on without labels where the teacher fails, instead of stopping")
    parser.add_argument("--batch-size", type=int, default=8, help="structures asked for at once (default: %(default)s)")
    parser.add_argument("--level-of-theory", default="", metavar="TEXT", help="what the file will say of its labels (default: the teacher)")
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the labelled data (default: the source's)")
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run has finished")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 if it exists")


def add_teacher_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Which teacher: ``--teacher`` if it is required, else a positional argument."""
    text = "as teacher.path: folder, embedded, module:package.file:function, ase:package.file:function, or an adapter such as so3lr"
    if required:
        parser.add_argument("--teacher", metavar="TEACHER", help=text, required=True)
    else:
        parser.add_argument("teacher", metavar="TEACHER", help=text)
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="of the teacher's function or adapter, values in YAML"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", choices=("own", *DTYPES), default="own", help="of the teacher's weights (default: %(default)s)")


def run_label(args: argparse.Namespace) -> int:
    """Label a file, and say what was done.

    Raises:
        UserError: for a teacher, a file or options that do not serve.
    """
    with open_data_file(args.source) as source:
        teacher = teacher_of(args)
        # on structures of the file: what the teacher cannot take shows at once
        teacher.start(first_structures(source, teacher, 1))
        options = LabelOptions(
            stress=args.stress,
            existing=args.existing,
            skip_failed=args.skip_failed,
            batch_size=args.batch_size,
            level_of_theory=args.level_of_theory,
            licence=args.licence,
            overwrite=args.overwrite,
            restart=args.restart,
        )
        with progress_bar(Path(args.source).name) as progress:
            report = label_file(source, args.out, teacher, options, progress)
    failed = f", {len(report.failed)} failed ({', '.join(map(str, report.failed[:5]))}…)" if report.failed else ""
    print(
        f"{args.out}: {report.structures:,} structures, {report.labelled:,} labelled by {teacher.source} [eV, eV/Å], "
        f"{report.kept:,} kept their labels, {report.resumed:,} found finished{failed}"
    )
    print(report.cost)
    if teacher.licence:
        print(f"licence of the teacher: {teacher.licence}")
    return 0


def add_inspect_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd inspect teacher``."""
    parser.add_argument("what", choices=("teacher",), help=argparse.SUPPRESS)
    add_teacher_arguments(parser, required=False)
    parser.add_argument("--data", metavar="FILE", help="look at structures of this HDF5 file instead of made-up ones")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run_inspect_teacher(args: argparse.Namespace) -> int:
    """Print what a teacher predicts, offers, and what can be captured in it.

    Raises:
        UserError: if it cannot be loaded, or does not do what it declares.
    """
    teacher = teacher_of(args)
    batch: Batch | None = None
    if args.data:
        with open_data_file(args.data) as data:
            batch = first_structures(data, teacher, _LOOKED_AT)
    elif not isinstance(teacher, ModuleTeacher):
        batch = sample_batch(teacher.known_element, teacher.cutoff, periodic=False)
    inspection = inspect_teacher(teacher, batch)
    print(json.dumps(inspection.as_dict(), indent=2, ensure_ascii=False) if args.json else inspection.text())
    return 0


def teacher_of(args: argparse.Namespace) -> BaseTeacher:
    """The teacher that the arguments of `add_teacher_arguments` name."""
    dtype: torch.dtype | None = None if args.dtype == "own" else DTYPES[args.dtype]
    return load_teacher(args.teacher, options=parse_options(args.options), device=choose_device(args.device, "--device"), dtype=dtype)


def parse_options(items: list[str]) -> dict[str, Any]:
    """``key=value`` with values in YAML.

    Raises:
        ConfigError: for an item without ``=``, or a value that is not YAML.
    """
    options = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--options {item!r}: write key=value")
        try:
            options[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--options {item!r}: the value is not YAML") from None
    return options


def first_structures(data: Any, teacher: BaseTeacher, count: int) -> Batch:
    """The first structures of a data file, as a teacher wants them.

    Raises:
        DataError: if the file has none.
    """
    if not len(data):
        raise DataError(f"{data.path} has no structures")
    cutoffs = () if teacher.cutoff is None else (teacher.cutoff,)
    structures = data.read(list(range(min(count, len(data)))))
    return collate([Pieces.of(structure, number, cutoffs) for number, structure in enumerate(structures)], torch.float64).to(teacher.device)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description} {task.completed:,}/{task.total:,}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=0)
        yield lambda done, total: bar.update(task, completed=done, total=total)
