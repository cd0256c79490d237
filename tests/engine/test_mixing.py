"""LKM through whole runs: without a teacher, with its columns, and with a warning where embeddings collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastkd.analysis.runs import Curve
from fastkd.models import load_model

from .synthetic import seeded_model
from .test_run import start


def lkm(weight: float, **options: object) -> str:
    return "distill.terms=" + json.dumps([{"kind": "lkm", "weight": weight, **options}])


def test_a_mixed_run_has_the_model_and_the_speed_of_a_plain_one(config_file: Path, tmp_path: Path) -> None:
    start(config_file, lkm(0.1), f"run.dir={tmp_path / 'mixed'}")
    start(config_file, f"run.dir={tmp_path / 'plain'}")
    mixed, plain = load_model(tmp_path / "mixed"), load_model(tmp_path / "plain")
    assert list(mixed.state_dict()) == list(plain.state_dict()) == list(seeded_model(8, 0).state_dict())
    assert mixed.options == plain.options
    assert any(not torch.equal(a, b) for a, b in zip(mixed.parameters(), plain.parameters(), strict=True))
    curve = Curve.load(tmp_path / "mixed")
    for name in ("loss_kd_lkm", "lkm_similarity", "lkm_variance", "lkm_distance"):
        assert curve.units[name] == "1"
        assert (curve[name] > 0).all()
    assert not [name for name in Curve.load(tmp_path / "plain").units if "lkm" in name]


@pytest.mark.parametrize(("weight", "collapses"), [(1e-3, False), (1e6, True)])
def test_a_collapse_is_reported(config_file: Path, tmp_path: Path, weight: float, *, collapses: bool) -> None:
    """A weight that drowns the task pulls all layers together; a small one does not, and nobody is warned."""
    said = start(
        config_file, lkm(weight, loss="mse"), "train.steps=120", "train.evaluate_every=20", "train.clip=0", "train.final_fraction=0.1"
    )
    assert ("training: warning: step" in said) == collapses
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert bool(summary["extra"]["warnings"]) == collapses
    curve = Curve.load(tmp_path / "run")
    if collapses:
        assert "lkm: " in summary["extra"]["warnings"][0]
        assert curve["lkm_distance"][-1] < 0.1
    else:
        assert curve["lkm_distance"][-1] > 0.1
