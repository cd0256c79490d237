"""Learning rate by step: linear warm-up, then constant, cosine, step or plateau.

All but plateau are pure functions of the step; plateau depends on the evaluations seen, which are its state.

Example:
    >>> schedule = Schedule(TrainConfig(schedule="constant", learning_rate=0.1, warmup=4))
    >>> [round(schedule.rate(step), 3) for step in range(6)]
    [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastkd.config import TrainConfig

#: An evaluation counts as better when it improves on the best by more than this fraction.
PLATEAU_THRESHOLD = 1e-4


def warmup_factor(step: int, warmup: int) -> float:
    """(step + 1) / warmup up to 1: the first step already moves, step ``warmup`` − 1 is the first at full rate."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine_factor(step: int, first: int, last: int, final: float) -> float:
    """Half a cosine from 1 at ``first`` to ``final`` at ``last``, and ``final`` after it."""
    progress = min(1.0, max(0.0, (step - first) / max(1, last - first)))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_factor(step: int, milestones: list[int], factor: float) -> float:
    """``factor`` to the number of milestones that lie at or before ``step``."""
    return float(factor ** sum(milestone <= step for milestone in milestones))


@dataclass
class Plateau:
    """State of the plateau schedule: what the evaluations so far have done to the rate."""

    factor: float = 1.0
    best: float | None = None
    waited: int = 0

    def observe(self, metric: float, factor: float, patience: int) -> None:
        """Take note of an evaluation; after more than ``patience`` without improvement, multiply the rate and start to wait anew."""
        if self.best is None or metric < self.best * (1.0 - PLATEAU_THRESHOLD):
            self.best, self.waited = metric, 0
            return
        self.waited += 1
        if self.waited > patience:
            self.factor *= factor
            self.waited = 0


class Schedule:
    """The learning rate of every step of a run, and the little state that needs."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.plateau = Plateau()

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0."""
        config = self.config
        match config.schedule:
            case "cosine":
                factor = cosine_factor(step, config.warmup, config.steps - 1, config.final_fraction)
            case "step":
                factor = step_factor(step, config.schedule_milestones, config.schedule_factor)
            case "plateau":
                factor = self.plateau.factor
            case _:
                factor = 1.0
        return config.learning_rate * warmup_factor(step, config.warmup) * factor

    def observe(self, metric: float) -> None:
        """Hand over the metric of an evaluation (smaller is better)."""
        if self.config.schedule == "plateau":
            self.plateau.observe(metric, self.config.schedule_factor, self.config.schedule_patience)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.plateau)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.plateau = Plateau(**state)
