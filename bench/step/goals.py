"""What we want to see, printed beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.common import Timing

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A number of a row that should not be above a limit."""

    name: str
    text: str
    limit: float
    find: Callable[[Row], float | None]  #: None where a row has no such number


def _median(key: str) -> Callable[[Row], float | None]:
    def find(row: Row) -> float | None:
        found = row.get(key)
        # as measured, or as read from a file
        return found.median if isinstance(found, Timing) else None if found is None else float(found["median"])

    return find


#: The same on every device.
GOALS = (
    Goal("cached", "step with cached features / student's own step", 1.10, _median("cached_ratio")),
    Goal("live", "step with a live teacher / (student's own step + teacher's forward pass)", 1.05, _median("live_ratio")),
    Goal("terms", "KD terms, forward and backward, of the step", 0.05, _median("terms_share")),
    Goal("memory", "peak memory of the teacher's forward pass with its sums over edges / without", 1.10, lambda row: row.get("memory")),
)


def verdict(goal: Goal, row: Row) -> str:
    """met, MISSED, or empty where a row has no such number or is of tiny models."""
    found = goal.find(row)
    if found is None or row["tiny"]:
        return ""
    return "met" if found <= goal.limit else "MISSED"


def report(rows: Iterable[Row]) -> str:
    """A line for each goal: in how many rows it was met, and the worst one."""
    rows = list(rows)
    lines = []
    for goal in GOALS:
        found = [(value, row) for row in rows if not row["tiny"] and (value := goal.find(row)) is not None]
        if not found:
            continue
        worst, row = max(found, key=lambda item: item[0])
        missed = sum(value > goal.limit for value, _ in found)
        result = f"MISSED in {missed} of {len(found)} rows" if missed else f"met in all {len(found)} rows"
        where = f"{row['pair']} {row['terms']}, {row['shape']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        lines.append(f"{goal.text} ≤ {goal.limit:g}: {result}; worst {worst:.3f} ({where})")
    return "\n".join(["goals", *lines]) if lines else ""
