from __future__ import annotations

import itertools
import math

import pytest

from fastkd.config import TrainConfig
from fastkd.engine.schedule import Schedule


def rates(count: int, /, **options: object) -> list[float]:
    schedule = Schedule(TrainConfig(learning_rate=2.0, **options))
    return [schedule.rate(step) for step in range(count)]


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    assert rates(6, schedule="constant", warmup=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(2, schedule="constant", warmup=0) == [2.0, 2.0]


def test_cosine_reaches_its_end_at_the_last_step() -> None:
    values = rates(111, schedule="cosine", warmup=10, steps=111, final_fraction=0.1)
    assert values[10] == 2.0
    assert values[60] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5))))
    assert values[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))
    assert Schedule(TrainConfig(schedule="cosine", steps=10, warmup=2)).rate(10_000) == pytest.approx(1e-3 * 0.01)


def test_step_multiplies_at_each_milestone() -> None:
    assert rates(5, schedule="step", warmup=0, schedule_factor=0.5, schedule_milestones=[2, 4]) == [2.0, 2.0, 1.0, 1.0, 0.5]


def test_plateau_waits_for_patience_and_starts_anew() -> None:
    schedule = Schedule(TrainConfig(schedule="plateau", learning_rate=1.0, warmup=0, schedule_factor=0.1, schedule_patience=1))
    seen = []
    for metric in (5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0):
        schedule.observe(metric)
        seen.append(schedule.rate(0))
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_plateau_state_round_trip() -> None:
    config = TrainConfig(schedule="plateau", schedule_patience=1)
    whole, first, second = Schedule(config), Schedule(config), Schedule(config)
    for metric in (5.0, 5.0):
        whole.observe(metric)
        first.observe(metric)
    second.load_state_dict(first.state_dict())
    for metric in (5.0, 5.0, 5.0):
        whole.observe(metric)
        second.observe(metric)
    assert whole.rate(500) == second.rate(500)
    assert whole.state_dict() == second.state_dict()
