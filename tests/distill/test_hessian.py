"""Hessian rows: of models against differences of forces, of teachers of every kind, and as a term that trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ase.calculators.lj import LennardJones

from fastkd.config import DistillConfig, LossConfig, TermConfig, TrainConfig
from fastkd.distill import Terms, build_terms
from fastkd.distill.strategies import hessian_loss
from fastkd.engine.ema import Average
from fastkd.engine.step import Trainee, batch_loss, make_optimizer, train_step, trainable
from fastkd.errors import ConfigError
from fastkd.models import Potential
from fastkd.teachers import BaseTeacher, CachedTeacher, LiveTeacher, ModuleTeacher, Offer, Teacher
from fastkd.teachers.ase import AseTeacher
from fastkd.teachers.hessian import STACKED_ATOMS, all_rows, difference_rows, directions, exact_rows, sample_rows, stacked_rows
from tests.models.structures import batch_of, make_model, random_molecule
from tests.teachers.foreign import make as make_foreign

from .common import make_batch, normal

SIZES = [5, 1, 3]
BATCH = batch_of(*(random_molecule(atoms, 10 + atoms) for atoms in SIZES))
H = 2e-5  # Å


def with_rows(batch, rows):
    return replace(batch, hessian_rows=rows)


def matrix(model: Potential, batch=BATCH) -> torch.Tensor:
    """−∂F/∂x of the whole batch by differences of forces, [3n, 3n]: column by column."""
    columns = []
    for number in range(3 * batch.num_atoms):
        step = torch.zeros(3 * batch.num_atoms, dtype=torch.float64)
        step[number] = H
        ahead, behind = (model(replace(batch, positions=batch.positions + sign * step.view(-1, 3))).forces.detach() for sign in (1, -1))
        columns.append(((behind - ahead) / (2 * H)).flatten())
    return torch.stack(columns, 1)


def picked(whole: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of structures out of the matrix of the batch, with loops."""
    found = torch.zeros(len(rows), BATCH.num_atoms, 3, dtype=whole.dtype)
    for number, line in enumerate(rows.tolist()):
        for graph, row in enumerate(line):
            first, last = BATCH.atom_ptr[graph].item(), BATCH.atom_ptr[graph + 1].item()
            if row >= 0:
                found[number, first:last] = whole[row].view(-1, 3)[first:last]
    return found


def test_rows_of_the_largest_seed_that_a_run_may_have():
    rows = sample_rows(BATCH, 4, seed=2**63 - 1, step=5)
    assert not torch.equal(rows, sample_rows(BATCH, 4, seed=2**63 - 1, step=6))


@pytest.mark.parametrize("name", ["schnet", "painn", "painn_direct", pytest.param("dimenet_pp", marks=pytest.mark.slow)])
def test_rows_are_the_slopes_of_forces(name):
    model, rows = make_model(name).eval(), sample_rows(BATCH, 4, seed=3, step=5)
    found = Teacher(model).hessian_rows(with_rows(BATCH, rows), "exact")
    whole = matrix(model)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, picked(whole, rows), rtol=1e-5, atol=1e-6)
    asymmetry = (whole - whole.T).abs().max() / whole.abs().max()
    assert (asymmetry > 0.01) == (name == "painn_direct")


