"""How much of the gap between student and teacher distillation closed, and how sure that is.

    gap closed % = 100 · (MAE_student − MAE_KD) / (MAE_student − MAE_teacher)

0 means that distillation changed nothing, 100 that the distilled student is as good as the teacher; it may be negative or exceed 100.
MAE_student and MAE_KD are means over seeds. Source: F. Ekström Kelvinius et al., NeurIPS 2023.

The interval is a percentile bootstrap (B. Efron, 1979) over test structures and, where there are several, over seeds. It is *paired*: one
resample of structures serves all models, and where student and distilled student were trained from the same seeds, one resample of seeds
serves both. Structures that follow each other in time are not independent: the interval then is too narrow.

Example:
    >>> gap = gap_closed(energy_errors(student_runs), energy_errors(distilled_runs), energy_errors(teacher_runs))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkd.analysis.runs import Predictions, Run
from fastkd.errors import DataError

#: Resamples in which the student is no worse than the teacher have no gap; with more of them than this share there is no interval either.
UNDEFINED_SHARE = 0.05
CONFIDENCE = 0.95

PerStructure = Callable[[Predictions], NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class Errors:
    """Absolute errors of one model, structure by structure and seed by seed: MAE = Σ total / Σ count over the structures."""

    total: NDArray[np.float64]  #: [n_seeds, n_structures], sum of absolute errors in a structure
    count: NDArray[np.float64]  #: [n_structures], how many numbers were summed
    structure_index: NDArray[np.int64]  #: [n_structures]
    seeds: tuple[int, ...]  #: [n_seeds]

    def mae_by_seed(self) -> NDArray[np.float64]:
        """[n_seeds], in the unit of ``total``."""
        mae: NDArray[np.float64] = self.total.sum(1) / self.count.sum()
        return mae


@dataclass(frozen=True)
class Gap:
    """A gap in per cent, with the interval that holds 95 % of the resamples."""

    percent: float  #: NaN if the student is no worse than the teacher: then there is no gap
    low: float  #: NaN if there is no interval
    high: float

    def __str__(self) -> str:
        if math.isnan(self.percent):
            return "no gap"
        interval = "no interval" if math.isnan(self.low) else f"{self.low:.1f}, {self.high:.1f}"
        return f"{self.percent:.1f} [{interval}]"


def energy_errors(runs: Sequence[Run]) -> Errors:
    """Energy errors per atom, eV/atom: one number |ΔE_s| / n_s for each structure. Runs of one model, one per seed."""
    return _errors(runs, lambda p: np.abs(p.energy_pred - p.energy) / p.natoms, lambda p: np.ones(len(p.natoms)))


def forces_errors(runs: Sequence[Run]) -> Errors | None:
    """Force errors per component, eV/Å: 3 numbers for each (free) atom of each structure. Runs of one model, one per seed; None without forces."""
    if any(run.predictions.forces is None for run in runs):
        return None
    return _errors(runs, _force_sums, lambda p: 3.0 * _sums(np.ones(int(p.natoms.sum())), p))


def _force_sums(predictions: Predictions) -> NDArray[np.float64]:
    forces, forces_pred = predictions.both_forces
    return _sums(np.abs(forces_pred - forces).sum(1), predictions)


def _sums(per_atom: NDArray[np.float64], predictions: Predictions) -> NDArray[np.float64]:
    """Sums over the (free) atoms of each structure, [n_structures]."""
    counted = per_atom if predictions.free is None else np.where(predictions.free, per_atom, 0.0)
    sums: NDArray[np.float64] = np.add.reduceat(counted, np.cumsum(predictions.natoms) - predictions.natoms)
    return sums


def _errors(runs: Sequence[Run], total: PerStructure, count: PerStructure) -> Errors:
    first = runs[0].predictions
    for run in runs[1:]:
        names = str(runs[0].folder), str(run.folder)
        _same_structures(first.structure_index, run.predictions.structure_index, *names)
        _same_atoms(count(first), count(run.predictions), *names)
    return Errors(
        np.stack([total(run.predictions) for run in runs]).astype(np.float64),
        count(first).astype(np.float64),
        first.structure_index,
        tuple(run.summary.seed for run in runs),
    )


def _same_atoms(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]], first_name: str, second_name: str) -> None:
    if not np.array_equal(first, second):
        raise DataError(
            f"{first_name} and {second_name} were tested on different atoms: fixed ones count in one and not in the other; evaluate one anew "
            "with the same train.eval_on_free_atoms"
        )


def _same_structures(first: NDArray[np.int64], second: NDArray[np.int64], first_name: str, second_name: str) -> None:
    if not np.array_equal(first, second):
        raise DataError(
            f"{first_name} and {second_name} were tested on different structures, so they cannot be compared; evaluate one anew"
        )


def gap_closed(student: Errors, distilled: Errors, teacher: Errors, *, resamples: int = 1000, seed: int = 0) -> Gap:
    """Gap closed with its interval, on the seeds that student and distilled student share; on all, unpaired, if they share none.

    Args:
        student: errors of the student trained on labels alone.
        distilled: errors of the distilled student.
        teacher: errors of the teacher.
        resamples: of the bootstrap.
        seed: of the resampling.

    Raises:
        DataError: if the three were tested on different structures, or on different atoms of them.
    """
    for name, other in (("distilled student", distilled), ("teacher", teacher)):
        _same_structures(student.structure_index, other.structure_index, "student", name)
        _same_atoms(student.count, other.count, "student", name)
    student, distilled = _alike(student, distilled)
    percent = _percent(*(np.array([errors.mae_by_seed().mean()]) for errors in (student, distilled, teacher)))[0]
    rng = np.random.default_rng(seed)
    structures = len(student.count)
    weights = rng.multinomial(structures, np.full(structures, 1 / structures), size=resamples).astype(np.float64)
    student_seeds = _seed_weights(rng, len(student.seeds), resamples)
    distilled_seeds = student_seeds if student.seeds == distilled.seeds else _seed_weights(rng, len(distilled.seeds), resamples)
    samples = _percent(
        _resampled(student, weights, student_seeds),
        _resampled(distilled, weights, distilled_seeds),
        _resampled(teacher, weights, _seed_weights(rng, len(teacher.seeds), resamples)),
    )
    undefined = np.isnan(samples)
    # one structure cannot say how others would have come out
    if structures < 2 or math.isnan(percent) or undefined.mean() > UNDEFINED_SHARE:
        return Gap(float(percent), math.nan, math.nan)
    low, high = np.quantile(samples[~undefined], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Gap(float(percent), float(low), float(high))


def error_reduced(baseline: Errors, other: Errors, *, resamples: int = 1000, seed: int = 0) -> Gap:
    """100 · (MAE_baseline − MAE_other) / MAE_baseline with its interval, for comparisons without a teacher: the gap closed to a perfect one.

    Args, Raises: as `gap_closed`.
    """
    perfect = Errors(np.zeros((1, len(baseline.count))), baseline.count, baseline.structure_index, (0,))
    return gap_closed(baseline, other, perfect, resamples=resamples, seed=seed)


def _alike(one: Errors, two: Errors) -> tuple[Errors, Errors]:
    """Both on the seeds that they share, in one order; as they are if they share none."""
    common = tuple(seed for seed in dict.fromkeys(one.seeds) if seed in two.seeds)
    if not common:
        return one, two
    first, second = (replace(e, total=e.total[[e.seeds.index(seed) for seed in common]], seeds=common) for e in (one, two))
    return first, second


def _seed_weights(rng: np.random.Generator, seeds: int, resamples: int) -> NDArray[np.float64]:
    """How often each seed was drawn, as shares: [n_resamples, n_seeds]."""
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _resampled(errors: Errors, structures: NDArray[np.float64], seeds: NDArray[np.float64]) -> NDArray[np.float64]:
    """MAE, mean over the drawn seeds, of each resample: [n_resamples]."""
    by_seed = (structures @ errors.total.T) / (structures @ errors.count)[:, None]
    mean: NDArray[np.float64] = (by_seed * seeds).sum(1)
    return mean


def _percent(student: NDArray[np.float64], distilled: NDArray[np.float64], teacher: NDArray[np.float64]) -> NDArray[np.float64]:
    gap = student - teacher
    return np.divide(100 * (student - distilled), gap, out=np.full_like(gap, np.nan), where=gap > 0)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1); NaN for the deviation of a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan
