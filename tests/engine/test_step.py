"""One step: the loss is the formula, distillation sees what labels do not, clipping clips."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastkd.config import LossConfig
from fastkd.engine.step import batch_loss, label_loss, train_step
from fastkd.errors import TrainingError
from fastkd.models.base import Features, Prediction

from .synthetic import ATOMS, make_batch, make_job

TERMS = "distill.terms=[{kind: n2n}, {kind: forces, weight: 3}]"


def fake_prediction(graphs: int, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    energy = torch.randn(graphs, generator=generator, dtype=torch.float64)
    forces = torch.randn(graphs * ATOMS, 3, generator=generator, dtype=torch.float64)
    return Prediction(energy.requires_grad_(), forces.requires_grad_(), torch.zeros(graphs * ATOMS), Features())


@pytest.mark.parametrize("per_atom", [False, True])
def test_label_loss_is_the_formula_over_labelled_structures(per_atom: bool) -> None:
    labelled = torch.tensor([True, False, True])
    batch = make_batch(torch.arange(3), labelled, torch.float64)
    prediction = fake_prediction(3)
    loss = label_loss(prediction, batch, LossConfig(energy_weight=2.0, forces_weight=7.0, per_atom_energy=per_atom))
    energy = forces = 0.0
    for graph in (0, 2):
        error = abs((prediction.energy[graph] - batch.energy[graph]).item())
        energy += error / (ATOMS if per_atom else 1) / 2
        for atom in range(graph * ATOMS, (graph + 1) * ATOMS):
            forces += math.dist(prediction.forces[atom].tolist(), batch.forces[atom].tolist()) / (2 * ATOMS)
    assert loss.energy.item() == pytest.approx(energy, rel=1e-13)
    assert loss.forces.item() == pytest.approx(forces, rel=1e-13)
    assert loss.total.item() == pytest.approx(2 * energy + 7 * forces, rel=1e-13)
    loss.total.backward()
    assert float(prediction.forces.grad[ATOMS : 2 * ATOMS].abs().max()) == 0.0
    assert float(prediction.energy.grad[1]) == 0.0


@pytest.mark.parametrize("on", [True, False])
def test_forces_of_fixed_atoms_are_left_out_if_so_configured(on: bool) -> None:
    fixed = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1], dtype=torch.bool)
    batch = replace(make_batch(torch.arange(3), torch.tensor([True, False, True]), torch.float64), fixed=fixed)
    prediction = fake_prediction(3)
    loss = label_loss(prediction, batch, LossConfig(train_on_free_atoms=on))
    counted = [i for i in range(3 * ATOMS) if i // ATOMS != 1 and not (on and fixed[i])]
    assert len(counted) == (3 if on else 10)
    norms = [math.dist(prediction.forces[i].tolist(), batch.forces[i].tolist()) for i in counted]
    energy = [abs((prediction.energy[graph] - batch.energy[graph]).item()) for graph in (0, 2)]
    assert loss.forces.item() == pytest.approx(sum(norms) / len(norms), rel=1e-13)
    assert loss.energy.item() == pytest.approx(sum(energy) / 2, rel=1e-13)
    loss.total.backward()
    moved = prediction.forces.grad.abs().sum(-1) > 0
    assert moved.nonzero().flatten().tolist() == counted


def test_a_batch_of_fixed_atoms_has_no_force_loss() -> None:
    batch = replace(make_batch(torch.arange(2), None, torch.float64), fixed=torch.ones(2 * ATOMS, dtype=torch.bool))
    loss = label_loss(fake_prediction(2), batch, LossConfig())
    assert loss.forces.item() == 0.0
    assert loss.energy.item() > 0.0


def test_a_batch_without_labels_costs_nothing_and_stays_finite() -> None:
    batch = make_batch(torch.arange(2), torch.zeros(2, dtype=torch.bool), torch.float64)
    prediction = fake_prediction(2)
    loss = label_loss(prediction, batch, LossConfig())
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert bool(torch.isfinite(prediction.forces.grad).all())


def test_perfect_forces_have_a_finite_gradient() -> None:
    batch = make_batch(torch.arange(2), None, torch.float64)
    forces = batch.forces.clone().requires_grad_()
    loss = label_loss(Prediction(batch.energy.clone(), forces, torch.zeros(2 * ATOMS), Features()), batch, LossConfig())
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert bool(torch.isfinite(forces.grad).all())


def test_large_totals_keep_their_differences() -> None:
    batch = make_batch(torch.arange(1))
    prediction = Prediction(batch.energy + 1e-6, batch.forces, torch.zeros(ATOMS), Features())
    loss = label_loss(prediction, batch, LossConfig())
    assert loss.energy.item() == pytest.approx(1e-6, rel=1e-6)


def test_terms_add_up_and_unlabelled_structures_move_the_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path, TERMS)
    batch = make_batch(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    losses, total, _ = batch_loss(job.trainee, batch)
    assert set(losses) == {"energy", "forces", "kd_n2n", "kd_forces", "total"}
    assert total.item() == pytest.approx((losses["kd_n2n"] + 3 * losses["kd_forces"]).item(), rel=1e-6)
    before = [parameter.detach().clone() for parameter in job.trainee.parameters]
    train_step(job.trainee, batch, 1e-3, 0)
    assert any(not torch.equal(old, new) for old, new in zip(before, job.trainee.parameters, strict=True))


def test_the_student_is_not_changed_by_having_terms(tmp_path: Path) -> None:
    alone, distilled = make_job(tmp_path), make_job(tmp_path, TERMS)
    one, other = alone.trainee.student.state_dict(), distilled.trainee.student.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_clipping_and_the_rate(tmp_path: Path) -> None:
    batch = make_batch(torch.arange(4))
    clipped, free = make_job(tmp_path, "train.clip=1e-3").trainee, make_job(tmp_path, "train.clip=0").trainee
    norm = train_step(clipped, batch, 1e-3, 0).gradient_norm
    assert float(norm) > 1e-3
    after = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in clipped.parameters if parameter.grad is not None))
    assert after == pytest.approx(1e-3, rel=1e-3)
    assert float(train_step(free, batch, 1e-3, 0).gradient_norm) == pytest.approx(float(norm), rel=1e-6)
    unmoved = [parameter.detach().clone() for parameter in free.parameters]
    train_step(free, batch, 0.0, 1)
    assert all(torch.equal(old, new) for old, new in zip(unmoved, free.parameters, strict=True))


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    trainee = make_job(tmp_path).trainee
    batch = make_batch(torch.arange(2))
    batch.energy[0] = math.inf
    with pytest.raises(TrainingError, match=r"the loss \(energy\) is not finite at step 5"):
        train_step(trainee, batch, 1e-3, 4)
