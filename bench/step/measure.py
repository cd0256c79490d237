"""Calls in turns, and ratios of what ran side by side.

Every round takes all calls once, in an order that moves on by one from round to round; a ratio is the median over rounds of the ratio within a
round, so that what disturbs the machine for seconds disturbs both sides. On a machine that others use too, the processor's own time of this process can
be taken instead of the clock on the wall: it leaves out the time in which somebody else computed. With one thread both are the same on a machine of one's own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from bench.common import Timing
from fastkd.data.batch import Batch

Call = Callable[[Batch], Any]
Seconds = dict[str, list[float]]  #: by name, one for each round

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turns(
    calls: Mapping[str, Call],
    fresh: Callable[[], Batch],
    device: torch.device,
    *,
    seconds: float,
    fewest: int,
    most: int,
    clock: str = "wall",
) -> Seconds:
    """Seconds of every call in every round; as many rounds as take about ``seconds``, after one that does not count.

    Args:
        calls: by name.
        fresh: a batch for a call, made outside of what is timed.
        device: waited for before and after each call.
        seconds: for all rounds, by the same clock.
        fewest: rounds at least.
        most: rounds at most.
        clock: one of `CLOCKS`.
    """
    now = CLOCKS[clock]
    found: Seconds = {name: [] for name in calls}
    names, started = list(calls), now()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(most + 1):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                taken = _seconds(calls[name], fresh(), device, now)
                if number:
                    found[name].append(taken)
            if number == 0:
                gc.collect()
                started = now()
            elif number >= fewest and now() - started > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return found


def _seconds(call: Call, batch: Batch, device: torch.device, now: Callable[[], float]) -> float:
    _wait(device)
    start = now()
    call(batch)
    _wait(device)
    return now() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timings(seconds: Seconds) -> dict[str, Timing]:
    """Median and quantiles of every call."""
    return {name: Timing.of(values) for name, values in seconds.items()}


def paired(top: Iterable[float], bottom: Iterable[float]) -> Timing:
    """Median and quantiles of the ratio within a round."""
    return Timing.of([a / b for a, b in zip(top, bottom, strict=True)])
