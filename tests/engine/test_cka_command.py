"""``fastkd cka`` from files to files: runs of our own, their first weights, foreign models, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fastkd_kernels import linear_cka

from fastkd.cli import main
from fastkd.config import ModelConfig
from fastkd.config_loading import load_config
from fastkd.data.batch import Batch
from fastkd.data.dataset import StructureDataset
from fastkd.data.reader import DataFile
from fastkd.engine.cka import CKASettings, compare_layers
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.students import initial_student
from fastkd.errors import ConfigError
from fastkd.models import build_model, load_model, save_model
from fastkd.teachers import Teacher, load_teacher
from fastkd.teachers.layers import LayerReader, Layers

from .synthetic import CUTOFF, seeded_model

CAPTURE = "module:tests.teachers.foreign:make"
SMALL = ("--split", "train", "--batch", "6", "--bootstrap", "50", "--device", "cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, data_file: Path, teacher_folder: Path) -> Path:
    """A finished run of 60 steps with n2n, v2v and e2n."""
    root = tmp_path_factory.mktemp("distilled")
    (root / "config.yaml").write_text(
        f"run: {{dir: '{root / 'run'}', threads: 1, inference_repeats: 1, device: cpu, report: false, seed: 3}}\n"
        f"data: {{path: '{data_file}', batch_size: 4}}\n"
        f"teacher: {{path: '{teacher_folder}'}}\n"
        "model: {width: 8, layers: 2, radial: 6}\n"
        "distill: {terms: [{kind: n2n, weight: 300, student_layers: [1]}, {kind: v2v, weight: 300}, {kind: e2n, weight: 0.1}]}\n"
        "train: {steps: 60, warmup: 2, evaluate_every: 20, checkpoint_every: 40, learning_rate: 1e-2}\n"
        "compare: {bootstrap: 20}\n"
    )
    assert main(["train", str(root / "config.yaml")]) == 0
    return root / "run"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "cka.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_everything_is_written_and_the_same_every_time(run_folder, teacher_folder, data_file, tmp_path, capsys):
    words = ["cka", str(run_folder), str(teacher_folder), str(data_file), *SMALL, "--before"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().out
    assert "node: most alike are student " in said
    assert "node: distilled pair of n2n, student regular_1 and teacher regular_2: CKA" in said
    assert "node: distilled pair of e2n, student regular_2 and teacher edge_sum: CKA" in said
    assert "vector: distilled pair of v2v, student regular_2 and teacher regular_2: CKA" in said
    assert main([*words, "--out", str(tmp_path / "two")]) == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"cka.csv", "cka.json", "cka_node.png", "cka_vector.png", "cka_edge.png"}
    for name in names - {"cka.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    first, second = (json.loads((tmp_path / name / "cka.json").read_text()) for name in ("one", "two"))
    assert first["result"] == second["result"]
    assert first["data"]["structures"] == 24
    assert first["models"]["before"]["sha256"] != first["models"]["student"]["sha256"]
    assert first["models"]["student"]["model"] == "PaiNN"
    node = first["result"][0]
    assert node["resampled_units"] == 24
    assert node["rows"] == 120


def test_the_csv_holds_what_the_kernel_says(run_folder, teacher_folder, data_file, tmp_path):
    assert main(["cka", str(run_folder), str(teacher_folder), str(data_file), *SMALL, "--out", str(tmp_path / "out")]) == 0
    batch = StructureDataset(DataFile(data_file), [CUTOFF], dtype=torch.float32).batch(range(24))
    student, teacher = (load_model(path)(batch, forces=False).features for path in (run_folder, teacher_folder))
    expected = float(linear_cka(student.layers[2].detach().double(), teacher.layers[1].detach().double()))
    rows = rows_of(tmp_path / "out")
    chosen = [
        r
        for r in rows
        if (r["kind"], r["a"], r["layer_a"], r["b"], r["layer_b"]) == ("node", "student", "regular_2", "teacher", "regular_1")
    ]
    full, mini = chosen
    assert (full["estimator"], mini["estimator"]) == ("full", "minibatch")
    # the model computes in float32, and in other batches
    assert float(full["value"]) == pytest.approx(expected, rel=1e-4)
    assert float(full["low"]) <= float(full["value"]) <= float(full["high"])
    assert float(mini["value"]) != float(full["value"])
    assert full["n"] == "120"
    table = {(r["kind"], r["a"], r["layer_a"], r["b"], r["layer_b"], r["estimator"]): r["value"] for r in rows}
    assert all(table[k, b, y, a, x, e] == value for (k, a, x, b, y, e), value in table.items())


def test_distillation_shows_at_its_pair(run_folder, teacher_folder, data_file, tmp_path):
    words = ["cka", str(run_folder), str(teacher_folder), str(data_file), *SMALL, "--before", "--by-element"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "cka.json").read_text())["result"]
    (vector,) = [item for item in result if (item["kind"], item["estimator"]) == ("vector", "full")]
    (pair,) = vector["distilled"]
    assert pair["student"]["low"] > pair["before"]["high"]


def test_the_first_weights_are_those_that_the_run_began_with(run_folder):
    config = load_config(run_folder / "config.yaml", [])
    job, _ = prepare(config, "again", Workbench(say=lambda _: None), resume=False)
    rebuilt = initial_student(config)
    begun = dict(job.trainee.student.named_parameters())
    assert begun
    for name, value in rebuilt.named_parameters():
        assert torch.equal(value, begun[name])
    trained = dict(load_model(run_folder).named_parameters())
    assert any(not torch.equal(value, trained[name]) for name, value in rebuilt.named_parameters())


def test_a_checkpoint_may_be_the_before(run_folder, teacher_folder, data_file, tmp_path):
    words = ["cka", str(run_folder), str(teacher_folder), str(data_file), *SMALL, "--kind", "vector", "--estimator", "minibatch"]
    assert main([*words, "--before", str(run_folder), "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert {row["kind"] for row in rows} == {"vector"}
    assert {row["estimator"] for row in rows} == {"minibatch"}
    same = [float(r["value"]) for r in rows if (r["a"], r["b"]) == ("before", "student") and r["layer_a"] == r["layer_b"]]
    assert same == pytest.approx([1.0, 1.0], abs=1e-9)


@pytest.mark.parametrize("capture", [[], ["block:node:scalars", "embed:node"], ["all"]])
def test_modules_of_a_foreign_teacher(capture, data_file, tmp_path):
    student = tmp_path / "student"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # the cutoff of the foreign module, so that edges can be compared too
        save_model(build_model(ModelConfig(width=8, layers=2, radial=6, cutoff=3.0)), student)
    words = ["cka", str(student), CAPTURE, str(data_file), *SMALL, "--out", str(tmp_path / "out")]
    assert main([*words, *(["--capture", *capture] if capture else [])]) == 0
    rows = rows_of(tmp_path / "out")
    names = {(row["kind"], row["layer_a"]) for row in rows if row["a"] == "teacher"}
    if not capture:
        assert names == {("node", "block.scalars"), ("vector", "block.vectors"), ("edge", "filter")}
    elif capture == ["all"]:
        assert {
            ("node", "embed"),
            ("node", "block.scalars"),
            ("node", "block.mix"),
            ("vector", "block.vectors"),
            ("edge", "filter"),
        } <= names
    else:
        assert names == {("node", "block.scalars"), ("node", "embed")}
    value = [r for r in rows if (r["a"], r["b"], r["layer_b"], r["layer_a"]) == ("student", "teacher", "block.scalars", "regular_2")]
    assert 0 < float(value[0]["value"]) < 1


def test_another_cutoff_leaves_edges_out_and_says_so(data_file, tmp_path, capsys):
    save_model(build_model(ModelConfig(width=8, layers=2, radial=6, cutoff=3.0)), tmp_path / "short")
    save_model(seeded_model(8, 1), tmp_path / "long")
    words = ["cka", str(tmp_path / "short"), str(tmp_path / "long"), str(data_file), *SMALL, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "edge features of student belong to another graph than those of teacher" in capsys.readouterr().out
    assert not (tmp_path / "out" / "cka_edge.png").exists()
    shutil.rmtree(tmp_path / "out")
    assert main([*words, "--kind", "edge"]) == 2
    assert "another graph" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--split", "nowhere"], "has no structures in split 'nowhere'"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--max-structures", "-1"], "--max-structures must be at least 0"),
        (["--before", "/nowhere"], "no teacher at /nowhere"),
        (["--capture", "blocks.0:node"], "whose layers are known"),
    ],
)
def test_mistakes_exit_with_2(change, message, run_folder, teacher_folder, data_file, tmp_path, capsys):
    words = ["cka", str(run_folder), str(teacher_folder), str(data_file), "--out", str(tmp_path / "out"), *SMALL, *change]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_serve_are_named(run_folder, teacher_folder, data_file, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), *SMALL]
    assert main(["cka", str(run_folder), "ase:tests.teachers.foreign:lennard_jones", str(data_file), *out]) == 2
    assert "labels only" in capsys.readouterr().err
    assert main(["cka", "/nowhere", str(teacher_folder), str(data_file), *out]) == 2
    assert "there is no student at /nowhere" in capsys.readouterr().err
    assert main(["cka", str(teacher_folder), str(teacher_folder), str(data_file), *out, "--before"]) == 2
    assert "does not say how it was trained" in capsys.readouterr().err
    knows_oxygen = seeded_model(8, 1)
    knows_oxygen.know_elements([8])
    save_model(knows_oxygen, tmp_path / "oxygen")
    assert main(["cka", str(tmp_path / "oxygen"), str(teacher_folder), str(data_file), *out]) == 2
    assert "never trained on H, C" in capsys.readouterr().err
    assert main(["cka", str(run_folder), CAPTURE, str(data_file), *out, "--capture", "block:nodes"]) == 2
    assert "MODULE:KIND" in capsys.readouterr().err
    assert main(["cka", str(run_folder), CAPTURE, str(data_file), *out, "--capture", "blok:node"]) == 2
    assert "near ones: block" in capsys.readouterr().err


def test_results_are_not_overwritten(run_folder, teacher_folder, data_file, tmp_path, capsys):
    words = ["cka", str(run_folder), str(teacher_folder), str(data_file), *SMALL, "--out", str(tmp_path), "--kind", "vector"]
    assert main(words) == 0
    assert main(words) == 2
    assert "already holds results" in capsys.readouterr().err


def test_layers_are_recomputed_where_they_were_not_kept(teacher_folder, data_file, monkeypatch):
    readers = {"student": LayerReader(Teacher(seeded_model(8, 1)), sums=False), "teacher": LayerReader(load_teacher(teacher_folder))}
    dataset = StructureDataset(DataFile(data_file), [CUTOFF], dtype=torch.float64)
    settings = CKASettings(batch_size=5, resamples=20)
    kept = compare_layers(readers, dataset, range(24), settings)
    calls = 0
    before = LayerReader.__call__

    def counted(self: LayerReader, batch: Batch) -> Layers:
        nonlocal calls
        calls += 1
        return before(self, batch)

    monkeypatch.setattr(LayerReader, "__call__", counted)
    monkeypatch.setattr("fastkd.engine.cka.KEPT_BYTES", 0)
    again = compare_layers(readers, dataset, range(24), settings)
    # a look at the first batch, and two passes over five
    assert calls == 2 * (1 + 2 * 5)
    for one, other in zip(kept.similarities, again.similarities, strict=True):
        np.testing.assert_array_equal(one.value, other.value)
        np.testing.assert_array_equal(one.low, other.low)


def test_one_layer_cannot_be_compared(data_file):
    reader = LayerReader(load_teacher(CAPTURE), ["embed:node"])
    dataset = StructureDataset(DataFile(data_file), [3.0], dtype=torch.float64)
    with pytest.raises(ConfigError, match="fewer than two layers of kind node"):
        compare_layers({"teacher": reader}, dataset, range(4), CKASettings(kinds=("node",)))
