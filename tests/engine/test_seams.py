"""Features of distillation together: several teachers, caches, Hessians, moved atoms, synthetic structures and weights from gradients."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fastkd.analysis.runs import Curve
from fastkd.config_loading import load_config
from fastkd.engine.loop import Job, train
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.state import load_checkpoint
from fastkd.teachers import CachedTeacher

from .synthetic import same

SILENT = Console(file=io.StringIO())
FEATURES = "{kind: n2n, teacher: big}, {kind: v2v, teacher: small}"
MEANS = "{kind: energy, agree: 0.5}, {kind: forces, agree: 0.2}"


def pair_of(teacher_folders: dict[str, Path], big: str = "memory", small: str = "memory", more: str = "") -> str:
    """Two teachers of unlike widths, each with a cache of its own kind."""
    return f"teachers=[{{name: big, path: '{teacher_folders['big']}', cache: {big}{more}}}, {{name: small, path: '{teacher_folders['small']}', cache: {small}{more}}}]"


def job_of(file: Path, folder: Path, *options: str, said: list[str] | None = None) -> Job:
    given = [f"run.dir={folder}", "train.steps=4", "train.evaluate_every=2", "train.checkpoint_every=2", "train.warmup=1", *options]
    folder.mkdir(parents=True, exist_ok=True)
    bench = Workbench(say=[].append if said is None else said.append)
    return prepare(load_config(file, given), "test", bench, resume=(folder / "checkpoints").exists())[0]


def trained(file: Path, folder: Path, *options: str) -> dict[str, Any]:
    train(job_of(file, folder, *options), SILENT)
    return load_checkpoint(folder).tree


#: what meets → options; `{pair:…}` stands for two teachers
RUNS: dict[str, tuple[str, ...]] = {
    "every kind of cache": (
        "PAIR disk auto",
        f"distill.terms=[{FEATURES}, {MEANS}, {{kind: hessian, teacher: small}}]",
        "data.unlabelled=8",
    ),
    "live and kept": ("PAIR none memory", f"distill.terms=[{FEATURES}, {MEANS}]"),
    "rows and rattling": (
        "PAIR memory none",
        "augment.kind=rattle",
        "augment.along_force=remove",
        "data.unlabelled=8",
        f"distill.terms=[{FEATURES}, {MEANS}, {{kind: hessian, agree: 0.5, rows: 2}}, {{kind: lkm}}]",
    ),
    "rows by differences and rattling": (
        "PAIR none none",
        "augment.kind=rattle",
        "distill.terms=[{kind: hessian, student_rows: difference, teacher_rows: difference}, {kind: forces}]",
    ),
    "two adversaries": (
        "PAIR none none",
        "augment.kind=adversarial",
        "augment.ascent=orthogonal",
        "augment.force_penalty=0.1",
        "data.unlabelled=8",
        f"distill.terms=[{FEATURES}, {MEANS}]",
    ),
    "edges of one of two, rattled": (
        "PAIR none none",
        "augment.kind=rattle",
        "distill.terms=[{kind: e2e, teacher: big, edges: teacher}, {kind: forces, agree: 0.5}, {kind: hessian, teacher: small}]",
    ),
    "edges of one of two, kept": (
        "PAIR disk memory",
        "distill.terms=[{kind: e2e, teacher: big, edges: teacher}, {kind: forces}, {kind: hessian, teacher: small}]",
    ),
    "gradients of moved atoms": (
        "PAIR none none",
        "augment.kind=rattle",
        "data.unlabelled=8",
        "distill.gradient_every=2",
        "distill.terms=[{kind: n2n, teacher: big, weight_rule: gradient_ratio, weight: 0.5}, {kind: hessian, weight_rule: gradient_ratio}, "
        "{kind: forces, agree: 0.5, when_passed: halve}, {kind: lkm}]",
    ),
    "gradients of adversaries": (
        "PAIR none none",
        "augment.kind=adversarial",
        "distill.gradient_every=1",
        "distill.terms=[{kind: n2n, teacher: big, weight_rule: gradient_ratio, weight: 0.5}, {kind: forces, when_passed: stop}]",
    ),
    "gradients without a teacher": ("distill.gradient_every=2", "distill.terms=[{kind: lkm, weight_rule: gradient_ratio, weight: 0.1}]"),
    "noise and mixing": ("augment.kind=noise", "distill.gradient_every=1", "distill.terms=[{kind: lkm, weight_rule: gradient_ratio}]"),
    "synthetic on disk": (
        "PAIR disk disk",
        "augment.synthetic=SYNTHETIC",
        "augment.synthetic_weight=0.3",
        "data.unlabelled=8",
        "data.labelled_fraction=0.5",
        f"distill.terms=[{FEATURES}, {MEANS}, {{kind: hessian, teacher: big}}]",
    ),
    "synthetic rattled": (
        "PAIR none none",
        "augment.synthetic=SYNTHETIC",
        "augment.synthetic_weight=0.3",
        "augment.kind=rattle",
        "distill.gradient_every=2",
        f"distill.terms=[{FEATURES}, {MEANS}, {{kind: hessian, teacher: big, weight_rule: gradient_ratio}}]",
    ),
    "an ensemble on disk": (
        "ENSEMBLE disk",
        "distill.terms=[{kind: forces, agree: 0.5}, {kind: n2n, teacher: member_2, when_passed: halve}, {kind: hessian}]",
    ),
}


def options_of(name: str, teacher_folders: dict[str, Path], synthetic_file: Path, kept: Path) -> list[str]:
    return filled(RUNS[name], teacher_folders, synthetic_file, kept)


def filled(options: tuple[str, ...], teacher_folders: dict[str, Path], synthetic_file: Path, kept: Path) -> list[str]:
    """Options with teachers and files in place of words in capitals."""
    words = []
    for option in options:
        what, *caches = option.split(" ")
        if what == "PAIR":
            words.append(pair_of(teacher_folders, *caches, more=f", cache_path: '{kept}', cache_preload: 0"))
        elif what == "ENSEMBLE":
            words += [
                f"teacher.path={teacher_folders['big']}",
                f"teacher.members=['{teacher_folders['other']}']",
                f"teacher.cache_path={kept}",
            ]
            words.append(f"teacher.cache={caches[0]}")
        else:
            words.append(option.replace("SYNTHETIC", str(synthetic_file)))
    return words


#: what is like another: others of these caches, terms or moved atoms together
LONG = ("live and kept", "rows by differences and rattling", "edges of one of two, kept", "noise and mixing", "synthetic rattled")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in RUNS])
def test_what_meets_goes_on_bit_for_bit(
    name: str, config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], synthetic_file: Path
) -> None:
    options = options_of(name, teacher_folders, synthetic_file, tmp_path / "kept")
    options.append("train.schedule=constant")
    whole = trained(config_file, tmp_path / "whole", *options)
    assert trained(config_file, tmp_path / "parts", *options, "train.steps=2")["progress"]["step"] == 2
    parts = trained(config_file, tmp_path / "parts", *options)
    assert parts["progress"]["step"] == 4
    same(whole, parts)
    curves = [Curve.load(tmp_path / folder) for folder in ("whole", "parts")]
    for column in curves[0].units:
        if column.startswith(("loss_", "val_", "weight_", "cosine_", "gradient_")):
            assert np.array_equal(curves[0][column], curves[1][column], equal_nan=True), column
    assert np.isfinite(curves[0]["loss_total"]).all()


@pytest.mark.parametrize("name", ["every kind of cache", "edges of one of two, kept", "synthetic on disk", "an ensemble on disk"])
def test_disk_and_memory_are_the_same_run(
    name: str, config_file: Path, tmp_path: Path, teacher_folders: dict[str, Path], synthetic_file: Path
) -> None:
    options = options_of(name, teacher_folders, synthetic_file, tmp_path / "kept")
    trees = []
    for kind in ("disk", "memory"):
        words = [option.replace("cache: disk", f"cache: {kind}").replace("cache: auto", f"cache: {kind}") for option in options]
        words = [f"teacher.cache={kind}" if word.startswith("teacher.cache=") else word for word in words]
        job = job_of(config_file, tmp_path / kind, *words)
        sources = job.trainee.teacher.sources.values()
        assert all(isinstance(source, CachedTeacher) for source in sources)
        train(job, SILENT)
        trees.append(load_checkpoint(tmp_path / kind).tree)
    for part in ("weights", "projections", "average", "optimizer", "batches"):
        same(trees[0][part], trees[1][part], part)
