"""The report of a run or a comparison: one table, the same as text, Markdown, CSV, JSON and a page with figures.

Example:
    >>> report = build_report(Path("runs/quickstart"))
    >>> rich.print(report.table())
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.analysis.gap import Errors, Gap, energy_errors, error_reduced, forces_errors, gap_closed, mean_std
from fastkd.analysis.joint import gather
from fastkd.analysis.metrics import METRIC_UNITS
from fastkd.analysis.runs import CURVE, SUMMARY, Run, find_runs, read_json, write_csv, write_json
from fastkd.errors import CheckpointError, DataError
from fastkd.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

HTML, TABLE = "report.html", "report.csv"
#: Of energies and of forces, where there are any.
_Both = tuple[Errors, Errors | None]
_Gaps = tuple[Gap | None, Gap | None]
COLUMNS = (
    ("", ""),
    ("energy MAE", "meV/atom"),
    ("force MAE", "meV/Å"),
    ("force cosine", "1"),
    ("gap closed, energy", "% [95 %]"),
    ("gap closed, forces", "% [95 %]"),
    ("parameters", "1"),
    ("inference", "atoms/s"),
    # in place of the gaps, where there is no teacher
    ("MAE reduced, energy", "% [95 %]"),
    ("MAE reduced, forces", "% [95 %]"),
)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample standard deviation (NaN for one seed)."""

    mean: float
    std: float

    def text(self, digits: int, factor: float = 1.0) -> str:
        """Like ``12.3 ± 0.4``."""
        if math.isnan(self.mean):
            return "–"
        mean = f"{factor * self.mean:.{digits}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {factor * self.std:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, over all its seeds."""

    name: str
    title: str
    role: str
    seeds: tuple[int, ...]
    metrics: dict[str, Spread]  #: name of the metric → eV, Å
    gap_energy: Gap | None  #: None for the teacher, the baseline, and where one of them is missing
    gap_forces: Gap | None
    parameters: int
    atoms_per_second: Spread
    #: error reduced against the baseline, where there is no teacher to measure a gap to; None for the baseline
    reduced_energy: Gap | None = None
    reduced_forces: Gap | None = None

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `COLUMNS`."""
        return (
            self.title or self.name,
            self.metrics["energy_mae_per_atom"].text(2, 1000),
            self.metrics["forces_mae"].text(1, 1000),
            self.metrics["forces_cosine"].text(4),
            "–" if self.gap_energy is None else str(self.gap_energy),
            "–" if self.gap_forces is None else str(self.gap_forces),
            f"{self.parameters:,}",
            "–" if math.isnan(self.atoms_per_second.mean) else f"{self.atoms_per_second.mean:,.0f}",
            "–" if self.reduced_energy is None else str(self.reduced_energy),
            "–" if self.reduced_forces is None else str(self.reduced_forces),
        )


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a report says."""

    root: Path
    runs: tuple[Run, ...]
    rows: tuple[Row, ...]
    resamples: int
    differences: tuple[tuple[str, str], ...] = ()  #: student → in what its config differs from the baseline's

    @property
    def shown(self) -> tuple[int, ...]:
        """Which of `COLUMNS` the table has, in order: none of forces where no structure has forces, and either gaps or reductions."""
        reduced = any(row.reduced_energy is not None for row in self.rows)
        forces = not all(math.isnan(row.metrics["forces_mae"].mean) for row in self.rows)
        order = (0, 1, 2, 3, *((8, 9) if reduced else (4, 5)), 6, 7)
        return tuple(i for i in order if forces or "force" not in COLUMNS[i][0])

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name and unit of each column of the table."""
        return tuple(COLUMNS[i] for i in self.shown)

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """Cells of each row of the table, in the order of `columns`."""
        return tuple(tuple(row.cells()[i] for i in self.shown) for row in self.rows)

    @property
    def caption(self) -> str:
        """What the numbers are, in a sentence or two."""
        structures, free = len(self.runs[0].predictions.natoms), self.runs[0].predictions.free
        students = [row for row in self.rows if row.role == "student"]
        seeds = max((len(row.seeds) for row in students), default=1)
        fewer = ", ".join(f"'{row.title or row.name}' {len(row.seeds)}" for row in students if len(row.seeds) < seeds)
        spread = f" Mean ± standard deviation over {seeds} seeds{fewer and f' ({fewer})'}." if seeds > 1 else ""
        atoms = "" if free is None else f", of forces on the {int(free.sum())} free ones of their {len(free)} atoms"
        text = f"Errors on {structures} test structures{atoms}.{spread}"
        if any(row.gap_energy is not None for row in self.rows):
            over = "structures and seeds" if seeds > 1 else "structures"
            baseline = next(row for row in self.rows if row.role == "student")
            text += (
                f" Gap closed = 100 · (MAE of '{baseline.title}' − MAE) / (MAE of '{baseline.title}' − MAE of teacher); "
                f"95 % interval from {self.resamples} paired resamples of {over}."
            )
        if any(row.reduced_energy is not None for row in self.rows):
            over = "structures and seeds" if seeds > 1 else "structures"
            baseline = next(row for row in self.rows if row.role == "student")
            text += (
                f" MAE reduced = 100 · (MAE of '{baseline.title}' − MAE) / MAE of '{baseline.title}'; 95 % interval from {self.resamples} "
                f"paired resamples of {over}."
            )
        return text + "".join(f" Warning ({name}): {warning}" for name, warning in self.notes("warnings"))

    def notes(self, kind: str) -> Iterator[tuple[str, str]]:
        """What runs had to say, ``warnings`` against themselves or about their ``weighting``: title and seed, text."""
        for run in self.runs:
            for note in run.summary.extra.get(kind, ()):
                yield f"{run.summary.title or run.summary.name}, seed {run.summary.seed}", note

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        table = Table(title=str(self.root), caption=self.caption, caption_justify="left", title_justify="left")
        for i, (name, unit) in enumerate(self.columns):
            table.add_column(f"{name}\n{unit}".strip(), justify="left" if i == 0 else "right", no_wrap=i != 0)
        for row, cells in zip(self.rows, self.lines, strict=True):
            table.add_row(*cells, style="bold" if row.role == "teacher" else None)
        return table

    def markdown(self) -> str:
        """A Markdown table with its caption."""
        header = [f"{name} [{unit}]" if unit not in ("", "1") else name for name, unit in self.columns]
        lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in self.lines]
        lines += ["", self.caption]
        if self.differences:
            lines += ["", "Other than in the baseline:", "", *(f"- {title}: {what}" for title, what in self.differences)]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Plain text in aligned columns, for logs."""
        cells = [[name for name, _ in self.columns], [unit for _, unit in self.columns], *(list(line) for line in self.lines)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
            for line in cells
        ]
        rule = "─" * len(lines[0])
        return "\n".join([lines[0].rstrip(), lines[1].rstrip(), rule, *lines[2:], rule, self.caption]) + "\n"

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        units = {"metrics": METRIC_UNITS, "gap": "%", "atoms_per_second": "1/s"}
        return {"schema": 1, "kind": "comparison", "units": units, "resamples": self.resamples, "rows": [asdict(row) for row in self.rows]}


