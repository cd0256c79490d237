"""λ by step: pure functions, exact after a resume, and what a config may have wrong."""

from __future__ import annotations

import math

import pytest
import torch

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import WeightSchedule, build_terms
from fastkd.errors import ConfigError
from fastkd.teachers import Offer

from .common import make_batch, prediction
from .test_terms import EDGE_TEACHER, WIDTH, edge_output


def schedule(**options: object) -> WeightSchedule:
    return WeightSchedule.of(TermConfig(kind="n2n", **options))


def test_constant_is_the_weight():
    assert [schedule(weight=3.0)(step) for step in (0, 1, 10**6)] == [3.0] * 3


def test_linear_goes_up_and_down():
    up = schedule(weight=2.0, weight_schedule="linear", weight_from=2, weight_until=6)
    assert [up(step) for step in range(8)] == [0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]
    down = schedule(weight=0.0, weight_start=2.0, weight_schedule="linear", weight_until=4)
    assert [down(step) for step in range(6)] == [2.0, 1.5, 1.0, 0.5, 0, 0]


def test_cosine_is_half_a_cosine():
    ramp = schedule(weight=4.0, weight_start=1.0, weight_schedule="cosine", weight_from=10, weight_until=50)
    assert ramp(10) == 1.0
    assert ramp(30) == pytest.approx(2.5)
    assert ramp(20) == pytest.approx(1.0 + 3.0 * (1 - math.cos(math.pi / 4)) / 2)
    assert ramp(50) == ramp(10**9) == 4.0


def test_a_step_switches_off_or_on():
    off = schedule(weight=0.0, weight_start=5.0, weight_schedule="step", weight_until=3)
    assert [off(step) for step in range(5)] == [5, 5, 5, 0, 0]
    lower = schedule(weight=1.0, weight_start=5.0, weight_schedule="step", weight_until=3)
    assert [lower(step) for step in range(5)] == [5, 5, 5, 1, 1]
    assert lower.largest == 5.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_until": 5}, "weight_schedule"),
        ({"weight_start": 5.0}, "weight_schedule"),
        ({"weight_schedule": "linear"}, "weight_until = 0 must be greater than weight_from = 0"),
        ({"weight_schedule": "cosine", "weight_from": 5, "weight_until": 5}, "must be greater"),
        ({"weight_schedule": "step", "weight_from": 2, "weight_until": 5}, "weight_from"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        schedule(**options)


def test_terms_weigh_by_the_step_and_a_weight_of_zero_gives_no_gradient():
    batch = make_batch([0, 1])
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    config = DistillConfig(terms=[TermConfig(kind="n2n", weight=2.0, weight_schedule="linear", weight_until=4)])
    terms = build_terms(config, Offer("student", {"node": WIDTH}, blocks=2), EDGE_TEACHER).double()
    values = [terms(student, teacher, batch, step)["n2n"] for step in range(6)]
    assert [value.weight for value in values] == [0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert len({value.raw.item() for value in values}) == 1
    assert values[2].weighted.item() == pytest.approx(values[0].raw.item(), rel=1e-15)
    assert not values[0].weighted.requires_grad
    grads = [torch.autograd.grad(value.weighted, student.features.node)[0] for value in (values[2], values[4])]
    torch.testing.assert_close(grads[1], 2 * grads[0], rtol=1e-14, atol=0)
