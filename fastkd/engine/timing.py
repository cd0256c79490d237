"""Where the time of a step goes, measured in place: two readings of a clock around each part, and nothing when it is off.

On a CPU the clock is `time.perf_counter`. On a CUDA device two events are put into the stream and read after the last step, so that no step waits
for the device, and what is measured is the device's own time (gaps where it waits for the host included).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class StepTimer:
    """Times of named parts, step by step.

    Args:
        device: whose clock to read; None never reads any.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self._steps: list[dict[str, list[tuple[Any, Any]]]] = []

    def next_step(self) -> None:
        """What follows belongs to a new step."""
        self._steps.append({})

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part; a part that comes several times in a step is added up. Off before the first `next_step`."""
        if self.device is None or not self._steps:
            yield
            return
        begin = self._now()
        yield
        self._steps[-1].setdefault(name, []).append((begin, self._now()))

    def wrap(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, timed."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def milliseconds(self) -> list[dict[str, float]]:
        """Part → ms for each step; waits for the device."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [{name: sum(self._between(*span) for span in spans) for name, spans in step.items()} for step in self._steps]

    def _now(self) -> Any:
        if self.device is None or self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    @staticmethod
    def _between(begin: Any, end: Any) -> float:
        return 1e3 * (end - begin) if isinstance(begin, float) else float(begin.elapsed_time(end))


#: Times nothing.
OFF = StepTimer()