def build_report(run_dir: str | Path, *, resamples: int = 1000, html: bool = True) -> Report:
    """Read every run in a folder, and write the report into it.

    A comparison gets ``report.html``, ``report.md``, ``report.csv`` (the table in numbers), ``metrics.csv`` (one row per run, with a units row) and ``summary.json`` (what the
    table says). In the folder of a single run the last two are the run's own, and stay.

    Args:
        run_dir: folder of a run or of a comparison.
        resamples: of the bootstrap.
        html: whether to write the page with figures.

    Raises:
        CheckpointError: if there is no finished run, a summary is damaged, or the folder cannot be written.
        DataError: if predictions or curves are damaged, or models were tested on different structures.
    """
    root = Path(run_dir)
    runs = find_runs(root)
    return _write(Report(root, tuple(runs), tuple(make_rows(runs, resamples)), resamples), html=html)


def build_joint_report(
    folders: Sequence[Path], out: Path, *, baseline: str = "", teacher: str = "", resamples: int = 1000, html: bool = True
) -> Report:
    """One report of any set of runs: students are grouped by what their configs compute, and their seeds averaged.

    Args:
        folders: of runs or comparisons, at any place.
        out: folder for ``report.html``, ``report.md``, ``report.csv``, ``metrics.csv`` and ``summary.json``; may be one of ``folders``.
        baseline: title, name or folder of the student that gaps are measured from; empty takes the first that was not distilled.
        teacher: title, name, file or folder of the teacher; empty takes the only one there is.
        resamples: of the bootstrap.
        html: whether to write the page with figures.

    Raises:
        CheckpointError: if a folder holds no finished run, or ``out`` is a run itself or cannot be written.
        ConfigError: if baseline or teacher is not there, or not told which of several.
        DataError: if runs were tested on different structures or labels, or are damaged.
    """
    runs, differences = gather(folders, baseline=baseline, teacher=teacher)
    if (out / SUMMARY).exists() and read_json(out / SUMMARY).get("kind") == "run":
        raise CheckpointError(f"{out} is a run itself, whose files the report would replace; choose another folder with --out")
    report = Report(out, tuple(runs), tuple(make_rows(runs, resamples)), resamples, differences)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the report cannot be written into {out}: {error.strerror or error}; choose another folder") from None
    return _write(report, html=html)


def _write(report: Report, *, html: bool) -> Report:
    root = report.root
    try:
        write_text(root / "report.md", report.markdown())
        write_csv(root / TABLE, _table_rows(report.rows))
        if all(run.folder != root for run in report.runs):
            runs = report.runs
            write_csv(root / CURVE, _csv_rows(runs))
            write_json(root / SUMMARY, report.asdict())
        if html:
            from fastkd.analysis.page import render

            write_text(root / HTML, render(report))
    except OSError as error:
        raise CheckpointError(f"the report cannot be written into {root}: {error.strerror or error}; make the folder writable") from None
    return report


