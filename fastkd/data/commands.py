"""``fastkd convert`` and ``fastkd inspect``: arguments, and what they print."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fastkd.data.card import make_card
from fastkd.data.convert import Report, SourceOptions, SplitPlan, convert, parse_slice
from fastkd.data.convert.source import parse_pbc
from fastkd.data.convert.splits import parse_blocks, parse_fractions, parse_members
from fastkd.data.reader import DataFile
from fastkd.data.select import open_data_file
from fastkd.data.units import ENERGY_UNITS, LENGTH_UNITS, Units
from fastkd.errors import ConfigError

#: Structures between two updates of the progress line.
_EVERY = 100


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd convert``."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="extxyz or anything else that ASE reads, an ASE database (.db), or .npz"
    )
    parser.add_argument("out", type=Path, metavar="OUT.h5", help="HDF5 file to write (format v1)")
    parser.add_argument("--level-of-theory", default="", metavar="TEXT", help="how labels were computed, such as PBE/def2-SVP")
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the data, such as CC-BY-4.0")
    parser.add_argument(
        "--energy-unit", metavar="UNIT", help=f"of the source: {', '.join(ENERGY_UNITS)} (default: what the source says, else eV)"
    )
    parser.add_argument(
        "--length-unit", metavar="UNIT", help=f"of the source: {', '.join(LENGTH_UNITS)} (default: what the source says, else Å)"
    )
    parser.add_argument("--forces-unit", metavar="UNIT", help="of the source, such as hartree/bohr (default: energy unit / length unit)")
    for label in ("energy", "forces", "stress"):
        parser.add_argument(f"--{label}-key", default="", metavar="NAME", help=f"property that holds the {label} (default: the usual name)")
    systems = parser.add_mutually_exclusive_group()
    systems.add_argument("--system", default="", metavar="NAME", help="name of the molecule or material, for all structures")
    systems.add_argument("--system-key", default="", metavar="NAME", help="property that names the system or trajectory of each structure")
    parser.add_argument(
        "--pbc", default="", metavar="TTT", help="periodic directions, for npz with a cell (default: along every lattice vector)"
    )
    parser.add_argument(
        "--tags",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep tags (as OC20's: 0, 1, 2), fixed atoms and bonds of the source (default: yes)",
    )
    parser.add_argument("--select", default=":", metavar="START:STOP:STEP", help="only these structures of the source (default: all)")
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument("--split", metavar="TRAIN,VAL,TEST", help="fractions drawn at random, such as 0.8,0.1,0.1")
    splits.add_argument("--blocks", metavar="TTTVTTETTE", help="equal blocks of time of each system: T train, V val, E test")
    splits.add_argument("--split-key", default="", metavar="NAME", help="property that names the split of each structure")
    splits.add_argument(
        "--split-index", nargs="+", default=[], metavar="NAME=ARRAY", help="npz arrays that list the structures of each split"
    )
    parser.add_argument(
        "--split-by", choices=("structure", "system"), default="structure", help="what --split draws at random (default: %(default)s)"
    )
    parser.add_argument(
        "--guard", type=int, default=0, metavar="N", help="--blocks: leave out N structures at each end of val and test blocks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split (default: %(default)s)")
    parser.add_argument(
        "--positions-dtype",
        choices=("float32", "float64"),
        default="float32",
        help="as stored; float32 keeps 1e-6 Å (default: %(default)s)",
    )
    parser.add_argument(
        "--no-forces", action="store_true", help="the labels are energies alone: leave forces away, if there are any (loss.forces_weight=0)"
    )
    parser.add_argument("--allow-missing-labels", action="store_true", help="keep structures that lack an energy or forces")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 if it exists")


def run_convert(args: argparse.Namespace) -> int:
    """Convert, say what was written, and print the data card.

    Raises:
        ConfigError: if arguments contradict each other or cannot be read.
        DataError: if the source or the target is not as it should be.
    """
    units, options, plan = _units(args), _source_options(args), _split_plan(args)
    with _progress_line(args.source) as progress:
        report = convert(
            args.source,
            args.out,
            level_of_theory=args.level_of_theory,
            units=units,
            options=options,
            plan=plan,
            licence=args.licence,
            overwrite=args.overwrite,
            positions_dtype=args.positions_dtype,
            allow_missing_labels=args.allow_missing_labels,
            forces=not args.no_forces,
            progress=progress,
        )
    print(_summary(args.out, report))
    with DataFile(args.out) as data:
        print(make_card(data).text())
    return 0


@contextlib.contextmanager
def _progress_line(source: Path) -> Iterator[Callable[[int], None] | None]:
    """Structures so far, on stderr, if that is a terminal; the line goes when all is done."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,} structures"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(source.name, total=None)

        def tell(structures: int) -> None:
            if structures % _EVERY == 0:
                bar.update(task, completed=structures)

        yield tell


