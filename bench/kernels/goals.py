"""What we want to see on a GPU, printed beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """At least ``least`` of something, for one op, shape and mode.

    Args:
        against: ``copy`` for the share of the measured copy bandwidth; ``memory`` for the share of the reference's peak that is saved;
            else the provider that ours is to be faster than.
    """

    op: str
    shape: str
    mode: str
    against: str
    least: float

    def found(self, rows: Sequence[Row]) -> float | None:
        """What was measured, or None."""
        here = {row["provider"]: row for row in rows if (row["op"], row["shape"], row["mode"]) == (self.op, self.shape, self.mode)}
        ours = here.get("ours")
        if ours is None or ours["median"] is None:
            return None
        if self.against == "copy":
            return float(ours["share_of_copy"])
        other = here.get("reference" if self.against == "memory" else self.against)
        if other is None or other["median"] is None:
            return None
        if self.against == "memory":
            return 1 - ours["peak_bytes"] / other["peak_bytes"]
        return None if other["ours_faster"] is None else float(other["ours_faster"])

    def line(self, rows: Sequence[Row]) -> str:
        """The goal, what was found, and whether that is enough."""
        kind = {"copy": "share of the copy bandwidth", "memory": "less peak memory than the reference"}
        what = kind.get(self.against, f"times as fast as {self.against}")
        number = "{:.0%}".format if self.against in kind else "{:.1f}×".format
        found = self.found(rows)
        got = "not measured" if found is None else f"{number(found)}  {'reached' if found >= self.least else 'MISSED'}"
        return f"{self.op:<22}{self.shape:<8}{self.mode:<16}{what:<40}≥ {number(self.least):<9}{got}"


GOALS: tuple[Goal, ...] = (
    *(Goal(op, "md", "forward", "copy", 0.8) for op in ("cfconv", "painn_message", "edge_to_node_both")),
    *(Goal("radial_conv", "md", "force_training", against, least) for against, least in (("compiled", 5), ("reference", 15))),
    Goal("radial_conv", "md", "force_training", "memory", 0.9),
    *(Goal("linear_cka", "cka", mode, "gram", 50) for mode in ("forward", "force")),
)


def report(rows: Iterable[Row]) -> str:
    """All goals, a line each."""
    rows = list(rows)
    return "\n".join(["goals", *(goal.line(rows) for goal in GOALS)])
