"""The table of an ablation: what was tried, how well it did on validation, what it costs, and, of what was chosen, the test errors.

One table in three forms: ``ablation.md``, ``ablation.csv`` (numbers, with a units row) and ``ablation.html``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from fastkd.analysis.report import Row, Spread, gap_numbers, number
from fastkd.analysis.runs import write_csv
from fastkd.files import write_text

MARKDOWN, TABLE, PAGE = "ablation.md", "ablation.csv", "ablation.html"
COLUMNS = (
    ("trial", ""),
    ("seeds", ""),
    ("steps", ""),
    ("score", "val"),
    ("energy MAE", "val, meV/atom"),
    ("force MAE", "val, meV/Å"),
    ("gap closed, energy", "val, % [95 %]"),
    ("gap closed, forces", "val, % [95 %]"),
    ("step", "ms"),
    ("× alone", ""),
    ("terms add", "ms"),
    ("energy MAE", "test, meV/atom"),
    ("force MAE", "test, meV/Å"),
    ("gap closed, energy", "test, % [95 %]"),
    ("gap closed, forces", "test, % [95 %]"),
)


@dataclass(frozen=True)
class Overhead:
    """What a training step costs, medians in ms."""

    step: float  #: with all terms
    alone: float  #: of the student without terms
    terms: dict[str, float]  #: term → what it adds, the teacher included where no other term needs it


@dataclass(frozen=True)
class TrialRow:
    """One line: a trial, over its seeds, or the teacher."""

    name: str
    title: str
    steps: int  #: optimiser steps of each run; 0 for the teacher
    val: Row | None  #: on the validation structures; None if it was not possible or has diverged
    score: Spread  #: a_E · MAE(E) + a_F · MAE(F) on validation, which chooses; NaN for the teacher
    overhead: Overhead | None = None
    test: Row | None = None  #: of the chosen trial, the student alone, the config as it is, and the teacher
    chosen: bool = False
    note: str = ""  #: why there is nothing else

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `COLUMNS`."""
        title = f"**{self.title}** (chosen)" if self.chosen else self.title
        title = f"{title}: {self.note}" if self.note else title
        seeds = "–" if self.val is None or self.val.role == "teacher" else str(len(self.val.seeds))
        cost = ("–", "–", "–")
        if self.overhead is not None:
            terms = ", ".join(f"{name} {added:+.2f}" for name, added in self.overhead.terms.items())
            cost = (f"{self.overhead.step:.2f}", f"{self.overhead.step / self.overhead.alone:.2f}", terms or "–")
        return (title, seeds, str(self.steps or "–"), self.score.text(4), *_errors(self.val), *cost, *_errors(self.test))

    def numbers(self) -> list[str]:
        """The line for CSV, in the order of `CSV_COLUMNS`."""
        overhead = self.overhead
        return [
            self.name,
            self.title,
            "yes" if self.chosen else "",
            " ".join(map(str, self.val.seeds)) if self.val is not None and self.val.role != "teacher" else "",
            str(self.steps or ""),
            number(self.score.mean),
            number(self.score.std),
            *_error_numbers(self.val),
            number(overhead.step if overhead else math.nan),
            number(overhead.alone if overhead else math.nan),
            " ".join(f"{name}={added:.4g}" for name, added in overhead.terms.items()) if overhead else "",
            *_error_numbers(self.test),
            self.note,
        ]


def _split_columns(split: str) -> list[tuple[str, str]]:
    errors = [(f"{split}_{what}_mae{end}", unit) for what, unit in (("energy", "eV/atom"), ("forces", "eV/Å")) for end in ("", "_std")]
    kinds = [(f"{split}_{kind}_{what}", "%") for kind in ("gap", "reduced") for what in ("energy", "forces")]
    return errors + [(f"{name}{end}", unit) for name, unit in kinds for end in ("", "_low", "_high")]


CSV_COLUMNS: tuple[tuple[str, str], ...] = (
    ("name", ""),
    ("title", ""),
    ("chosen", ""),
    ("seeds", ""),
    ("steps", "1"),
    ("val_score", "1"),
    ("val_score_std", "1"),
    *_split_columns("val"),
    ("step_ms", "ms"),
    ("student_alone_ms", "ms"),
    ("terms_add_ms", "ms"),
    *_split_columns("test"),
    ("note", ""),
)


