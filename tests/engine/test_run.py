"""Whole runs and comparisons through `run`, from config to report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fastkd.analysis.runs import Curve, Predictions, RunSummary
from fastkd.config_loading import load_config
from fastkd.engine import loop
from fastkd.engine.run import run
from fastkd.engine.state import load_checkpoint
from fastkd.errors import CheckpointError, ConfigError, DataError, UserError
from fastkd.models import load_model

from .synthetic import same
from .test_loop import curve_without_clock

KD = [
    "distill.terms=[{kind: n2n}, {kind: v2v}, {kind: energy}, {kind: forces, weight: 10}]",
    "data.unlabelled=8",
    "data.labelled_fraction=0.5",
]


def start(file: Path, *options: str) -> str:
    text = io.StringIO()
    run(load_config(file, list(options)), Console(file=text, width=160))
    return text.getvalue()


def test_a_single_run_leaves_everything(config_file: Path, tmp_path: Path) -> None:
    said = start(config_file, "run.report=true")
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints", "model.safetensors", "model.json"} <= names
    assert {"predictions.npz", "summary.json", "report.html"} <= names
    assert Curve.load(folder)["step"].tolist() == [3, 6, 9, 12]
    summary, predictions = RunSummary.load(folder), Predictions.load(folder)
    assert summary.test == predictions.metrics()
    assert len(predictions.natoms) == 6
    assert summary.seed == 0
    assert "pentagon" in said
    provenance = json.loads((folder / "model.json").read_text())["provenance"]
    assert provenance["config"]["train"]["steps"] == 12
    assert provenance["data_hash"]
    best = load_checkpoint(folder, "best")
    for name, value in load_model(folder).named_parameters():
        assert torch.equal(value, best.tree["average"]["values"][f"student.{name}"])


def test_the_model_file_gives_the_predictions(config_file: Path, tmp_path: Path, data_file: Path) -> None:
    from fastkd.cli import main

    start(config_file)
    assert main(["eval", str(tmp_path / "run"), str(data_file), "--out", str(tmp_path / "again"), "--device", "cpu"]) == 0
    first, again = Predictions.load(tmp_path / "run"), Predictions.load(tmp_path / "again")
    np.testing.assert_allclose(first.energy_pred, again.energy_pred, rtol=0, atol=2e-6)
    np.testing.assert_allclose(first.forces_pred, again.forces_pred, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_distilled_run_resumes_bitwise(
    config_file: Path, tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    options = [*KD, f"teacher.path={teacher_folder}", f"teacher.cache={cache}", "train.checkpoint_every=5"]
    start(config_file, *options, f"run.dir={tmp_path / 'whole'}")

    class Killed(Exception):  # noqa: N818
        pass

    def dying(trainee: Any, batch: Any, rate: float, step: int) -> Any:
        if step == 8:
            raise Killed
        return real(trainee, batch, rate, step)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        start(config_file, *options)
    monkeypatch.undo()
    said = start(config_file, *options, "run.resume=true")
    assert "going on from step 5 of 12" in said
    for name in ("last", "best"):
        same(load_checkpoint(tmp_path / "whole", name).tree, load_checkpoint(tmp_path / "run", name).tree)
    assert curve_without_clock(tmp_path / "whole") == curve_without_clock(tmp_path / "run")
    whole, parts = Predictions.load(tmp_path / "whole"), Predictions.load(tmp_path / "run")
    assert np.array_equal(whole.forces_pred, parts.forces_pred)
    assert RunSummary.load(tmp_path / "run" / "teacher").role == "teacher"


def test_a_finished_run_can_be_extended(config_file: Path, tmp_path: Path) -> None:
    start(config_file, "train.schedule=constant")
    start(config_file, "train.schedule=constant", "run.resume=true", "train.steps=15")
    start(config_file, "train.schedule=constant", "train.steps=15", f"run.dir={tmp_path / 'whole'}")
    assert load_checkpoint(tmp_path / "run").step == 15
    same(load_checkpoint(tmp_path / "run").tree, load_checkpoint(tmp_path / "whole").tree)


def compare_options(teacher: Path, *more: str) -> list[str]:
    terms = "[{kind: n2n}, {kind: v2v}, {kind: forces, weight: 10}]"
    arms = (
        f"[{{name: alone}}, {{name: kd, title: distilled, set: {{teacher.path: '{teacher}', distill.terms: {terms}, data.unlabelled: 8}}}}]"
    )
    return [f"compare.arms={arms}", "compare.seeds=[0, 1]", *more]


def test_a_comparison(config_file: Path, tmp_path: Path, teacher_folder: Path) -> None:
    said = start(config_file, *compare_options(teacher_folder, "run.report=true"))
    folder = tmp_path / "run"
    for arm in ("alone", "kd"):
        for seed in (0, 1):
            assert RunSummary.load(folder / arm / f"seed{seed}").seed == seed
    assert RunSummary.load(folder / "teacher").role == "teacher"
    assert "distilled" in said
    assert (folder / "report.html").stat().st_size > 1000
    best = min((0, 1), key=lambda seed: RunSummary.load(folder / "kd" / f"seed{seed}").extra["val_score"])
    assert (folder / "student.safetensors").read_bytes() == (folder / "kd" / f"seed{best}" / "model.safetensors").read_bytes()
    load_model(folder / "student.safetensors")
    # arms of one seed start from the same weights and see the same labels
    one, other = (load_config(folder / arm / "seed0" / "config.yaml") for arm in ("alone", "kd"))
    assert (one.run.seed, one.train, one.model) == (other.run.seed, other.train, other.model)


def test_arms_of_a_comparison_ask_the_teacher_once(config_file: Path, teacher_folder: Path) -> None:
    """The first arm needs outputs, the second features too: what is kept for the first serves both."""
    outputs, features = "{kind: energy}, {kind: forces}", "{kind: n2n}, {kind: v2v}"
    arms = "[{name: outputs}, {name: both, set: {distill.terms: [" + f"{outputs}, {features}" + "]}}]"
    options = [f"teacher.path={teacher_folder}", f"distill.terms=[{outputs}]", "data.unlabelled=8", "data.labelled_fraction=0.5"]
    said = start(config_file, *options, f"compare.arms={arms}", "compare.seeds=[0]")
    assert said.count("kept in memory") == 1


def test_a_comparison_goes_on_where_it_stopped(
    config_file: Path, tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = compare_options(teacher_folder)
    start(config_file, *options, f"run.dir={tmp_path / 'whole'}")

    class Killed(Exception):  # noqa: N818
        pass

    steps = []

    def dying(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 12 + 10:
            raise Killed
        return real(*arguments)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        start(config_file, *options)
    monkeypatch.undo()
    finished = (tmp_path / "run" / "alone" / "seed0" / "summary.json").stat().st_mtime_ns
    start(config_file, *options, "run.resume=true")
    assert (tmp_path / "run" / "alone" / "seed0" / "summary.json").stat().st_mtime_ns == finished
    for part in ("alone/seed0", "alone/seed1", "kd/seed0", "kd/seed1"):
        same(load_checkpoint(tmp_path / "whole" / part).tree, load_checkpoint(tmp_path / "run" / part).tree)


@pytest.mark.parametrize(
    ("option", "kind", "message"),
    [
        ("data.train_split=tarin", UserError, "tarin"),
        ("data.systems=[ethanole]", UserError, "ethanole"),
        ("data.labelled=1000", UserError, "1000"),
        ("teacher.path=/nowhere/at/all", CheckpointError, "nowhere"),
        ("run.device=gpu", ConfigError, "run.device"),
    ],
)
def test_mistakes_that_only_data_can_show(config_file: Path, option: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        start(config_file, option)


def test_a_run_that_fails_before_its_first_step_frees_its_folder(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'tset'"):
        start(config_file, "data.test_split=tset")
    assert not (tmp_path / "run").exists()
    start(config_file)  # the mended command may use the folder


def test_a_comparison_that_fails_before_its_first_step_frees_its_folder(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tset"):
        start(config_file, "compare.arms=[{name: alone}, {name: other}]", "data.test_split=tset")
    assert not (tmp_path / "run").exists()


def test_a_failure_frees_nothing_that_was_made(config_file: Path, tmp_path: Path) -> None:
    start(config_file)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        start(config_file, "run.resume=true", "train.steps=24", "data.path=nowhere.h5")
    assert before == {path: path.stat().st_mtime_ns for path in before}
