"""What we want to see, printed beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """At least so many times as fast as the public implementation, and at most so much of its peak memory."""

    faster: float
    memory: float | None = None


#: device → the start of a case's name → goal of every shape and mode
GOALS: dict[str, dict[str, Goal]] = {
    "cpu": {"schnet": Goal(2), "painn": Goal(2), "dimenet_pp": Goal(2), "gemnet_oc": Goal(1, 0.5)},
    "cuda": {"schnet": Goal(3), "painn": Goal(3), "dimenet_pp": Goal(2, 0.5), "gemnet_oc": Goal(2, 0.5)},
}


def goal_of(case: str, device_type: str) -> Goal | None:
    """The goal of a case, or None."""
    return next((goal for name, goal in GOALS.get(device_type, {}).items() if case.startswith(name)), None)


def verdicts(row: Row) -> tuple[str, str]:
    """Whether speed and memory of a row are what we want: met, MISSED, or empty where there is no goal."""
    goal = goal_of(row["case"], row["device_type"])
    if goal is None or row["tiny"]:
        return "", ""
    speed = "met" if row["ratio"] >= goal.faster else "MISSED"
    if goal.memory is None:
        return speed, ""
    return speed, "met" if row["memory"] <= goal.memory else "MISSED"


def report(rows: Iterable[Row]) -> str:
    """A line for each case with a goal: in how many rows it was met, and the worst one."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["device_type"]), []).append(row)
    lines = []
    for (case, device), group in groups.items():
        goal = goal_of(case, device)
        if goal is None:
            continue
        lines.append(
            _line(case, group, [row["ratio"] for row in group], f"≥ {goal.faster:g}× as fast", lambda x, g=goal: x >= g.faster, "×")
        )
        if goal.memory is not None:
            share = [row["memory"] for row in group]
            lines.append(_line(case, group, share, f"≤ {goal.memory:.0%} of the memory", lambda x, g=goal: x <= (g.memory or 0), "%"))
    return "\n".join(["goals", *lines]) if lines else ""


def _line(case: str, group: list[Row], found: list[float], text: str, good: Any, unit: str) -> str:
    met = sum(map(good, found))
    worst = (min if unit == "×" else max)(range(len(found)), key=found.__getitem__)
    number = f"{found[worst]:.2f}×" if unit == "×" else f"{found[worst]:.0%}"
    where = f"{group[worst]['shape']}, {group[worst]['mode']}, {group[worst]['threads']} thread{'s' * (group[worst]['threads'] > 1)}"
    verdict = "met" if met == len(found) else "MISSED"
    return (
        f"{case:<26}{text:<24}{verdict} in {len(found) - met} of {len(found)} rows; worst {number} ({where})"
        if verdict == "MISSED"
        else (f"{case:<26}{text:<24}met in all {len(found)} rows; worst {number} ({where})")
    )
