"""Tags, fixed atoms and bonds of a data file, all the way through `fastkd train` and `fastkd eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastkd.analysis import Predictions, RunSummary
from fastkd.cli import main
from fastkd.data import DataFile, DataWriter, Structure, StructureDataset
from fastkd.engine.evaluate import predict
from fastkd.errors import DataError
from fastkd.models import build_model, load_model
from fastkd.models.gemnet_oc import GemNetOCOptions
from fastkd.models.presets import PRESETS, Preset
from tests.models.structures import GEMNET

from .synthetic import ATOMS, CUTOFF, make_batch, seeded_model

TAGS = np.array([0, 0, 1, 1, 2])
FIXED = np.array([True, True, False, False, False])
BONDS = np.array([[0, 1], [1, 2], [2, 3], [4, 3]])


def write(path: Path, **extras: Any) -> Path:
    """12 structures of 5 atoms; those of the training split have absurd forces on the atoms that FIXED names."""
    with DataWriter(path, level_of_theory="harmonic pairs") as writer:
        for number in range(12):
            batch = make_batch(torch.tensor([number]), dtype=torch.float64)
            forces = batch.forces.numpy().copy()
            forces[FIXED] += 100.0
            split = "train" if number < 6 else "val" if number < 9 else "test"
            writer.append(
                Structure(
                    batch.atomic_numbers.numpy(),
                    batch.positions.numpy(),
                    energy=float(batch.energy[0]),
                    forces=forces,
                    split=split,
                    **extras,
                )
            )
    return path


def train(folder: Path, data: Path, *options: str) -> int:
    tree = {
        "run": {"dir": str(folder / "run"), "threads": 1, "inference_repeats": 1, "device": "cpu", "report": True, "dtype": "float64"},
        "data": {"path": str(data), "batch_size": 3},
        "train": {"steps": 2, "warmup": 1, "evaluate_every": 1, "checkpoint_every": 1},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(tree))
    return main(["train", str(folder / "config.yaml"), *options])


def test_gemnet_oc_learns_with_the_tags_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: GemNetOCOptions = replace(GEMNET, quad_tags=(1, 2))
    monkeypatch.setitem(PRESETS, "tiny_oc", Preset("gemnet_oc", options, 0, "made up"))
    data = write(tmp_path / "slabs.h5", tags=TAGS, fixed=FIXED)
    assert train(tmp_path / "a", data, "model.preset=tiny_oc") == 0
    model = load_model(tmp_path / "a" / "run").double()
    assert model.options.quad_tags == (1, 2)
    found = Predictions.load(tmp_path / "a" / "run")
    with DataFile(data) as file:
        batch = StructureDataset(file, [model.cutoff], dtype=torch.float64).batch(found.structure_index.tolist())
    assert batch.tags.tolist() == TAGS.tolist() * 3
    energy = model(batch).energy.detach().numpy()
    np.testing.assert_allclose(found.energy_pred, energy, rtol=0, atol=1e-10)
    without = model(replace(batch, tags=None)).energy.detach().numpy()
    assert np.abs(without - energy).min() > 1e-9
    # fixed atoms took no part in the errors
    assert found.free.tolist() == (~FIXED).tolist() * 3
    assert RunSummary.load(tmp_path / "a" / "run").test.forces_mae < 10
    assert "of forces on the 9 free ones of their 15 atoms" in (tmp_path / "a" / "run" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["mxmnet", "pamnet"])
def test_bonds_of_the_file_are_the_local_edges(tmp_path: Path, kind: str) -> None:
    model_options = [f"model.kind={kind}", "model.local=bonds", "model.width=8", "model.layers=1", f"model.cutoff={CUTOFF}"]
    data = write(tmp_path / "bonds.h5", bonds=BONDS)
    assert train(tmp_path / "a", data, *model_options) == 0
    model = load_model(tmp_path / "a" / "run").double()
    found = Predictions.load(tmp_path / "a" / "run")
    assert found.free is None
    with DataFile(data) as file:
        batch = StructureDataset(file, [model.cutoff], dtype=torch.float64).batch(found.structure_index.tolist())
    np.testing.assert_allclose(found.energy_pred, model(batch).energy.detach().numpy(), rtol=0, atol=1e-10)
    fewer = model(replace(batch, bonds=batch.bonds[:, :-1])).energy.detach().numpy()
    assert fewer[-1] != found.energy_pred[-1]
    np.testing.assert_allclose(fewer[:-1], found.energy_pred[:-1], rtol=0, atol=1e-10)


def test_a_file_without_bonds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "plain.h5")
    assert train(tmp_path / "a", data, "model.kind=mxmnet", "model.local=bonds", "model.width=8", "model.layers=1") == 2
    assert "plain.h5 has no bonds, which model.local=bonds asks for" in capsys.readouterr().err


def loss_of(run: Path, name: str) -> list[float]:
    lines = (run / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index(name)
    return [float(line.split(",")[column]) for line in lines[2:]]


def test_what_fixed_atoms_count_for_is_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = write(tmp_path / "slabs.h5", fixed=FIXED), ["model.width=8", "model.layers=1"]
    assert train(tmp_path / "free", data, *model) == 0
    assert train(tmp_path / "all", data, *model, "loss.train_on_free_atoms=false", "train.eval_on_free_atoms=false") == 0
    free, everything = tmp_path / "free" / "run", tmp_path / "all" / "run"
    assert max(loss_of(free, "loss_forces")) < 10
    assert min(loss_of(everything, "loss_forces")) > 30
    assert max(loss_of(free, "val_forces_mae")) < 10e3
    assert min(loss_of(everything, "val_forces_mae")) > 30e3
    assert Predictions.load(everything).free is None
    assert RunSummary.load(free).test.forces_mae < 10
    assert RunSummary.load(everything).test.forces_mae > 30
    # without labels of fixed atoms their scale is not learned either
    scales = [float(load_model(run).energy_scale) for run in (free, everything)]
    assert scales[0] < 2
    assert scales[1] > 50
    capsys.readouterr()
    for option, name in (("--free-atoms", "on"), ("--no-free-atoms", "off")):
        assert main(["eval", str(free), str(data), option, "--device", "cpu", "--dtype", "float64", "--out", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert said.count("free atoms, of the force errors") == 1
    on, off = RunSummary.load(tmp_path / "on").test, RunSummary.load(tmp_path / "off").test
    assert on.forces_mae == pytest.approx(RunSummary.load(free).test.forces_mae, rel=1e-6)
    assert off.forces_mae > 30
    assert on.energy_mae == off.energy_mae


def test_predictions_of_fixed_atoms_against_a_loop() -> None:
    model = seeded_model(8, 1).double()
    batches = [make_batch(torch.tensor([n]), dtype=torch.float64) for n in range(3)]
    masks = [torch.tensor(FIXED), None, torch.zeros(ATOMS, dtype=torch.bool)]
    batches = [replace(batch, fixed=mask) for batch, mask in zip(batches, masks, strict=True)]
    found = predict(model, batches)
    assert found.free.tolist() == (~FIXED).tolist() + [True] * 2 * ATOMS
    errors = []
    for batch, mask in zip(batches, masks, strict=True):
        forces = model(batch, forces=True).forces.detach()
        for i in range(ATOMS):
            if mask is None or not mask[i]:
                errors += (forces[i] - batch.forces[i]).abs().tolist()
    assert found.metrics().forces_mae == pytest.approx(np.mean(errors), rel=1e-12)
    assert predict(model, batches, free_atoms=False).free is None
    held = [replace(batch, fixed=torch.ones(ATOMS, dtype=torch.bool)) for batch in batches]
    with pytest.raises(DataError, match=r"every atom to evaluate on is fixed.*train\.eval_on_free_atoms=false"):
        predict(model, held)
    assert len(predict(model, held, free_atoms=False).forces) == 3 * ATOMS


def test_the_config_builds_a_model_of_given_bonds() -> None:
    from fastkd.config import ModelConfig

    assert build_model(ModelConfig(kind="mxmnet", local="bonds", width=8, layers=1)).options.local == "bonds"
