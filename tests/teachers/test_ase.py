"""ASE calculators as teachers, and ``fastkd label``: values, resume, what stays as it is, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT

from fastkd.cli import main
from fastkd.data import DataFile, DataWriter, Structure
from fastkd.engine.label import CHUNK, LabelOptions, label_file
from fastkd.errors import ConfigError, DataError
from fastkd.teachers import CachedTeacher, load_teacher
from fastkd.teachers.ase import AseTeacher
from tests.distill.common import make_batch, molecule

from .foreign import lennard_jones

LJ = "ase:tests.teachers.foreign:lennard_jones"
LABELS = frozenset({"energy", "forces"})


def write(path: Path, count: int, **labels) -> Path:
    with DataWriter(path, level_of_theory="none", licence="CC0", positions_dtype="float64") as writer:
        for number in range(count):
            numbers, positions = molecule(number)
            split = ("train", "val", "test")[number % 3]
            writer.append(Structure(numbers.numpy(), positions.numpy(), split=split, system=f"m{number % 2}", **labels))
    return path


def atoms_of(structure: Structure) -> Atoms:
    atoms = Atoms(structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.calc = lennard_jones()
    return atoms


def test_calculators_see_tags_and_forces_of_fixed_atoms_stay() -> None:
    batch = make_batch([0, 3])
    tags = torch.arange(batch.num_atoms) % 3
    seen = []

    class Watching(EMT):
        def calculate(self, atoms: Atoms, *rest: object) -> None:
            seen.append((atoms.get_tags().tolist(), list(atoms.constraints)))
            atoms.numbers[:] = 29
            super().calculate(atoms, *rest)

    teacher = AseTeacher(Watching(), "watching")
    forces = teacher(replace(batch, tags=tags, fixed=torch.ones(batch.num_atoms, dtype=torch.bool)), LABELS).forces
    assert [tag for tagged, _ in seen for tag in tagged] == tags.tolist()
    assert not any(constraints for _, constraints in seen)
    assert float(forces.abs().min(0).values.max()) > 0
    seen.clear()
    teacher(batch, LABELS)
    assert not any(tag for tagged, _ in seen for tag in tagged)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return write(tmp_path / "bare.h5", 10)


def test_labels_are_the_calculators(tmp_path: Path) -> None:
    batch = make_batch([0, 3, 5])
    teacher = load_teacher(LJ)
    got = teacher(batch, LABELS)
    for graph, (first, last) in enumerate(zip(batch.atom_ptr[:-1].tolist(), batch.atom_ptr[1:].tolist(), strict=True)):
        atoms = Atoms(batch.atomic_numbers[first:last].numpy(), batch.positions[first:last].numpy())
        atoms.calc = lennard_jones()
        assert float(got.energy[graph]) == atoms.get_potential_energy()
        assert np.array_equal(got.forces[first:last].numpy(), atoms.get_forces())
    assert teacher.offer.outputs == {"energy", "forces", "stress"}
    assert not teacher.offer.widths
    cache = CachedTeacher.build(teacher, LABELS, [replace(batch, graphs={})], dataset_hash="data")
    assert torch.equal(cache(batch).forces, got.forces)


def test_options_are_part_of_the_identity() -> None:
    hashes = {load_teacher(LJ, options=options).hash for options in ({}, {"epsilon": 0.1}, {"epsilon": 0.2})}
    assert len(hashes) == 3
    assert load_teacher(LJ).hash == load_teacher(LJ).hash


def test_a_periodic_calculator_sees_the_cell_and_gives_stress() -> None:
    batch = make_batch([0])
    cell = torch.tensor([[[4.0, 0.3, 0.0], [0.0, 4.2, 0.1], [0.2, 0.0, 4.4]]], dtype=torch.float64)
    crystal = replace(batch, atomic_numbers=torch.full_like(batch.atomic_numbers, 29), cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool))
    got = AseTeacher(EMT(), "emt")(crystal, LABELS | {"stress"})
    atoms = Atoms(crystal.atomic_numbers.numpy(), batch.positions.numpy(), cell=cell[0].numpy(), pbc=True)
    atoms.calc = EMT()
    assert np.allclose(got.stress[0].numpy(), atoms.get_stress(voigt=False), rtol=1e-12)
    assert float(got.energy[0]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)


def test_no_features_and_no_calculator_are_refused() -> None:
    with pytest.raises(ValueError, match="gives energy, forces, stress only, not node"):
        load_teacher(LJ)(make_batch([0]), frozenset({"node"}))
    with pytest.raises(ConfigError, match="returned a Foreign, which is no ASE calculator"):
        load_teacher("ase:tests.teachers.foreign:not_a_teacher")


def test_a_file_is_labelled_and_keeps_all_else(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bare.read_bytes()
    out = bare.with_name("out.h5")
    assert main(["label", str(bare), str(out), "--teacher", LJ, "--options", "epsilon=0.1", "--level-of-theory", "LJ"]) == 0
    assert "10 structures, 10 labelled by" in capsys.readouterr().out
    assert bare.read_bytes() == before
    with DataFile(bare) as source, DataFile(out) as data:
        for old, new in zip(source.read(range(10)), data.read(range(10)), strict=True):
            assert np.array_equal(old.positions, new.positions)
            assert (old.split, old.system) == (new.split, new.system)
            atoms = atoms_of(new)
            assert new.energy == atoms.get_potential_energy()
            assert np.allclose(new.forces, atoms.get_forces(), rtol=1e-6, atol=1e-6)
            assert new.stress is None
        assert data.level_of_theory == "LJ"
        assert data.licence == "CC0"
        assert data.file["positions"].dtype == np.float64
        assert data.provenance["labelled_by"]["path"] == LJ
        assert data.provenance["source_hash"] == source.content_hash
        data.check_hash()
    assert not out.with_name("out.h5.labels").exists()


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "bare.h5", 2 * CHUNK + 5)
    out = tmp_path / "out.h5"
    asked: list[int] = []

    class Stopping(AseTeacher):
        stop_at = CHUNK + 3

        def labels(self, atoms, needs, where):
            if len(asked) == self.stop_at:
                raise KeyboardInterrupt
            asked.append(1)
            return super().labels(atoms, needs, where)

    teacher = Stopping(lennard_jones(), LJ)
    with DataFile(source) as data:
        with pytest.raises(KeyboardInterrupt):
            label_file(data, out, teacher, LabelOptions())
        assert not out.exists()
        teacher.stop_at = -1
        report = label_file(data, out, teacher, LabelOptions())
        # the finished file of labels is not asked for again, the half-done one is
        assert len(asked) == CHUNK + 3 + CHUNK + 5
        assert (report.resumed, report.labelled) == (CHUNK, 2 * CHUNK + 5)
        label_file(data, tmp_path / "whole.h5", AseTeacher(lennard_jones(), LJ), LabelOptions())
    with DataFile(out) as resumed, DataFile(tmp_path / "whole.h5") as whole:
        assert resumed.content_hash == whole.content_hash


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_finished_labels_that_were_damaged_are_named(tmp_path: Path, keep: int) -> None:
    source, out = write(tmp_path / "bare.h5", CHUNK + 1), tmp_path / "out.h5"

    class Stopping(AseTeacher):
        asked = 0

        def labels(self, atoms, needs, where):
            self.asked += 1
            if self.asked > CHUNK:
                raise KeyboardInterrupt
            return super().labels(atoms, needs, where)

    with DataFile(source) as data:
        with pytest.raises(KeyboardInterrupt):
            label_file(data, out, Stopping(lennard_jones(), LJ), LabelOptions())
        (finished,) = (tmp_path / "out.h5.labels").glob("*.npz")
        finished.write_bytes(finished.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"00000000\.npz cannot be read .*remove it"):
            label_file(data, out, AseTeacher(lennard_jones(), LJ), LabelOptions())
        finished.unlink()
        assert label_file(data, out, AseTeacher(lennard_jones(), LJ), LabelOptions()).labelled == CHUNK + 1


def test_half_done_work_of_another_job_is_not_mixed_in(tmp_path: Path) -> None:
    source, out = write(tmp_path / "bare.h5", 4), tmp_path / "out.h5"
    with DataFile(source) as data:
        with pytest.raises(DataError, match="no oxygen"):
            label_file(data, out, load_teacher("ase:tests.teachers.foreign:Picky"), LabelOptions())
        with pytest.raises(DataError, match=r"another source, teacher or choice of options.*--restart"):
            label_file(data, out, load_teacher(LJ), LabelOptions())
        label_file(data, out, load_teacher(LJ), LabelOptions(restart=True))
    assert out.exists()


def test_labels_that_are_there_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "half.h5", tmp_path / "out.h5"
    with DataWriter(source, level_of_theory="DFT") as writer:
        for number in range(4):
            numbers, positions = molecule(number)
            labels = {"energy": -1.0, "forces": np.zeros((len(numbers), 3))} if number < 2 else {}
            writer.append(Structure(numbers.numpy(), positions.numpy(), **labels))
    command = ["label", str(source), str(out), "--teacher", LJ]
    assert main(command) == 2
    assert "2 of 4 structures have labels already" in capsys.readouterr().err
    assert main([*command, "--existing", "keep"]) == 0
    with DataFile(out) as data:
        energies = [structure.energy for structure in data.read(range(4))]
        assert energies[:2] == [-1.0, -1.0]
        assert energies[3] == atoms_of(data[3]).get_potential_energy()
        assert data.level_of_theory.startswith("DFT; 4 structures, some labelled by")
    assert main(["label", str(out), str(tmp_path / "again.h5"), "--teacher", LJ]) == 2
    assert "every structure has labels already, and they stay" in capsys.readouterr().err
    assert main(["label", str(out), str(tmp_path / "again.h5"), "--teacher", LJ, "--existing", "replace"]) == 0
    with DataFile(tmp_path / "again.h5") as data:
        assert data[0].energy == atoms_of(data[0]).get_potential_energy()


def test_structures_that_fail_stop_it_or_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "bare.h5", 6), tmp_path / "out.h5"
    command = ["label", str(source), str(out), "--teacher", "ase:tests.teachers.foreign:Picky", "--batch-size", "4"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "structure 2: the calculator of ase:tests.teachers.foreign:Picky failed: ValueError: no oxygen, please" in said
    assert "Traceback" not in said
    assert main([*command, "--skip-failed"]) == 0
    with DataFile(source) as bare, DataFile(out) as data:
        oxygen = [8 in structure.atomic_numbers for structure in bare.read(range(6))]
        assert 0 < sum(oxygen) < 6
        assert np.array_equal(data.missing_labels(), np.flatnonzero(oxygen))
        assert data.provenance["failed"] == np.flatnonzero(oxygen).tolist()


def test_stress_is_labelled_only_when_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "copper.h5"
    with DataWriter(source, level_of_theory="none") as writer:
        writer.append(Structure(np.array([29, 29]), np.array([[0, 0, 0], [1.9, 1.8, 1.7]]), 3.7 * np.eye(3), np.ones(3, bool)))
    for name, more in (("without.h5", []), ("with.h5", ["--stress"])):
        assert main(["label", str(source), str(tmp_path / name), "--teacher", "ase:ase.calculators.emt:EMT", *more]) == 0
    with DataFile(tmp_path / "without.h5") as data:
        assert "stress" not in data.fields
    with DataFile(tmp_path / "with.h5") as data:
        atoms = Atoms(data[0].atomic_numbers, data[0].positions, cell=data[0].cell, pbc=True, calculator=EMT())
        assert np.allclose(data[0].stress, atoms.get_stress(voigt=False), rtol=1e-9)


def test_our_own_models_label_too(tmp_path: Path, bare: Path) -> None:
    out = tmp_path / "out.h5"
    assert main(["label", str(bare), str(out), "--teacher", "embedded", "--batch-size", "3", "--dtype", "float64"]) == 0
    teacher = load_teacher("embedded", dtype=torch.float64)
    got = teacher(make_batch([7], cutoffs=(teacher.cutoff,)), LABELS)
    with DataFile(out) as data:
        assert data[7].energy == pytest.approx(float(got.energy), rel=1e-12)
        assert np.allclose(data[7].forces, got.forces.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--teacher", "ase:tests.teachers.foreign:absent"], "has no 'absent'"),
        (["--teacher", "ase:tests.teachers.foreign:EnergyOnly"], "gives no forces"),
        (["--teacher", "ase:tests.teachers.foreign:not_a_teacher"], "no ASE calculator"),
        (["--teacher", LJ, "--options", "epsilon"], "--options 'epsilon': write key=value"),
        (["--teacher", LJ, "--options", "depth=3"], "teacher.options do not fit"),
        (["--teacher", LJ, "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--teacher", LJ, "--device", "tpu"], "--device = 'tpu'"),
        (["--teacher", "/nowhere"], "there is no teacher at /nowhere"),
    ],
)
def test_mistakes_exit_2_and_leave_no_file(bare: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str) -> None:
    assert main(["label", str(bare), str(bare.with_name("out.h5")), *change]) == 2
    assert message in capsys.readouterr().err
    assert list(bare.parent.iterdir()) == [bare]


def test_a_file_is_not_overwritten_unasked(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = bare.with_name("out.h5")
    out.write_text("mine")
    assert main(["label", str(bare), str(out), "--teacher", LJ]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["label", str(bare), str(bare), "--teacher", LJ, "--overwrite"]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert main(["label", str(bare), str(out), "--teacher", LJ, "--overwrite"]) == 0
