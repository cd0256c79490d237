"""LKM, layer-to-layer knowledge mixing: a student without a teacher whose layers learn from their own mean.

Source: See, Zhang, Boley and Chalmers, arXiv:2510.20236. The abstract speaks of the mean absolute distance, another description of the mean
square; which embeddings, whether the mean gets a gradient, and the strength γ are not public. All are options here, and every default is
this project's choice. The term has no parameters and leaves the model as it is: same state dict, same graph, same work at inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd.config import TermConfig
from fastkd.data.batch import Batch
from fastkd.distill.projections import elementwise
from fastkd.distill.term import Term
from fastkd.errors import ConfigError
from fastkd.models.base import Potential, Prediction
from fastkd.teachers.output import Offer, TeacherOutput

#: Embeddings count as collapsed when their variance over atoms has fallen below this share of what it was at the start …
COLLAPSED_VARIANCE = 0.01
#: … or when layers point the same way, and their distance, against that variance, is below this share of what it was.
COLLAPSED_DISTANCE, COLLAPSED_SIMILARITY = 0.01, 0.99


def mixing_loss(embeddings: Sequence[Tensor], kind: str = "mae", *, detach_mean: bool = False) -> Tensor:
    """(1 / (m N d)) Σ_{j,i,c} |e_ijc − e_ic|^p with e_i = (1/m) Σ_j e_ij; p = 1 for ``mae``, 2 for ``mse``; a scalar, 0 without atoms.

    Args:
        embeddings: m tensors [n_atoms, d], float32 or float64.
        kind: ``mae`` or ``mse``.
        detach_mean: whether e_i is a constant. For p = 2 this changes nothing, because Σ_j (e_ij − e_i) = 0.
    """
    stacked = torch.stack(tuple(embeddings))
    mean = stacked.mean(0)
    return elementwise(stacked - (mean.detach() if detach_mean else mean), kind)  # type: ignore[arg-type]


class MixingTerm(Term):
    """lkm: the distance of every layer's embedding of an atom from the mean over layers."""

    def __init__(self, name: str, config: TermConfig, where: str, embeddings: str) -> None:
        super().__init__(name, config, frozenset(), where)
        self.embeddings = embeddings
        self.detach_mean = config.detach_mean

    @classmethod
    def of(cls, name: str, config: TermConfig, where: str, student: Offer) -> MixingTerm:
        """The term for a student.

        Raises:
            ConfigError: if the student does not have the embeddings, or only one of them.
        """
        if config.loss not in ("auto", "mae", "mse"):
            raise ConfigError(f"{where}: the loss is mae (p = 1) or mse (p = 2), not {config.loss}")
        if not student.mixing:
            raise ConfigError(f"{where}: {student.name} does not offer the embeddings of its layers; drop the term")
        chosen = next(iter(student.mixing)) if config.embeddings == "auto" else config.embeddings
        if chosen not in student.mixing:
            raise ConfigError(f"{where}: embeddings = {chosen!r}, but {student.name} has {', '.join(student.mixing)}; auto takes the first")
        number, _ = student.mixing[chosen]
        if number < 2:
            raise ConfigError(
                f"{where}: embeddings {chosen} of {student.name} are {number}, and one layer has nothing to mix with; raise model.layers"
            )
        return cls(name, config, where, chosen)

    def layers(self, student: Prediction) -> tuple[Tensor, ...]:
        """What is mixed, each [n_atoms, d], in float32 at least."""
        try:
            found = student.features.mixing[self.embeddings]
        except KeyError:
            raise ValueError(f"term {self.name} needs embeddings {self.embeddings} of the student, which are missing") from None
        return tuple(layer.to(torch.promote_types(layer.dtype, torch.float32)) for layer in found)

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        return mixing_loss(self.layers(student), self.loss, detach_mean=self.detach_mean)


