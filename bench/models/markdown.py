"""The table of docs/results.md from JSON files of ``python -m bench.models``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.models import goals
from bench.session import origin

HEAD = "| model | against | structures | atoms, edges | step | threads | theirs, ms | ours, ms | faster | goal | peak MB, theirs | ours | share | goal |"


def table(*paths: Path) -> str:
    """A row for each measurement; losses are in bold. What one file left out and another has is not mentioned."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = [row for document in documents for row in document["rows"]]
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(_row(row) for row in rows)]
    origins = dict.fromkeys(origin(document["provenance"]) for document in documents)
    errors = max((row["error"]["float64"] for row in rows), default=0.0)
    repeats = [row["repeats"] for row in rows] or [0]
    lines += [
        "",
        f"{'; '.join(origins)}. float32; medians of {min(repeats)} to {max(repeats)} steps in turns; largest relative error of energies, forces and weight gradients in float64 {errors:.0e}.",
    ]
    there = {f"{row['case']} {row['shape']}" for row in rows}
    skipped = [reason for document in documents for reason in document["skipped"] if reason.split(":")[0] not in there]
    lines += [f"Left out: {reason}." for reason in skipped]
    lines += [f"No speed, because the models differ: {reason}." for document in documents for reason in document["failed"]]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    speed, memory = goals.verdicts(row)
    faster = f"{row['ratio']:.2f}×" if row["ratio"] >= 1 else f"**{row['ratio']:.2f}×**"
    model = f"{'tiny ' * row['tiny']}{row['model']}, {row['forces']} forces"
    peer = row["peer"] if row["kind"] == "package" else f"{row['peer']} (ours)"
    cells = (
        *(model, peer, row["structures"], f"{row['atoms']}, {row['edges']}", row["mode"], row["threads"]),
        *(f"{row['theirs']['median'] * 1e3:.1f}", f"{row['ours']['median'] * 1e3:.1f}", faster, speed or "–"),
        *(f"{row['theirs_peak_bytes'] / 1e6:.0f}", f"{row['ours_peak_bytes'] / 1e6:.0f}", f"{row['memory']:.0%}", memory or "–"),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
