"""What physics demands of every model, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastkd.data.dataset import StructureDataset
from fastkd.data.structure import Structure
from fastkd.errors import DataError

from .structures import BOX, CONSERVATIVE, COSINE, CUTOFF, JUMPING, OPTIONS, PAIRWISE, SMOOTH, batch_of, make_model, random_molecule

ALL = list(OPTIONS)
MOLECULES = [random_molecule(9, 1), random_molecule(12, 2), random_molecule(3, 3)]


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def orthogonal(determinant, seed=5):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q * (determinant * torch.linalg.det(q)).sign()


@pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
@pytest.mark.parametrize("name", ALL)
def test_rotation_and_reflection(name, determinant):
    model, turn = make_model(name), orthogonal(determinant)
    before = model(batch_of(*MOLECULES))
    after = model(batch_of(*((z, x @ turn.T) for z, x in MOLECULES)))
    assert before.forces.abs().max() > 1e-3
    close(after.energy, before.energy)
    close(after.atom_energy, before.atom_energy)
    close(after.forces, before.forces @ turn.T)
    close(after.features.node, before.features.node)
    if "vector" in model.feature_widths:
        close(after.features.vector, torch.einsum("ij,njc->nic", turn, before.features.vector))
        close(after.features.edge, before.features.edge)
        close(after.features.vector_layers[1], torch.einsum("ij,njc->nic", turn, before.features.vector_layers[1]))


@pytest.mark.parametrize("name", ALL)
def test_translation(name):
    model, step = make_model(name), torch.tensor([11.0, -7.0, 3.0], dtype=torch.float64)
    before, after = model(batch_of(*MOLECULES)), model(batch_of(*((z, x + step) for z, x in MOLECULES)))
    close(after.energy, before.energy)
    close(after.forces, before.forces)


@pytest.mark.parametrize("name", ALL)
def test_permutation(name):
    model, (z, x) = make_model(name), MOLECULES[1]
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    before, after = model(batch_of((z, x))), model(batch_of((z[order], x[order])))
    close(after.energy, before.energy)
    close(after.atom_energy, before.atom_energy[order])
    close(after.forces, before.forces[order])


@pytest.mark.parametrize("name", ALL)
def test_graphs_of_a_batch_do_not_see_each_other(name):
    model = make_model(name)
    together = model(batch_of(*MOLECULES))
    alone = [model(batch_of(molecule)) for molecule in MOLECULES]
    close(together.energy, torch.cat([one.energy for one in alone]))
    close(together.forces, torch.cat([one.forces for one in alone]))


@pytest.mark.parametrize("name", CONSERVATIVE)
def test_forces_are_minus_the_gradient_of_the_energy(name):
    model, (z, x), h = make_model(name).eval(), MOLECULES[1], 1e-5
    forces = model(batch_of((z, x))).forces
    for atom, axis in [(0, 0), (4, 1), (11, 2)]:
        step = torch.zeros_like(x)
        step[atom, axis] = h
        with torch.no_grad():
            plus, minus = (model(batch_of((z, x + sign * step)), forces=False).energy for sign in (1, -1))
        close(-(plus - minus) / (2 * h), forces[atom, axis : axis + 1].detach(), 1e-7)


@pytest.mark.parametrize("name", [*CONSERVATIVE, *PAIRWISE])
def test_no_net_force_or_torque(name):
    prediction = make_model(name)(batch_of(MOLECULES[1]))
    x = MOLECULES[1][1]
    close(prediction.forces.sum(0), torch.zeros(3, dtype=torch.float64))
    close(torch.linalg.cross(x, prediction.forces).sum(0), torch.zeros(3, dtype=torch.float64))


def test_every_model_is_smooth_or_known_not_to_be():
    assert sorted([*SMOOTH, *COSINE, *JUMPING]) == sorted(ALL)
    kinds = {type(OPTIONS[name]) for name in SMOOTH}
    assert all(type(OPTIONS[name]) in kinds for name in ALL), "an architecture without a smooth option"


def moved(model, distance):
    """Energy, its slope, a mean of forces and the slope of that, where an atom leaves the cutoff of the first of two others.

    ``distance`` Å from it; the second one's cutoff is elsewhere. The mean has weights of its own for each component.
    """
    d = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
    others = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.2, 0.1]], dtype=torch.float64)
    positions = torch.cat([others, torch.stack([-d, torch.zeros_like(d), torch.zeros_like(d)])[None]])
    prediction = model(replace(batch_of((torch.tensor([6, 8, 1]), positions.detach())), positions=positions), create_graph=True)
    weights = torch.linspace(0.3, 1.9, 9, dtype=torch.float64).sin().view(3, 3)
    values = []
    for value in (prediction.energy.sum(), (weights * prediction.forces).sum()):
        (slope,) = torch.autograd.grad(value, d, retain_graph=True, allow_unused=True) if value.requires_grad else (None,)
        values += [value.item(), 0.0 if slope is None else slope.item()]
    return values


@pytest.mark.parametrize("name", SMOOTH)
def test_energy_force_and_force_gradient_are_continuous_at_the_cutoff(name):
    model = make_model(name)
    inside, outside, deep = (moved(model, distance) for distance in (CUTOFF - 1e-5, CUTOFF + 1e-5, CUTOFF - 0.5))
    # each falls off with its own power of the distance to the cutoff: (1e-5 / 0.5)³, ², ¹ of what is found deep inside, generously
    scale = max(abs(value - other) for value, other in zip(deep, outside, strict=True))
    assert scale > 1e-4
    for value, other, bound in zip(inside, outside, (1e-9, 1e-6, 1e-6, 1e-2), strict=True):
        assert abs(value - other) < bound * scale


@pytest.mark.parametrize("name", JUMPING)
def test_models_that_jump_at_the_cutoff_are_those_that_the_documentation_names(name):
    """Or the documentation is wrong, and they belong to the smooth ones."""
    inside, outside = (moved(make_model(name), CUTOFF + step)[0] for step in (-1e-7, 1e-7))
    assert abs(inside - outside) > 1e-5


@pytest.mark.parametrize("name", COSINE)
def test_cosine_cutoff_is_continuous_in_energy_and_force(name):
    model, numbers = make_model(name), torch.tensor([6, 8])
    results = []
    for distance in (CUTOFF - 1e-6, CUTOFF + 1e-6):
        positions = torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], dtype=torch.float64)
        prediction = model(batch_of((numbers, positions)))
        results.append((prediction.energy.item(), prediction.forces[0, 0].item()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-10)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_isolated_atoms_and_a_single_atom(name):
    model = make_model(name)
    far = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [20.0, 20, 20]], dtype=torch.float64)
    prediction = model(batch_of((torch.tensor([6, 1, 8]), far), (torch.tensor([8]), torch.zeros(1, 3, dtype=torch.float64))))
    for value in (prediction.energy, prediction.forces, prediction.atom_energy, prediction.features.node):
        assert torch.isfinite(value).all()
    close(prediction.atom_energy[2], prediction.atom_energy[3])
    close(prediction.forces[2:], torch.zeros(2, 3, dtype=torch.float64))
    sum(value.sum() for value in (prediction.energy, prediction.forces.square())).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ALL)
def test_a_graph_without_edges(name):
    model = make_model(name)
    prediction = model(batch_of((torch.tensor([6, 1]), torch.tensor([[0.0, 0, 0], [30.0, 0, 0]], dtype=torch.float64))))
    close(prediction.forces, torch.zeros(2, 3, dtype=torch.float64))
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    assert torch.isfinite(model.embedding.weight.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_periodic_supercell_has_n_times_the_energy(name):
    model = make_model(name)
    cell = torch.tensor([[3.9, 0, 0], [0.6, 4.2, 0], [0.1, 0.4, 4.5]], dtype=torch.float64)
    z, x = torch.tensor([8, 1, 6]), torch.tensor([[0.1, 0.2, 0.3], [1.2, 0.4, 0.2], [2.1, 2.0, 2.6]], dtype=torch.float64)
    one = model(batch_of((z, x), cell=cell))
    big = torch.diag(torch.tensor([2.0, 3, 1], dtype=torch.float64)) @ cell
    images = [torch.tensor([a, b, 0], dtype=torch.float64) @ cell for a in range(2) for b in range(3)]
    many = model(batch_of((z.repeat(6), torch.cat([x + image for image in images])), cell=big))
    close(many.energy, 6 * one.energy)
    close(many.forces, one.forces.repeat(6, 1))


@pytest.mark.parametrize("name", ALL)
def test_one_atom_and_its_images(name):
    """By symmetry it feels no force, whatever the cell."""
    model, z, x = make_model(name), torch.tensor([8]), torch.tensor([[0.3, 0.1, 0.2]], dtype=torch.float64)
    cell = torch.tensor([[2.4, 0, 0], [0.5, 2.3, 0], [0.2, 0.4, 2.6]], dtype=torch.float64)
    one = model(batch_of((z, x), cell=cell))
    two = model(batch_of((z.repeat(2), torch.cat([x, x + cell[2]])), cell=torch.diag(torch.tensor([1.0, 1, 2])).double() @ cell))
    close(one.forces, torch.zeros(1, 3, dtype=torch.float64))
    close(two.energy, 2 * one.energy)
    alone = model(batch_of((z, x))).energy
    assert abs((one.energy - alone).item()) > 1e-6


@pytest.mark.parametrize("periodic", [False, True])
def test_overlapping_atoms_are_named_before_any_model_sees_them(periodic):
    """Where neighbours are found, for every cutoff: between atoms, and between an atom and an image of another."""
    box = {"cell": BOX * np.eye(3), "pbc": np.ones(3, bool)} if periodic else {}
    numbers, positions = MOLECULES[0]
    right = Structure(numbers.numpy(), positions.numpy(), system="drug", **box)
    wrong = positions.clone()
    wrong[4] = positions[1] + (BOX * torch.eye(3)[2] if periodic else 0)
    for cutoff in sorted({make_model(name).cutoff for name in ALL}):
        dataset = StructureDataset([right, replace(right, positions=wrong.numpy())], (cutoff,), dtype=torch.float64)
        assert dataset.batch([0]).graph(cutoff).num_edges
        with pytest.raises(DataError, match=r"structure 1 \(drug\): atoms (1 and 4|4 and 1) are .*e.* Å apart\. Remove the structure"):
            dataset.batch([0, 1])


@pytest.mark.parametrize("name", ALL)
def test_atoms_that_come_to_overlap_later_give_no_infinities(name):
    """Positions that change under a graph that was made before, as in a relaxation: numbers stay numbers, as do their gradients."""
    model, (z, x) = make_model(name), MOLECULES[2]
    batch = batch_of((z, x), MOLECULES[0])
    moved = batch.positions.clone()
    assert batch.graph(CUTOFF).csr.edge_src.tolist()
    moved[int(batch.graph(CUTOFF).csr.edge_src[0])] = moved[int(batch.graph(CUTOFF).csr.edge_dst[0])]
    prediction = model(replace(batch, positions=moved))
    assert torch.isfinite(prediction.energy).all()
    assert torch.isfinite(prediction.forces).all()


@pytest.mark.parametrize("name", ["painn", "schnet", "dimenet_pp"])
def test_graph_with_cut_off_neighbours_still_has_exact_forces(name):
    model, (z, x) = make_model(name), MOLECULES[1]
    batch = batch_of((z, x), max_neighbors=3)
    assert batch.graph(CUTOFF).pairs is None
    forces, energy, h = model(batch).forces, [], 1e-6
    for sign in (1, -1):
        moved = x.clone()
        moved[4, 1] += sign * h
        energy.append(model(replace(batch, positions=moved)).energy)
    close(-(energy[0] - energy[1]) / (2 * h), forces[4, 1:2].detach(), 1e-6)


@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_unknown_element_is_named(name):
    model = make_model(name)
    model.known_element.zero_()
    model.known_element[[1, 6]] = True
    batch = batch_of(MOLECULES[2], (torch.tensor([1, 79]), MOLECULES[2][1][:2]))
    batch.atomic_numbers[:3] = 6
    with pytest.raises(DataError, match=r"structure 1 holds Au \(atom 1\).*it knows H, C\..*Leave the structure out"):
        model(batch)
    batch.atomic_numbers[-1] = 500
    with pytest.raises(DataError, match="atomic number 500"):
        model(batch)
