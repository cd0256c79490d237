"""``fastkd pair``, and pairs that are looked at while a run trains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastkd_kernels import linear_cka

from fastkd.analysis.cka import Layer, Similarity
from fastkd.analysis.runs import Curve
from fastkd.cli import main
from fastkd.config import ModelConfig
from fastkd.config_loading import load_config, validate
from fastkd.distill import build_terms
from fastkd.engine.cka import Comparison
from fastkd.engine.pair_command import block_of, propose, term_of, with_terms
from fastkd.engine.watch import PairWatch
from fastkd.errors import ConfigError
from fastkd.models import build_model, save_model
from fastkd.teachers import Offer, Teacher

from .synthetic import make_batch, make_config, seeded_model

FOREIGN = "module:tests.teachers.foreign:make"
SMALL = ("--batch", "6", "--bootstrap", "50", "--device", "cpu")


@pytest.fixture
def student_file(config_file: Path) -> str:
    """A config: the student as its run would begin."""
    return str(config_file)


def similarity(value: list[list[float]], kind: str = "node", students: int = 3, teachers: tuple[str, ...] = ()) -> Comparison:
    """Made-up CKA between student and teacher; rows are regular_0, regular_1, … of the student."""
    names = (*(Layer("student", f"regular_{k}") for k in range(students)), *(Layer("teacher", name) for name in teachers))
    whole = np.full((len(names), len(names)), np.nan)
    whole[:students, students:] = value
    return Comparison((Similarity(kind, "full", names, whole, whole - 0.05, whole + 0.05, 100, 20),), 20, 100)


NAMES = ("regular_0", "regular_1", "regular_2", "edge_sum")
VALUE = [[0.9, 0.9, 0.9, 0.9], [math.nan, 0.3, 0.8, 0.5], [math.nan, 0.6, 0.55, 0.1]]


def test_the_last_block_gets_what_is_most_like_it():
    comparison = similarity(VALUE, teachers=NAMES)
    n2n, e2n = propose(comparison, [], count=1, rule="last", monotone=True)
    assert (n2n.term, n2n.student, n2n.teacher, n2n.runner_up) == ("n2n", "regular_2", "regular_1", "regular_2")
    assert n2n.cka == pytest.approx((0.6, 0.55, 0.65))
    assert not n2n.clear
    assert (e2n.term, e2n.student, e2n.teacher, e2n.runner_up) == ("e2n", "regular_2", "edge_sum", "")
    assert term_of(n2n, comparison) == {"kind": "n2n", "student_layers": [2], "teacher_layer": "regular_1"}
    assert term_of(e2n, comparison) == {"kind": "e2n", "student_layers": [2]}


def test_any_block_and_order():
    comparison = similarity(VALUE, teachers=NAMES)
    (best,) = propose(comparison, ["n2n"], count=1, rule="alike", monotone=True)
    assert (best.student, best.teacher) == ("regular_1", "regular_2")
    # the teacher's last layer is what a term takes anyway
    assert term_of(best, comparison) == {"kind": "n2n", "student_layers": [1]}
    both = propose(comparison, ["n2n"], count=2, rule="alike", monotone=True)
    assert [(p.student, p.teacher) for p in both] == [("regular_1", "regular_1"), ("regular_2", "regular_2")]
    both = propose(comparison, ["n2n"], count=2, rule="alike", monotone=False)
    assert [(p.student, p.teacher) for p in both] == [("regular_1", "regular_2"), ("regular_2", "regular_1")]


def test_strategies_that_are_not_possible():
    comparison = similarity([row[:3] for row in VALUE], teachers=NAMES[:3])
    assert {p.term for p in propose(comparison, [], count=1, rule="last", monotone=True)} == {"n2n"}
    with pytest.raises(ConfigError, match="no pair for e2n: it needs edge features"):
        propose(comparison, ["e2n"], count=1, rule="last", monotone=True)
    vectors = similarity([row[:3] for row in VALUE], kind="vector", teachers=("regular_1", "regular_2", "edge_vector_sum"))
    # a term takes the teacher's vectors if it has any
    assert all(p.teacher != "edge_vector_sum" for p in propose(vectors, ["v2v"], count=1, rule="alike", monotone=True))
    sums = similarity([[0.9], [0.8], [0.7]], kind="vector", teachers=("edge_vector_sum",))
    assert propose(sums, ["v2v"], count=1, rule="last", monotone=True)[0].teacher == "edge_vector_sum"


def test_names_of_blocks():
    assert [block_of(name) for name in ("regular_0", "regular_12", "final", "x_1", "irregular_1", "regular_x")] == [0, 12, -1, -1, -1, -1]


def test_terms_keep_weights_and_outputs_stay():
    tree = {"distill": {"terms": [{"kind": "energy", "weight": 2.0}, {"kind": "n2n", "weight": 7.0, "loss": "mae", "student_layers": [1]}]}}
    made = with_terms(tree, [{"kind": "n2n", "student_layers": [2]}, {"kind": "v2v", "student_layers": [2]}])
    assert made["distill"]["terms"] == [
        {"kind": "energy", "weight": 2.0},
        {"kind": "n2n", "student_layers": [2], "weight": 7.0, "loss": "mae"},
        {"kind": "v2v", "student_layers": [2], "weight": 1.0},
    ]
    assert made["distill"]["watch_cka"] > 0
    assert tree["distill"]["terms"][1]["student_layers"] == [1]


def test_the_written_config_can_be_trained(student_file, teacher_folder, data_file, tmp_path, capsys):
    out = tmp_path / "pairs.yaml"
    base = tmp_path / "base.yaml"
    tree = yaml.safe_load(Path(student_file).read_text())
    base.write_text(yaml.safe_dump(tree | {"teacher": {"path": str(teacher_folder)}}))
    words = ["pair", student_file, str(teacher_folder), str(data_file), *SMALL, "--out", str(out), "--config", str(base)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "n2n: student regular_2 – teacher regular_" in said
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# fastkd pair ")
    assert "within elements, 24 structures of split train" in text
    made = yaml.safe_load(text)
    assert {term["kind"] for term in made["distill"]["terms"]} == {"n2n", "e2n", "v2v"}
    assert all(term["student_layers"] == [2] for term in made["distill"]["terms"])
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["train", str(out), f"run.dir={tmp_path / 'watched'}", "run.report=true"]) == 0
    curve = Curve.load(tmp_path / "watched")
    assert {"cka_n2n", "cka_e2n", "cka_v2v"} <= set(curve.units)
    assert np.isfinite(curve["cka_n2n"]).all()
    assert "Layers of student and teacher" in (tmp_path / "watched" / "report.html").read_text(encoding="utf-8")


def test_terms_alone_and_a_foreign_teacher(data_file, tmp_path, capsys):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(build_model(ModelConfig(width=8, layers=2, radial=6, cutoff=3.0)), tmp_path / "student")
    out = tmp_path / "pairs.yaml"
    words = ["pair", str(tmp_path / "student"), FOREIGN, str(data_file), *SMALL, "--out", str(out)]
    assert main([*words, "--capture", "all", "--strategy", "n2n", "v2v"]) == 0
    made = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert made["teacher"]["path"] == FOREIGN
    assert {feature["kind"] for feature in made["teacher"]["features"]} == {"node", "vector"}
    assert len(made["teacher"]["features"]) == 2
    validate(made, "pairs.yaml")
    assert main([*words, "--pairs", "2", "--overwrite"]) == 2
    assert "concatenated" in capsys.readouterr().err
    assert main([*words, "--strategy", "e2n", "--overwrite"]) == 2
    assert "no pair for e2n" in capsys.readouterr().err
    assert main([*words, "--pairs", "0", "--overwrite"]) == 2
    assert "--pairs must be at least 1" in capsys.readouterr().err


def watch_of(student, folder: Path) -> tuple[PairWatch, Teacher]:
    teacher = Teacher(seeded_model(12, 99))
    options = "distill.terms=[{kind: n2n, student_layers: [1, 2]}, {kind: v2v}, {kind: forces}]"
    terms = build_terms(make_config(folder, options).distill, Offer.of(student, "student"), teacher.offer)
    return PairWatch(terms, teacher, [make_batch(torch.arange(4)), make_batch(torch.arange(4, 6))]), teacher


def test_watched_pairs_are_those_of_the_terms(tmp_path):
    student = seeded_model(8, 0).train()
    watch, teacher = watch_of(student, tmp_path)
    assert list(watch.units) == ["cka_n2n", "cka_v2v"]
    found = watch.measure(student)
    assert student.training
    batch = make_batch(torch.arange(6))
    ours, theirs = (model(batch, forces=False).features.detach() for model in (student, teacher.potential))
    x, y = torch.cat(ours.layers[1:], -1).double(), theirs.node.double()
    for z in batch.atomic_numbers.unique():
        for features in (x, y):
            features[batch.atomic_numbers == z] -= features[batch.atomic_numbers == z].mean(0)
    assert found["cka_n2n"] == pytest.approx(float(linear_cka(x, y)), rel=1e-3)
    v, w = (features.vector.double().reshape(-1, features.vector.shape[-1]) for features in (ours, theirs))
    expected = (v.T @ w).square().sum() / ((v.T @ v).norm() * (w.T @ w).norm())
    assert found["cka_v2v"] == pytest.approx(float(expected), rel=1e-3)


def test_a_student_that_is_its_teacher_is_alike(tmp_path):
    student = seeded_model(12, 99)
    watch, _ = watch_of(student, tmp_path)
    assert watch.measure(student)["cka_v2v"] == pytest.approx(1.0, abs=1e-6)


def test_watching_changes_no_bit_of_training(config_file, teacher_folder, tmp_path):
    options = [f"teacher.path={teacher_folder}", "distill.terms=[{kind: n2n}]"]
    for name, more in (("without", []), ("with", ["distill.watch_cka=4"])):
        assert main(["train", str(config_file), *options, *more, f"run.dir={tmp_path / name}"]) == 0
    first, second = (Curve.load(tmp_path / name) for name in ("without", "with"))
    assert first["loss_total"].tolist() == second["loss_total"].tolist()
    assert first["val_score"].tolist() == second["val_score"].tolist()
    assert set(second.units) - set(first.units) == {"cka_n2n"}


def test_watching_needs_feature_terms(config_file, teacher_folder, capsys):
    words = ["train", str(config_file), f"teacher.path={teacher_folder}", "distill.watch_cka=4"]
    assert main([*words, "distill.terms=[{kind: forces}]"]) == 2
    assert "terms on features" in capsys.readouterr().err
    assert load_config(config_file, []).distill.watch_cka == 0
