"""Training on energies alone: data without forces, and forces that have no weight; no force is computed where nobody asks for one."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.analysis import RunSummary
from fastkd.analysis.report import build_joint_report
from fastkd.analysis.runs import Curve, Predictions
from fastkd.cli import main
from fastkd.config import LossConfig, ModelConfig
from fastkd.data import DataFile, DataWriter, Structure
from fastkd.data.batching import Pieces, collate
from fastkd.data.rearrange import select_structures
from fastkd.data.reference import compositions, energy_spread, fit_reference
from fastkd.engine.evaluate import can_test, have_forces, predict
from fastkd.engine.step import label_loss
from fastkd.models import build_model, load_model, save_model
from fastkd.models.base import Potential
from fastkd.teachers import Teacher

from .synthetic import seeded_model


def without(structure: Structure, **changes: object) -> Structure:
    kept = {name: getattr(structure, name) for name in ("atomic_numbers", "positions", "energy", "forces", "split", "system")}
    return Structure(**kept | changes)


def copy_of(data_file: Path, out: Path, drop) -> Path:
    """The structures of a file, those without forces for whose number ``drop`` is true."""
    with DataFile(data_file) as data, DataWriter(out, level_of_theory="harmonic pairs") as writer:
        for number, structure in enumerate(data.read(range(len(data)))):
            writer.append(without(structure, forces=None) if drop(number) else structure)
    return out


@pytest.fixture(scope="session")
def energies_file(data_file, tmp_path_factory) -> Path:
    """The structures of ``data_file``, without forces."""
    return copy_of(data_file, tmp_path_factory.mktemp("energies") / "energies.h5", lambda _: True)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[bool, bool]]:
    """Of every call of a model: whether it trained, and whether it was asked for forces."""
    calls: list[tuple[bool, bool]] = []
    forward = Potential.forward

    def spy(self, batch, *, forces=True, create_graph=None):
        calls.append((self.training, forces))
        return forward(self, batch, forces=forces, create_graph=create_graph)

    monkeypatch.setattr(Potential, "forward", spy)
    return calls


def train(config_file: Path, data: Path, *options: str) -> int:
    return main(["train", str(config_file), f"data.path={data}", "loss.forces_weight=0", *options])


def no_nan(folder: Path) -> None:
    """No NaN in anything that people read."""
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".csv", ".html", ".json", ".txt"):
            text = path.read_text(encoding="utf-8")
            body = text.split("base64,")[0] if path.suffix == ".html" else text
            assert "nan" not in body.lower().split(), path
            assert "NaN" not in body, path


# a run


def test_a_run_on_energies_alone(config_file, energies_file, tmp_path, asked, capsys):
    longer = ["data.labelled=0", "train.steps=150", "train.evaluate_every=25"]
    assert train(config_file, energies_file, "run.report=true", *longer) == 0
    table = capsys.readouterr().out
    # neither while training nor in an evaluation
    assert {forces for _, forces in asked} == {False}
    assert {training for training, _ in asked} == {True, False}
    run = tmp_path / "run"
    assert "energy MAE" in table
    assert "force MAE" not in table
    assert "36 energies, no forces" in table
    curve = Curve.load(run)
    assert not [name for name in curve.units if "forces" in name]
    assert curve["val_energy_mae"].min() < 0.8 * curve["val_energy_mae"][0]
    assert curve["loss_energy"][-1] < 0.8 * curve["loss_energy"][0]
    # the score that chooses the best step is a_E · MAE(E)
    summary = RunSummary.load(run)
    found = Predictions.load(run)
    assert found.forces is None
    assert found.forces_pred is None
    assert summary.test.energy_mae == pytest.approx(np.abs(found.energy_pred - found.energy).mean())
    assert all(math.isnan(getattr(summary.test, name)) for name in ("forces_mae", "forces_rmse", "forces_cosine", "efwt"))
    assert 0 < summary.extra["val_score"] < math.inf
    header = json.loads((run / "model.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(header["provenance"]["test"]) == {"energy_mae", "energy_mae_per_atom", "energy_rmse_per_atom"}
    no_nan(run)


def test_the_weights_follow_the_energies(config_file, energies_file, data_file, tmp_path, asked):
    """Forces without weight change nothing: the same weights come out whether the file has them or not, up to the scale of energies."""
    assert train(config_file, energies_file, "train.steps=5") == 0
    assert train(config_file, data_file, "train.steps=5", f"run.dir={tmp_path / 'other'}") == 0
    # in training never, in evaluations where there is something to compare with
    assert {forces for training, forces in asked if training} == {False}
    assert {forces for training, forces in asked if not training} == {False, True}
    one, two = load_model(tmp_path / "run"), load_model(tmp_path / "other")
    torch.testing.assert_close(one.reference_energy, two.reference_energy, rtol=0, atol=0)
    assert float(one.energy_scale) != float(two.energy_scale)
    assert RunSummary.load(tmp_path / "other").test.forces_mae > 0
    other = Curve.load(tmp_path / "other")
    assert "val_forces_mae" in other.units
    assert "loss_forces" not in other.units


def test_resume_on_energies_alone_is_bit_exact(config_file, energies_file, tmp_path):
    common = ["train.schedule=constant", "train.evaluate_every=4"]
    assert train(config_file, energies_file, *common, "train.steps=8") == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    assert train(config_file, energies_file, *common, "train.steps=4") == 0
    assert train(config_file, energies_file, *common, "train.steps=8", "run.resume=true") == 0
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    columns = ["step", "loss_total", "val_energy_mae", "val_score"]
    curves = [np.stack([Curve.load(tmp_path / name)[column] for column in columns]) for name in ("whole", "run")]
    np.testing.assert_array_equal(*curves)


def test_a_direct_head_that_nothing_trains_is_warned_of(config_file, energies_file, tmp_path, capsys):
    assert train(config_file, energies_file, "model.forces=direct", "train.steps=3") == 0
    assert "nothing trains the head for forces" in capsys.readouterr().out
    assert any("head for forces" in text for text in RunSummary.load(tmp_path / "run").extra["warnings"])


def test_a_teacher_teaches_forces_where_labels_have_none(config_file, energies_file, teacher_folder, tmp_path, asked):
    """A term on forces needs them, whatever the labels are; the gap is one of energies."""
    arms = json.dumps([{"name": "alone"}, {"name": "taught", "set": {"distill.terms": [{"kind": "forces"}, {"kind": "energy"}]}}])
    assert train(config_file, energies_file, f"compare.arms={arms}", f"teacher.path={teacher_folder}", "train.steps=4") == 0
    trained = {forces for training, forces in asked if training}
    assert trained == {False, True}
    names, _, *rows = csv.reader((tmp_path / "run" / "report.csv").read_text(encoding="utf-8").splitlines())
    by_title = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
    assert set(by_title) == {"teacher", "alone", "taught"}
    assert all(row["forces_mae"] == row["efwt"] == "" for row in by_title.values())
    assert all(float(row["energy_mae"]) > 0 for row in by_title.values())
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "gap closed, energy" in text
    assert "force" not in text
    no_nan(tmp_path / "run")


def test_a_direct_student_of_a_direct_teacher(config_file, energies_file, tmp_path, asked):
    save_model(direct(12), tmp_path / "teacher")
    terms = json.dumps([{"kind": "forces"}, {"kind": "n2n"}])
    options = (f"teacher.path={tmp_path / 'teacher'}", f"distill.terms={terms}", "model.forces=direct", "train.steps=3")
    assert train(config_file, energies_file, *options) == 0
    assert {forces for training, forces in asked if training} == {True}
    assert not RunSummary.load(tmp_path / "run").extra["warnings"]
    assert RunSummary.load(tmp_path / "run" / "teacher").role == "teacher"


def direct(width: int) -> Potential:
    torch.manual_seed(0)
    return build_model(ModelConfig(width=width, layers=2, radial=6, forces="direct"))


# commands


def test_eval_and_report(config_file, energies_file, tmp_path, capsys):
    for seed in (0, 1):
        assert train(config_file, energies_file, "train.steps=4", f"run.seed={seed}", f"run.dir={tmp_path / f'plain{seed}'}") == 0
        lkm = json.dumps([{"kind": "lkm", "weight": 0.1}])
        assert (
            train(
                config_file,
                energies_file,
                "train.steps=4",
                f"run.seed={seed}",
                f"distill.terms={lkm}",
                f"run.dir={tmp_path / f'lkm{seed}'}",
            )
            == 0
        )
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "plain0"), str(energies_file), "--out", str(tmp_path / "eval")]) == 0
    table = capsys.readouterr().out
    assert "energy MAE" in table
    assert "force" not in table
    assert "nan" not in table
    assert RunSummary.load(tmp_path / "eval").test.energy_mae > 0
    folders = [tmp_path / f"{name}{seed}" for name in ("plain", "lkm") for seed in (0, 1)]
    report = build_joint_report(folders, tmp_path / "joint", resamples=50)
    assert [name for name, _ in report.columns] == ["", "energy MAE", "MAE reduced, energy", "parameters", "inference"]
    baseline, mixed = report.rows
    assert baseline.reduced_energy is None
    energies = [
        np.mean([RunSummary.load(tmp_path / f"{name}{seed}").test.energy_mae_per_atom for seed in (0, 1)]) for name in ("plain", "lkm")
    ]
    assert mixed.reduced_energy.percent == pytest.approx(100 * (energies[0] - energies[1]) / energies[0])
    assert mixed.reduced_energy.low <= mixed.reduced_energy.percent <= mixed.reduced_energy.high
    assert mixed.reduced_forces is None
    assert "MAE reduced = 100" in report.caption
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "again"), "--format", "markdown"]) == 0
    no_nan(tmp_path / "joint")
    no_nan(tmp_path / "again")


def test_profile_has_no_part_for_forces(config_file, energies_file, capsys):
    terms = json.dumps([{"kind": "lkm", "weight": 0.1}])
    options = ["loss.forces_weight=0", f"data.path={energies_file}", f"distill.terms={terms}"]
    assert main(["profile", str(config_file), *options, "--steps", "3", "--warmup", "1"]) == 0
    table = capsys.readouterr().out
    assert "student energy" in table
    assert "student forces" not in table
    assert "double backward" not in table


def test_ablate(config_file, energies_file, tmp_path, capsys):
    terms = json.dumps([{"kind": "lkm", "weight": 0.1}])
    options = [
        "loss.forces_weight=0",
        f"data.path={energies_file}",
        f"distill.terms={terms}",
        "ablate.weight_factors=[0.1]",
        "train.steps=4",
    ]
    assert main(["ablate", str(config_file), *options, "ablate.overhead_steps=0"]) == 0
    assert "energy MAE" in capsys.readouterr().out
    no_nan(tmp_path / "run")


# what is refused


def test_a_weight_on_forces_that_are_not_there(config_file, energies_file, capsys):
    assert main(["train", str(config_file), f"data.path={energies_file}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "energies and no forces" in message
    assert "loss.forces_weight=0" in message


def test_some_structures_without_forces(config_file, data_file, tmp_path, capsys):
    """They are no labels while forces have a weight, and are labels when these have none."""
    mixed = copy_of(data_file, tmp_path / "mixed.h5", lambda number: number in (1, 4, 25))
    assert main(["train", str(config_file), f"data.path={mixed}", "data.val_size=1", "data.labelled=0"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "2 structures of the training split have no energy or forces" in message
    assert "labels with loss.forces_weight=0" in message
    assert train(config_file, mixed, "data.labelled=0", "train.steps=3") == 0
    table = capsys.readouterr().out
    # all 24 train; validation has one without, so that only the test has errors of forces
    assert "36 energies, 33 of them with forces" in " ".join(table.split())
    assert RunSummary.load(tmp_path / "run").test.forces_mae > 0
    assert "val_forces_mae" not in Curve.load(tmp_path / "run").units
    allowed = ["data.labelled=0", "data.allow_missing_labels=true", "data.val_size=1", "train.steps=3", f"run.dir={tmp_path / 'b'}"]
    assert main(["train", str(config_file), f"data.path={mixed}", *allowed]) == 0


def test_when_passed_cannot_compare_forces_that_are_not_there(config_file, energies_file, teacher_folder, capsys):
    terms = json.dumps([{"kind": "forces", "when_passed": "stop"}])
    assert train(config_file, energies_file, f"teacher.path={teacher_folder}", f"distill.terms={terms}") == 2
    assert "compares forces" in " ".join(capsys.readouterr().err.split())


# pieces


def batch_of(data_file: Path, drop) -> tuple[object, list[Structure]]:
    with DataFile(data_file) as data:
        structures = [without(s, forces=None) if drop(k) else s for k, s in enumerate(data.read(range(4)))]
    return collate([Pieces.of(s, k, [5.0]) for k, s in enumerate(structures)], torch.float64), structures


def test_a_batch_says_who_has_forces(data_file):
    batch, structures = batch_of(data_file, lambda k: k == 1)
    assert batch.labelled.tolist() == [True] * 4
    assert batch.with_forces.tolist() == [True, False, True, True]
    assert not have_forces([batch])
    whole, _ = batch_of(data_file, lambda k: False)
    assert whole.force_labels is None
    assert have_forces([whole])
    assert batch.to(dtype=torch.float32).with_forces.tolist() == [True, False, True, True]
    some = select_structures(batch, torch.tensor([False, True, True, False]))
    assert some.with_forces.tolist() == [False, True]
    hidden = collate([Pieces.of(s, k, [5.0], labelled=k != 2) for k, s in enumerate(structures)])
    assert hidden.labelled.tolist() == [True, True, False, True]
    assert hidden.with_forces.tolist() == [True, False, False, True]


def test_the_force_loss_sees_forces_only_where_they_are(data_file):
    batch, structures = batch_of(data_file, lambda k: k == 1)
    model = seeded_model(8, 0).double().eval()
    prediction = model(batch, create_graph=False)
    loss = label_loss(prediction, batch, LossConfig())
    norms = [
        np.linalg.norm(prediction.forces[batch.atom_ptr[k] : batch.atom_ptr[k + 1]].detach().numpy() - s.forces, axis=1)
        for k, s in enumerate(structures)
        if s.forces is not None
    ]
    assert float(loss.forces.detach()) == pytest.approx(np.concatenate(norms).mean(), rel=1e-6)
    energies = np.abs(prediction.energy.detach().numpy() - [s.energy for s in structures])
    assert float(loss.energy.detach()) == pytest.approx(energies.mean())
    alone = label_loss(model(batch, forces=False), batch, LossConfig(forces_weight=0.0))
    assert float(alone.total.detach()) == float(alone.energy.detach()) == pytest.approx(float(loss.energy.detach()))


def test_predictions_leave_forces_out_where_one_structure_has_none(data_file):
    model = seeded_model(8, 0).double()
    mixed, _ = batch_of(data_file, lambda k: k == 1)
    whole, _ = batch_of(data_file, lambda k: False)
    assert predict(model, [whole, mixed]).forces is None
    assert predict(model, [whole]).forces is not None
    np.testing.assert_array_equal(predict(model, [whole]).energy_pred, predict(model, [mixed]).energy_pred)


def test_who_can_be_tested_depends_on_the_labels(data_file):
    mixed, _ = batch_of(data_file, lambda k: True)
    whole, _ = batch_of(data_file, lambda k: False)
    teacher = Teacher(seeded_model(8, 0))
    assert can_test(teacher, [whole])
    assert can_test(teacher, [mixed])
    from dataclasses import replace

    teacher.offer = replace(teacher.offer, outputs=frozenset({"energy"}))
    assert can_test(teacher, [mixed])
    assert not can_test(teacher, [whole])


def test_the_scale_of_energies_without_forces():
    random = np.random.default_rng(0)
    structures = [Structure(np.array([1] * n), np.zeros((n, 3))) for n in random.integers(2, 30, 4000)]
    counts = compositions(structures)
    # every atom an energy of its own, of 0.3 eV about −5 eV
    energy = np.array([random.normal(-5.0, 0.3, s.num_atoms).sum() for s in structures])
    references = fit_reference(counts, energy)
    assert energy_spread(energy, counts, references) == pytest.approx(0.3, rel=0.05)
    assert energy_spread(counts @ references.energies, counts, references) == 1.0
    assert energy_spread(energy[:0], counts[:0], references) == 1.0
