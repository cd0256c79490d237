"""Figures of a report: learning curves, parity plots, errors by element. Drawn without pyplot, so that no global state changes.

Every function returns the bytes of a self-contained image. matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastkd.analysis.runs import CURVE_UNITS, Curve, Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, distinguishable with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A")
TEACHER_COLOUR = "#222222"

_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "fastkd",
    "figure.constrained_layout.use": True,
}
_PANELS = (
    ("val_energy_mae", "energy MAE, validation"),
    ("val_forces_mae", "force MAE, validation"),
    ("loss_total", "training loss"),
)


#: Columns of weighted terms: prefix, axis label, limits of the axis.
_WEIGHTING_ROWS: tuple[tuple[str, str, tuple[float | None, float | None]], ...] = (
    ("weight", "λ", (0.0, None)),
    ("gradient_ratio", "‖λ∇L_KD‖ / ‖∇L_0‖", (0.0, None)),
    ("cosine", "cos(∇L_KD, ∇L_0)", (-1.05, 1.05)),
)


@dataclass(frozen=True, eq=False)
class CurveGroup:
    """Learning curves of one arm, one per seed."""

    title: str
    curves: Sequence[Curve]


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in our style; inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "fastkd"})
    return buffer.getvalue()


def learning_curves(groups: Sequence[CurveGroup], teacher: dict[str, float]) -> bytes | None:
    """Validation errors and training loss against steps, logarithmic: mean over seeds, with the range of the seeds as a band.

    Args:
        groups: arms, in the order of the table.
        teacher: column → the teacher's error on the test structures in the unit of the column, drawn as a dashed line.

    Returns:
        An SVG, or None if no arm has a column that could be drawn.
    """
    columns = [panel for panel in _PANELS if any(panel[0] in curve.units for group in groups for curve in group.curves)]
    if not columns:
        return None
    from matplotlib.ticker import LogFormatter

    with new_figure(3.6 * len(columns), 2.9) as figure:
        axes = figure.subplots(1, len(columns), squeeze=False)[0]
        for ax, (column, title) in zip(axes, columns, strict=True):
            for group, colour in zip(groups, _cycle(len(groups)), strict=True):
                _draw_curves(ax, group, column, colour)
            if column in teacher:
                ax.axhline(teacher[column], color=TEACHER_COLOUR, linestyle="--", linewidth=1, label="teacher (test)")
            ax.set_yscale("log")
            # 20 and 60, not 2 × 10¹
            ax.yaxis.set_major_formatter(LogFormatter())
            ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
            ax.set_title(title, loc="left")
            ax.set_xlabel("step")
            ax.set_ylabel(CURVE_UNITS[column] if CURVE_UNITS[column] != "1" else "")
        axes[0].legend()
        return _svg(figure)


def similarity_curves(groups: Sequence[CurveGroup]) -> bytes | None:
    """CKA of the distilled pairs against steps, one panel a term, where runs have watched them.

    Returns:
        An SVG, or None if no run has.
    """
    columns = sorted({name for group in groups for curve in group.curves for name in curve.units if name.startswith("cka_")})
    if not columns:
        return None
    with new_figure(3.6 * len(columns), 2.7) as figure:
        axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for ax, column in zip(axes, columns, strict=True):
            for group, colour in zip(groups, _cycle(len(groups)), strict=True):
                _draw_curves(ax, group, column, colour)
            ax.set_ylim(0, 1.02)
            ax.set_title(column.removeprefix("cka_"), loc="left")
            ax.set_xlabel("step")
        axes[0].set_ylabel("CKA of the distilled pair")
        handles, titles = _legend(axes)
        axes[0].legend(handles, titles, loc="lower right")
        return _svg(figure)


def weighting_curves(groups: Sequence[CurveGroup]) -> bytes | None:
    """λ, ‖λ∇L_KD‖ / ‖∇L_0‖ and the cosine of ∇L_KD with ∇L_0 against steps, a row each and a column a term, where runs have measured them.

    Returns:
        An SVG, or None if no run has.
    """
    found = {name for group in groups for curve in group.curves for name in curve.units}
    # a run has weight_… columns only where terms were weighed
    terms = sorted(name.removeprefix("weight_") for name in found if name.startswith("weight_"))
    rows = [row for row in _WEIGHTING_ROWS if any(f"{row[0]}_{term}" in found for term in terms)]
    if not rows:
        return None
    with new_figure(3.6 * len(terms), 2.1 * len(rows) + 0.4) as figure:
        axes = figure.subplots(len(rows), len(terms), squeeze=False, sharex=True, sharey="row")
        for line, (column, label, limits) in zip(axes, rows, strict=True):
            for ax, term in zip(line, terms, strict=True):
                for group, colour in zip(groups, _cycle(len(groups)), strict=True):
                    _draw_curves(ax, group, f"{column}_{term}", colour, positive=False)
                if column == "cosine":
                    ax.axhline(0.0, color="#999999", linewidth=0.8, zorder=0)
            line[0].set_ylabel(label)
            line[0].set_ylim(*limits)
        for ax, term in zip(axes[0], terms, strict=True):
            ax.set_title(term, loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("step")
        axes[0][0].legend(*_legend(list(axes.flat)), loc="best")
        return _svg(figure)


def _legend(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Each title once, wherever it was drawn: not every arm has every term."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, title in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(title, handle)
    return list(found.values()), list(found)


def _draw_curves(ax: Axes, group: CurveGroup, column: str, colour: str, *, positive: bool = True) -> None:
    lines = []
    for curve in group.curves:
        if column not in curve.units:
            continue
        values = curve[column]
        shown = np.isfinite(values) & ((values > 0) | (not positive))
        lines.append((curve["step"][shown], values[shown]))
    if not lines:
        return
    steps = lines[0][0]
    if all(np.array_equal(steps, other) for other, _ in lines):
        stacked = np.stack([values for _, values in lines])
        ax.plot(steps, stacked.mean(0), color=colour, label=group.title)
        if len(lines) > 1:
            ax.fill_between(steps, stacked.min(0), stacked.max(0), color=colour, alpha=0.18, linewidth=0)
        return
    for number, (steps, values) in enumerate(lines):
        ax.plot(steps, values, color=colour, linewidth=1, label=group.title if number == 0 else None)


def parity(models: Sequence[tuple[str, Predictions]]) -> bytes:
    """Predicted against labelled energies (above) and, if there are any, force components (below), one column per model; darker is more points.

    Energies are per atom and relative to the mean label of all structures of the same composition: totals differ by hundreds of eV
    between molecules, which would hide every error.

    Args:
        models: title and predictions, at most four or so.

    Returns:
        A PNG.
    """
    rows = 1 if all(predictions.forces is None for _, predictions in models) else 2
    with new_figure(2.35 * len(models) + 0.2, 2.35 * rows) as figure:
        axes = figure.subplots(rows, len(models), squeeze=False, sharex="row", sharey="row")
        for column, (title, predictions) in enumerate(models):
            reference = composition_mean(predictions)
            label, predicted = (1000 * (e - reference) / predictions.natoms for e in (predictions.energy, predictions.energy_pred))
            _draw_parity(axes[0, column], label, predicted, "meV/atom", first=column == 0)
            axes[0, column].set_title(title, loc="left")
            if predictions.forces is not None:
                counted = slice(None) if predictions.free is None else predictions.free
                forces, forces_pred = (values[counted].ravel() for values in predictions.both_forces)
                _draw_parity(axes[1, column], forces, forces_pred, "eV/Å", first=column == 0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return _palettised(buffer.getvalue())


def _draw_parity(ax: Axes, label: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]], unit: str, *, first: bool) -> None:
    low, high = float(min(label.min(), predicted.min())), float(max(label.max(), predicted.max()))
    margin = 0.03 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="#999999", linewidth=0.8, zorder=0)
    if len(label) > 2000:
        ax.hexbin(label, predicted, gridsize=70, bins="log", cmap="Blues", mincnt=1, linewidths=0, extent=(*limits, *limits))
    else:
        ax.scatter(label, predicted, s=4, color=COLOURS[0], alpha=0.5, linewidths=0)
    ax.set_xlabel(f"label [{unit}]")
    if first:
        ax.set_ylabel(f"{'energy' if unit == 'meV/atom' else 'force'} predicted [{unit}]")


def errors_by_element(models: Sequence[tuple[str, Predictions]], teachers: int) -> bytes | None:
    """Force MAE of each element, one bar per model; an SVG, or None if a model's predictions do not tell elements or forces.

    Args:
        models: title and predictions.
        teachers: how many of the first models are teachers; the others have the colours of the learning curves.
    """
    if any(predictions.atomic_numbers is None or predictions.forces is None for _, predictions in models):
        return None
    from ase.data import chemical_symbols

    elements = np.unique(np.concatenate([p.atomic_numbers for _, p in models if p.atomic_numbers is not None]))
    width = 0.8 / len(models)
    with new_figure(max(3.0, 0.28 * len(elements) * len(models)) + 2.2, 2.7) as figure:
        ax = figure.subplots()
        colours = [TEACHER_COLOUR] * teachers + _cycle(len(models) - teachers)
        for number, (title, predictions) in enumerate(models):
            forces, forces_pred = predictions.both_forces
            errors = np.abs(forces_pred - forces).mean(1)
            counted = np.ones(len(errors), dtype=bool) if predictions.free is None else predictions.free
            of_element = [counted & (predictions.atomic_numbers == z) for z in elements]
            bars = [1000 * errors[atoms].mean() if atoms.any() else 0 for atoms in of_element]
            ax.bar(np.arange(len(elements)) + (number + 0.5) * width - 0.4, bars, width, label=title, color=colours[number])
        ax.set_xticks(np.arange(len(elements)), [chemical_symbols[z] for z in elements])
        ax.grid(visible=False, axis="x")
        ax.set_ylabel("force MAE [meV/Å]")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def composition_mean(predictions: Predictions) -> NDArray[np.float64]:
    """Mean labelled energy of the structures with the same composition, [n_structures] eV (of the same size, if elements are unknown)."""
    if predictions.atomic_numbers is None:
        key = predictions.natoms[:, None]
    else:
        structure = np.repeat(np.arange(len(predictions.natoms)), predictions.natoms)
        key = np.zeros((len(predictions.natoms), int(predictions.atomic_numbers.max()) + 1), dtype=np.int64)
        np.add.at(key, (structure, predictions.atomic_numbers), 1)
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return (np.bincount(group, weights=predictions.energy) / np.bincount(group))[group]


def _cycle(number: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def _palettised(png: bytes) -> bytes:
    # a palette of 128 colours is enough for one hue, and a third of the bytes; Pillow comes with matplotlib
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
