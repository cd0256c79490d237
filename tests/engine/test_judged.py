"""What runs are judged by and weighed against, which layers count as distilled, and options that would do nothing."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fastkd.analysis.metrics import Metrics
from fastkd.analysis.runs import Curve
from fastkd.cli import main
from fastkd.config import Config, LossConfig
from fastkd.config_loading import load_config, validate
from fastkd.data.reader import DataFile
from fastkd.data.writer import DataWriter
from fastkd.engine import run as module
from fastkd.engine.cka_command import Models, distilled_pairs
from fastkd.engine.loop import train, validation_errors
from fastkd.engine.setup import Workbench, prepare
from fastkd.errors import ConfigError
from fastkd.teachers import Teacher
from fastkd.teachers.layers import LayerReader

from .synthetic import make_job, seeded_model
from .test_pair_command import SMALL, similarity
from .test_run import start

SILENT = Console(file=io.StringIO())
NO_LABELS = ("loss.energy_weight=0", "loss.forces_weight=0")
RATIO = "distill.terms=[{kind: forces, weight_rule: gradient_ratio}]"
ERRORS = Metrics(5.0, 1.0, 1.5, 0.25, 0.5, 0.9, 0.0)


@pytest.mark.parametrize("per_atom", [False, True])
def test_labels_without_weight_judge_as_by_default(per_atom: bool) -> None:
    unweighted = LossConfig(energy_weight=0, forces_weight=0, per_atom_energy=per_atom)
    energy = 1.0 if per_atom else 5.0
    assert validation_errors(ERRORS, unweighted) == validation_errors(ERRORS, LossConfig(per_atom_energy=per_atom))
    assert validation_errors(ERRORS, unweighted).score == energy + 100 * 0.25
    # structures may have no forces
    assert validation_errors(replace(ERRORS, forces_mae=math.nan), unweighted).score == energy
    # one weight is a choice
    assert validation_errors(ERRORS, LossConfig(energy_weight=0, forces_weight=2)).score == 0.5


def test_the_best_step_of_terms_alone_is_chosen(tmp_path: Path) -> None:
    job = make_job(tmp_path, "distill.terms=[{kind: energy}, {kind: forces}]", *NO_LABELS, "train.steps=6")
    train(job, SILENT)
    scores = Curve.load(tmp_path)["val_score"].tolist()
    assert len(set(scores)) == len(scores) > 1
    assert job.progress.best == min(scores) > 0


def test_a_ratio_needs_labels_with_weight(config_file: Path, teacher_folder: Path) -> None:
    options = [f"teacher.path={teacher_folder}", RATIO]
    with pytest.raises(ConfigError, match=r"weight_rule=gradient_ratio .* set loss\.energy_weight or loss\.forces_weight"):
        load_config(config_file, [*options, *NO_LABELS])
    for one in NO_LABELS:
        load_config(config_file, [*options, one])


def test_a_ratio_needs_structures_with_labels(config_file: Path, data_file: Path, teacher_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.h5"
    with DataFile(data_file) as source, DataWriter(path, level_of_theory="harmonic pairs") as writer:
        for one in source.read(list(range(len(source)))):
            writer.append(replace(one, energy=math.nan, forces=None) if one.split == "train" else one)

    def ready(*terms: str) -> None:
        data = [f"data.path={path}", "data.labelled=0", "data.allow_missing_labels=true", "data.unlabelled=8"]
        options = [*data, f"teacher.path={teacher_folder}", *terms]
        prepare(load_config(config_file, options), "test", Workbench(say=lambda _: None), resume=False)

    with pytest.raises(ConfigError, match=r"weight_rule=gradient_ratio of forces .* no training structure has any"):
        ready(RATIO, "distill.gradient_every=2")
    ready("distill.terms=[{kind: forces}]")


def test_where_the_mean_of_teachers_is_measured_all_are(
    config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = ", ".join(f"{{name: {name}, path: '{teacher_folders[name]}'}}" for name in ("big", "small"))
    arms = "[{name: alone, set: {distill.terms: []}}, {name: kd}]"
    options = [f"teachers=[{teachers}]", "distill.terms=[{kind: forces}]", f"compare.arms={arms}", "train.steps=2", "train.warmup=1"]

    class Killed(BaseException):
        pass

    asked: list[str] = []

    def dying(*arguments: Any) -> None:
        asked.append(arguments[4])
        if len(asked) == 2:
            raise Killed
        real(*arguments)

    real = module.measure_teacher
    monkeypatch.setattr(module, "measure_teacher", dying)
    with pytest.raises(Killed):
        start(config_file, *options)
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "run").glob("teacher*")} == {"teacher_big"}
    said = start(config_file, *options, "run.resume=true")
    assert {path.name for path in (tmp_path / "run").glob("teacher*")} == {"teacher", "teacher_big", "teacher_small"}
    assert all(title in said for title in ("mean of teachers", "teacher big", "teacher small"))


def pairs_of(*terms: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Distilled pairs of a student with two blocks and a PaiNN teacher, from a made-up comparison."""
    config = validate({"teacher": {"path": "embedded"}, "distill": {"terms": list(terms)}})
    value = [[0.5, 0.5, 0.5]] * 3
    node = similarity(value, teachers=("regular_1", "regular_2", "edge_sum"))
    vector = similarity(value, kind="vector", teachers=("regular_1", "regular_2", "edge_vector_sum"))
    readers = {"teacher": LayerReader(Teacher(seeded_model(12, 99)))}
    found = distilled_pairs(Models(readers, config), replace(node, similarities=(*node.similarities, *vector.similarities)))
    return [(pair.kind, pair.term, pair.student, pair.teacher) for pair in found]


