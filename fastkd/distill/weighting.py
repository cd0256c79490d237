"""λ of a term by optimiser step: constant, or from a first value to a last one.

A pure function of the step, which the checkpoint holds, so that a resumed run weighs every step as the uninterrupted one.

Example:
    >>> weight = WeightSchedule.of(TermConfig(kind="lkm", weight=2.0, weight_schedule="linear", weight_until=4))
    >>> [weight(step) for step in range(6)]
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastkd.config import TermConfig
from fastkd.errors import ConfigError


@dataclass(frozen=True)
class WeightSchedule:
    """λ(step): ``first`` up to step ``begin``, ``last`` from step ``end`` on, and a ramp in between."""

    last: float
    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    first: float = 0.0
    begin: int = 0  #: steps before the ramp
    end: int = 0  #: steps before λ is ``last``

    @classmethod
    def of(cls, config: TermConfig, where: str = "distill.terms") -> WeightSchedule:
        """The schedule of a term.

        Raises:
            ConfigError: if keys of a schedule are given without one, or its steps are in the wrong order.
        """
        kind, begin, end = config.weight_schedule, config.weight_from, config.weight_until
        if kind == "constant":
            if config.weight_start or begin or end:
                raise ConfigError(
                    f"{where}: weight_start, weight_from and weight_until belong to a schedule; set weight_schedule to linear, cosine or step"
                )
            return cls(float(config.weight))
        if end <= begin:
            raise ConfigError(
                f"{where}: weight_until = {end} must be greater than weight_from = {begin}: it is the optimiser step at which "
                "weight is reached"
            )
        if kind == "step" and begin:
            raise ConfigError(f"{where}: a step happens at weight_until alone; leave weight_from away, or set weight_schedule=linear")
        return cls(float(config.weight), kind, float(config.weight_start), begin, end)

    def __call__(self, step: int) -> float:
        """λ of optimiser step ``step``, counted from 0."""
        if self.kind == "constant" or step >= self.end:
            return self.last
        if self.kind == "step" or step <= self.begin:
            return self.first
        share = (step - self.begin) / (self.end - self.begin)
        if self.kind == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return self.first + (self.last - self.first) * share

    @property
    def largest(self) -> float:
        """The largest λ of all steps."""
        return self.last if self.kind == "constant" else max(self.first, self.last)
