"""Metrics against loops over structures, atoms and components."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastkd.analysis import METRIC_UNITS, compute_metrics
from fastkd.analysis.metrics import efwt, forces_cosine

from .common import make_predictions


def test_metrics_are_those_of_a_loop():
    p = make_predictions(0.01, 0.05, seed=3)
    got = compute_metrics(p.energy, p.energy_pred, p.forces, p.forces_pred, p.natoms)
    energy, per_atom, squares, components, cosines = [], [], [], [], []
    start = 0
    for s, n in enumerate(p.natoms):
        energy.append(abs(p.energy_pred[s] - p.energy[s]))
        per_atom.append(energy[-1] / n)
        squares.append(per_atom[-1] ** 2)
        for i in range(start, start + n):
            components += [float(p.forces_pred[i, a] - p.forces[i, a]) for a in range(3)]
            dot = sum(p.forces[i, a] * p.forces_pred[i, a] for a in range(3))
            cosines.append(dot / math.sqrt(sum(p.forces[i] ** 2)) / math.sqrt(sum(p.forces_pred[i] ** 2)))
        start += n
    assert got.energy_mae == pytest.approx(np.mean(energy))
    assert got.energy_mae_per_atom == pytest.approx(np.mean(per_atom))
    assert got.energy_rmse_per_atom == pytest.approx(math.sqrt(np.mean(squares)))
    assert got.forces_mae == pytest.approx(np.mean(np.abs(components)))
    assert got.forces_rmse == pytest.approx(math.sqrt(np.mean(np.square(components))))
    assert got.forces_cosine == pytest.approx(np.mean(cosines))
    assert list(got.asdict()) == list(METRIC_UNITS)


def test_efwt_needs_both_thresholds():
    """Four structures: all well; energy off; one force component off; both exactly at the threshold, which is not within it."""
    natoms = np.array([1, 2, 2, 1])
    energy, forces = np.zeros(4), np.zeros((6, 3))
    energy_pred, forces_pred = np.array([0.019, 0.021, 0.0, 0.02]), np.zeros((6, 3))
    forces_pred[0] = [0.029, -0.029, 0.0]
    forces_pred[4, 1] = -0.031
    forces_pred[5, 0] = 0.03
    assert efwt(energy, energy_pred, forces, forces_pred, natoms) == 0.25
    perfect = compute_metrics(energy, energy, forces, forces, natoms)
    assert perfect.efwt == 1.0


def test_cosine_of_parallel_opposite_and_vanishing_forces():
    forces = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 0], [1, 0, 0]])
    predicted = np.array([[3.0, 0, 0], [0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert forces_cosine(forces, predicted) == pytest.approx((1 - 1 + 0 + 0) / 4)
    assert forces_cosine(forces[:1], predicted[:1]) == pytest.approx(1.0)


def test_metrics_of_float32_are_summed_in_float64():
    p = make_predictions(0.01, 0.05)
    low = compute_metrics(p.energy, p.energy_pred, p.forces.astype(np.float32), p.forces_pred.astype(np.float32), p.natoms)
    assert low.forces_mae == pytest.approx(p.metrics().forces_mae, rel=1e-6)


@pytest.mark.parametrize("natoms", [[], [2, 2], [0, 3], [3]])
def test_shapes_must_fit(natoms):
    with pytest.raises(ValueError, match="at least one structure"):
        compute_metrics(np.zeros(2), np.zeros(2), np.zeros((3, 3)), np.zeros((3, 3)), np.array(natoms, dtype=int))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_errors_on_free_atoms_are_those_of_a_loop(share):
    """OCP's eval_on_free_atoms: fixed atoms count in no error of forces, and their structures in all errors of energies."""
    p = make_predictions(0.01, 0.02, seed=3)
    free = np.random.default_rng(5).random(p.natoms.sum()) >= share
    if share:
        free[: p.natoms[0]] = False  # a structure of fixed atoms alone
    got = replace(p, free=free).metrics()
    components, cosines, within, start = [], [], [], 0
    for s, n in enumerate(p.natoms):
        worst = 0.0
        for i in range(start, start + n):
            if not free[i]:
                continue
            components += [float(p.forces_pred[i, a] - p.forces[i, a]) for a in range(3)]
            worst = max(worst, *map(abs, components[-3:]))
            dot = sum(p.forces[i, a] * p.forces_pred[i, a] for a in range(3))
            cosines.append(dot / math.sqrt(sum(p.forces[i] ** 2)) / math.sqrt(sum(p.forces_pred[i] ** 2)))
        within.append(abs(p.energy_pred[s] - p.energy[s]) < 0.02 and worst < 0.03)
        start += n
    assert got.forces_mae == pytest.approx(np.mean(np.abs(components)))
    assert got.forces_rmse == pytest.approx(math.sqrt(np.mean(np.square(components))))
    assert got.forces_cosine == pytest.approx(np.mean(cosines))
    assert got.efwt == pytest.approx(np.mean(within))
    assert 0 < got.efwt < 1
    whole = p.metrics()
    assert (got.energy_mae, got.energy_mae_per_atom) == (whole.energy_mae, whole.energy_mae_per_atom)
    assert (got == whole) == (share == 0)


@pytest.mark.parametrize("free", [np.zeros(6, bool), np.ones(5, bool)])
def test_free_atoms_must_fit_and_be_some(free):
    natoms, energy, forces = np.array([2, 4]), np.zeros(2), np.zeros((6, 3))
    with pytest.raises(ValueError, match="free has shape"):
        compute_metrics(energy, energy, forces, forces, natoms, free)
