"""Moved batches: statistics and directions of displacements, norms of projected steps, gradients, graphs, and what must not change."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd.config import AugmentConfig, DistillConfig, ModelConfig
from fastkd.data.batch import Batch
from fastkd.data.batching import Pieces, collate, find_graphs
from fastkd.data.structure import Structure
from fastkd.distill import Terms, build_terms
from fastkd.distill.augment import Adversarial, Perturbation, Rattle, build_perturbation, component, random_numbers
from fastkd.distill.augment.base import hold
from fastkd.errors import TrainingError
from fastkd.models import Potential, build_model
from fastkd.teachers import LiveTeacher, Offer, Teacher, TeacherOutput

from .common import make_batch, normal

CUTOFF, TEACHER_CUTOFF = 3.0, 3.5
TERMS = [{"kind": "n2n", "weight": 3.0}, {"kind": "v2v"}, {"kind": "forces", "weight": 2.0}, {"kind": "energy"}, {"kind": "lkm"}]


def labelled_batch(structures: range, *, fixed: bool = False) -> Batch:
    batch = make_batch(list(structures), (CUTOFF,))
    forces = normal(batch.num_atoms, 3, seed=5)
    return replace(
        batch,
        forces=forces,
        labelled=torch.ones(batch.num_graphs, dtype=torch.bool),
        fixed=torch.arange(batch.num_atoms) % 3 == 0 if fixed else None,
    )


def model(cutoff: float, width: int, seed: int) -> Potential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(ModelConfig(width=width, layers=2, radial=6, cutoff=cutoff)).double()


def setting(terms: list[dict[str, object]] = TERMS) -> tuple[Potential, LiveTeacher, Terms]:
    student, teacher = model(CUTOFF, 8, 1).train(), Teacher(model(TEACHER_CUTOFF, 12, 2))
    built = build_terms(DistillConfig.model_validate({"terms": terms}), Offer.of(student, "student"), teacher.offer).double()
    return student, LiveTeacher(teacher, built.needs), built


def rattle(batch: Batch, step: int = 0, seed: int = 0, **options: object) -> Tensor:
    student, teacher, terms = setting([{"kind": "n2n"}])
    return Rattle(seed=seed, cutoffs=(CUTOFF,), **options).displacement(batch, student, teacher, terms, step)  # type: ignore[arg-type]


def test_gaussian_rattling_has_its_moments() -> None:
    sigma, batch = 0.07, labelled_batch(range(600))
    delta = rattle(batch, sigma=sigma)
    count = delta.numel()
    assert count > 8000
    assert abs(delta.mean()) < 4 * sigma / count**0.5
    assert abs(delta.var() / sigma**2 - 1) < 4 * (2 / count) ** 0.5
    assert abs((delta / sigma).pow(4).mean() - 3) < 4 * (96 / count) ** 0.5
    covariance = torch.cov(delta.T) / sigma**2
    assert (covariance - torch.eye(3, dtype=torch.float64)).abs().max() < 5 * (2 / len(delta)) ** 0.5


def test_a_fixed_length_is_exact_and_its_directions_are_even() -> None:
    batch = labelled_batch(range(600))
    delta = rattle(batch, sigma=0.1, length=0.4)
    torch.testing.assert_close(delta.norm(dim=-1), torch.full((batch.num_atoms,), 0.4, dtype=torch.float64), rtol=0, atol=1e-15)
    direction = delta / 0.4
    assert direction.mean(dim=0).abs().max() < 4 / (3 * len(delta)) ** 0.5
    assert (torch.cov(direction.T) - torch.eye(3, dtype=torch.float64) / 3).abs().max() < 0.03


def test_the_component_along_the_force_is_removed_or_kept_exactly() -> None:
    batch = labelled_batch(range(20))
    batch.forces[4] = 0.0
    plain, across, along = (rattle(batch, sigma=0.1, along_force=how) for how in ("any", "remove", "only"))
    direction = torch.nn.functional.normalize(batch.forces, dim=-1)
    expected = (plain * direction).sum(-1, keepdim=True) * direction
    torch.testing.assert_close(along, expected, rtol=0, atol=1e-16)
    assert (across * direction).sum(-1).abs().max() < 1e-16
    torch.testing.assert_close(along + across, plain, rtol=0, atol=1e-16)
    assert torch.equal(across[4], plain[4])
    assert not along[4].any()
    scaled = rattle(batch, sigma=0.1, along_force="remove", length=0.2)
    assert (scaled * direction).sum(-1).abs().max() < 1e-15
    torch.testing.assert_close(scaled.norm(dim=-1), torch.full_like(scaled[:, 0], 0.2), rtol=0, atol=1e-15)
    # no component, no direction: the atom stays
    assert not rattle(batch, sigma=0.1, along_force="only", length=0.2)[4].any()


def test_rattling_around_forces_is_the_force_and_the_same_noise() -> None:
    batch = labelled_batch(range(20))
    delta = rattle(batch, sigma=0.1, along_force="around", force_scale=0.5)
    torch.testing.assert_close(delta - 0.5 * batch.forces, rattle(batch, sigma=0.1), rtol=0, atol=1e-15)


def test_structures_without_labels_take_the_teachers_forces() -> None:
    student, teacher, terms = setting([{"kind": "forces"}])
    batch = labelled_batch(range(4))
    batch = replace(batch, labelled=torch.tensor([True, False, True, False]), graphs=find_graphs(batch, (CUTOFF, TEACHER_CUTOFF)))
    move = Rattle(seed=0, cutoffs=(CUTOFF,), sigma=0.1, along_force="only")
    found = move.forces(batch, teacher)
    said = teacher(batch).forces
    mine = batch.labelled[batch.graph_index]
    assert torch.equal(found[mine], batch.forces[mine])
    assert torch.equal(found[~mine], said[~mine])
    delta = move.displacement(batch, student, teacher, terms, 0)
    assert torch.linalg.cross(delta, said)[~mine].abs().max() < 1e-15
    with pytest.raises(TrainingError, match="no labelled forces and there is no teacher"):
        move.forces(batch, None)


def test_random_numbers_follow_from_seed_and_step_alone() -> None:
    torch.manual_seed(0)
    first = random_numbers(3, 7, 50)
    torch.manual_seed(1)
    assert torch.equal(first, random_numbers(3, 7, 50))
    assert not torch.equal(first, random_numbers(3, 8, 50))
    assert not torch.equal(first, random_numbers(4, 7, 50))
    assert first.dtype == torch.float64


KINDS: dict[str, dict[str, object]] = {
    "rattle": {"kind": "rattle"},
    "around": {"kind": "rattle", "along_force": "around", "force_scale": 0.05},
    "fixed_length": {"kind": "rattle", "length": 0.2},
    "noise": {"kind": "noise"},
    "adam": {"kind": "adversarial", "ascent": "adam", "ascent_steps": 2, "ascent_rate": 0.01},
    "sphere": {"kind": "adversarial", "ascent": "sphere"},
    "ball": {"kind": "adversarial", "ascent": "ball"},
    "orthogonal": {"kind": "adversarial", "ascent": "orthogonal", "ascent_rule": "prop", "ascent_rate": 0.02},
}


def perturbation(options: dict[str, object]) -> Perturbation:
    found = build_perturbation(AugmentConfig.model_validate(options), 0, (CUTOFF, TEACHER_CUTOFF))
    assert found is not None
    return found


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_fixed_atoms_stay_and_free_ones_move(options: dict[str, object]) -> None:
    batch = labelled_batch(range(4), fixed=True)
    student, teacher, terms = setting()
    moved = perturbation(options)(batch, student, teacher, terms, 3)
    assert batch.fixed is not None
    assert torch.equal(moved.positions[batch.fixed], batch.positions[batch.fixed])
    assert ((moved.positions - batch.positions).norm(dim=-1)[~batch.fixed] > 1e-6).all()
    assert not moved.positions.requires_grad
    # everything else is the batch's
    for item in fields(batch):
        if item.name not in ("positions", "graphs"):
            assert getattr(moved, item.name) is getattr(batch, item.name)
    again = perturbation(options)(batch, student, teacher, terms, 3)
    assert torch.equal(again.positions, moved.positions)
    assert not torch.equal(perturbation(options)(batch, student, teacher, terms, 4).positions, moved.positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_moved_graph_is_that_of_a_fresh_batch(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    sites = np.array(np.meshgrid(*[np.arange(3.0)] * 3)).reshape(3, -1).T * 2.1
    structures = [
        Structure(np.full(27, 6), sites + random.normal(scale=0.1, size=(27, 3)), np.eye(3) * 6.3, np.array([True, True, k % 2 == 0]))
        for k in range(3)
    ]
    structures.append(Structure(np.full(70, 6), random.uniform(0, 12, size=(70, 3))))
    batch = collate([Pieces.of(s, k, (CUTOFF, 4.0)) for k, s in enumerate(structures)], dtype)
    move = Rattle(seed=1, cutoffs=(4.0, CUTOFF), sigma=0.15)
    moved = move.moved(batch, 0.15 * random_numbers(1, 0, batch.num_atoms))
    pointers = batch.atom_ptr.tolist()
    fresh = collate(
        [
            Pieces.of(
                replace(
                    s,
                    positions=moved.positions[pointers[k] : pointers[k + 1]].numpy(),
                    cell=None if s.cell is None else batch.cell[k].numpy(),
                ),
                k,
                (CUTOFF, 4.0),
            )
            for k, s in enumerate(structures)
        ],
        dtype,
    )
    assert set(moved.graphs) == {CUTOFF, 4.0}
    changed = 0
    for cutoff, graph in moved.graphs.items():
        other = fresh.graphs[cutoff]
        for name in ("edge_shift", "pair", "pair_edge"):
            assert torch.equal(getattr(graph, name), getattr(other, name))
        for one, two in zip(graph.csr.tensors, other.csr.tensors, strict=True):
            assert torch.equal(one, two)
        changed += graph.num_edges != batch.graphs[cutoff].num_edges
    assert changed, "nobody crossed a cutoff: the test shows nothing"


def test_atoms_that_meet_are_named() -> None:
    batch = make_batch([0], (CUTOFF,))
    onto = torch.zeros_like(batch.positions)
    onto[1] = batch.positions[0] - batch.positions[1]
    with pytest.raises(TrainingError, match="moved two atoms onto each other"):
        Rattle(seed=0, cutoffs=(CUTOFF,), sigma=0.1).moved(batch, onto)


def test_no_atom_goes_beyond_the_limit() -> None:
    batch = labelled_batch(range(20))
    student, teacher, terms = setting([{"kind": "n2n"}])
    free = Rattle(seed=0, cutoffs=(CUTOFF,), sigma=0.05)(batch, student, teacher, terms, 0).positions - batch.positions
    short = Rattle(seed=0, cutoffs=(CUTOFF,), sigma=0.05, limit=0.08)(batch, student, teacher, terms, 0).positions - batch.positions
    length = free.norm(dim=-1)
    assert (length > 0.08).any()
    torch.testing.assert_close(short.norm(dim=-1), length.clamp(max=0.08), rtol=0, atol=1e-15)


def adversary(**options: object) -> Adversarial:
    given = {"sigma": 0.0, "seed": 0, "cutoffs": (CUTOFF, TEACHER_CUTOFF)} | options
    return Adversarial(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("teacher_gradient", "penalty"), [(True, 0.0), (True, 0.3), (False, 0.0)])
def test_the_gradient_is_that_of_the_objective(teacher_gradient: bool, penalty: float) -> None:
    student, teacher, terms = setting()
    batch = labelled_batch(range(3), fixed=True)
    climb = adversary(teacher_gradient=teacher_gradient, force_penalty=penalty)
    delta = hold(batch, 0.02 * normal(batch.num_atoms, 3, seed=8))
    with terms.through_teacher():
        gradient = climb.gradient(batch, delta, student, teacher, terms, 0)
    constant = teacher(climb.moved(batch, delta))

    class Still(LiveTeacher):
        """A teacher that says what it said at δ, wherever atoms are."""

        def ask(self, batch: Batch, needs: frozenset[str], *, gradient: bool = False) -> TeacherOutput:
            return constant

    source = teacher if teacher_gradient else Still(teacher.teacher, terms.needs)

    def value(shift: Tensor) -> float:
        return float(climb.objective(climb.moved(batch, shift), student, source, terms, 0).detach())  # type: ignore[arg-type]

    for seed in range(3):
        way = hold(batch, normal(batch.num_atoms, 3, seed=100 + seed))
        slope = (value(delta + 1e-5 * way) - value(delta - 1e-5 * way)) / 2e-5
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-5)
    assert batch.fixed is not None
    assert not gradient[batch.fixed].any()


def test_a_constant_teacher_and_one_that_is_climbed_through_give_other_gradients() -> None:
    student, teacher, terms = setting()
    batch = labelled_batch(range(3))
    start = torch.zeros_like(batch.positions)
    found = []
    for through in (True, False):
        with terms.through_teacher():
            found.append(adversary(teacher_gradient=through).gradient(batch, start, student, teacher, terms, 0))
    assert (found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"ascent": "adam", "rate": 1e-3},
        {"ascent": "sphere", "length": 1e-3},
        {"ascent": "ball", "rate": 1e-3, "length": 1e-2},
        {"ascent": "orthogonal", "length": 1e-3},
        {"ascent": "orthogonal", "rule": "prop", "rate": 1e-3},
        {"ascent": "orthogonal", "rule": "inv_prop", "rate": 1e-3, "limit": 0.01},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values() if isinstance(v, str)),
)
def test_every_ascent_makes_the_distillation_loss_larger(options: dict[str, object], steps: int) -> None:
    student, teacher, terms = setting()
    batch = labelled_batch(range(4), fixed=True)
    climb = adversary(steps=steps, **options)

    def value(some: Batch) -> float:
        return float(climb.objective(some, student, teacher, terms, 0).detach())

    before = value(climb.moved(batch, torch.zeros_like(batch.positions)))
    once = value(adversary(**options)(batch, student, teacher, terms, 0))
    after = value(climb(batch, student, teacher, terms, 0))
    assert after > before
    if steps > 1:
        assert after > once > before


def test_a_large_penalty_leads_to_smaller_forces() -> None:
    student, teacher, terms = setting([{"kind": "n2n", "weight": 1e-6}])
    batch = labelled_batch(range(3))
    climb = adversary(force_penalty=100.0, ascent="sphere", length=1e-3)
    still = climb.moved(batch, torch.zeros_like(batch.positions))
    there = climb(batch, student, teacher, terms, 0)
    size = [float(teacher.ask(some, frozenset({"forces"})).forces.norm(dim=-1).mean()) for some in (still, there)]  # type: ignore[union-attr]
    assert size[1] < size[0]


def test_climbing_leaves_student_and_teacher_as_they_were() -> None:
    student, teacher, terms = setting()
    batch = labelled_batch(range(3))
    seen = []
    student.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    adversary()(batch, student, teacher, terms, 0)
    assert seen == [False]
    assert student.training
    assert all(module.training for module in student.modules())
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    potential = teacher.teacher.potential  # type: ignore[attr-defined]
    assert all(parameter.grad is None for part in (student, terms, potential) for parameter in part.parameters())
    assert not any(term.through_teacher for term in terms)


def test_projected_steps_have_their_lengths() -> None:
    gradient, forces = normal(50, 3, seed=1), normal(50, 3, seed=2)
    gradient[3] = 0.0
    some = torch.arange(50) != 3

    def step(**options: object) -> Tensor:
        return adversary(**options).projected(gradient, forces)

    sphere = step(ascent="sphere", length=0.4)
    torch.testing.assert_close(sphere.norm(dim=-1), 0.4 * some.double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.linalg.cross(sphere, gradient), torch.zeros_like(sphere), rtol=0, atol=1e-15)
    assert ((sphere * gradient).sum(-1)[some] > 0).all()
    ball = step(ascent="ball", rate=0.1, length=0.15)
    long = 0.1 * gradient.norm(dim=-1) > 0.15
    assert long.any()
    assert (~long).any()
    torch.testing.assert_close(ball[long].norm(dim=-1), torch.full((int(long.sum()),), 0.15, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(ball[~long], 0.1 * gradient[~long])
    strength = forces.norm(dim=-1)
    lengths = {"fixed": torch.full_like(strength, 0.2), "prop": 0.1 * strength, "inv_prop": 0.1 / strength}
    for rule, length in lengths.items():
        found = step(ascent="orthogonal", rule=rule, rate=0.1, length=0.2)
        torch.testing.assert_close(found.norm(dim=-1), length * some.double(), rtol=1e-14, atol=0)
        assert (found * forces).sum(-1).abs().max() < 1e-14
        assert ((found * (gradient - component(gradient, forces))).sum(-1)[some] > 0).all()
    weak = adversary(ascent="orthogonal", rule="inv_prop", rate=0.1, limit=0.5).projected(gradient, torch.zeros_like(forces))
    torch.testing.assert_close(weak.norm(dim=-1), 0.5 * some.double(), rtol=1e-14, atol=0)


def test_the_first_step_of_adam_has_its_rate_in_every_component() -> None:
    student, teacher, terms = setting()
    batch = labelled_batch(range(3), fixed=True)
    delta = adversary(ascent="adam", rate=0.03).displacement(batch, student, teacher, terms, 0)
    gradient = adversary().gradient(batch, torch.zeros_like(delta), student, teacher, terms, 0)
    assert batch.fixed is not None
    assert not delta[batch.fixed].any()
    free = ~batch.fixed
    with terms.through_teacher():
        gradient = adversary().gradient(batch, torch.zeros_like(delta), student, teacher, terms, 0)
    expected = 0.03 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(delta[free], expected[free], rtol=1e-9, atol=1e-12)


def test_without_any_weight_there_is_nothing_to_climb() -> None:
    student, teacher, terms = setting([{"kind": "n2n", "weight": 0.0}])
    batch = labelled_batch(range(2))
    moved = adversary()(batch, student, teacher, terms, 0)
    assert torch.equal(moved.positions, batch.positions)


def test_a_differentiable_teacher_says_the_same() -> None:
    _, teacher, terms = setting([{"kind": "n2n"}, {"kind": "v2v"}, {"kind": "e2n"}, {"kind": "forces"}, {"kind": "atom_energy"}])
    batch = make_batch([0, 1], (TEACHER_CUTOFF,))
    plain = teacher(batch)
    through = teacher.ask(replace(batch, positions=batch.positions.clone().requires_grad_()), terms.needs, gradient=True)
    for need in terms.needs:
        one, two = plain.get(need), through.get(need)
        assert one is not None
        assert two is not None
        assert not one.requires_grad
        assert two.requires_grad
        torch.testing.assert_close(two.detach(), one, rtol=1e-12, atol=1e-12)