def make_rows(runs: Sequence[Run], resamples: int) -> list[Row]:
    """One row for each model, over its seeds, in the order of the runs; the first student is the baseline of 'gap closed'.

    Raises:
        DataError: if models were tested on different structures.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run.summary.role}/{run.summary.name}", []).append(run)
    errors = {key: (energy_errors(group), forces_errors(group)) for key, group in groups.items()}
    if len({forces is None for _, forces in errors.values()}) > 1:
        raise DataError("some runs were tested on energies alone and others on forces too, so they cannot be compared; evaluate one anew")
    # of several teachers the mean; where they have none, there is no single gap
    taught = [key for key, group in groups.items() if group[0].summary.role == "teacher"]
    teacher = "teacher/teacher" if "teacher/teacher" in taught else taught[0] if len(taught) == 1 else None
    baseline = next((key for key, group in groups.items() if group[0].summary.role == "student"), None)
    rows = []
    for key, group in groups.items():
        gaps: _Gaps = (None, None)
        reduced: _Gaps = (None, None)
        if baseline is not None and key not in (teacher, baseline) and group[0].summary.role == "student":
            if teacher is not None:
                gaps = _gaps(errors[baseline], errors[key], errors[teacher], resamples)
            else:
                reduced = _reduced(errors[baseline], errors[key], resamples)
        rows.append(_row(group, gaps, reduced))
    return rows


def _gaps(student: _Both, distilled: _Both, teacher: _Both, resamples: int) -> _Gaps:
    energy, forces = (
        None if one is None or two is None or three is None else gap_closed(one, two, three, resamples=resamples)
        for one, two, three in zip(student, distilled, teacher, strict=True)
    )
    return energy, forces


def _reduced(baseline: _Both, other: _Both, resamples: int) -> _Gaps:
    energy, forces = (
        None if one is None or two is None else error_reduced(one, two, resamples=resamples)
        for one, two in zip(baseline, other, strict=True)
    )
    return energy, forces


def _row(group: Sequence[Run], gaps: _Gaps, reduced: _Gaps) -> Row:
    first = group[0].summary
    tests = [run.summary.test.asdict() for run in group]
    return Row(
        name=first.name,
        title=first.title,
        role=first.role,
        seeds=tuple(run.summary.seed for run in group),
        metrics={name: Spread(*mean_std([test[name] for test in tests])) for name in METRIC_UNITS},
        gap_energy=gaps[0],
        gap_forces=gaps[1],
        parameters=first.parameters,
        atoms_per_second=Spread(*mean_std([run.summary.atoms_per_second for run in group])),
        reduced_energy=reduced[0],
        reduced_forces=reduced[1],
    )


def _csv_rows(runs: Sequence[Run]) -> list[list[str]]:
    names = ["name", "title", "role", "seed", *METRIC_UNITS, "parameters", "atoms_per_second", "train_seconds"]
    units = ["", "", "", "1", *METRIC_UNITS.values(), "1", "1/s", "s"]
    lines = []
    for run in runs:
        summary = run.summary
        numbers = [*summary.test.asdict().values(), float(summary.parameters), summary.atoms_per_second, summary.train_seconds]
        text = ["" if math.isnan(number) else f"{number:.10g}" for number in numbers]
        lines.append([summary.name, summary.title, summary.role, str(summary.seed), *text])
    return [names, units, *lines]


def _table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table as numbers, with a units row; empty where there is none."""
    gaps = [f"{kind}_{what}{end}" for kind in ("gap", "reduced") for what in ("energy", "forces") for end in ("", "_low", "_high")]
    errors = [f"{name}{end}" for name in METRIC_UNITS for end in ("", "_std")]
    names = ["title", "role", "seeds", *errors, *gaps, "parameters", "atoms_per_second"]
    units = ["", "", "", *(unit for unit in METRIC_UNITS.values() for _ in range(2)), *["%"] * len(gaps), "1", "1/s"]
    lines = []
    for row in rows:
        spreads = [number(value) for name in METRIC_UNITS for value in (row.metrics[name].mean, row.metrics[name].std)]
        seeds = " ".join(map(str, row.seeds))
        shown = gap_numbers(row.gap_energy, row.gap_forces, row.reduced_energy, row.reduced_forces)
        lines.append([row.title or row.name, row.role, seeds, *spreads, *shown, str(row.parameters), number(row.atoms_per_second.mean)])
    return [names, units, *lines]


def gap_numbers(*gaps: Gap | None) -> list[str]:
    """Per cent, low and high of each for CSV; empty where there is none."""
    return [number(value) for gap in gaps for value in ((math.nan,) * 3 if gap is None else (gap.percent, gap.low, gap.high))]


def number(value: float) -> str:
    """For CSV; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.10g}"
