"""The page of a report: one HTML file with everything inside, readable without a network and light enough to mail."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastkd.analysis import plots
from fastkd.analysis.report import Report, Row
from fastkd.analysis.runs import CONFIG, DATA_CARD, Run

MODELS_PER_FIGURE = 4

CSS = """
:root { color-scheme: light; --ink: #1c2024; --soft: #60666c; --line: #dfe3e6; --accent: #0072B2; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 70rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.lead { font-size: 1.05rem; margin: .4rem 0 1.2rem; } .soft, figcaption { color: var(--soft); font-size: .87rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; vertical-align: bottom; } th small { display: block; font-weight: 400; color: var(--soft); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; } tr.teacher td { background: #f4f7f9; }
figure { margin: 0 0 1.4rem; } figure img { max-width: 100%; height: auto; }
pre { background: #f6f8f9; padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; border-radius: 4px; }
summary { cursor: pointer; color: var(--accent); }
"""


def render(report: Report) -> str:
    """The whole page as text."""
    title = f"fastkd report: {report.root.resolve().name}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(headline(report.rows))}</p>',
        _table(report),
        *_figures(report),
        _data_card(report),
        _details("Configuration", _texts(report, CONFIG)),
        _details("Versions", _versions(report.runs)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n" + "\n".join(filter(None, sections)) + "\n</body></html>\n"
    )


def headline(rows: Sequence[Row]) -> str:
    """The result in one sentence."""
    teacher = next((row for row in rows if row.role == "teacher"), None)
    gaps = [row for row in rows if row.gap_forces is not None and not math.isnan(row.gap_forces.percent)]
    on_energies = [row for row in rows if row.gap_forces is None and row.gap_energy is not None and not math.isnan(row.gap_energy.percent)]
    baseline = next((row for row in rows if row.role == "student"), rows[0])
    if teacher is not None and gaps:
        best = max(gaps, key=lambda row: row.gap_forces.percent if row.gap_forces else -math.inf)
        return (
            f"“{best.title}” closes {best.gap_forces} % of the force gap between “{baseline.title}” and the teacher and "
            f"{best.gap_energy} % of the energy gap{_share(best, teacher)}."
        )
    if teacher is not None and on_energies:
        best = max(on_energies, key=lambda row: row.gap_energy.percent if row.gap_energy else -math.inf)
        return f"“{best.title}” closes {best.gap_energy} % of the energy gap between “{baseline.title}” and the teacher{_share(best, teacher)}."
    row = rows[-1]
    _, energy, forces, *_ = row.cells()
    measured = f"energy MAE {energy} meV/atom" + ("" if math.isnan(row.metrics["forces_mae"].mean) else f", force MAE {forces} meV/Å")
    return f"“{row.title or row.name}”: {measured} on the test structures."


def _share(student: Row, teacher: Row) -> str:
    """In words; calculators of other packages do not tell how many parameters they have."""
    return f", with {100 * student.parameters / teacher.parameters:.1f} % of the teacher's parameters" if teacher.parameters else ""


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(name)}<small>{escape(unit if unit != '1' else '')}</small></th>" for name, unit in report.columns)
    body = "\n".join(
        f'<tr class="{row.role}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for row, cells in zip(report.rows, report.lines, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        f'<p class="soft">{escape(report.caption)}</p>' + _differences(report)
    )


def _differences(report: Report) -> str:
    lines = "".join(f"<li>{escape(title)}: {escape(what)}</li>" for title, what in report.differences)
    return f'<p class="soft">Other than in the baseline:</p><ul class="soft">{lines}</ul>' if lines else ""


def _figures(report: Report) -> list[str]:
    firsts = _first_runs(report)
    groups = []
    for row in report.rows:
        curves = [
            run.curve for run in report.runs if (run.summary.role, run.summary.name) == (row.role, row.name) and run.curve is not None
        ]
        if row.role == "student" and curves:
            groups.append(plots.CurveGroup(row.title or row.name, curves))
    teacher = next((row for row in report.rows if row.role == "teacher"), None)
    lines = {}
    if teacher is not None:
        lines = {
            "val_energy_mae": 1000 * teacher.metrics["energy_mae_per_atom"].mean,
        }
        if not math.isnan(teacher.metrics["forces_mae"].mean):
            lines["val_forces_mae"] = 1000 * teacher.metrics["forces_mae"].mean
    parts = []
    curves_image = plots.learning_curves(groups, lines) if groups else None
    if curves_image is not None:
        caption = "Errors on the validation structures during training; bands span the seeds. The dashed line is the teacher's test error."
        parts.append("<h2>Learning curves</h2>" + _image(curves_image, "svg+xml", caption))
    alike = plots.similarity_curves(groups) if groups else None
    if alike is not None:
        caption = "Linear CKA between the layers that each feature term brings together, on validation structures; atoms of one element with each other."
        parts.append("<h2>Layers of student and teacher</h2>" + _image(alike, "svg+xml", caption))
    weighed = plots.weighting_curves(groups) if groups else None
    if weighed is not None:
        caption = (
            "λ of each term, its gradient over that of the labels, and the cosine between the two: below 0 the term pulls against the labels. "
            + " ".join(f"{name}: {line}." for name, line in report.notes("weighting"))
        ).strip()
        parts.append("<h2>Weights and gradients</h2>" + _image(weighed, "svg+xml", caption))
    models = [(run.summary.title or run.summary.name, run.predictions) for run in firsts]
    parts.append("<h2>Predictions against labels</h2>")
    for start in range(0, len(models), MODELS_PER_FIGURE):
        caption = "Test structures, first seed of each model. Energies per atom, relative to the mean label of structures of the same composition."
        parts.append(_image(plots.parity(models[start : start + MODELS_PER_FIGURE]), "png", caption))
    elements = plots.errors_by_element(models, sum(run.summary.role == "teacher" for run in firsts))
    if elements is not None:
        parts.append(
            "<h2>Force error by element</h2>" + _image(elements, "svg+xml", "Mean absolute error per component, first seed of each model.")
        )
    return parts


def _first_runs(report: Report) -> list[Run]:
    firsts: dict[tuple[str, str], Run] = {}
    for run in report.runs:
        firsts.setdefault((run.summary.role, run.summary.name), run)
    return list(firsts.values())


def _image(content: bytes, kind: str, caption: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def _texts(report: Report, name: str) -> str:
    """Content of a text file: the comparison's, or else each different one of the runs."""
    if (report.root / name).is_file():
        return _read(report.root / name)
    texts: dict[str, str] = {}
    for run in report.runs:
        if (run.folder / name).is_file():
            inside = run.folder.is_relative_to(report.root)
            texts.setdefault(_read(run.folder / name), str(run.folder.relative_to(report.root) if inside else run.folder))
    return "\n".join(f"# {folder}\n{text}" if len(texts) > 1 else text for text, folder in texts.items())


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _data_card(report: Report) -> str:
    card = _texts(report, DATA_CARD)
    return f"<h2>Data</h2><pre>{escape(card)}</pre>" if card else ""


def _details(title: str, text: str) -> str:
    return f"<h2>{title}</h2><details><summary>show</summary><pre>{escape(text)}</pre></details>" if text else ""


def _versions(runs: Sequence[Run]) -> str:
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run.summary.versions.items():
            versions.setdefault(package, set()).add(version)
    return "\n".join(f"{package} {', '.join(sorted(found))}" for package, found in sorted(versions.items()))
