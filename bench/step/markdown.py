"""The table of docs/results.md from JSON files of ``python -m bench.step``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.session import origin
from bench.step import goals

HEAD = (
    "| pair | terms | structures | atoms | student, ms | teacher, ms | cached / student | KD terms of step | alone | live / (student + teacher) "
    "| memory with sums / without | generic: terms take | step takes | live takes | memory |"
)


def table(*paths: Path) -> str:
    """A row for each measurement; what misses its goal is in bold."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = [row for document in documents for row in document["rows"]]
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(_row(row) for row in rows)]
    origins = dict.fromkeys(origin(document["provenance"]) for document in documents)
    errors = max((row["error"]["float64"] for row in rows), default=0.0)
    repeats = [row["repeats"] for row in rows] or [0]
    slow = [row["slow_repeats"] for row in rows] or [0]
    lines += [
        "",
        f"{'; '.join(origins)}. float32, {_threads(rows)}; medians (20 % to 80 %) over {min(repeats)} to {max(repeats)} rounds, with a live "
        f"teacher {min(slow)} to {max(slow)}; largest relative error of losses and gradients against the generic operators in float64 {errors:.0e}.",
    ]
    lines += [f"Left out: {reason}." for document in documents for reason in document["skipped"]]
    lines += [f"No times, because the two differ: {reason}." for document in documents for reason in document["failed"]]
    return "\n".join(lines)


def _threads(rows: list[dict[str, Any]]) -> str:
    counts = sorted({row["threads"] for row in rows})
    clock = " (processor time)" if any(row["clock"] == "cpu" for row in rows) else ""
    return f"{', '.join(map(str, counts))} thread{'s' * (counts != [1])}{clock}"


def _row(row: dict[str, Any]) -> str:
    by_name = {goal.name: goals.verdict(goal, row) for goal in goals.GOALS}

    def judged(name: str, text: str) -> str:
        return f"**{text}**" if by_name[name] == "MISSED" else text

    cells = (
        *(f"{'tiny ' * row['tiny']}{row['text']}", row["terms"], row["structures"], row["atoms"]),
        *(f"{1e3 * row['own']['median']:.1f}", f"{1e3 * row['teacher']['median']:.0f}"),
        judged("cached", _spread(row["cached_ratio"], ".3f")),
        judged("terms", _spread(row["terms_share"], ".1%")),
        _number(row.get("alone_share"), ".1%"),
        judged("live", _spread(row["live_ratio"], ".3f")),
        "–" if row["memory"] is None else judged("memory", f"{row['memory']:.2f}"),
        *(_number(row["plain_terms"], ".2f", "×"), f"{row['plain_ratio']['median']:.2f}×", f"{row['plain_live_ratio']['median']:.2f}×"),
        "–" if row["plain_memory"] is None else f"{row['plain_memory']:.2f}",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _spread(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"
