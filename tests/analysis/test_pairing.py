"""Pairs of layers against every way there is to choose them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fastkd.analysis.pairing import Proposal, best_pairs


def by_trying(value: np.ndarray, count: int, *, monotone: bool) -> float:
    best = -math.inf
    for rows in itertools.combinations(range(value.shape[0]), count):
        choose = itertools.combinations if monotone else itertools.permutations
        for columns in choose(range(value.shape[1]), count):
            total = sum(value[i, j] for i, j in zip(rows, columns, strict=True))
            best = max(best, -math.inf if math.isnan(total) else total)
    return best


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3, 5), (4, 4)])
def test_no_choice_is_better(shape, monotone):
    rng = np.random.default_rng(sum(shape) + monotone)
    for _ in range(20):
        value = rng.uniform(size=shape)
        value[rng.uniform(size=shape) < 0.15] = np.nan
        for count in range(1, min(shape) + 1):
            pairs = best_pairs(value, count, monotone=monotone)
            possible = by_trying(value, count, monotone=monotone)
            if math.isinf(possible):
                assert len(pairs) < count
                continue
            assert len(pairs) == count
            assert sum(value[i, j] for i, j in pairs) == pytest.approx(possible, rel=1e-12)
            rows, columns = zip(*pairs, strict=True)
            assert list(rows) == sorted(set(rows))
            assert len(set(columns)) == count
            assert not monotone or list(columns) == sorted(columns)


def test_nothing_to_pair():
    assert best_pairs(np.full((2, 2), np.nan), 1, monotone=True) == []
    assert best_pairs(np.full((2, 2), np.nan), 2, monotone=False) == []
    assert best_pairs(np.ones((0, 2)), 1, monotone=True) == []


def test_a_pair_is_clear_if_intervals_do_not_touch():
    assert Proposal("n2n", "regular_1", "regular_1", (0.8, 0.7, 0.9), "regular_2", (0.6, 0.5, 0.65)).clear
    assert not Proposal("n2n", "regular_1", "regular_1", (0.8, 0.6, 0.9), "regular_2", (0.6, 0.5, 0.65)).clear
    assert Proposal("n2n", "regular_1", "regular_1", (0.8, 0.6, 0.9)).clear