@dataclass(frozen=True)
class Spread:
    """How far embeddings are apart, on one batch."""

    similarity: float  #: mean over atoms and pairs of layers of cos(e_ij, e_ik)
    variance: float  #: mean over layers and channels of the variance over atoms: what tells atoms apart
    distance: float  #: mean over atoms, channels and layers of (e_ij − e_i)²: what tells layers apart

    @classmethod
    def of(cls, embeddings: Sequence[Tensor]) -> Spread:
        """Of m embeddings [n_atoms, d]; all 0 without atoms."""
        stacked = torch.stack(tuple(layer.detach() for layer in embeddings)).double()
        number, atoms = stacked.shape[:2]
        if atoms == 0:
            return cls(0.0, 0.0, 0.0)
        unit = torch.nn.functional.normalize(stacked, dim=-1)
        # Σ over pairs of û_j · û_k is (‖Σ û‖² − Σ ‖û‖²) / 2
        pairs = unit.sum(0).square().sum(-1) - unit.square().sum(-1).sum(0)
        similarity = pairs.mean() / (number * (number - 1))
        variance = stacked.var(1, correction=0).mean()
        distance = (stacked - stacked.mean(0)).square().mean()
        return cls(float(similarity), float(variance), float(distance))

    def collapse(self, start: Spread) -> str:
        """What has collapsed since the start, in words; empty if nothing has."""
        if start.variance > 0 and self.variance < COLLAPSED_VARIANCE * start.variance:
            return (
                f"embeddings no longer tell atoms apart: their variance over atoms is {self.variance:.3g}, and was {start.variance:.3g} "
                "at the start"
            )
        # against the variance: embeddings that all shrink alike have not come closer
        closer = self.distance * start.variance < COLLAPSED_DISTANCE * start.distance * self.variance
        if closer and self.similarity > COLLAPSED_SIMILARITY:
            share = self.distance * start.variance / (start.distance * self.variance)
            return (
                f"layers have become the same: the cosine between them is {self.similarity:.4f}, and was {start.similarity:.4f} at the "
                f"start; their distance is {share:.2g} of what it was"
            )
        return ""


class CollapseWatch:
    """Looks at mixed embeddings on one and the same batch from time to time, and compares them with the start.

    Its state goes into the checkpoint, so that a resumed run still knows how it began.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms = [term for term in terms if isinstance(term, MixingTerm)]
        self.start: dict[str, Spread] = {}
        self.now: dict[str, Spread] = {}
        #: every warning of the run so far, with its step
        self.said: list[str] = []
        self._collapsed: set[str] = set()

    def look(self, student: Potential, batch: Batch) -> None:
        """Measure; the first look is the start."""
        if not self.terms:
            return
        with torch.no_grad():
            prediction = student(batch, forces=False)
        self.now = {term.name: Spread.of(term.layers(prediction)) for term in self.terms}
        self.start = self.start or dict(self.now)

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metrics.csv and their units."""
        return {f"{name}_{what}": "1" for name in (term.name for term in self.terms) for what in ("similarity", "variance", "distance")}

    @property
    def row(self) -> dict[str, float]:
        """The similarity, and variance and distance as shares of those at the start."""
        row = {}
        for name, spread in self.now.items():
            start = self.start[name]
            row[f"{name}_similarity"] = spread.similarity
            row[f"{name}_variance"] = spread.variance / start.variance if start.variance else 1.0
            row[f"{name}_distance"] = spread.distance / start.distance if start.distance else 1.0
        return row

    def new_warnings(self, step: int) -> list[str]:
        """One line for each term whose embeddings have collapsed since the last look; each is said once, and kept in ``said``."""
        found = {name: spread.collapse(self.start[name]) for name, spread in self.now.items()}
        fresh = [f"step {step}: {name}: {what}; lower its weight" for name, what in found.items() if what and name not in self._collapsed]
        self._collapsed = {name for name, what in found.items() if what}
        self.said += fresh
        return fresh

    def state_dict(self) -> dict[str, Any]:
        start = {name: asdict(spread) for name, spread in self.start.items()}
        return {"start": start, "said": list(self.said), "collapsed": sorted(self._collapsed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = {name: Spread(**values) for name, values in state.get("start", {}).items()}
        self.said = list(state.get("said", []))
        self._collapsed = set(state.get("collapsed", []))
