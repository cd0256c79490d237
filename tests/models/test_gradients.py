"""Training on forces differentiates twice: gradients of weights, higher derivatives in positions, and precision."""

from dataclasses import replace

import pytest
import torch

from .structures import CONSERVATIVE, OPTIONS, batch_of, make_model, random_molecule

MOLECULES = [random_molecule(6, 1), random_molecule(4, 2)]


def force_loss(model, batch, target):
    prediction = model(batch)
    return (prediction.energy.sum() + (prediction.forces - target).square().sum()) / 10


@pytest.mark.parametrize("name", list(OPTIONS))
def test_weight_gradients_of_a_force_loss_against_finite_differences(name):
    model, batch = make_model(name), batch_of(*MOLECULES)
    target = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    force_loss(model, batch, target).backward()
    generator = torch.Generator().manual_seed(4)
    for label, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        values, h = [], 1e-6
        for step in (h, -2 * h):
            with torch.no_grad():
                parameter.add_(step * direction)
            values.append(force_loss(model, batch, target).item())
        with torch.no_grad():
            parameter.add_(h * direction)
        slope = (values[0] - values[1]) / (2 * h)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-6, abs=2e-6), label


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_both_ways_to_forces_agree(name):
    """Carrying slopes along (positions need no further gradient) against plain double backward (they do)."""
    batch = batch_of(*MOLECULES)
    results = []
    for wanted in (False, True):
        model = make_model(name)
        positions = batch.positions.clone().requires_grad_(wanted)
        prediction = model(replace(batch, positions=positions))
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
        assert (positions.grad is not None) == wanted
        results.append((prediction.forces.detach(), *(p.grad for p in model.parameters())))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["painn", "schnet_smooth", "dimenet_pp"])
def test_hessian_by_autograd_is_the_derivative_of_forces(name):
    model, batch, h = make_model(name), batch_of(MOLECULES[0]), 1e-6
    positions = batch.positions.clone().requires_grad_()
    (row,) = torch.autograd.grad(model(replace(batch, positions=positions)).forces[2, 1], positions)
    for atom, axis in [(0, 0), (2, 1), (5, 2)]:
        forces = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[atom, axis] += sign * h
            forces.append(model(replace(batch, positions=moved)).forces[2, 1].detach())
        assert ((forces[0] - forces[1]) / (2 * h)).item() == pytest.approx(row[atom, axis].item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_float32_agrees_with_float64(name):
    results = [make_model(name, dtype=dtype)(batch_of(*MOLECULES, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    assert results[0].forces.dtype == torch.float32
    assert results[0].energy.dtype == torch.float64
    torch.testing.assert_close(results[0].energy, results[1].energy, rtol=2e-5, atol=2e-5)
    scale = results[1].forces.abs().max().item()
    torch.testing.assert_close(results[0].forces.double(), results[1].forces, rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("name", ["painn", "schnet", "painn_direct"])
def test_evaluation_leaves_no_graph_behind(name):
    model, batch = make_model(name).eval(), batch_of(*MOLECULES)
    with torch.no_grad():
        prediction = model(batch)
    assert not any(
        value.requires_grad for value in (prediction.energy, prediction.forces, prediction.atom_energy, prediction.features.node)
    )
    if name != "schnet":
        assert not prediction.features.edge.requires_grad
    assert model(batch, forces=False).forces is None


def test_inference_mode_is_refused_where_forces_are_gradients():
    batch = batch_of(*MOLECULES)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
            make_model("painn")(batch)
        assert make_model("painn_direct")(batch).forces.shape == (10, 3)
        assert make_model("schnet")(batch, forces=False).forces is None


def test_edge_feature_is_made_when_it_is_read():
    model, batch = make_model("painn"), batch_of(*MOLECULES)
    features = model(batch).features
    assert "edge" not in vars(features)
    edge, csr = features.edge, batch.graphs[3.0].csr
    torch.testing.assert_close(edge, (features.vector[csr.edge_dst] * features.vector[csr.edge_src]).sum(1))
    assert features.edge is edge
    assert make_model("schnet")(batch).features.edge is None


def test_energies_stay_double_when_the_model_is_cast():
    model = make_model("painn")
    kept = model.reference_energy.clone()
    model.float().double().bfloat16()
    assert torch.equal(model.reference_energy, kept)
    assert model.energy_scale.dtype == torch.float64
    assert model.energy_offset.dtype == torch.float64
    assert model.embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", list(OPTIONS))
def test_same_bits_twice(name):
    batch = batch_of(*MOLECULES, dtype=torch.float32)
    first, second = (make_model(name, dtype=torch.float32)(batch) for _ in range(2))
    assert torch.equal(first.energy, second.energy)
    assert torch.equal(first.forces, second.forces)
