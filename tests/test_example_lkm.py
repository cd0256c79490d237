"""The folder `examples/lkm`: its data, its arms, and the whole study in small."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.data import atomic_numbers

from examples.lkm import __main__ as lkm_study
from examples.lkm import make_data as lkm_data
from examples.sampling import structure_of
from fastkd.config_loading import arm_config, load_config
from fastkd.data import DataFile, DataWriter
from fastkd.errors import DataError
from fastkd.models import load_model

ROOT = Path(__file__).resolve().parent.parent


def qm9(path: Path, molecules: int = 60, *, coarse: bool = True) -> dict[str, np.ndarray]:
    """A twin of QM9's npz: chains of H, C, N, O, F whose energy is one number for each element and a little more."""
    random = np.random.default_rng(0)
    counts = random.integers(4, 9, molecules)
    numbers = random.choice([1, 6, 7, 8, 9], counts.sum()).astype(np.uint8)
    place = np.concatenate([np.arange(count)[:, None] * [1.3, 0.2, 0.0] for count in counts]) + random.normal(0, 0.05, (counts.sum(), 3))
    energy = np.array([-part.astype(float).sum() for part in np.split(numbers, np.cumsum(counts)[:-1])]) + random.normal(0, 0.01, molecules)
    where = {"positions_1e4A": np.round(1e4 * place).astype(np.int32)} if coarse else {"positions": place}
    arrays = {"atomic_numbers": numbers, "natoms": counts.astype(np.uint8), lkm_data.TARGETS["u0"][0]: energy, **where}
    np.savez(path, **arrays)
    return arrays | {"positions": place}


@pytest.mark.parametrize("coarse", [True, False])
def test_qm9_energies_without_forces(coarse, tmp_path, capsys):
    truth = qm9(tmp_path / "q.npz", coarse=coarse)
    arguments = [str(tmp_path / "q.npz"), "--out", str(tmp_path / "q.h5"), "--val", "10", "--test", "15", "--seed", "3"]
    assert lkm_data.main(arguments) == 0
    assert "35 train, 10 val, 15 test" in capsys.readouterr().out
    ends = np.cumsum(truth["natoms"].astype(int))
    with DataFile(tmp_path / "q.h5") as data:
        structures, splits, provenance = data.read(range(60)), data.splits, data.provenance
        assert "forces" not in data.fields
        assert not len(data.missing_labels(forces=False))
    reference = {atomic_numbers[symbol]: value for symbol, value in provenance["reference_energies_eV"].items()}
    assert provenance["split_seed"] == 3
    total = truth[lkm_data.TARGETS["u0"][0]] * units.Hartree
    for structure, last, energy in zip(structures, ends, total, strict=True):
        atoms = slice(last - structure.num_atoms, last)
        np.testing.assert_array_equal(structure.atomic_numbers, truth["atomic_numbers"][atoms])
        np.testing.assert_allclose(structure.positions, truth["positions"][atoms], rtol=0, atol=6e-5)
        assert structure.energy + sum(reference[int(z)] for z in structure.atomic_numbers) == pytest.approx(energy, abs=1e-7)
    # least squares over the training molecules: what is left is orthogonal to their compositions, and not to all molecules'
    counts = np.array([[np.count_nonzero(s.atomic_numbers == z) for z in sorted(reference)] for s in structures], dtype=float)
    rest = np.array([s.energy for s in structures])
    train = splits == "train"
    assert np.abs(counts[train].T @ rest[train]).max() < 1e-8 < np.abs(counts.T @ rest).max()
    assert lkm_data.main(arguments) == 2
    assert lkm_data.draw(60, 10, 15, 3).tolist() == splits.tolist()
    assert lkm_data.draw(60, 10, 15, 4).tolist() != splits.tolist()


def test_qm9_says_what_is_wrong(tmp_path):
    qm9(tmp_path / "q.npz")
    with pytest.raises(DataError, match="lacks ZPVE_au"):
        lkm_data.make_file(tmp_path / "q.npz", tmp_path / "q.h5", target="zpve")
    with pytest.raises(DataError, match="leave none of 60"):
        lkm_data.make_file(tmp_path / "q.npz", tmp_path / "q.h5")
    assert not (tmp_path / "q.h5").exists()


@pytest.mark.parametrize("name", list(lkm_study.DATA))
def test_lkm_arms_are_one_and_the_same_model(name):
    config = load_config(ROOT / "examples" / "lkm" / f"{name}.yaml")
    arms = {arm.name: arm_config(config, arm, 0, Path("x")) for arm in config.compare.arms}
    assert list(arms) == ["plain", "p1", "p2"]
    assert not arms["plain"].distill.terms
    assert [(term.kind, term.loss) for arm in ("p1", "p2") for term in arms[arm].distill.terms] == [("lkm", "mae"), ("lkm", "mse")]
    for arm in arms.values():
        same = {"run": config.run, "distill": config.distill}
        assert arm.model_copy(update=same) == arms["plain"].model_copy(update=same)
    assert len(config.compare.seeds) >= 3
    assert (config.loss.forces_weight == 0) == (name == "qm9")


def test_the_lkm_study_in_small(tmp_path, capsys):
    qm9(tmp_path / "q.npz")
    assert lkm_data.main([str(tmp_path / "q.npz"), "--out", str(tmp_path / "qm9.h5"), "--val", "4", "--test", "6"]) == 0
    molecules = [structure_of(atoms, energy=float(k), forces=np.full((9, 3), 0.1)) for k, atoms in enumerate(ethanols(12))]
    with DataWriter(tmp_path / "ethanol.h5", level_of_theory="none") as writer:
        writer.extend(replace(s, split="train" if k < 8 else "val" if k < 10 else "test") for k, s in enumerate(molecules))
    short = ["train.steps=2", "train.warmup=1", "train.evaluate_every=1", "train.checkpoint_every=2", "model.width=8", "model.layers=2"]
    command = [*short, "compare.seeds=[0,1]", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--bootstrap", "20"]
    assert lkm_study.main(command) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert table in printed
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(("| QM9", "| rMD17"))]
    assert len(rows) == 3 * len(lkm_study.CASES)
    assert {row[1] for row in rows} == set(lkm_study.MODELS.values())
    # energies alone have no column of forces to fill, and plain training is what the others are measured from
    assert all((row[5] == "–") == row[0].endswith("U0") for row in rows)
    assert all((row[4] == "–") == (row[2] == "plain") for row in rows)
    assert "nan" not in table.lower()
    lines = list(csv.reader((tmp_path / "out" / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert {len(line) for line in lines} == {3 + 2 + 3 + 2 + 3 + 2}
    assert len(lines) == 2 + len(rows)
    # the same state dict in every arm
    names = {tuple(load_model(tmp_path / "out" / "qm9" / "mxmnet" / arm / "seed0").state_dict()) for arm in ("plain", "p1", "p2")}
    assert len(names) == 1
    # again: nothing is trained
    model = tmp_path / "out" / "ethanol" / "pamnet" / "p1" / "seed1" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert lkm_study.main([*command, "--only", "ethanol/pamnet"]) == 0
    assert model.stat().st_mtime_ns == before
    assert lkm_study.main(["--data", str(tmp_path / "no"), "--out", str(tmp_path / "other")]) == 2


def ethanols(number: int) -> list[Atoms]:
    """Rattled ethanol."""
    found = []
    for seed in range(number):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        found.append(atoms)
    return found