def _units(args: argparse.Namespace) -> Units | None:
    if not (args.energy_unit or args.length_unit or args.forces_unit):
        return None
    return Units(args.energy_unit or "eV", args.length_unit or "Å", args.forces_unit or "")


def _source_options(args: argparse.Namespace) -> SourceOptions:
    if args.pbc:
        parse_pbc(args.pbc)
    return SourceOptions(
        energy_key=args.energy_key,
        forces_key=args.forces_key,
        stress_key=args.stress_key,
        system_key=args.system_key,
        split_key=args.split_key,
        system=args.system,
        pbc=args.pbc,
        tags=args.tags,
        select=parse_slice(args.select),
    )


def _split_plan(args: argparse.Namespace) -> SplitPlan:
    if args.guard < 0 or (args.guard and not args.blocks):
        raise ConfigError("--guard needs --blocks, and a number that is not negative")
    if args.split_by == "system" and not args.split:
        raise ConfigError("--split-by needs --split")
    if args.split_index and (args.source.suffix.lower() != ".npz" or args.select != ":"):
        raise ConfigError("--split-index needs an npz source, converted whole (without --select): its arrays count all structures")
    return SplitPlan(
        fractions=parse_fractions(args.split) if args.split else (),
        by=args.split_by,
        seed=args.seed,
        blocks=parse_blocks(args.blocks) if args.blocks else "",
        guard=args.guard,
        members=parse_members(args.split_index),
    )


def _summary(out: Path, report: Report) -> str:
    return (
        f"{out}: {report.structures:,} structures, {report.atoms:,} atoms, {out.stat().st_size:,} bytes\n"
        f"labels: {report.with_energy:,} energies [eV], {report.with_forces:,} structures with forces [eV/Å]\n"
    )


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``fastkd inspect``."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="HDF5 file (format v1), 'embedded', or a model: its .safetensors file or folder, or a foreign checkpoint (.pt)",
    )
    parser.add_argument("--cutoff", type=float, default=5.0, help="count neighbours closer than this [Å] (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the card as JSON, with the file's provenance")


def run_inspect(args: argparse.Namespace) -> int:
    """Check every number and the content hash of a data file and print its card, or print what a model says of itself.

    Raises:
        ConfigError: if the cutoff is not positive.
        DataError: if the data file is not as it should be.
        CheckpointError: if the model is not as it should be.
    """
    if not args.cutoff > 0:
        raise ConfigError(f"--cutoff {args.cutoff:g}: must be positive")
    if Path(args.file).is_dir() or Path(args.file).suffix == ".safetensors":
        from fastkd.models.factory import read_header

        print(json.dumps(read_header(args.file), indent=2, ensure_ascii=False))
        return 0
    if Path(args.file).suffix in (".pt", ".pth", ".ckpt"):
        from fastkd.models.convert_command import inspect_checkpoint

        print(inspect_checkpoint(args.file))
        return 0
    with open_data_file(args.file) as data:
        if data.content_hash:
            data.check_hash()
        card = make_card(data, cutoffs=(args.cutoff,))
        if args.json:
            print(
                json.dumps(
                    card.as_dict() | {"content_hash": data.content_hash, "provenance": data.provenance}, indent=2, ensure_ascii=False
                )
            )
        else:
            print(card.text())
            print(f"content hash {'agrees' if data.content_hash else 'is missing: nothing to compare with'}")
    return 0
