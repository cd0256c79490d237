"""Runs with moved atoms and with synthetic structures: what they see, that they resume to the bit, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastkd.config_loading import load_config
from fastkd.data.reader import DataFile
from fastkd.data.writer import DataWriter
from fastkd.engine.loop import Job, train
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.state import load_checkpoint
from fastkd.engine.step import batch_loss
from fastkd.errors import ConfigError, DataError
from fastkd.teachers import CachedTeacher, LiveTeacher

from .synthetic import same

SILENT = Console(file=io.StringIO())
TERMS = "distill.terms=[{kind: n2n}, {kind: v2v}, {kind: forces, weight: 2}, {kind: lkm, weight: 0.1}]"
KINDS: dict[str, tuple[str, ...]] = {
    "rattle": ("augment.kind=rattle", TERMS),
    "remove": ("augment.kind=rattle", "augment.along_force=remove", "augment.length=0.1", TERMS),
    "around": ("augment.kind=rattle", "augment.along_force=around", "augment.force_scale=0.01", TERMS, "data.unlabelled=8"),
    "adam": ("augment.kind=adversarial", "augment.ascent=adam", "augment.ascent_steps=2", TERMS),
    "sphere": ("augment.kind=adversarial", "augment.sigma=0", "augment.force_penalty=0.1", TERMS),
    "ball": ("augment.kind=adversarial", "augment.ascent=ball", "augment.teacher_gradient=false", TERMS),
    "orthogonal": ("augment.kind=adversarial", "augment.ascent=orthogonal", "augment.ascent_rule=inv_prop", TERMS, "data.unlabelled=8"),
    "handed": ("augment.kind=rattle", "distill.terms=[{kind: e2e, edges: teacher}]"),
    "noise": ("augment.kind=noise",),
    "noise_mixed": ("augment.kind=noise", "distill.terms=[{kind: lkm}]"),
    "synthetic": ("augment.synthetic={synthetic}", "augment.synthetic_weight=0.3", TERMS),
    "synthetic_rattle": ("augment.synthetic={synthetic}", "augment.synthetic_weight=0.3", "augment.kind=rattle", TERMS),
}


@pytest.fixture(scope="module")
def synthetic(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve structures of the data with made-up labels."""
    path = tmp_path_factory.mktemp("synthetic") / "made.h5"
    with DataFile(data_file) as source, DataWriter(path, level_of_theory="teacher") as writer:
        writer.extend(source.read(list(range(12))))
    return path


