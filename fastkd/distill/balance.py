"""Weights that explain themselves: gradient norms and angles of terms, λ from their ratio, and less of a term once the student is ahead.

Of each term k, every N optimiser steps, over the parameters of the student (projections are left out) and on the batch of that step:

    r_k = ‖λ_k ∇L_k‖ / ‖∇L_0‖,    c_k = ⟨∇L_k, ∇L_0⟩ / (‖∇L_k‖ ‖∇L_0‖),    L_0 the loss on labels

c_k < 0 means that the term pulls against the labels. With ``weight_rule: gradient_ratio`` a term's weight ρ is the ratio to hold:

    λ_k = ρ · a_k / b_k,    a_k ← d·a_k + (1 − d)·‖∇L_0‖,    b_k ← d·b_k + (1 − d)·‖∇L_k‖

from the same batches, so that the bias of a young average cancels. That λ follows from gradient norms is the idea of GradNorm (Chen et al., ICML 2018,
arXiv:1711.02257), without its learned part; the cosine is the criterion of Du et al. (2018, arXiv:1812.02224).

With ``when_passed``, an evaluation at which the averaged student's validation error is smaller than the teacher's halves λ_k, or sets it to 0 for
good. Compared is the error in what the term teaches: energy per atom for energy and atom_energy, forces for forces, and for terms on features the
validation score a_E · MAE(E) + a_F · MAE(F).

Everything is in `Balance.state_dict`, so that a resumed run weighs every step as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastkd.config import DistillConfig
from fastkd.distill.term import Term, TermValue
from fastkd.errors import ConfigError

#: Kind of a term → which error of student and teacher are compared; terms on features: the score.
_COMPARED = {"energy": "energy", "atom_energy": "energy", "forces": "forces"}


@dataclass(frozen=True)
class ValidationErrors:
    """Of one model on the validation structures."""

    energy: float  #: eV/atom
    forces: float  #: eV/Å, per component; NaN where the structures have no forces
    score: float  #: a_E · MAE(E) + a_F · MAE(F), what chooses the best step

    def text(self, name: str) -> str:
        """One of them with its unit."""
        value = getattr(self, name)
        return (
            f"{1e3 * value:.4g} {'meV/atom' if name == 'energy' else 'meV/Å'}"
            if name in ("energy", "forces")
            else f"a score of {value:.4g}"
        )


@dataclass
class _Account:
    """What is known of one term; all of it goes into the checkpoint."""

    label: float = 0.0  #: a_k
    term: float = 0.0  #: b_k
    factor: float = 1.0  #: what is left of λ since the student has passed the teacher
    cosines: float = 0.0  #: sums since the last evaluation
    ratios: float = 0.0
    measured: int = 0

    @property
    def scale(self) -> float:
        """a_k / b_k; 0 before the first measurement, and where the term has no gradient at all."""
        return self.label / self.term if self.term > 0 else 0.0


class Balance:
    """Measures, weighs and reports the terms of one run.

    Args:
        terms: of the run.
        parameters: of the student, over which gradients are taken.
        every: N, optimiser steps between measurements; 0 measures nothing.
        decay: d of the averages, 0 ≤ d < 1.
        teacher: its errors on the validation structures, or those of the mean of several; needed where a term has ``when_passed``.
        teachers: the errors of each of several, by name, for terms that name one.
    """

    def __init__(
        self,
        terms: Iterable[Term],
        parameters: Sequence[nn.Parameter],
        *,
        every: int,
        decay: float,
        teacher: ValidationErrors | None = None,
        teachers: Mapping[str, ValidationErrors] | None = None,
    ) -> None:
        self.terms = {term.name: term for term in terms}
        self.every, self.decay = every, decay
        self.bars = {**(teachers or {}), **({} if teacher is None else {"": teacher})}
        self._parameters = list(parameters)
        self._accounts = {name: _Account() for name in self.terms}
        self._due = False  # the last measurement found no label in its batch
        self._used: dict[str, float] = {}
        #: every change of a weight because the student was ahead, with its step
        self.said: list[str] = []

    @classmethod
    def of(
        cls,
        config: DistillConfig,
        terms: Iterable[Term],
        parameters: Sequence[nn.Parameter],
        teacher: ValidationErrors | None = None,
        teachers: Mapping[str, ValidationErrors] | None = None,
    ) -> Self | None:
        """What a config asks for; None if that is nothing.

        Raises:
            ConfigError: if λ shall follow gradients that are not measured.
        """
        terms = list(terms)
        if not terms or not wanted(config):
            return None
        if not config.gradient_every and any(term.rule == "gradient_ratio" for term in terms):
            raise ConfigError("weight_rule=gradient_ratio needs measured gradients: set distill.gradient_every, for example to 50 steps")
        return cls(terms, parameters, every=config.gradient_every, decay=config.gradient_average, teacher=teacher, teachers=teachers)

    def weigh(self, values: Mapping[str, TermValue], labels: Tensor, step: int) -> dict[str, TermValue]:
        """The terms of one batch with their weights, measured first where it is time.

        Args:
            values: terms with λ as scheduled, their graphs intact.
            labels: L_0, scalar, with its graph, which is kept.
            step: optimiser step, counted from 0.
        """
        if self.every and (self._due or step % self.every == 0 or any(self._unknown(*item) for item in values.items())):
            self._measure(values, labels)
        weighed = {}
        for name, value in values.items():
            self._used[name] = weight = self._weight(name, value)
            # nothing to differentiate where λ has become 0
            raw = value.raw if weight else value.raw.detach()
            weighed[name] = value if weight == value.weight else replace(value, weight=weight, weighted=weight * raw)
        return weighed

    def _unknown(self, name: str, value: TermValue) -> bool:
        """Whether λ of a term that a schedule has switched on waits for its first measurement."""
        account = self._accounts[name]
        return self.terms[name].rule == "gradient_ratio" and value.raw.requires_grad and account.factor > 0 and account.term == 0

    def scale(self, name: str) -> float:
        """What a term's scheduled λ is multiplied with."""
        account = self._accounts[name]
        return account.factor * (account.scale if self.terms[name].rule == "gradient_ratio" else 1.0)

    def _weight(self, name: str, value: TermValue) -> float:
        return value.weight * self.scale(name)

    def _measure(self, values: Mapping[str, TermValue], labels: Tensor) -> None:
        label = self._gradient(labels)
        norm = _norm(label)
        # a batch without labels says nothing: the next one is asked
        self._due = not (norm > 0 and math.isfinite(norm))
        if self._due:
            return
        for name, value in values.items():
            account = self._accounts[name]
            if not value.raw.requires_grad or account.factor == 0.0:
                continue
            own = self._gradient(value.raw)
            size = _norm(own)
            if not math.isfinite(size):
                continue
            account.label = self.decay * account.label + (1 - self.decay) * norm
            account.term = self.decay * account.term + (1 - self.decay) * size
            account.cosines += _dot(own, label) / (size * norm) if size > 0 else 0.0
            account.ratios += self._weight(name, value) * size / norm
            account.measured += 1

    def _gradient(self, loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True))

    def observe(self, student: ValidationErrors, step: int) -> list[str]:
        """Take note of the student's validation errors; what has changed because of them, one line a term."""
        lines = []
        for name, term in self.terms.items():
            account, what = self._accounts[name], _COMPARED.get(term.kind, "score")
            if term.when_passed == "keep" or account.factor == 0.0:
                continue
            teacher = self.bars[term.teacher]
            if not getattr(student, what) < getattr(teacher, what):
                continue
            who = f"teacher {term.teacher}".strip()
            account.factor = 0.5 * account.factor if term.when_passed == "halve" else 0.0
            done = f"λ is {account.factor:.4g} of what it was" if account.factor else "λ is 0 from here on"
            lines.append(
                f"step {step}: the student has passed the {who} on validation ({student.text(what)}, teacher {teacher.text(what)}): "
                f"{name}: {done}"
            )
        self.said += lines
        return lines

    @property
    def columns(self) -> dict[str, str]:
        """Columns of metrics.csv and their units."""
        columns = {f"weight_{name}": "1" for name in self.terms}
        if self.every:
            columns |= {f"{what}_{name}": "1" for what in ("cosine", "gradient_ratio") for name in self.terms}
        return columns

    def row(self) -> dict[str, float]:
        """λ of the last step, and means of what was measured since the last call; nothing where nothing was."""
        row = {f"weight_{name}": weight for name, weight in self._used.items()}
        for name, account in self._accounts.items():
            if account.measured:
                row |= {
                    f"cosine_{name}": account.cosines / account.measured,
                    f"gradient_ratio_{name}": account.ratios / account.measured,
                }
            account.cosines, account.ratios, account.measured = 0.0, 0.0, 0
        return row

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {"terms": {name: asdict(account) for name, account in self._accounts.items()}, "due": self._due, "said": list(self.said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            KeyError: if it is of other terms.
        """
        accounts = {name: _Account(**values) for name, values in state["terms"].items()}
        if accounts.keys() != self._accounts.keys():
            raise KeyError(f"weights of {', '.join(accounts)}, not of {', '.join(self._accounts)}")
        self._accounts, self._due, self.said = accounts, bool(state["due"]), list(state["said"])


def wanted(config: DistillConfig) -> bool:
    """Whether a config asks for anything that `Balance` does."""
    return bool(config.gradient_every) or any(term.weight_rule != "fixed" or term.when_passed != "keep" for term in config.terms)


def _norm(gradients: Iterable[Tensor | None]) -> float:
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0


def _dot(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> float:
    products = [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return float(torch.stack(products).sum()) if products else 0.0
