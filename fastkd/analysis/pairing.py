"""Which layers to distil into which: pairs of layers with the largest sum of CKA, one to one, and in order if asked for.

Example:
    >>> best_pairs(np.array([[0.9, 0.2], [0.8, 0.1]]), 2, monotone=False)
    [(0, 1), (1, 0)]
    >>> best_pairs(np.array([[0.9, 0.2], [0.8, 0.1]]), 2, monotone=True)
    [(0, 0), (1, 1)]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastkd.analysis.cka import Floats

Interval = tuple[float, float, float]  #: value, low, high


@dataclass(frozen=True)
class Proposal:
    """One pair for one strategy."""

    term: str  #: n2n, e2n or v2v
    student: str  #: layer
    teacher: str
    cka: Interval
    runner_up: str = ""  #: the teacher's next best layer for the same layer of the student; empty if there is none
    runner_up_cka: Interval = (np.nan, np.nan, np.nan)

    @property
    def clear(self) -> bool:
        """Whether the intervals of the best and the next best layer do not touch."""
        return not self.runner_up or self.cka[1] > self.runner_up_cka[2]


def best_pairs(value: Floats, count: int, *, monotone: bool) -> list[tuple[int, int]]:
    """``count`` pairs (row, column) with the largest sum, no row or column twice, by row.

    Args:
        value: [n, m]; NaN where a pair is not allowed.
        count: of pairs.
        monotone: whether columns must increase with rows: deeper layers go with deeper layers.

    Returns:
        The pairs; fewer than ``count``, down to none, where so many do not exist.
    """
    for size in range(min(count, *value.shape), 0, -1):
        found = _in_order(value, size) if monotone else _assignment(value, size)
        if found:
            return found
    return []


def _in_order(value: Floats, count: int) -> list[tuple[int, int]]:
    """By dynamic programming: best[k, i, j] is the largest sum of k pairs among the first i rows and j columns."""
    n, m = value.shape
    gain = np.where(np.isnan(value), -np.inf, value)
    best = np.full((count + 1, n + 1, m + 1), -np.inf)
    best[0] = 0.0
    for k in range(1, count + 1):
        for i in range(1, n + 1):
            for j in range(1, m + 1):
                best[k, i, j] = max(best[k, i - 1, j], best[k, i, j - 1], best[k - 1, i - 1, j - 1] + gain[i - 1, j - 1])
    if not np.isfinite(best[count, n, m]):
        return []
    pairs, k, i, j = [], count, n, m
    while k:
        if best[k, i, j] == best[k, i - 1, j]:
            i -= 1
        elif best[k, i, j] == best[k, i, j - 1]:
            j -= 1
        else:
            k, i, j = k - 1, i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _assignment(value: Floats, count: int) -> list[tuple[int, int]]:
    """Exactly ``count`` pairs: every row and column that is not used is matched with a dummy, which gains nothing."""
    from scipy.optimize import linear_sum_assignment

    n, m = value.shape
    forbidden = -1e6
    gain = np.full((n + m - count, n + m - count), forbidden)
    gain[:n, :m] = np.where(np.isnan(value), forbidden, value)
    gain[:n, m:] = gain[n:, :m] = 0.0
    rows, columns = linear_sum_assignment(gain, maximize=True)
    if gain[rows, columns].sum() < 0.5 * forbidden:
        return []
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < n and j < m]
