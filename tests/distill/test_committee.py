"""Several teachers: means, spreads and masks against loops, and which of them a term listens to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fastkd.config import DistillConfig, TermConfig
from fastkd.config_checks import check_sense
from fastkd.config_loading import validate
from fastkd.distill import Terms, build_terms
from fastkd.errors import ConfigError
from fastkd.teachers import CachedTeacher, Committee, Council, LiveTeacher, Offer, Teacher, TeacherOutput
from fastkd.teachers.committee import live_sources
from tests.models.structures import batch_of, make_model, random_molecule

from .common import normal, prediction

BATCH = batch_of(*(random_molecule(atoms, 10 + atoms) for atoms in (5, 1, 3)))
ATOMS, GRAPHS = BATCH.num_atoms, BATCH.num_graphs
STUDENT = Offer("student", {"node": 5, "vector": 5, "atom_energy": 1}, blocks=2)


@pytest.fixture(scope="module")
def committee() -> Committee:
    return Committee({name: Teacher(make_model("painn", seed=seed), f"runs/{name}") for seed, name in enumerate("abc")})


def terms_of(committee: Committee, *items: dict) -> Terms:
    members = {name: member.offer for name, member in committee.members.items()}
    config = DistillConfig(terms=[TermConfig(**item) for item in items])
    return build_terms(config, STUDENT, committee.offer, teachers=members).double()


def made_up(values: list[TeacherOutput]) -> dict[str, TeacherOutput]:
    return dict(zip("abc", values, strict=False))


def forces_said(number: int) -> TeacherOutput:
    return TeacherOutput(forces=normal(ATOMS, 3, seed=20 + number), energy=normal(GRAPHS, seed=30 + number))


def test_a_mean_of_forces_and_where_they_agree_against_loops(committee):
    said, out = made_up([forces_said(number) for number in range(3)]), prediction(BATCH, 5)
    fixed = torch.zeros(ATOMS, dtype=torch.bool)
    fixed[2] = True
    batch = replace(BATCH, fixed=fixed)
    limit = 1.4
    terms = terms_of(committee, {"kind": "forces"}, {"kind": "forces", "agree": limit}, {"kind": "forces", "agree": limit, "teacher": "b"})
    found = terms(out, said, batch)
    totals, counts, agreed = [0.0, 0.0, 0.0], [0, 0, 0], 0
    for atom in range(ATOMS):
        each = [said[name].forces[atom].tolist() for name in "abc"]
        mean = [sum(force[axis] for force in each) / 3 for axis in range(3)]
        spread = math.sqrt(sum(sum((force[axis] - mean[axis]) ** 2 for axis in range(3)) for force in each) / 3)
        agree = spread <= limit
        agreed += agree
        own = out.forces[atom].tolist()
        for number, (target, counted) in enumerate([(mean, True), (mean, agree), (each[1], agree)]):
            if counted and not fixed[atom]:
                totals[number] += math.dist(own, target)
                counts[number] += 1
    assert 0 < agreed < ATOMS
    for name, total, count in zip(found, totals, counts, strict=True):
        assert found[name].raw.item() == pytest.approx(total / count, rel=1e-12)
    assert found["forces"].share is None
    assert found["forces_2"].share.item() == found["forces_3"].share.item() == pytest.approx(agreed / ATOMS)


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_energies_on_which_teachers_agree_against_loops(committee, loss):
    said, out = made_up([forces_said(number) for number in range(3)]), prediction(BATCH, 5)
    values = [[said[name].energy[graph].item() for name in "abc"] for graph in range(GRAPHS)]
    means = [sum(each) / 3 for each in values]
    spreads = [math.sqrt(sum((value - mean) ** 2 for value in each) / 3) for each, mean in zip(values, means, strict=True)]
    limit = sorted(spreads)[1]
    (found,) = terms_of(committee, {"kind": "energy", "agree": limit, "loss": loss})(out, said, BATCH).values()
    errors = [out.energy[g].item() - means[g] for g in range(GRAPHS) if spreads[g] <= limit]
    rho = {"mae": abs, "mse": lambda x: x * x, "huber": lambda x: x * x / 2 if abs(x) <= 1 else abs(x) - 0.5}[loss]
    assert len(errors) == 2
    assert found.raw.item() == pytest.approx(sum(map(rho, errors)) / 2, rel=1e-12)
    assert found.share.item() == pytest.approx(2 / 3)


def test_where_nobody_agrees_there_is_no_loss(committee):
    said, out = made_up([forces_said(number) for number in range(3)]), prediction(BATCH, 5)
    kinds = [{"kind": kind, "agree": 1e-9} for kind in ("energy", "forces")]
    for value in terms_of(committee, *kinds)(out, said, BATCH).values():
        assert value.raw.item() == value.share.item() == 0
        value.raw.backward(retain_graph=True)
    assert not out.forces.grad.any()


def test_other_reference_energies_are_no_disagreement(committee):
    offers = {name: member.offer for name, member in committee.members.items()}
    total = normal(ATOMS, seed=1)
    said = {name: TeacherOutput(atom_energy=total - offer.reference_energy[BATCH.atomic_numbers]) for name, offer in offers.items()}
    out = prediction(BATCH, 5)
    (found,) = terms_of(committee, {"kind": "atom_energy", "agree": 1e-6})(out, said, BATCH).values()
    assert found.share.item() == 1
    # the student has no reference energies: what is compared is its atoms with the teachers' without theirs
    mean = torch.stack([output.atom_energy for output in said.values()]).mean(0)
    assert found.raw.item() == pytest.approx((out.atom_energy - mean).abs().mean().item(), rel=1e-9)


def test_rows_of_hessians_on_which_teachers_agree(committee):
    terms = terms_of(committee, {"kind": "hessian", "rows": 4, "agree": 1.0}, {"kind": "hessian", "rows": 4, "teacher": "c"})
    batch = terms.teacher_batch(BATCH, 3)
    source = Council({name: LiveTeacher(member, terms.needs_of(name)) for name, member in committee.members.items()})
    said = source(batch)
    seen = terms.student_batch(batch, said)
    student = make_model("schnet", seed=5)
    found = terms(student(seen), said, seen)
    (need,) = terms.needs
    rows = {name: output.get(need) for name, output in said.items()}
    torch.testing.assert_close(torch.stack(list(rows.values())).mean(0), committee.hessian_rows(batch, "exact"))
    positions = BATCH.positions.clone().requires_grad_()
    forces = student(replace(BATCH, positions=positions), create_graph=True).forces
    per_atom, alone, agreed, there = [], [], 0, 0
    for atom, graph in enumerate(BATCH.graph_index.tolist()):
        here, one = [], []
        for r, row in enumerate(batch.hessian_rows[:, graph].tolist()):
            if row < 0:
                continue
            (g,) = torch.autograd.grad(forces.flatten()[row], positions, retain_graph=True) if forces.requires_grad else (0 * positions,)
            each = torch.stack([value[r, atom] for value in rows.values()])
            there += 1
            spread = (each - each.mean(0)).square().sum(1).mean().sqrt()
            one.append((-g[atom] - each[2]).norm().item())
            if spread <= 1.0:
                agreed += 1
                here.append((-g[atom] - each.mean(0)).norm().item())
        if here:
            per_atom.append(sum(here) / len(here))
        alone.append(sum(one) / len(one))
    assert 0 < agreed < there
    assert found["hessian"].raw.item() == pytest.approx(sum(per_atom) / len(per_atom), rel=1e-9)
    assert found["hessian"].share.item() == pytest.approx(agreed / there)
    assert found["hessian_2"].raw.item() == pytest.approx(sum(alone) / len(alone), rel=1e-9)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_term_that_looks_at_fewer_rows_agrees_on_these(committee, rows):
    """Beside a term of more rows, a term is what it is alone."""
    student = make_model("schnet", seed=5)
    small = {"kind": "hessian", "rows": rows, "agree": 1.0}
    found = []
    for items in ([small], [small, {"kind": "hessian", "rows": 6, "agree": 1.0}]):
        terms = terms_of(committee, *items)
        batch = terms.teacher_batch(BATCH, 3)
        said = Council({name: LiveTeacher(member, terms.needs_of(name)) for name, member in committee.members.items()})(batch)
        seen = terms.student_batch(batch, said)
        found.append(terms(student(seen), said, seen))
    alone, beside = (values["hessian"] for values in found)
    assert 0 < alone.share.item() < 1
    assert torch.equal(beside.share, alone.share)
    torch.testing.assert_close(beside.raw, alone.raw, rtol=1e-12, atol=0)
    assert found[1]["hessian_2"].share.item() != alone.share.item()


def test_each_teacher_is_asked_for_what_terms_want_of_it(committee):
    terms = terms_of(committee, {"kind": "n2n", "teacher": "b"}, {"kind": "energy", "teacher": "a"})
    assert [sorted(terms.needs_of(name)) for name in "abc"] == [["energy"], ["node"], []]
    terms = terms_of(committee, {"kind": "forces", "teacher": "b", "agree": 0.1}, {"kind": "energy"})
    assert [sorted(terms.needs_of(name)) for name in "abc"] == 3 * [["energy", "forces"]]


def test_a_cache_for_each_is_the_same_as_live(committee):
    terms = terms_of(committee, {"kind": "n2n", "teacher": "b"}, {"kind": "forces", "agree": 0.5}, {"kind": "hessian", "rows": 2})
    batch = terms.teacher_batch(BATCH, 1)
    live = {name: LiveTeacher(member, terms.needs_of(name)) for name, member in committee.members.items()}
    kept = {name: CachedTeacher.build(m, terms.needs_of(name), [BATCH], dataset_hash="d") for name, m in committee.members.items()}
    one, other = Council(live), Council(kept)
    assert list(live_sources(one)) == ["a", "b", "c"]
    assert not live_sources(other)
    for name in "abc":
        for need in terms.needs_of(name):
            torch.testing.assert_close(one(batch)[name].get(need), other(batch)[name].get(need), rtol=1e-10, atol=1e-10)
        assert live[name].cost.batches > 0


def test_the_mean_of_a_committee_is_a_teacher(committee):
    needs = frozenset({"energy", "forces", "atom_energy"})
    mean = committee(BATCH, needs)
    for need in needs:
        each = [member(BATCH, needs).get(need) for member in committee.members.values()]
        torch.testing.assert_close(mean.get(need), sum(each) / 3)
    references = [member.reference_energy for member in committee.members.values()]
    torch.testing.assert_close(committee.reference_energy, sum(references) / 3)
    assert committee.cutoffs == (3.0,)
    assert committee.complete
    assert committee.num_parameters == 3 * committee.members["a"].num_parameters
    assert committee.hash != Committee({name: committee.members[name] for name in "bac"}).hash
    with pytest.raises(ValueError, match="no mean of node"):
        committee(BATCH, frozenset({"node"}))
    with pytest.raises(ConfigError, match="at least two"):
        Committee({"a": committee.members["a"]})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"kind": "n2n"}, "have no mean; add teacher: NAME, one of a, b, c"),
        ({"kind": "energy", "teacher": "d"}, "no teacher 'd', only a, b, c"),
        ({"kind": "n2n", "teacher": "a", "agree": 0.1}, "agree belongs to"),
        ({"kind": "lkm", "teacher": "a"}, "teacher belongs to"),
    ],
)
def test_mistakes_in_terms(committee, item, message):
    with pytest.raises(ConfigError, match=message):
        terms_of(committee, item)


@pytest.mark.parametrize("key", [{"teacher": "a"}, {"agree": 0.1}])
def test_one_teacher_has_no_name_and_no_spread(committee, key):
    with pytest.raises(ConfigError, match="is for several teachers"):
        build_terms(DistillConfig(terms=[TermConfig(kind="energy", **key)]), STUDENT, committee.members["a"].offer)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"teacher": {"path": "x"}, "teachers": [{"name": "a", "path": "y"}]}, "both set"),
        ({"teachers": [{"name": "a", "path": "y"}]}, "one teacher only"),
        ({"teachers": [{"name": "a", "path": "y"}, {"name": "a", "path": "z"}]}, "given twice"),
        ({"teachers": [{"name": "a"}, {"name": "b", "path": "z"}]}, "needs a path"),
        ({"teacher": {"members": ["x"]}}, "which is not set"),
    ],
)
def test_mistakes_in_configs(tree, message):
    with pytest.raises(ConfigError, match=message):
        check_sense(validate(tree))


def test_names_of_teachers():
    named = validate({"teacher": {"path": "x", "members": ["y", "z"], "cache": "none"}}).named_teachers
    assert {name: (item.path, item.members, item.cache) for name, item in named.items()} == {
        "member_1": ("x", [], "none"),
        "member_2": ("y", [], "none"),
        "member_3": ("z", [], "none"),
    }
    assert list(validate({"teacher": {"path": "x"}}).named_teachers) == [""]
    assert validate({}).named_teachers == {}
    several = validate({"teachers": [{"name": "b", "path": "x", "dtype": "float64"}, {"name": "a", "path": "y"}]}).named_teachers
    assert [(name, item.path, item.dtype) for name, item in several.items()] == [("b", "x", "float64"), ("a", "y", "auto")]
