"""LKM against plain training: every architecture on every data set, three arms and three seeds each, and one table.

    python -m examples.lkm
    python -m examples.lkm --only qm9/pamnet --only ethanol/pamnet train.steps=3000

The settings are those of ``qm9.yaml`` and ``ethanol.yaml`` beside this file; the table goes to ``OUT/table.md`` and ``OUT/table.csv``. A run that is
finished is not run again, and one that was interrupted goes on: the same command after an interruption makes the same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastkd.analysis.report import Report, build_report, gap_numbers, number
from fastkd.analysis.runs import write_csv
from fastkd.config_loading import load_config
from fastkd.engine.run import run
from fastkd.engine.signals import Interrupted
from fastkd.errors import UserError
from fastkd.files import write_text

HERE = Path(__file__).resolve().parent
DATA = {"qm9": "QM9, U0", "ethanol": "rMD17 ethanol"}
MODELS = {"pamnet": "PAMNet", "mxmnet": "MXMNet", "dimenet_pp": "DimeNet++"}
#: DimeNet++ mixes what its output blocks make, one more than it has layers: so that every model mixes three embeddings.
OWN = {"dimenet_pp": ("model.layers=2",)}
CASES = tuple(f"{data}/{model}" for data in DATA for model in MODELS)
#: Columns of the table: name in CSV, title and unit in Markdown.
COLUMNS = (
    ("data", "data", ""),
    ("model", "model", ""),
    ("arm", "arm", ""),
    ("energy_mae", "energy MAE", "meV/atom"),
    ("reduced_energy", "reduced, % [95 %]", ""),
    ("forces_mae", "force MAE", "meV/Å"),
    ("reduced_forces", "reduced, % [95 %]", ""),
    ("similarity", "cosine between layers", ""),
    ("train_seconds", "training", "s"),
)
_CSV_UNITS = {"meV/atom": "eV/atom", "meV/Å": "eV/Å"}


@dataclass(frozen=True)
class Line:
    """One arm of one case, as text and as numbers."""

    cells: tuple[str, ...]
    numbers: tuple[str, ...]


def train_case(case: str, out: Path, data: Path, options: Sequence[str]) -> Path:
    """All arms and seeds of a case; what is finished stays as it is.

    Args:
        case: one of `CASES`.
        out: its runs go into a folder below.
        data: folder of the data files.
        options: of the config, to change.

    Returns:
        The folder of the comparison.

    Raises:
        UserError: as ``fastkd train``.
    """
    name, model = case.split("/")
    folder = out / name / model
    own = [f"data.path={data / name}.h5", f"run.dir={folder}", f"model.kind={model}", f"run.resume={str(folder.exists()).lower()}"]
    run(load_config(HERE / f"{name}.yaml", [*own, *OWN.get(model, ()), *options]))
    return folder


def lines_of(case: str, report: Report) -> list[Line]:
    """One line for each arm of a case."""
    name, model = case.split("/")
    lines = []
    for row in report.rows:
        runs = [one for one in report.runs if one.summary.name == row.name]
        alike = [one.curve["lkm_similarity"][-1] for one in runs if one.curve is not None and "lkm_similarity" in one.curve.units]
        energy, forces = row.metrics["energy_mae_per_atom"], row.metrics["forces_mae"]
        seconds = float(np.mean([one.summary.train_seconds for one in runs]))
        first = (DATA[name], MODELS[model], row.title)
        cosine = float(np.mean(alike)) if alike else float("nan")
        reduced = ["–" if gap is None else str(gap) for gap in (row.reduced_energy, row.reduced_forces)]
        text = (energy.text(2, 1e3), reduced[0], forces.text(1, 1e3), reduced[1], f"{cosine:.3f}" if alike else "–", f"{seconds:.0f}")
        values = (
            energy.mean,
            energy.std,
            *_shown(row.reduced_energy),
            forces.mean,
            forces.std,
            *_shown(row.reduced_forces),
            cosine,
            seconds,
        )
        lines.append(Line((*first, *text), (*first, *map(number, values))))
    return lines


def _shown(gap: object) -> list[float]:
    return [float(value) if value else float("nan") for value in gap_numbers(gap)]  # type: ignore[arg-type]


def write_table(out: Path, cases: Sequence[str], resamples: int = 1000) -> str:
    """The table of some finished cases, in ``table.md`` and ``table.csv``, which are replaced.

    Returns:
        The Markdown.

    Raises:
        UserError: if a case has no finished run.
    """
    lines: list[Line] = []
    captions: list[str] = []
    for case in cases:
        report = build_report(out / case, resamples=resamples, html=False)
        lines += lines_of(case, report)
        captions.append(f"{case}: {report.caption}")
    header = [f"{title} [{unit}]" if unit else title for _, title, unit in COLUMNS]
    rule = "|" + "|".join(["---"] * 3 + ["---:"] * (len(COLUMNS) - 3)) + "|"
    table = "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(line.cells) + " |" for line in lines)])
    text = table + "\n\n" + "\n\n".join(captions) + "\n"
    write_text(out / "table.md", text)
    names, units = ["data", "model", "arm"], [""] * 3
    for name, _, unit in COLUMNS[3:]:
        more = ["", "_low", "_high"] if name.startswith("reduced") else ["", "_std"] if name.endswith("mae") else [""]
        names += [name + end for end in more]
        units += ["%" if name.startswith("reduced") else _CSV_UNITS.get(unit, unit) for _ in more]
    write_csv(out / "table.csv", [names, units, *(list(line.numbers) for line in lines)])
    return text


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="a.b=c", help="options of both configs to change")
    parser.add_argument("--data", type=Path, default=Path("runs/lkm"), help="folder of qm9.h5 and ethanol.h5 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/lkm"), help="folder for runs and table (default: %(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        choices=CASES,
        default=[],
        help="train and show this case alone (may be given more than once; default: all)",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals (default: %(default)s)")
    args = parser.parse_intermixed_args(arguments)
    cases = list(dict.fromkeys(args.only)) or list(CASES)
    try:
        for case in cases:
            train_case(case, args.out, args.data, args.options)
        print(write_table(args.out, sorted(cases, key=CASES.index), args.bootstrap), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"{stop}; the same command goes on from there", file=sys.stderr)
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
