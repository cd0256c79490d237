"""All strategies on the embedded ethanol and on ethanol and aspirin of rMD17, three seeds each, and one table of all.

    python -m examples.strategies --rmd17 rmd17/npz_data --splits rmd17/splits --ethanol-teacher schnetpack_painn.npz
    python -m examples.strategies --only embedded

What is there already is not made again, so that a stopped command goes on. Everything goes below ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.rmd17_painn.make_data import make_file
from fastkd.analysis.gap import Gap
from fastkd.analysis.report import Row, build_report
from fastkd.cli import main as fastkd
from fastkd.config import Config
from fastkd.config_loading import load_config
from fastkd.data import DataWriter
from fastkd.data.select import open_data_file
from fastkd.engine.datasets import evenly
from fastkd.engine.run import run as train
from fastkd.engine.signals import Interrupted
from fastkd.errors import ConfigError, UserError
from fastkd.files import write_text

HERE = Path(__file__).parent
ARMS, ASPIRIN_TEACHER = HERE / "arms.yaml", HERE / "aspirin_teacher.yaml"
#: Training frames that dynamics with the teacher starts from, and what it is told.
STARTS = 20
DYNAMICS = ("--method", "md", "--steps", "500", "--every", "25", "--temperature", "500")


@dataclass(frozen=True)
class Place:
    """Where one data set has its files."""

    name: str
    title: str
    data: str  #: as data.path
    system: str
    teacher: str  #: as teacher.path
    folder: Path

    @property
    def synthetic(self) -> Path:
        return self.folder / f"{self.name}_synthetic.h5"

    @property
    def runs(self) -> Path:
        return self.folder / self.name


def places(folder: Path) -> dict[str, Place]:
    """The data sets by name."""
    found = [
        Place("embedded", "embedded ethanol", "embedded", "ethanol", "embedded", folder),
        Place("ethanol", "rMD17 ethanol", str(folder / "ethanol.h5"), "ethanol", str(folder / "ethanol_teacher"), folder),
        Place("aspirin", "rMD17 aspirin", str(folder / "aspirin.h5"), "aspirin", str(folder / "aspirin_teacher"), folder),
    ]
    return {place.name: place for place in found}


def prepare(place: Place, args: argparse.Namespace) -> None:
    """Make data, teacher and synthetic structures where they are not there yet.

    Raises:
        UserError: if something is missing or cannot be made.
    """
    if place.name != "embedded" and not Path(place.data).exists():
        if args.rmd17 is None:
            raise ConfigError(f"{place.data} is not there: name the folder of rmd17_{place.name}.npz with --rmd17, or use --only embedded")
        make_file(args.rmd17 / f"rmd17_{place.name}.npz", Path(place.data), args.splits)
    if place.name == "ethanol" and not Path(place.teacher).exists():
        if args.ethanol_teacher is None:
            raise ConfigError("the teacher of rMD17 ethanol is not there: name the state dict of SchNetPack's PaiNN with --ethanol-teacher")
        run("convert", "checkpoint", args.ethanol_teacher, place.teacher, "--energy-unit", "kcal/mol", "--elements", "H", "C", "O")
    if place.name == "aspirin" and not (Path(place.teacher) / "model.safetensors").exists():
        resume = Path(place.teacher).exists()
        run("train", ASPIRIN_TEACHER, f"data.path={place.data}", f"run.dir={place.teacher}", f"run.resume={str(resume).lower()}")
    if not place.synthetic.exists():
        starts = place.folder / f"{place.name}_starts.h5"
        write_starts(place, starts)
        run("synthesize", starts, place.synthetic, "--teacher", place.teacher, *DYNAMICS)


def write_starts(place: Place, out: Path) -> None:
    """Training frames, evenly spaced, in a file of their own: dynamics must not begin at test frames."""
    file = open_data_file(place.data)
    chosen = evenly(np.flatnonzero((file.splits == "train") & (file.systems == place.system)), STARTS)
    with DataWriter(out, level_of_theory=file.level_of_theory, licence=file.licence, overwrite=True) as writer:
        for structure in file.read(chosen):
            writer.append(structure)


def run(*words: object) -> None:
    """One command of fastkd.

    Raises:
        ConfigError: if it failed; it has said why.
    """
    if fastkd([str(word) for word in words]) != 0:
        raise ConfigError(f"`fastkd {' '.join(map(str, words))}` failed, see above")


def comparison(place: Place, options: Sequence[str] = ()) -> Config:
    """The comparison of one data set; options are those of the command line."""
    words = [f"data.path={place.data}", f"data.systems=[{place.system}]", f"teacher.path={place.teacher}", f"run.dir={place.runs}"]
    config = load_config(str(ARMS), [*words, f"run.resume={str(place.runs.exists()).lower()}", *options])
    arms = []
    for arm in config.compare.arms:
        changes = dict(arm.set)
        if changes.get("augment.synthetic"):
            changes["augment.synthetic"] = str(place.synthetic)
        arms.append(arm.model_copy(update={"set": changes}))
    return config.model_copy(update={"compare": config.compare.model_copy(update={"arms": arms})})


def gap(found: Gap | None) -> str:
    """In per cent with its interval, as other tables have it."""
    return "–" if found is None else str(found)


def table(rows: dict[str, Sequence[Row]]) -> str:
    """Markdown: one line an arm, and of each data set its errors and the gap closed.

    Args:
        rows: by title of the data set, each with the same arms.
    """
    head, rule = ["", ""], ["---", "---"]
    for title in rows:
        head += [f"{title}: energy [meV/atom]", "forces [meV/Å]", "gap closed, energy [%]", "forces [%]"]
        rule += ["---:"] * 4
    lines = [" | ".join(head[1:]), " | ".join(rule[1:])]
    names = list(dict.fromkeys(row.name for found in rows.values() for row in found))
    for name in names:
        cells = []
        for found in rows.values():
            row = next((row for row in found if row.name == name), None)
            if row is None:
                cells += ["–"] * 4
                continue
            errors = row.metrics["energy_mae_per_atom"].text(2, 1000), row.metrics["forces_mae"].text(1, 1000)
            cells += [*errors, gap(row.gap_energy), gap(row.gap_forces)]
        title = next(row.title or row.name for found in rows.values() for row in found if row.name == name)
        lines.append(" | ".join([title, *cells]))
    return "".join(f"| {line} |\n" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, do what is left to do, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="a.b=c", help="options of arms.yaml, such as train.steps=100")
    parser.add_argument(
        "--only", nargs="+", choices=("embedded", "ethanol", "aspirin"), help="data sets to train on and show (default: all three)"
    )
    parser.add_argument("--rmd17", type=Path, help="folder of rmd17_ethanol.npz and rmd17_aspirin.npz")
    parser.add_argument("--splits", type=Path, help="folder of the archive's index files, if the npz have none inside")
    parser.add_argument("--ethanol-teacher", type=Path, help="a PaiNN that SchNetPack trained on rMD17 ethanol, as its state dict")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="folder of everything (default: %(default)s)")
    args = parser.parse_intermixed_args(arguments)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        rows: dict[str, Sequence[Row]] = {}
        for name in args.only or ("embedded", "ethanol", "aspirin"):
            place = places(args.out)[name]
            prepare(place, args)
            train(comparison(place, args.options))
            rows[place.title] = build_report(place.runs).rows
        text = table(rows)
        write_text(args.out / "table.md", text)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; the same command goes on from there", file=sys.stderr)
        return stop.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
