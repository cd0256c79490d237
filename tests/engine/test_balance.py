"""Weights from gradients: the formulas, that looking changes nothing, and less of a term once the student is ahead."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fastkd.analysis import build_report
from fastkd.analysis.runs import Curve
from fastkd.distill import Balance, ValidationErrors
from fastkd.distill.terms import TermValue
from fastkd.engine.loop import train
from fastkd.engine.state import load_checkpoint
from fastkd.engine.step import batch_loss
from fastkd.errors import ConfigError

from .synthetic import make_batch, make_job, same
from .test_loop import BALANCED, SILENT
from .test_run import KD, start

TERMS = "distill.terms=[{kind: forces, weight: 0.5, weight_rule: gradient_ratio}, {kind: n2n, weight: 3}]"


def flat(loss: torch.Tensor, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return torch.cat([value.double().flatten() for value in zeros])


def test_the_ratio_is_held_over_the_students_parameters(tmp_path: Path) -> None:
    job = make_job(tmp_path, TERMS, "distill.gradient_every=1", "distill.gradient_average=0")
    trainee, batch = job.trainee, make_batch(torch.arange(4))
    student = list(trainee.student.parameters())
    losses, total, _ = batch_loss(trainee, batch, 0)
    assert trainee.balance is not None
    row = trainee.balance.row()
    # the long way: the label loss alone, and each term alone
    labels = batch_loss(make_job(tmp_path / "alone").trainee, batch, 0)[1]
    alone = make_job(tmp_path / "alone").trainee
    label = flat(batch_loss(alone, batch, 0)[1], list(alone.student.parameters()))
    gradients = {}
    for kind in ("forces", "n2n"):
        one = make_job(tmp_path / kind, f"distill.terms=[{{kind: {kind}}}]", "loss.energy_weight=0", "loss.forces_weight=0").trainee
        gradients[kind] = flat(batch_loss(one, batch, 0)[1], list(one.student.parameters()))
    assert row["weight_forces"] == pytest.approx(0.5 * float(label.norm() / gradients["forces"].norm()), rel=1e-5)
    assert row["gradient_ratio_forces"] == pytest.approx(0.5, rel=1e-5)
    assert row["weight_n2n"] == 3.0
    assert row["gradient_ratio_n2n"] == pytest.approx(3 * float(gradients["n2n"].norm() / label.norm()), rel=1e-5)
    for kind, gradient in gradients.items():
        cosine = float(gradient @ label / gradient.norm() / label.norm())
        assert row[f"cosine_{kind}"] == pytest.approx(cosine, abs=1e-5)
    assert total.item() == pytest.approx(
        labels.item() + row["weight_forces"] * losses["kd_forces"].item() + 3 * losses["kd_n2n"].item(), rel=1e-6
    )
    whole = label + row["weight_forces"] * gradients["forces"] + 3 * gradients["n2n"]
    torch.testing.assert_close(flat(total, student), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    assert trainee.balance.row().keys() == {"weight_forces", "weight_n2n"}  # nothing measured since


class _Fake:
    """A term with known gradients of one parameter."""

    def __init__(self, kind: str, rule: str = "fixed", when_passed: str = "keep") -> None:
        self.name = self.kind = kind
        self.rule, self.when_passed, self.teacher = rule, when_passed, ""


def weigh(balance: Balance, x: torch.nn.Parameter, term: float, label: float, step: int) -> float:
    """λ after a step on which the gradients are (term, 0) and (0, label): weight 2."""
    raw = term * x[0]
    return balance.weigh({"n2n": TermValue(raw, 2.0 * raw, 2.0, "1")}, label * x[1], step)["n2n"].weight


def test_norms_are_averaged_and_batches_without_labels_are_passed_over() -> None:
    x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    balance = Balance([_Fake("n2n", "gradient_ratio")], [x], every=3, decay=0.5)  # type: ignore[list-item]
    # no label yet: λ waits, and the next step is asked
    assert weigh(balance, x, 4.0, 0.0, 0) == 0.0
    assert weigh(balance, x, 4.0, 8.0, 1) == pytest.approx(2.0 * 8 / 4)
    assert weigh(balance, x, 100.0, 1.0, 2) == pytest.approx(4.0)  # not measured
    assert weigh(balance, x, 2.0, 16.0, 3) == pytest.approx(2.0 * (0.5 * 4 + 0.5 * 16) / (0.5 * 2 + 0.5 * 2))
    assert weigh(balance, x, math.nan, 1.0, 6) == pytest.approx(10.0)  # a gradient that is not finite changes nothing
    row = balance.row()
    assert row["cosine_n2n"] == 0.0
    again = Balance([_Fake("n2n", "gradient_ratio")], [x], every=3, decay=0.5)  # type: ignore[list-item]
    again.load_state_dict(json.loads(json.dumps(balance.state_dict())))
    assert weigh(again, x, 3.0, 5.0, 9) == weigh(balance, x, 3.0, 5.0, 9)
    with pytest.raises(KeyError, match="forces"):
        Balance([_Fake("forces")], [x], every=1, decay=0).load_state_dict(balance.state_dict())  # type: ignore[list-item]


def test_a_term_that_a_schedule_switches_on_is_measured_at_once() -> None:
    x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    balance = Balance([_Fake("n2n", "gradient_ratio")], [x], every=100, decay=0.5)  # type: ignore[list-item]

    def step(number: int, scheduled: float) -> float:
        # a term that the schedule has at 0 has no graph
        raw = (4.0 * x[0]) if scheduled else torch.tensor(4.0)
        return balance.weigh({"n2n": TermValue(raw, scheduled * raw, scheduled, "1")}, 8.0 * x[1], number)["n2n"].weight

    assert [step(number, 0.0) for number in range(3)] == [0.0] * 3
    assert step(3, 2.0) == pytest.approx(2.0 * 8 / 4)
    assert step(4, 3.0) == pytest.approx(3.0 * 8 / 4)


def test_terms_are_halved_and_stopped_when_the_student_is_ahead() -> None:
    teacher = ValidationErrors(energy=0.01, forces=0.1, score=11.0)
    terms = [_Fake("forces", when_passed="halve"), _Fake("energy", when_passed="stop"), _Fake("n2n", when_passed="stop"), _Fake("v2v")]
    balance = Balance(terms, [], every=0, decay=0, teacher=teacher)  # type: ignore[arg-type]

    def weights() -> list[float]:
        raw = torch.ones((), requires_grad=True)
        values = {term.name: TermValue(raw, 4.0 * raw, 4.0, "1") for term in terms}
        weighed = balance.weigh(values, raw, 0)
        assert all(value.weighted.requires_grad == (value.weight != 0) for value in weighed.values())
        return [value.weight for value in weighed.values()]

    assert balance.observe(ValidationErrors(0.01, 0.1, 11.0), 10) == []  # as good is not ahead
    (line,) = balance.observe(ValidationErrors(0.02, 0.09, 12.0), 20)
    assert line == (
        "step 20: the student has passed the teacher on validation (90 meV/Å, teacher 100 meV/Å): forces: λ is 0.5 of what it was"
    )
    assert weights() == [2.0, 4.0, 4.0, 4.0]
    lines = balance.observe(ValidationErrors(0.005, 0.2, 10.0), 30)
    assert [line.split(": ")[2] for line in lines] == ["energy", "n2n"]
    assert weights() == [2.0, 0.0, 0.0, 4.0]
    # stopped for good, though the student has fallen back
    assert balance.observe(ValidationErrors(0.05, 0.05, 20.0), 40) == [balance.said[-1]]
    assert weights() == [1.0, 0.0, 0.0, 4.0]
    assert len(balance.said) == 4


def test_looking_changes_no_bit(tmp_path: Path) -> None:
    terms = "distill.terms=[{kind: n2n}, {kind: v2v}, {kind: forces, weight: 10}, {kind: lkm}]"
    train(make_job(tmp_path / "blind", terms), SILENT)
    train(make_job(tmp_path / "looking", terms, "distill.gradient_every=2"), SILENT)
    blind, looking = load_checkpoint(tmp_path / "blind").tree, load_checkpoint(tmp_path / "looking").tree
    assert looking.pop("balance")["terms"].keys() == {"n2n", "v2v", "forces", "lkm"}
    assert blind.pop("balance") == {}
    same(blind, looking)
    curve = Curve.load(tmp_path / "looking")
    for name in ("n2n", "v2v", "forces", "lkm"):
        assert bool((abs(curve[f"cosine_{name}"]) <= 1).all())
        assert bool((curve[f"gradient_ratio_{name}"] > 0).all())
    assert curve["weight_forces"].tolist() == [10.0] * 4


def test_a_run_that_passes_its_teacher_says_so(tmp_path: Path) -> None:
    job = make_job(tmp_path, *BALANCED, "train.steps=30")
    train(job, SILENT)
    assert job.trainee.balance is not None
    assert any(": forces: " in line for line in job.trainee.balance.said)
    weights = Curve.load(tmp_path)["weight_n2n"]
    assert weights[0] == 1.0
    assert weights[-1] == 0.0


def test_off_by_default(tmp_path: Path) -> None:
    assert make_job(tmp_path, "distill.terms=[{kind: n2n}]").trainee.balance is None


def test_a_ratio_needs_measurements(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set distill\.gradient_every"):
        make_job(tmp_path, "distill.terms=[{kind: n2n, weight_rule: gradient_ratio}]")


def test_the_report_draws_what_was_measured(config_file: Path, tmp_path: Path, teacher_folder: Path) -> None:
    options = [*KD, f"teacher.path={teacher_folder}", "distill.gradient_every=3", "distill.terms.0.when_passed=stop"]
    start(config_file, *options)
    build_report(tmp_path / "run", resamples=5)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Weights and gradients" in page
    said = json.loads((tmp_path / "run" / "summary.json").read_text())["extra"]["weighting"]
    assert all(line in page for line in said)


def test_a_rule_without_a_teacher_is_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="when_passed of lkm"):
        start(config_file, "distill.terms=[{kind: lkm, when_passed: stop}]")
