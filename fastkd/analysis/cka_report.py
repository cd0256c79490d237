"""Tables and heat maps of CKA: long CSV, PNG, and the lines that are printed."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastkd.analysis.cka import Layer, Similarity
from fastkd.analysis.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

CSV_COLUMNS = ("kind", "a", "layer_a", "b", "layer_b", "estimator", "value", "low", "high", "n")
BEFORE, STUDENT, TEACHER = "before", "student", "teacher"
_TITLES = {BEFORE: "before", STUDENT: "student", TEACHER: "teacher"}
#: More layers than this on a side, and cells are too small for numbers.
_NUMBERED = 12


@dataclass(frozen=True)
class Pair:
    """A layer of the student that is (or should be) distilled, and its target."""

    kind: str  #: node or vector
    student: str
    teacher: str
    term: str  #: strategy: n2n, e2n, v2v


def to_csv(similarities: Iterable[Similarity]) -> str:
    """Every pair of layers in both orders, one a line; empty cells are undefined."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for item in similarities:
        for (i, a), (j, b) in itertools.product(enumerate(item.layers), repeat=2):
            numbers = [_cell(table[i, j]) for table in (item.value, item.low, item.high)]
            writer.writerow([item.kind, a.model, a.name, b.model, b.name, item.estimator, *numbers, item.rows])
    return stream.getvalue()


def heat_maps(similarity: Similarity, pairs: Sequence[Pair] = ()) -> bytes:
    """All panels of one kind of feature: within each model, and between them; distilled pairs are framed.

    Returns:
        A PNG.
    """
    models = [model for model in (BEFORE, STUDENT, TEACHER) if similarity.names(model)]
    panels = [(model, model) for model in models]
    panels += [(a, b) for a, b in ((BEFORE, TEACHER), (STUDENT, TEACHER), (BEFORE, STUDENT)) if a in models and b in models]
    columns = len(models) if len(models) == 3 else len(panels)
    rows = math.ceil(len(panels) / columns)
    most = max(len(similarity.names(model)) for model in models)
    side = 1.9 + 0.26 * most
    with new_figure(side * columns + 0.7, (side + 0.3) * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        image: AxesImage | None = None
        for ax, (a, b) in itertools.zip_longest(axes, panels, fillvalue=("", "")):
            if not a or isinstance(ax, tuple):
                ax.axis("off")  # type: ignore[union-attr]
                continue
            part = similarity.between(a, b)
            assert part is not None
            image = _draw(ax, part, a, b)
            if b == TEACHER and a != TEACHER:
                _mark(ax, similarity, a, pairs)
        assert image is not None
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01)
        bar.set_label(f"linear CKA, {similarity.kind} features ({similarity.estimator}{', within elements' * similarity.by_element})")
        bar.outline.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _draw(ax: Axes, part: Similarity, a: str, b: str) -> AxesImage:
    image = ax.imshow(part.value, vmin=0.0, vmax=1.0, cmap="viridis", origin="lower", aspect="equal")
    # seen where a similarity is undefined
    ax.set_facecolor("#eeeeee")
    ax.grid(visible=False)
    ax.set_xticks(range(part.value.shape[1]), part.names(b), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(part.value.shape[0]), part.names(a))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    # room for the arrows of distilled pairs
    ax.set_title(
        f"within {_TITLES[a]}" if a == b else f"{_TITLES[a]} × {_TITLES[b]}", loc="left", fontsize=9, pad=20 if b == TEACHER else 6
    )
    ax.set_xlabel(_TITLES[b])
    ax.set_ylabel(_TITLES[a])
    if max(part.value.shape) <= _NUMBERED:
        for i, j in np.ndindex(part.value.shape):
            value = part.value[i, j]
            text = "–" if math.isnan(value) else f"{value:.2f}".replace("0.", ".", 1)
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if value <= 0.6 else "black")
    return image


def _mark(ax: Axes, similarity: Similarity, model: str, pairs: Sequence[Pair]) -> None:
    """A frame and an arrow at each pair that the student's run distilled."""
    from matplotlib.patches import Rectangle

    rows, columns = similarity.names(model), similarity.names(TEACHER)
    for pair in pairs:
        if pair.kind != similarity.kind or pair.student not in rows or pair.teacher not in columns:
            continue
        y, x = rows.index(pair.student), columns.index(pair.teacher)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2, clip_on=False))
        ax.annotate(
            pair.term,
            (x + 0.5, y + 0.5),
            (12, 12),
            textcoords="offset points",
            color=COLOURS[1],
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "->", "color": COLOURS[1], "linewidth": 1.4},
        )


def most_alike(similarity: Similarity, a: str = STUDENT, b: str = TEACHER) -> tuple[Layer, Layer, float, float, float] | None:
    """The two layers of two models that are most alike, their CKA and its interval; None if nothing can be compared."""
    part = similarity.between(a, b)
    if part is None or np.isnan(part.value).all():
        return None
    i, j = np.unravel_index(int(np.nanargmax(part.value)), part.value.shape)
    numbers = (float(table[i, j]) for table in (part.value, part.low, part.high))
    first, second, third = numbers
    return Layer(a, part.names(a)[i]), Layer(b, part.names(b)[j]), first, second, third


def at(similarity: Similarity, model: str, pair: Pair) -> tuple[float, float, float]:
    """CKA at a pair and its interval, with ``model`` (before or student) on the student's side; NaN if it is not there."""
    names = [(layer.model, layer.name) for layer in similarity.layers]
    wanted = (model, pair.student), (TEACHER, pair.teacher)
    if any(name not in names for name in wanted):
        return math.nan, math.nan, math.nan
    i, j = (names.index(name) for name in wanted)
    return float(similarity.value[i, j]), float(similarity.low[i, j]), float(similarity.high[i, j])


def number(value: float, low: float, high: float) -> str:
    """Like ``0.873 [0.851, 0.892]``."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def sentences(similarities: Sequence[Similarity], pairs: Sequence[Pair]) -> list[str]:
    """What is most alike, and what became of the distilled pairs; by the first estimator of each kind."""
    lines = []
    for kind in dict.fromkeys(item.kind for item in similarities):
        similarity = next(item for item in similarities if item.kind == kind)
        best = most_alike(similarity)
        if best is not None:
            lines.append(f"{kind}: most alike are {best[0]} and {best[1]}, CKA {number(*best[2:])} ({similarity.estimator})")
        for pair in (pair for pair in pairs if pair.kind == kind):
            after = number(*at(similarity, STUDENT, pair))
            before = at(similarity, BEFORE, pair)
            change = f"{number(*before)} before, {after} after" if not math.isnan(before[0]) else after
            lines.append(f"{kind}: distilled pair of {pair.term}, student {pair.student} and teacher {pair.teacher}: CKA {change}")
    return lines


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
