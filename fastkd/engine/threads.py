"""How many CPU threads a run should use: measured, because two can be slower than one on small molecules or a shared machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_ROUNDS = 5
#: Beyond this ratio one round decides: spinning threads on a busy machine can be a hundred times slower.
_CLEAR = 2.0
#: How much faster all threads must be than one before they are used.
_WORTH = 1.2


@contextmanager
def thread_count(number: int) -> Iterator[None]:
    """Within the context torch (and with it the numba kernels) uses ``number`` threads; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(work: Callable[[], object]) -> tuple[int, str]:
    """Time ``work`` with one thread and with all, in turns, and name the faster.

    Args:
        work: a step without lasting effect.

    Returns:
        The number of threads and a sentence for the log.
    """
    most = torch.get_num_threads()
    if most == 1:
        return 1, "threads: 1 (all there are)"
    times: dict[int, list[float]] = {1: [], most: []}
    with thread_count(1):
        work()  # compiles and warms up
    for _ in range(_ROUNDS):
        for threads, measured in times.items():
            with thread_count(threads):
                started = time.perf_counter()
                work()
                measured.append(time.perf_counter() - started)
        if not 1 / _CLEAR < times[1][-1] / times[most][-1] < _CLEAR and len(times[1]) > 1:
            break
    one, all_of_them = (statistics.median(measured) * 1e3 for measured in times.values())
    # more threads must pay for the cores they take
    best = most if one > _WORTH * all_of_them else 1
    return best, f"threads: {best} (a step takes {one:.1f} ms with 1 and {all_of_them:.1f} ms with {most}; set run.threads to choose)"
