"""e2e: features of the same edges, live and cached, on equal graphs and on edges that are handed over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import Terms, build_terms
from fastkd.distill.edges import on_teachers_edges
from fastkd.errors import ConfigError
from fastkd.models import DimeNetPP, GemNetOC, PaiNN, Potential, SchNet
from fastkd.teachers import CachedTeacher, LiveTeacher, Offer, Teacher
from tests.models.structures import CUTOFF, OPTIONS, batch_of, make_model, random_molecule

from .test_terms import array

MOLECULES = [random_molecule(9, 1), random_molecule(5, 2), random_molecule(7, 3)]
FEW = 3  # neighbours of a teacher that has a limit


def painn(seed: int = 0, **options: object) -> PaiNN:
    return made(PaiNN(replace(OPTIONS["painn"], **options)), seed)


def gemnet(seed: int = 0, **options: object) -> GemNetOC:
    return made(GemNetOC(replace(OPTIONS["gemnet_oc_direct"], **options)), seed)


def made(model: Potential, seed: int) -> Potential:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def terms_of(student: Potential, teacher: Teacher, **options: object) -> Terms:
    config = DistillConfig(terms=[TermConfig(kind="e2e", **options)])
    terms = build_terms(config, Offer.of(student, "student"), teacher.offer).double()
    student.kept_layers = terms.student_keeps
    return terms


def numbered(batch):
    """With a number in the data set for each structure."""
    return replace(batch, structure_index=torch.arange(batch.num_graphs))


PAIRS = {
    "painn painn": (painn, lambda: painn(1, width=5), {}),
    "painn painn layers": (painn, lambda: painn(1, width=5), {"student_layers": [1, 2], "teacher_layer": "regular_1"}),
    "gemnet gemnet": (lambda: gemnet(width=5, edge_width=4), lambda: gemnet(1), {}),
    "gemnet gemnet limit": (
        lambda: gemnet(width=5, edge_width=4, neighbors=FEW),
        lambda: gemnet(1, neighbors=FEW),
        {"teacher_layer": "x_1"},
    ),
    "gemnet student layer": (lambda: gemnet(width=5, edge_width=4), lambda: gemnet(1), {"student_layers": [1]}),
    "painn gemnet": (painn, lambda: gemnet(1, neighbors=0), {}),
    "dimenet painn": (lambda: made(DimeNetPP(OPTIONS["dimenet_pp"]), 0), lambda: painn(1), {}),
    "painn gemnet handed": (painn, lambda: gemnet(1, neighbors=FEW), {"edges": "teacher"}),
    "painn painn handed": (lambda: painn(cutoff=3.5), lambda: painn(1), {"edges": "teacher"}),
}


@pytest.mark.parametrize("loss", ["mse", "mae"])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_formula_live_and_cached(pair, loss):
    make_student, make_teacher, options = PAIRS[pair]
    student, teacher = make_student(), Teacher(make_teacher())
    batch = numbered(batch_of(*MOLECULES))
    if student.cutoff != CUTOFF:
        batch = replace(batch, graphs={**batch.graphs, student.cutoff: batch.graphs[CUTOFF]})
    terms = terms_of(student, teacher, loss=loss, **options)
    live = LiveTeacher(teacher, terms.needs)(batch)
    seen = terms.student_batch(batch, live)
    out = student(seen)
    weight, bias = (array(parameter) for parameter in terms.parameters())
    layers = [f"regular_{layer}" for layer in options.get("student_layers", [])] or ["final"]
    feature = np.concatenate([array(out.features.at("edge", layer)) for layer in layers], 1)
    residual = feature @ weight.T + bias - array(live.get(next(iter(terms.needs))))
    expected = np.mean(residual**2 if loss == "mse" else np.abs(residual))
    value = terms(out, live, batch)["e2e"].raw
    assert value.item() == pytest.approx(expected, rel=1e-11)
    assert sum(g.abs().sum() for g in torch.autograd.grad(value, list(student.parameters()), allow_unused=True) if g is not None) > 0
    cache = CachedTeacher.build(teacher, terms.needs, [batch], dataset_hash="data")
    cached = cache(batch)
    again = student(terms.student_batch(batch, cached))
    assert torch.equal(terms(again, cached, batch)["e2e"].raw, value)


def test_a_cache_gives_each_structure_its_own_edges():
    teacher = Teacher(gemnet(1, neighbors=FEW))
    terms = terms_of(painn(), teacher, edges="teacher")
    whole = numbered(batch_of(*MOLECULES))
    cache = CachedTeacher.build(teacher, terms.needs, [whole], dataset_hash="data")
    order = [2, 0]
    part = replace(batch_of(*(MOLECULES[k] for k in order)), structure_index=torch.tensor(order))
    cached, live = cache(part), LiveTeacher(teacher, terms.needs)(part)
    assert torch.equal(cached.graph.edge_src, live.graph.edge_src)
    assert torch.equal(cached.graph.edge_dst, live.graph.edge_dst)
    assert torch.equal(cached.edge_shift, live.edge_shift)
    torch.testing.assert_close(cached.edge, live.edge, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(cached.edge_direction, live.edge_direction, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cache.to("cpu")(part).edge, cached.edge, rtol=0, atol=0)


def test_messages_too_go_along_edges_that_are_handed_over():
    """The handed graph decides what the student hears; and vectors are positions' differences along it."""
    student, teacher = painn(), Teacher(gemnet(1, neighbors=1))
    terms = terms_of(student, teacher, edges="teacher")
    batch = numbered(batch_of(*MOLECULES))
    live = LiveTeacher(teacher, terms.needs)(batch)
    seen = terms.student_batch(batch, live)
    graph = seen.graph(CUTOFF)
    assert graph.num_edges == live.graph.num_edges < batch.graph(CUTOFF).num_edges
    own = torch.nn.functional.normalize(seen.edge_vectors(graph), dim=1)
    torch.testing.assert_close(own, live.edge_direction, rtol=1e-10, atol=1e-12)
    assert (student(seen).energy - student(batch).energy).abs().max() > 1e-3
    # nothing of it stays: the batch and the student at inference are what they were
    assert batch.graph(CUTOFF).num_edges > graph.num_edges
    assert torch.equal(painn()(batch).energy, student(batch).energy)


