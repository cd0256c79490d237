"""Gap closed on numbers whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastkd.analysis.gap import Errors, energy_errors, error_reduced, forces_errors, gap_closed, mean_std
from fastkd.errors import DataError

from .common import make_run


def errors(total: np.ndarray | list, seeds: tuple[int, ...] = (0,), count: float = 1.0) -> Errors:
    total = np.atleast_2d(np.asarray(total, dtype=float))
    return Errors(total, np.full(total.shape[1], count), np.arange(total.shape[1]), seeds)


def test_the_papers_example():
    """OC20, node to node: 440 → 346 meV with a teacher at 285.4 meV closes 60.8 %."""
    gap = gap_closed(errors([440.0] * 20), errors([346.0] * 20), errors([285.4] * 20))
    assert gap.percent == pytest.approx(60.8, abs=0.05)
    # every structure has the same error, so that no resample can differ
    assert gap.low == pytest.approx(gap.percent)
    assert gap.high == pytest.approx(gap.percent)


def test_the_error_reduced_is_a_share_of_the_baseline():
    random = np.random.default_rng(0)
    baseline = errors(random.uniform(1, 3, (3, 50)), seeds=(0, 1, 2))
    other = errors(0.9 * baseline.total, seeds=(0, 1, 2))
    # paired over structures and seeds: every resample says the same
    for bound in (error_reduced(baseline, other).percent, error_reduced(baseline, other).low, error_reduced(baseline, other).high):
        assert bound == pytest.approx(10.0)
    assert error_reduced(other, baseline).percent == pytest.approx(-100 / 9)
    noisy = error_reduced(baseline, errors(random.uniform(1, 3, (3, 50)), seeds=(0, 1, 2)))
    assert noisy.low < 0 < noisy.high


def test_ends_of_the_scale():
    student, teacher = errors([4.0, 6.0]), errors([1.0, 3.0])
    assert gap_closed(student, student, teacher).percent == 0
    assert gap_closed(student, teacher, teacher).percent == 100
    assert gap_closed(student, errors([6.0, 7.0]), teacher).percent == pytest.approx(-50)


def test_pairing_cancels_what_is_common():
    """Structures differ a hundredfold in difficulty, alike for all models: each resample has the same gap, though MAEs vary wildly."""
    difficulty = np.exp(np.random.default_rng(0).normal(size=200) * 2)
    gap = gap_closed(errors(difficulty), errors(0.6 * difficulty), errors(0.2 * difficulty))
    assert gap.percent == pytest.approx(50)
    assert gap.high - gap.low < 1e-9


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Independent structures, MAE 10, 7 and 4 by construction: the gap is 50 %, and 95 % of intervals should hold it."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        student, distilled, teacher = (errors(mae * rng.exponential(size=150)) for mae in (10, 7, 4))
        gap = gap_closed(student, distilled, teacher, resamples=300, seed=trial)
        hits += gap.low <= 50 <= gap.high
    # binomial(200, 0.95) has a standard deviation of 3.1; percentile intervals are a little too narrow
    assert 178 <= hits <= 200


def test_interval_agrees_with_the_delta_method():
    rng = np.random.default_rng(2)
    s, d, t = (mae * rng.exponential(size=4000) for mae in (10.0, 7.0, 4.0))
    gap = gap_closed(errors(s), errors(d), errors(t), resamples=4000)
    g = (s.mean() - d.mean()) / (s.mean() - t.mean())
    influence = (s - d - g * (s - t)) / (s.mean() - t.mean())
    half = 100 * 1.96 * influence.std() / np.sqrt(len(s))
    assert gap.high - gap.low == pytest.approx(2 * half, rel=0.06)


def test_seeds_widen_the_interval_and_are_paired():
    flat = np.ones((3, 50))
    teacher = errors(np.ones(50))
    student = errors(flat * [[4.0], [5.0], [6.0]], (0, 1, 2))
    # a seed that is bad alone is as bad distilled: every paired resample closes exactly half of the gap
    gap = gap_closed(student, errors(1 + (flat * [[4.0], [5.0], [6.0]] - 1) / 2, (0, 1, 2)), teacher)
    assert gap.percent == pytest.approx(50)
    assert gap.high - gap.low < 1e-9
    # the same numbers from other seeds cannot be paired, and the interval says so
    unpaired = gap_closed(student, errors(1 + (flat * [[4.0], [5.0], [6.0]] - 1) / 2, (7, 8, 9)), teacher)
    assert unpaired.percent == pytest.approx(50)
    assert unpaired.high - unpaired.low > 5


def test_gaps_are_of_the_seeds_that_both_have():
    flat, teacher = np.ones((3, 50)), errors(np.ones(50))
    mae = np.array([[4.0], [5.0], [9.0]])
    student = errors(flat * mae, (0, 1, 2))
    halved = 1 + (flat * mae - 1) / 2
    backwards = gap_closed(student, errors(halved[::-1], (2, 1, 0)), teacher)
    assert backwards.percent == pytest.approx(50)
    assert backwards.high - backwards.low < 1e-9
    # without the bad seed 2 on either side; all seeds of the student would make it 68 %
    fewer = gap_closed(student, errors(halved[:2], (0, 1)), teacher)
    assert fewer.percent == pytest.approx(50)
    assert fewer.high - fewer.low < 1e-9


def test_one_structure_has_no_interval():
    gap = gap_closed(errors([4.0]), errors([3.0]), errors([1.0]))
    assert gap.percent == pytest.approx(100 / 3)
    assert str(gap) == "33.3 [no interval]"


def test_no_gap_where_the_teacher_is_no_better():
    gap = gap_closed(errors([1.0, 1.0]), errors([0.5, 0.5]), errors([2.0, 2.0]))
    assert np.isnan(gap.percent)
    assert str(gap) == "no gap"


def test_no_interval_where_the_gap_may_vanish():
    rng = np.random.default_rng(3)
    student, distilled, teacher = (errors(mae + rng.exponential(size=10)) for mae in (1.05, 1.0, 1.0))
    gap = gap_closed(student, distilled, teacher)
    if not np.isnan(gap.percent):
        assert np.isnan(gap.low)
        assert "no interval" in str(gap)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(4)
    three = [errors(mae * rng.exponential(size=100)) for mae in (10, 7, 4)]
    assert gap_closed(*three, seed=5) == gap_closed(*three, seed=5)
    assert gap_closed(*three, seed=5) != gap_closed(*three, seed=6)


def test_errors_sum_to_the_metrics(tmp_path):
    runs = [make_run(tmp_path / str(seed), "arm", 0, seed=seed) for seed in range(3)]
    energy, forces = energy_errors(runs), forces_errors(runs)
    assert energy.mae_by_seed() == pytest.approx([run.summary.test.energy_mae_per_atom for run in runs])
    assert forces.mae_by_seed() == pytest.approx([run.summary.test.forces_mae for run in runs])
    assert energy.seeds == (0, 1, 2)


def test_other_test_structures_cannot_be_compared(tmp_path):
    a, b = (make_run(tmp_path / name, name, 0) for name in "ab")
    other = replace(b, predictions=replace(b.predictions, structure_index=b.predictions.structure_index + 1))
    with pytest.raises(DataError, match="different structures"):
        gap_closed(energy_errors([a]), energy_errors([other]), energy_errors([a]))
    with pytest.raises(DataError, match="different structures"):
        energy_errors([a, other])


def test_mean_and_sample_deviation():
    assert mean_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, std = mean_std([4.0])
    assert mean == 4
    assert np.isnan(std)


def test_force_errors_of_free_atoms_are_those_of_a_loop(tmp_path):
    run = make_run(tmp_path / "a", "a", 0)
    p = run.predictions
    free = np.random.default_rng(0).random(p.natoms.sum()) < 0.5
    some = forces_errors([replace(run, predictions=replace(p, free=free))])
    assert np.array_equal(forces_errors([run]).count, 3 * p.natoms)
    start = 0
    for s, n in enumerate(p.natoms):
        atoms = [i for i in range(start, start + n) if free[i]]
        assert some.count[s] == 3 * len(atoms)
        assert some.total[0, s] == pytest.approx(sum(abs(p.forces_pred[i, a] - p.forces[i, a]) for i in atoms for a in range(3)))
        start += n


def test_runs_on_free_and_on_all_atoms_are_not_compared(tmp_path):
    run, other = make_run(tmp_path / "a", "a", 0), make_run(tmp_path / "b", "a", 0, seed=1)
    free = np.arange(run.predictions.natoms.sum()) % 2 == 0
    other = replace(other, predictions=replace(other.predictions, free=free))
    with pytest.raises(DataError, match=r"tested on different atoms.*train\.eval_on_free_atoms"):
        forces_errors([run, other])
    with pytest.raises(DataError, match="tested on different atoms"):
        gap_closed(forces_errors([run]), forces_errors([other]), forces_errors([run]))
    energy_errors([run, other])
