"""Whole runs with Hessian terms and with several teachers, from config to summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastkd.analysis.runs import Curve
from fastkd.cli import main
from fastkd.config_loading import load_config
from fastkd.engine.profile import profile
from fastkd.models import save_model
from fastkd.models.factory import read_header

from .synthetic import seeded_model


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(run / "model.safetensors") for run in (first, second))
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for seed, width in [(99, 12), (98, 10)]:
        made.append(tmp_path_factory.mktemp("teacher"))
        save_model(seeded_model(width, seed), made[-1])
    return made


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_hessian_run_goes_on_bit_for_bit(tmp_path: Path, config_file: Path, folders: list[Path], cache: str) -> None:
    options = [
        f"teacher.path={folders[0]}",
        f"teacher.cache={cache}",
        "data.unlabelled=4",
        "distill.terms=[{kind: hessian, rows: 2, weight: 0.1}, {kind: forces}]",
        "train.schedule=constant",
        "train.evaluate_every=2",
        "train.checkpoint_every=2",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(config_file), *options, f"run.dir={whole}", "train.steps=4"]) == 0
    assert main(["train", str(config_file), *options, f"run.dir={parts}", "train.steps=2"]) == 0
    assert main(["train", str(config_file), *options, f"run.dir={parts}", "train.steps=4", "run.resume=true"]) == 0
    curves = [Curve.load(run) for run in (whole, parts)]
    assert curves[0].units["loss_kd_hessian"] == "eV/Å²"
    assert (curves[0]["loss_kd_hessian"] > 0).all()
    for column in ("loss_kd_hessian", "loss_total", "val_score"):
        assert np.array_equal(curves[0][column], curves[1][column])
    assert same_weights(whole, parts)


def test_several_teachers_in_one_run(tmp_path: Path, config_file: Path, folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = [
        f"teachers=[{{name: big, path: '{folders[0]}'}}, {{name: small, path: '{folders[1]}', cache: none}}]",
        "data.unlabelled=4",
        "distill.terms=[{kind: energy}, {kind: forces, agree: 1.0}, {kind: n2n, teacher: small}, {kind: v2v, teacher: big}, "
        "{kind: hessian, teacher: big}]",
        "distill.watch_cka=2",
        "train.steps=4",
        "train.evaluate_every=2",
    ]
    assert main(["train", str(config_file), *options]) == 0
    said = capsys.readouterr().out
    assert "teacher big: outputs kept in memory" in said
    curve = Curve.load(run)
    assert ((curve["loss_kd_forces_agreed"] >= 0) & (curve["loss_kd_forces_agreed"] <= 1)).all()
    assert {"teacher_ms", "teacher_small_ms", "cka_n2n", "cka_v2v"} <= set(curve.units)
    assert "teacher_big_ms" not in curve.units
    assert np.isfinite(curve["loss_total"]).all()
    provenance = read_header(run)["provenance"]
    assert [card["path"] for card in provenance["teachers"].values()] == [str(folder) for folder in folders]
    errors = {}
    for name in ("teacher", "teacher_big", "teacher_small"):
        errors[name] = json.loads((run / name / "summary.json").read_text())["test"]["forces_mae"]
    assert len(set(errors.values())) == 3
    found = profile(load_config(config_file, options), steps=3, warmup=1, say=lambda _: None)
    assert found.parts["teacher"] > 0


def test_an_ensemble_of_equals_is_its_member(tmp_path: Path, config_file: Path, folders: list[Path]) -> None:
    """Two copies of one checkpoint agree everywhere, and their mean is what each says, to the bit."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["data.unlabelled=4", "train.steps=3", "train.evaluate_every=3", f"teacher.path={folders[0]}"]
    assert main(["train", str(config_file), *options, f"run.dir={one}", "distill.terms=[{kind: energy}, {kind: forces}]"]) == 0
    more = [f"teacher.members=['{folders[0]}']", "distill.terms=[{kind: energy, agree: 1e-6}, {kind: forces, agree: 1e-6}]"]
    assert main(["train", str(config_file), *options, *more, f"run.dir={two}"]) == 0
    assert (Curve.load(two)["loss_kd_forces_agreed"] == 1).all()
    assert same_weights(one, two)


def test_a_profile_counts_the_cache_of_hessians(config_file: Path, folders: list[Path]) -> None:
    options = [f"teacher.path={folders[0]}", "data.unlabelled=4", "distill.terms=[{kind: hessian, rows: 2}, {kind: forces}]"]
    for cache in ("memory", "none"):
        found = profile(load_config(config_file, [*options, f"teacher.cache={cache}"]), steps=3, warmup=1, say=lambda _: None)
        assert found.overhead["hessian"] != 0
        assert found.cache is not None
        # 12 structures of 5 atoms: positions, forces, and 15 × 15 matrices, in float32
        assert found.cache.bytes == 4 * 12 * (5 * 3 + 5 * 3 + 15 * 15)