def test_a_limit_of_the_student_does_not_cut_edges_that_are_handed_over():
    teacher, batch = Teacher(gemnet(1, neighbors=FEW)), numbered(batch_of(*MOLECULES))
    seen = on_teachers_edges(batch, LiveTeacher(teacher, frozenset({"edge"}))(batch), CUTOFF)
    free, limited = painn(), painn(max_neighbors=1, mirrored=True)
    assert torch.equal(limited(seen).energy, free(seen).energy)
    assert torch.equal(limited(seen.to("cpu")).energy, free(seen).energy)
    assert (limited(batch).energy - free(batch).energy).abs().max() > 1e-3


def test_forces_on_handed_edges_are_the_gradient():
    student, teacher = painn().eval(), Teacher(gemnet(1, neighbors=FEW))
    batch = numbered(batch_of(MOLECULES[0]))
    live = LiveTeacher(teacher, frozenset({"edge"}))(batch)
    forces = student(on_teachers_edges(batch, live, CUTOFF)).forces
    step = torch.zeros_like(batch.positions)
    step[3, 1] = 1e-5

    def energy(sign: int) -> float:
        return student(on_teachers_edges(replace(batch, positions=batch.positions + sign * step), live, CUTOFF), forces=False).energy.item()

    assert -(energy(1) - energy(-1)) / 2e-5 == pytest.approx(forces[3, 1].item(), rel=1e-5, abs=1e-8)


def test_e2e_does_not_change_under_rotation_and_a_twin_gives_zero():
    student, teacher = painn(), Teacher(painn(1))
    batch = batch_of(*MOLECULES)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    turned = batch_of(*((z, x @ turn.T) for z, x in MOLECULES))
    terms = terms_of(student, teacher)
    values = [terms(student(each), LiveTeacher(teacher, terms.needs)(each), each)["e2e"].raw.item() for each in (batch, turned)]
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    twin = Teacher(painn())
    same = terms_of(student, twin, projection="identity")
    assert same(student(batch), LiveTeacher(twin, same.needs)(batch), batch)["e2e"].raw.item() < 1e-24


@pytest.mark.parametrize(
    ("student", "teacher", "options", "words"),
    [
        (painn, lambda: painn(cutoff=2.5), {}, ["within 3 Å", "within 2.5 Å", "edges=teacher"]),
        (lambda: gemnet(neighbors=0), lambda: gemnet(neighbors=FEW), {}, ["the 3 nearest", "use e2n"]),
        (gemnet, painn, {"edges": "teacher"}, ["computes on any edges", "GemNetOC"]),
        (lambda: painn(cutoff=2.0), painn, {"edges": "teacher"}, ["sees as far", "2.0 Å"]),
        (lambda: made(SchNet(OPTIONS["schnet"]), 0), painn, {}, ["edge features of the student", "painn, gemnet_oc"]),
        (painn, lambda: made(SchNet(OPTIONS["schnet"]), 0), {}, ["edge features of the teacher", "n2n"]),
        (lambda: made(make_model("mxmnet"), 0), painn, {"student_layers": [1]}, ["no edge features after single blocks"]),
    ],
)
def test_different_edges_are_refused(student, teacher, options, words):
    with pytest.raises(ConfigError) as caught:
        terms_of(student(), Teacher(teacher()), **options)
    for word in words:
        assert word in str(caught.value)


def test_edges_that_differ_after_all_are_noticed():
    student, teacher = painn(), Teacher(painn(1))
    terms = terms_of(student, teacher)
    batch, other = batch_of(MOLECULES[0]), batch_of((MOLECULES[0][0], 2.0 * MOLECULES[0][1]))
    with pytest.raises(ConfigError, match="different edges"):
        terms(student(batch), LiveTeacher(teacher, terms.needs)(other), batch)


def test_terms_of_one_run_agree_on_the_graph():
    config = DistillConfig(terms=[TermConfig(kind="e2e"), TermConfig(kind="e2e", edges="teacher")])
    offer = Offer.of(painn(), "model")
    with pytest.raises(ConfigError, match="same edges"):
        build_terms(config, offer, offer)