@dataclass(frozen=True)
class Ablation:
    """Everything that the table says."""

    root: Path
    rows: tuple[TrialRow, ...]
    chosen: str  #: title
    resamples: int
    validation: int  #: structures
    test: int  #: structures
    notes: tuple[str, ...] = field(default=())  #: budget, trials that were dropped, and the like

    @property
    def shown(self) -> tuple[int, ...]:
        """Which of `COLUMNS` the table has, in order: none of forces where no structure has forces."""
        forces = any(not math.isnan(row.metrics["forces_mae"].mean) for row in self._measured)
        return tuple(i for i, (name, _) in enumerate(COLUMNS) if forces or "force" not in name)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name and unit of each column; without a teacher there is no gap to close, but an error to reduce."""
        kind = "MAE reduced" if self._reduced else "gap closed"
        return tuple((name.replace("gap closed", kind), unit) for name, unit in (COLUMNS[i] for i in self.shown))

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """Cells of each row, in the order of `columns`."""
        return tuple(tuple(row.cells()[i] for i in self.shown) for row in self.rows)

    @property
    def _measured(self) -> list[Row]:
        return [row for trial in self.rows for row in (trial.val, trial.test) if row is not None]

    @property
    def _reduced(self) -> bool:
        return any(row.reduced_energy is not None for row in self._measured)

    @property
    def caption(self) -> str:
        """What the numbers are."""
        kind = "MAE reduced" if self._reduced else "Gap closed"
        score = "a_E · MAE(E) + a_F · MAE(F)" if len(self.shown) == len(COLUMNS) else "a_E · MAE(E)"
        return (
            f"Errors on {self.validation} validation structures (val), which choose, and once, of what was chosen and what it is compared "
            f"with, on {self.test} test structures. Chosen: '{self.chosen}', the smallest score = {score} on validation, mean "
            f"over seeds. ± is the standard deviation over seeds. {kind} is against 'student alone' with as many steps; 95 % intervals from "
            f"{self.resamples} paired resamples of structures and seeds. The validation structures have also chosen each run's best step, "
            "so that val flatters; the best of many flatters itself further. Step: median of a training step; × alone: over a step without terms; "
            "terms add: median of paired differences with and without each. " + " ".join(self.notes)
        ).strip()

    def markdown(self) -> str:
        """A Markdown table with its caption."""
        header = [f"{name} [{unit}]" if unit else name for name, unit in self.columns]
        lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in self.lines]
        return "\n".join([*lines, "", self.caption]) + "\n"

    def html(self) -> str:
        """A page that stands alone."""
        from fastkd.analysis.page import CSS

        head = "".join(f"<th>{escape(name)}<small>{escape(unit)}</small></th>" for name, unit in self.columns)
        body = "\n".join(
            f'<tr class="{"teacher" if row.chosen else ""}">'
            + "".join(f"<td>{escape(cell).replace('**', '')}</td>" for cell in cells)
            + "</tr>"
            for row, cells in zip(self.rows, self.lines, strict=True)
        )
        title = escape(f"fastkd ablation: {self.root.resolve().name}")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{CSS}</style></head>\n<body>\n'
            f'<h1>{title}</h1>\n<p class="lead">Chosen on validation: {escape(self.chosen)}</p>\n'
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
            f'<p class="soft">{escape(self.caption)}</p>\n</body></html>\n'
        )

    def save(self) -> None:
        """Write all three forms."""
        write_text(self.root / MARKDOWN, self.markdown())
        write_csv(self.root / TABLE, self.csv_rows())
        write_text(self.root / PAGE, self.html())

    def csv_rows(self) -> list[list[str]]:
        """Names, units, and a line each."""
        return [[name for name, _ in CSV_COLUMNS], [unit for _, unit in CSV_COLUMNS], *(row.numbers() for row in self.rows)]


def _errors(row: Row | None) -> Sequence[str]:
    if row is None:
        return ("–",) * 4
    pairs = (row.gap_energy, row.reduced_energy), (row.gap_forces, row.reduced_forces)
    gaps = (str(gap) if gap is not None else "–" if reduced is None else str(reduced) for gap, reduced in pairs)
    return (row.metrics["energy_mae_per_atom"].text(2, 1000), row.metrics["forces_mae"].text(1, 1000), *gaps)


def _error_numbers(row: Row | None) -> list[str]:
    if row is None:
        return [""] * 16
    spreads = (row.metrics["energy_mae_per_atom"], row.metrics["forces_mae"])
    return [number(value) for spread in spreads for value in (spread.mean, spread.std)] + _gap_numbers(row)


def _gap_numbers(row: Row) -> list[str]:
    return gap_numbers(row.gap_energy, row.gap_forces, row.reduced_energy, row.reduced_forces)