def job_of(file: Path, folder: Path, teacher: Path, synthetic: Path, *options: str) -> tuple[Job, list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    given = [f"run.dir={folder}", "train.steps=4", "train.evaluate_every=2", "train.checkpoint_every=2", "train.warmup=1"]
    if any("distill.terms" in option for option in options):
        given.append(f"teacher.path={teacher}")
    given += [option.format(synthetic=synthetic) if "{synthetic}" in option else option for option in options]
    resume = (folder / "checkpoints").exists()
    job, _ = prepare(load_config(file, given), "test", Workbench(say=said.append), resume=resume)
    return job, said


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_trains_and_resumes_bitwise(
    config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path, options: tuple[str, ...]
) -> None:
    whole, _ = job_of(config_file, tmp_path / "whole", teacher_folder, synthetic, *options)
    start = {name: value.clone() for name, value in whole.trainee.student.state_dict().items()}
    train(whole, SILENT)
    assert any(not torch.equal(value, start[name]) for name, value in whole.trainee.student.state_dict().items())
    # the same to step 2, then another process
    first, _ = job_of(config_file, tmp_path / "parts", teacher_folder, synthetic, *options, "train.schedule=constant", "train.steps=2")
    constant, _ = job_of(config_file, tmp_path / "constant", teacher_folder, synthetic, *options, "train.schedule=constant")
    train(constant, SILENT)
    train(first, SILENT)
    second, _ = job_of(config_file, tmp_path / "parts2", teacher_folder, synthetic, *options, "train.schedule=constant")
    second.restore(load_checkpoint(tmp_path / "parts"))
    assert second.progress.step == 2
    train(second, SILENT)
    same(load_checkpoint(tmp_path / "constant").tree, load_checkpoint(tmp_path / "parts2").tree)


def test_rattling_leaves_the_loss_on_labels_bit_for_bit(config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path) -> None:
    losses = []
    for number, kind in enumerate(("none", "rattle", "adversarial")):
        job, _ = job_of(config_file, tmp_path / str(number), teacher_folder, synthetic, f"augment.kind={kind}", TERMS)
        found, total, _ = batch_loss(job.trainee, next(job.batches), 0)
        assert total.requires_grad
        losses.append(found)
    for found in losses[1:]:
        assert found.keys() == losses[0].keys()
        for name in ("energy", "forces", "kd_lkm"):
            assert torch.equal(found[name], losses[0][name])
        for name in ("kd_n2n", "kd_v2v", "kd_forces"):
            assert not torch.equal(found[name], losses[0][name])


def test_terms_see_student_and_teacher_on_the_same_moved_atoms(
    config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path
) -> None:
    job, _ = job_of(config_file, tmp_path, teacher_folder, synthetic, *KINDS["rattle"])
    trainee, batch = job.trainee, next(job.batches)
    assert trainee.perturbation is not None
    assert trainee.terms is not None
    assert isinstance(trainee.teacher, LiveTeacher)
    found, _, _ = batch_loss(trainee, batch, 5)
    moved = trainee.perturbation(batch, trainee.student, trainee.teacher, trainee.terms, 5)
    expected = trainee.terms(trainee.student(moved), trainee.teacher(moved), moved, 5)
    for name in ("n2n", "v2v", "forces"):
        assert torch.equal(found[f"kd_{name}"], expected[name].raw.detach())


def test_noise_moves_what_labels_are_learned_on(config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path) -> None:
    job, _ = job_of(config_file, tmp_path, teacher_folder, synthetic, "augment.kind=noise")
    batch = next(job.batches)
    assert job.trainee.perturbation is not None
    moved = job.trainee.perturbation(batch, job.trainee.student, None, None, 0)
    found, _, _ = batch_loss(job.trainee, batch, 0)
    with torch.no_grad():
        said = job.trainee.student(moved)
    assert float(found["energy"]) == pytest.approx(float((said.energy - batch.energy).abs().mean()), rel=1e-5)
    assert torch.equal(moved.forces, batch.forces)


def test_a_cache_gives_way_to_the_live_teacher_and_says_so(
    config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path
) -> None:
    job, said = job_of(config_file, tmp_path / "a", teacher_folder, synthetic, *KINDS["rattle"])
    assert isinstance(job.trainee.teacher, LiveTeacher)
    assert any("augment.kind=rattle moves atoms: the teacher is asked anew" in line for line in said)
    job, said = job_of(config_file, tmp_path / "b", teacher_folder, synthetic, *KINDS["synthetic"])
    assert isinstance(job.trainee.teacher, CachedTeacher)
    assert not any("asked anew" in line for line in said)


def test_synthetic_structures_come_with_their_weights(config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path) -> None:
    job, _ = job_of(config_file, tmp_path, teacher_folder, synthetic, *KINDS["synthetic"], "augment.synthetic_fraction=0.5")
    kinds = set()
    for _ in range(8):
        batch = next(job.batches)
        made = batch.structure_index >= 36
        kinds |= set(made.tolist())
        share = float(made.float().mean())
        own = 1 / (1 - share + 0.3 * share)
        assert batch.weight is not None
        torch.testing.assert_close(batch.weight, torch.where(made, 0.3 * own, own))
        assert batch.labelled[made].all()
    assert kinds == {True, False}
    job, _ = job_of(config_file, tmp_path / "b", teacher_folder, synthetic, *KINDS["synthetic"], "augment.synthetic_weight=1.0")
    assert next(job.batches).weight is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("augment.kind=rattle",), "no distill.terms with a teacher"),
        (("augment.kind=adversarial", "distill.terms=[{kind: lkm}]"), "no distill.terms with a teacher"),
        (("augment.kind=noise", TERMS), "baseline without a teacher"),
        (("augment.kind=noise", "augment.sigma=0"), "moves nothing"),
        (("augment.kind=adversarial", "augment.force_penalty=1", "augment.teacher_gradient=false", TERMS), "force_penalty"),
        (
            ("augment.kind=adversarial", "augment.ascent=orthogonal", "augment.ascent_rule=inv_prop", "augment.limit=0", TERMS),
            "augment.limit",
        ),
        (
            ("augment.synthetic={synthetic}", "augment.synthetic_weight=0.3", "distill.terms=[{kind: n2n, loss: cka}]"),
            "loss cka of term n2n",
        ),
        (("augment.sigmas=1",), "augment.sigmas"),
        (("augment.kind=noise", "augment.along_force=only"), "along_force belongs to augment.kind=rattle, not noise"),
        (("augment.kind=rattle", "augment.ascent=ball", TERMS), "ascent belongs to augment.kind=adversarial"),
    ],
)
def test_senseless_sections_are_refused(
    config_file: Path, tmp_path: Path, teacher_folder: Path, synthetic: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        job_of(config_file, tmp_path, teacher_folder, synthetic, *options)


def test_a_teacher_that_cannot_be_differentiated_is_refused(config_file: Path, tmp_path: Path, synthetic: Path) -> None:
    options = ("augment.kind=adversarial", "distill.terms=[{kind: energy}]")
    teacher = Path("ase:ase.calculators.lj:LennardJones")
    with pytest.raises(ConfigError, match="teacher_gradient=false"):
        job_of(config_file, tmp_path / "a", teacher, synthetic, *options)
    job, _ = job_of(config_file, tmp_path / "b", teacher, synthetic, *options, "augment.teacher_gradient=false")
    found, _, _ = batch_loss(job.trainee, next(job.batches), 0)
    assert torch.isfinite(found["kd_energy"])


def test_synthetic_files_that_do_not_serve(config_file: Path, tmp_path: Path, teacher_folder: Path, data_file: Path) -> None:
    import dataclasses

    import numpy as np

    with DataFile(data_file) as source:
        (structure,) = source.read([0])
    for name, changed, message in (
        ("bare", dataclasses.replace(structure, energy=float("nan"), forces=None), "all with labels"),
        ("gold", dataclasses.replace(structure, atomic_numbers=np.full(structure.num_atoms, 79)), "Au, which no training structure has"),
    ):
        with DataWriter(tmp_path / f"{name}.h5", level_of_theory="x") as writer:
            writer.append(changed)
        with pytest.raises(DataError, match=message):
            job_of(config_file, tmp_path / name, teacher_folder, tmp_path / f"{name}.h5", "augment.synthetic={synthetic}")