def test_vectors_are_distilled_by_their_geometry_too() -> None:
    assert pairs_of({"kind": "v2v_geometric"}) == [("vector", "v2v_geometric", "regular_2", "regular_2")]
    assert pairs_of({"kind": "v2v_geometric", "student_layers": [1], "teacher_layer": "regular_1"}) == [
        ("vector", "v2v_geometric", "regular_1", "regular_1")
    ]


def test_the_sum_over_edges_is_that_of_the_last_layer() -> None:
    assert pairs_of({"kind": "e2n"}) == [("node", "e2n", "regular_2", "edge_sum")]
    assert pairs_of({"kind": "e2n", "teacher_layer": "regular_1"}) == []


@pytest.mark.parametrize("section", ["", "teacher: {cache: none}\n"])
def test_a_config_without_a_teacher_gets_the_one_of_the_pairs(
    config_file: Path, teacher_folder: Path, data_file: Path, tmp_path: Path, section: str
) -> None:
    base, out = tmp_path / "base.yaml", tmp_path / "pairs.yaml"
    base.write_text(config_file.read_text() + section)
    words = ["pair", str(config_file), str(teacher_folder), str(data_file), *SMALL, "--strategy", "n2n", "--max-structures", "6"]
    assert main([*words, "--out", str(out), "--config", str(base)]) == 0
    made = load_config(out, [])
    assert made.teacher.path == str(teacher_folder)
    assert made.teacher.cache == ("none" if "none" in section else Config().teacher.cache)
    assert "features" not in yaml.safe_load(out.read_text(encoding="utf-8"))["teacher"]


ADVERSARIAL = ("augment.kind=adversarial", "augment.ascent_steps=1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*ADVERSARIAL, "augment.ascent=sphere", "augment.ascent_rule=prop"),
            "ascent_rule belongs to augment.ascent=orthogonal, not sphere",
        ),
        ((*ADVERSARIAL, "augment.ascent=sphere", "augment.ascent_rate=5"), "ascent_rate belongs to .*, not sphere"),
        ((*ADVERSARIAL, "augment.ascent=adam", "augment.ascent_length=0.3"), "ascent_length belongs to .*, not adam"),
        (("augment.kind=rattle", "augment.force_scale=3"), "force_scale belongs to augment.along_force=around"),
    ],
)
def test_options_of_other_ways_to_move_atoms(config_file: Path, teacher_folder: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, [f"teacher.path={teacher_folder}", "distill.terms=[{kind: n2n}]", *options])


@pytest.mark.parametrize(
    "options",
    [
        (*ADVERSARIAL, "augment.ascent=orthogonal", "augment.ascent_rule=prop", "augment.ascent_rate=5"),
        (*ADVERSARIAL, "augment.ascent=ball", "augment.ascent_rate=5", "augment.ascent_length=0.3"),
        (*ADVERSARIAL, "augment.ascent=adam", "augment.ascent_rate=0.05"),
        (*ADVERSARIAL, "augment.ascent=sphere", "augment.ascent_length=0.3"),
        ("augment.kind=rattle", "augment.along_force=around", "augment.force_scale=0.1"),
    ],
)
def test_options_where_they_belong(config_file: Path, teacher_folder: Path, options: tuple[str, ...]) -> None:
    load_config(config_file, [f"teacher.path={teacher_folder}", "distill.terms=[{kind: n2n}]", *options])