@pytest.mark.parametrize("name", ["schnet", "painn_direct"])
def test_difference_rows_are_columns_with_an_error_of_second_order(name):
    teacher, rows = Teacher(make_model(name)), sample_rows(BATCH, 4, seed=3, step=5)
    batch = with_rows(BATCH, all_rows(BATCH))
    exact = teacher.hessian_rows(batch, "exact")
    # the transpose of the matrix of each structure
    whole = torch.zeros(3 * BATCH.num_atoms, 3 * BATCH.num_atoms, dtype=torch.float64)
    for line, found in zip(batch.hessian_rows.tolist(), exact, strict=True):
        for graph, row in enumerate(line):
            atoms = slice(BATCH.atom_ptr[graph].item(), BATCH.atom_ptr[graph + 1].item())
            if row >= 0:
                whole[row].view(-1, 3)[atoms] = found[atoms]
    want = picked(whole.T.contiguous(), rows)
    batch = with_rows(BATCH, rows)
    errors = [(teacher.hessian_rows(batch, str(step)) - want).abs().max().item() for step in (0.02, 0.01, 0.005)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[1] < 5e-3 * want.abs().max()


def test_single_precision_stands_the_default_step():
    batch = with_rows(BATCH, sample_rows(BATCH, 3, seed=0, step=0))
    exact = Teacher(make_model("painn")).hessian_rows(batch, "exact")
    low = Teacher(make_model("painn", dtype=torch.float32)).hessian_rows(batch.to(dtype=torch.float32), "0.01")
    assert (low.double() - exact).abs().max() < 0.01 * exact.abs().max()


def test_foreign_and_ase_teachers():
    batch = make_batch([0, 1, 2])
    batch = replace(batch, hessian_rows=sample_rows(batch, 3, seed=0, step=0))
    foreign = ModuleTeacher(make_foreign(), "foreign").to(dtype=torch.float64)
    exact, near = foreign.hessian_rows(batch, "exact"), foreign.hessian_rows(batch, "0.0001")
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(exact, near, rtol=1e-4, atol=1e-6 * exact.abs().max().item())
    forces = foreign(batch, frozenset({"forces"})).forces
    torch.testing.assert_close(foreign.ask(batch, frozenset({"forces", "hessian_rows@exact"})).forces, forces)
    lj = AseTeacher(LennardJones(sigma=1.2, rc=20.0), "lj")
    rows, finer = (lj.ask(batch, frozenset({need})).get(need) for need in ("hessian_rows@0.0001", "hessian_rows@5e-05"))
    torch.testing.assert_close(rows, finer, rtol=1e-4, atol=1e-5 * rows.abs().max().item())
    with pytest.raises(ValueError, match="no exact rows"):
        lj.hessian_rows(batch, "exact")
    with pytest.raises(ValueError, match="does not say which rows"):
        lj.hessian_rows(make_batch([0]), "0.01")


def test_rows_are_drawn_from_free_atoms_without_replacement():
    fixed = torch.zeros(BATCH.num_atoms, dtype=torch.bool)
    fixed[[0, 3]] = True
    batch = replace(BATCH, fixed=fixed)
    seen = set()
    for step in range(200):
        rows = sample_rows(batch, 5, seed=1, step=step)
        assert torch.equal(rows, sample_rows(batch, 5, seed=1, step=step))
        assert torch.equal(rows[:2], sample_rows(batch, 2, seed=1, step=step))
        for graph, (first, last) in enumerate([(0, 5), (5, 6), (6, 9)]):
            found = [row for row in rows[:, graph].tolist() if row >= 0]
            assert len(set(found)) == len(found) == min(5, 3 * (last - first) - (6 if graph == 0 else 0))
            assert all(first <= row // 3 < last and not fixed[row // 3] for row in found)
            seen |= set(found)
    assert seen == {row for row in range(27) if not fixed[row // 3]}
    assert not torch.equal(sample_rows(batch, 5, seed=1, step=0), sample_rows(batch, 5, seed=2, step=0))
    assert 0 in sample_rows(batch, 15, seed=1, step=0, free_atoms=False)


def test_rows_are_drawn_evenly():
    counts = torch.zeros(27)
    for step in range(1500):
        counts[sample_rows(BATCH, 1, seed=0, step=step).flatten()] += 1
    for first, last in [(0, 15), (15, 18), (18, 27)]:
        expected = 1500 / (last - first)
        assert ((counts[first:last] - expected).square() / expected).sum() < 3 * (last - first)


def test_directions_and_all_rows():
    rows = all_rows(BATCH)
    assert rows.shape == (15, 3)
    assert rows[:, 1].tolist() == [15, 16, 17] + 12 * [-1]
    total = directions(rows, BATCH)
    assert torch.equal(total.sum(0), torch.ones(9, 3, dtype=torch.float64))
    assert torch.equal(total.flatten(1).sum(1), (rows >= 0).sum(1).double())


@pytest.mark.parametrize("kind", ["l2", "mse", "mae", "huber"])
@pytest.mark.parametrize("some_fixed", [False, True])
def test_loss_against_loops(kind, some_fixed):
    own, target = (4 * normal(4, BATCH.num_atoms, 3, seed=seed) for seed in (1, 2))
    rows = sample_rows(BATCH, 4, seed=0, step=0)
    free = torch.tensor([True, False, True, True, True, True, False, True, True]) if some_fixed else None
    total, atoms = 0.0, 0
    for graph in range(3):
        mine = [r for r in range(4) if rows[r, graph] >= 0]
        for atom in range(BATCH.atom_ptr[graph].item(), BATCH.atom_ptr[graph + 1].item()):
            if free is not None and not free[atom]:
                continue
            atoms += 1
            for r in mine:
                d = (own[r, atom] - target[r, atom]).tolist()
                total += {
                    "l2": sum(x * x for x in d) ** 0.5,
                    "mse": sum(x * x for x in d) / 3,
                    "mae": sum(abs(x) for x in d) / 3,
                    "huber": sum(x * x / 2 if abs(x) <= 1 else abs(x) - 0.5 for x in d) / 3,
                }[kind] / len(mine)
    loss = hessian_loss(own, target, rows >= 0, BATCH.graph_index, kind, free)
    assert loss.item() == pytest.approx(total / atoms, rel=1e-12)


def job(student: Potential, teacher: BaseTeacher, items: list[dict], cache: CachedTeacher | None = None, rate: float = 1e-2) -> Trainee:
    terms = build_terms(DistillConfig(terms=[TermConfig(**item) for item in items]), Offer.of(student, "student"), teacher.offer, seed=4)
    terms.attach(student)
    parameters = trainable(student, terms)
    optimizer = make_optimizer(parameters, TrainConfig(learning_rate=rate))
    source = cache or LiveTeacher(teacher, terms.needs)
    return Trainee(student, terms, source, optimizer, Average(parameters, 0.9), LossConfig(energy_weight=0, forces_weight=0), 10.0)


@pytest.mark.parametrize("name", ["schnet", "painn", "painn_direct", "gemnet_oc"])
@pytest.mark.parametrize("how", ["exact", "difference"])
def test_an_identical_student_has_no_loss(name, how):
    items = [{"kind": "hessian", "rows": 3, "teacher_rows": how, "student_rows": how}]
    losses, _, _ = batch_loss(job(make_model(name), Teacher(make_model(name)), items), BATCH, 7)
    assert losses["kd_hessian"].item() == pytest.approx(0, abs=1e-9)
    other, _, _ = batch_loss(job(make_model(name, seed=1), Teacher(make_model(name)), items), BATCH, 7)
    assert other["kd_hessian"] > 1e-3


@pytest.mark.parametrize("name", ["schnet", "painn", "painn_direct"])
@pytest.mark.parametrize("how", ["exact", "difference"])
def test_weight_gradients_against_finite_differences(name, how):
    """Third derivatives of the energy, through the ops."""
    student = make_model(name, seed=1).train()
    trainee = job(student, Teacher(make_model(name)), [{"kind": "hessian", "rows": 2, "loss": "mse", "student_rows": how}])

    def loss() -> torch.Tensor:
        return batch_loss(trainee, BATCH, 3)[1]

    grads = torch.autograd.grad(loss(), list(student.parameters()), allow_unused=True)
    h, some = 1e-5, 0
    for number, ((label, parameter), grad) in enumerate(zip(student.named_parameters(), grads, strict=True)):
        direction = normal(*parameter.shape, seed=number)
        values = []
        for step in (h, -2 * h):
            with torch.no_grad():
                parameter.add_(step * direction)
            values.append(loss().item())
        with torch.no_grad():
            parameter.add_(h * direction)
        slope = (values[0] - values[1]) / (2 * h)
        found = 0.0 if grad is None else (grad * direction).sum().item()
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-6), label
        some += abs(found) > 1e-4
    assert some > 4


def test_without_weight_there_is_no_gradient():
    trainee = job(make_model("painn", seed=1).train(), Teacher(make_model("painn")), [{"kind": "hessian", "weight": 0.0}])
    losses, total, _ = batch_loss(trainee, BATCH, 0)
    assert losses["kd_hessian"] > 0
    assert losses["total"] == 0
    grads = torch.autograd.grad(total, list(trainee.student.parameters()), allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads)


@pytest.mark.parametrize("method", ["exact", "difference"])
def test_a_cache_keeps_all_rows(method):
    teacher = Teacher(make_model("painn"))
    item = {"kind": "hessian", "rows": 4, "teacher_rows": method}
    trainee = job(make_model("schnet"), teacher, [item, {"kind": "energy"}])
    assert isinstance(trainee.terms, Terms)
    cache = CachedTeacher.build(teacher, trainee.terms.needs, [BATCH], dataset_hash="data")
    (need,) = (need for need in trainee.terms.needs if need.startswith("hessian"))
    other = batch_of(*(random_molecule(atoms, 10 + atoms) for atoms in (3, 5)))
    other = replace(other, structure_index=torch.tensor([2, 0]))
    for step, batch in enumerate([BATCH, other, BATCH]):
        asked = trainee.terms.teacher_batch(batch, step)
        live, kept = LiveTeacher(teacher, trainee.terms.needs)(asked).get(need), cache(asked).get(need)
        assert live.abs().max() > 0.1
        torch.testing.assert_close(kept, live, rtol=1e-9, atol=1e-10)
    assert cache.cost.bytes > 8 * 9 * sum(size**2 for size in SIZES)


#: the same for other models: of the last one a step takes seconds
LONG_PAIRS = [pytest.param(pair, marks=pytest.mark.slow) for pair in (("painn_direct", "painn"), ("gemnet_oc", "dimenet_pp"))]


@pytest.mark.parametrize("pair", [("painn", "schnet"), ("painn", "painn_direct"), *LONG_PAIRS])
def test_training_brings_rows_nearer(pair):
    batch, student = BATCH.to(dtype=torch.float32), make_model(pair[1], seed=2, dtype=torch.float32).train()
    teacher = Teacher(make_model(pair[0], dtype=torch.float32))
    trainee = job(student, teacher, [{"kind": "hessian", "rows": 15}, {"kind": "hessian", "rows": 2, "weight": 0}])
    names = list(student.state_dict())
    steps = [train_step(trainee, batch, 1e-2, step).losses for step in range(20)]
    assert 0 < steps[-1]["kd_hessian"] < 0.9 * steps[0]["kd_hessian"]
    assert list(student.state_dict()) == names
    assert all(value.isfinite() for losses in steps for value in losses.values())


def test_same_bits_twice():
    def trained() -> list[torch.Tensor]:
        student = make_model("painn", seed=2, dtype=torch.float32).train()
        trainee = job(student, Teacher(make_model("schnet", dtype=torch.float32)), [{"kind": "hessian", "rows": 2}, {"kind": "forces"}])
        for step in range(3):
            train_step(trainee, BATCH.to(dtype=torch.float32), 1e-2, step)
        return [parameter.detach().clone() for parameter in student.parameters()]

    assert all(torch.equal(first, second) for first, second in zip(trained(), trained(), strict=True))


def test_columns_of_fixed_atoms_are_left_out():
    fixed = torch.zeros(BATCH.num_atoms, dtype=torch.bool)
    fixed[[0, 7]] = True
    batch = replace(BATCH, fixed=fixed)
    student, teacher = make_model("painn", seed=1), make_model("painn")
    trainee = job(student, Teacher(teacher), [{"kind": "hessian", "rows": 3}])
    rows = sample_rows(batch, 3, seed=4, step=2)
    assert not fixed[rows[rows >= 0] // 3].any()
    found = []
    for model in (student, teacher):
        positions = batch.positions.clone().requires_grad_()
        forces = model(replace(batch, positions=positions), create_graph=True).forces
        found.append(exact_rows(forces, positions, rows, batch, create_graph=False))
    want = hessian_loss(*found, rows >= 0, batch.graph_index, "l2", ~fixed)
    assert batch_loss(trainee, batch, 2)[0]["kd_hessian"].item() == pytest.approx(want.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["painn", "schnet", "gemnet_oc", "dimenet_pp"])
def test_moved_copies_in_one_batch_give_the_rows_of_one_after_the_other(name):
    model = make_model(name)
    rows = sample_rows(BATCH, 3, seed=0, step=0)

    def forces(batch):
        return model(batch, create_graph=True).forces

    with torch.no_grad():
        one = difference_rows(forces, BATCH, rows, 0.01)
        several = {count: difference_rows(forces, BATCH, rows, 0.01, at_once=count) for count in (1, 2, 8)}
    for found in several.values():
        torch.testing.assert_close(found, one, rtol=1e-7, atol=1e-8)


def test_as_many_copies_as_fill_a_batch():
    assert stacked_rows(BATCH) == STACKED_ATOMS // (2 * BATCH.num_atoms)
    assert difference_rows(lambda batch: batch.positions, BATCH, sample_rows(BATCH, 0, seed=0, step=0), 0.01).shape == (
        0,
        *BATCH.positions.shape,
    )


def test_difference_rows_of_any_function():
    stiff = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rows = sample_rows(BATCH, 3, seed=0, step=0)
    found = difference_rows(lambda batch: -stiff * batch.positions, BATCH, rows, 0.01)
    torch.testing.assert_close(found, stiff * directions(rows, BATCH), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"kind": "hessian", "loss": "cka"}, "loss cka is for"),
        ({"kind": "forces", "rows": 2}, "rows belongs to hessian"),
        ({"kind": "hessian", "projection": "identity"}, "projection belongs to"),
        ({"kind": "hessian", "teacher_rows": "exact"}, "take teacher_rows=difference"),
    ],
)
def test_mistakes(item, message):
    teacher = AseTeacher(LennardJones(), "lj")
    with pytest.raises(ConfigError, match=message):
        build_terms(DistillConfig(terms=[TermConfig(**item)]), Offer.of(make_model("schnet"), "student"), teacher.offer)
