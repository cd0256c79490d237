"""Every strategy trains every pair of the papers: small copies of their models, twenty optimiser steps, and the term's loss has gone down."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from fastkd.config import AugmentConfig, DistillConfig, LossConfig, TermConfig, TrainConfig
from fastkd.distill import build_terms
from fastkd.distill.augment import build_perturbation
from fastkd.engine.ema import Average
from fastkd.engine.step import Trainee, make_optimizer, train_step, trainable
from fastkd.models import Potential
from fastkd.models.factory import ARCHITECTURES
from fastkd.teachers import BaseTeacher, Committee, Council, LiveTeacher, Offer, Teacher
from fastkd.teachers.committee import spread_of
from tests.models.structures import GEMNET, OPTIONS, batch_of, make_model, random_molecule

STEPS = 20
MOLECULES = [random_molecule(8, 1), random_molecule(5, 2)]
_PAINN = replace(OPTIONS["painn"], forces="direct")
MODELS = {
    "GemNet-OC": replace(GEMNET, layers=2),
    "GemNet-OC-small": replace(GEMNET, layers=1, width=4, edge_width=5),
    "PaiNN": replace(_PAINN, width=8),
    "PaiNN-small": replace(_PAINN, width=5),
    "SchNet": OPTIONS["schnet"],
}
OUTPUTS = {
    "vanilla": [{"kind": "energy", "weight": 1}, {"kind": "forces", "weight": 100}],
    "atom_energy": [{"kind": "atom_energy"}],
}
NODES = {
    "n2n": [{"kind": "n2n"}],
    "n2n layer": [{"kind": "n2n", "teacher_layer": "regular_1", "student_layers": [1]}],
    "n2n cka": [{"kind": "n2n", "loss": "cka"}],
    "n2n lsp": [{"kind": "n2n", "loss": "lsp"}],
    "n2n gsp": [{"kind": "n2n", "loss": "gsp"}],
    "e2n": [{"kind": "e2n"}],
    "e2n mean": [{"kind": "e2n", "reduce": "mean"}],
}
#: what does not depend on the pair
ABLATIONS = {
    "n2n mae": [{"kind": "n2n", "loss": "mae"}],
    "n2n huber": [{"kind": "n2n", "loss": "huber"}],
    "n2n mlp": [{"kind": "n2n", "projection": "mlp"}],
}
VECTORS = {
    "v2v": [{"kind": "v2v"}],
    "v2v gsp": [{"kind": "v2v", "loss": "gsp"}],
    "v2v geometric": [{"kind": "v2v_geometric"}],
    "joint": [{"kind": "n2n", "weight": 100}, {"kind": "e2n", "weight": 5}, {"kind": "v2v"}],
}
EDGES = {"e2e": [{"kind": "e2e"}]}
HANDED = {"e2e handed": [{"kind": "e2e", "edges": "teacher"}]}
X_LAYER = {"n2n x": [{"kind": "n2n", "teacher_layer": "x_1"}]}
#: teacher and student of spec 1.3 → strategies that they allow
PAIRS = {
    ("GemNet-OC", "PaiNN"): OUTPUTS | NODES | VECTORS | HANDED | X_LAYER,
    ("PaiNN", "PaiNN-small"): OUTPUTS | NODES | VECTORS | EDGES,
    ("PaiNN", "SchNet"): OUTPUTS | NODES | ABLATIONS,
    ("GemNet-OC", "SchNet"): OUTPUTS | NODES | X_LAYER,
    ("GemNet-OC", "GemNet-OC-small"): OUTPUTS | NODES | EDGES,
}
CASES = [(pair, name) for pair, strategies in PAIRS.items() for name in strategies]


def model_of(options: object, seed: int) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return next(make for make, kind in ARCHITECTURES.values() if type(options) is kind)(options)


@cache
def molecules():
    return batch_of(*MOLECULES, dtype=torch.float32)


@cache
def teacher_of(name: str) -> Teacher:
    return Teacher(model_of(MODELS[name], 5))


def trained(
    student: Potential, items: list[dict[str, object]], teacher: BaseTeacher | None, moved: dict[str, object] | None = None
) -> list[dict[str, float]]:
    """Raw losses of every step; the student sees no labels. Rows of Hessians and displacements are those of step 0 throughout."""
    config = DistillConfig(terms=[TermConfig(**item) for item in items])
    members = teacher.members if isinstance(teacher, Committee) else {}
    offers = {name: member.offer for name, member in members.items()}
    terms = build_terms(config, Offer.of(student, "student"), None if teacher is None else teacher.offer, seed=1, teachers=offers)
    terms.attach(student)
    student.kept_layers = terms.student_keeps
    source = perturbation = None
    if teacher is not None:
        live = LiveTeacher(teacher, terms.needs)
        if members:
            live = Council({name: LiveTeacher(member, terms.needs_of(name)) for name, member in members.items()})
        if moved is not None:
            perturbation = build_perturbation(AugmentConfig(**moved), 0, {student.cutoff, *teacher.cutoffs})
        said = None if moved else live(terms.teacher_batch(molecules(), 0))
        # the structures are always the same, unless they are moved
        source = live if moved else lambda batch: said
    parameters = trainable(student, terms)
    optimizer = make_optimizer(parameters, TrainConfig(learning_rate=1e-2))
    average, loss = Average(parameters, 0.9), LossConfig(energy_weight=0, forces_weight=0)
    trainee = Trainee(student, terms, source, optimizer, average, loss, 10.0, perturbation=perturbation)
    student.train()
    results = [train_step(trainee, molecules(), 1e-2, 0) for _ in range(STEPS)]
    return [{name: float(value) for name, value in result.losses.items()} for result in results]


@pytest.mark.parametrize(("pair", "strategy"), CASES, ids=[f"{' '.join(pair)}: {name}" for pair, name in CASES])
def test_every_strategy_trains_every_pair(pair, strategy):
    teacher, student = teacher_of(pair[0]), model_of(MODELS[pair[1]], 6)
    names = list(student.state_dict())
    losses = trained(student, PAIRS[pair][strategy], teacher)
    first, last = losses[0]["total"], losses[-1]["total"]
    assert 0 < last < 0.97 * first
    assert all(value < float("inf") for step in losses for value in step.values())
    assert list(student.state_dict()) == names


#: what steps do besides → terms, and how atoms are moved
BESIDES = {
    "hessian": ([{"kind": "hessian", "rows": 2}], None),
    "hessian differences": ([{"kind": "hessian", "rows": 2, "student_rows": "difference", "teacher_rows": "difference"}], None),
    "rattled": ([{"kind": "n2n"}, {"kind": "forces", "weight": 10}], {"kind": "rattle", "sigma": 0.05}),
    "adversarial": ([{"kind": "n2n"}, {"kind": "forces", "weight": 10}], {"kind": "adversarial", "sigma": 0.02, "ascent_length": 0.03}),
    "consensus": ([{"kind": "energy", "agree": 1.0}, {"kind": "forces", "agree": 1.0}, {"kind": "n2n", "teacher": "a"}], None),
}
#: Derivatives of GemNet-OC beyond those that training takes: the same code runs for PaiNN and SchNet in seconds instead of a minute.
_LONG = {
    ("GemNet-OC", "PaiNN"): ("hessian differences", "adversarial"),
    ("GemNet-OC", "SchNet"): ("hessian", "hessian differences", "adversarial"),
    ("GemNet-OC", "GemNet-OC-small"): ("hessian", "hessian differences", "adversarial"),
}


@cache
def committee_of(name: str) -> Committee:
    """Two teachers of one kind; they agree on some atoms only."""
    return Committee({"a": teacher_of(name), "b": Teacher(model_of(MODELS[name], 8))})


@pytest.mark.parametrize(
    ("pair", "how"),
    [
        pytest.param(pair, how, id=f"{' '.join(pair)}: {how}", marks=[pytest.mark.slow] if how in _LONG.get(pair, ()) else [])
        for pair in PAIRS
        for how in BESIDES
    ],
)
def test_whatever_a_step_does_besides_trains_every_pair(pair, how):
    items, moved = BESIDES[how]
    teacher, student = committee_of(pair[0]) if how == "consensus" else teacher_of(pair[0]), model_of(MODELS[pair[1]], 6)
    if how == "consensus":
        said = [member(molecules(), frozenset({"forces", "energy"})) for member in teacher.members.values()]
        spread = {name: spread_of([output.get(name) for output in said], vectors=name == "forces") for name in ("energy", "forces")}
        # the larger half of the disagreements does not count; of two energies one may not
        items = [item | ({"agree": float(spread[item["kind"]].median()) * (1 + 1e-9)} if "agree" in item else {}) for item in items]
    names = list(student.state_dict())
    losses = trained(student, items, teacher, moved)
    first, last = losses[0]["total"], losses[-1]["total"]
    assert 0 < last < 0.97 * first
    assert all(value < float("inf") for step in losses for value in step.values())
    assert list(student.state_dict()) == names
    if how == "consensus":
        assert 0 < losses[0]["kd_forces_agreed"] < 1


@pytest.mark.parametrize("loss", ["mae", pytest.param("mse", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["painn", "schnet", "gemnet_oc", "dimenet_pp", "mxmnet", "pamnet"])
def test_mixing_brings_layers_together_in_every_architecture(name, loss):
    student = make_model(name, dtype=torch.float32)
    for embeddings in student.mixing:
        losses = trained(student, [{"kind": "lkm", "loss": loss, "embeddings": embeddings}], None)
        assert 0 < losses[-1]["kd_lkm"] < 0.97 * losses[0]["kd_lkm"], embeddings
