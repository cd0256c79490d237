"""Synthetic structures: relaxations and dynamics with a teacher, what is dropped, what is written, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc100
from ase.calculators.emt import EMT

from fastkd.cli import main
from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure
from fastkd.data.writer import DataWriter
from fastkd.engine import synthesize as module
from fastkd.engine.synthesize import SynthesisOptions, moderate, synthesize
from fastkd.engine.trajectories import DONE, Trajectory, has_desorbed
from fastkd.errors import ConfigError, DataError
from fastkd.teachers import BaseTeacher, load_teacher
from fastkd.teachers.calculator import TeacherCalculator, atoms_of

EMT_PATH = "ase:ase.calculators.emt:EMT"


def slab(height: float, seed: int) -> Structure:
    """Copper, two layers, the lower fixed, and an oxygen atom above; rattled."""
    atoms = fcc100("Cu", (2, 2, 2), vacuum=6.0)
    tags = np.where(atoms.get_tags() == 2, 0, 1)  # ase counts layers from the top
    add_adsorbate(atoms, "O", height, "hollow")
    atoms.pbc = [True, True, False]
    positions = atoms.get_positions()
    fixed = np.append(tags == 0, False)
    positions[~fixed] += np.random.default_rng(seed).normal(scale=0.05, size=(int((~fixed).sum()), 3))
    return Structure(
        atoms.get_atomic_numbers(), positions, np.asarray(atoms.cell), np.asarray(atoms.pbc), tags=np.append(tags, 2), fixed=fixed
    )


@pytest.fixture(scope="module")
def teacher() -> BaseTeacher:
    return load_teacher(EMT_PATH)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slabs with an adsorbate near, one with it far away."""
    path = tmp_path_factory.mktemp("starts") / "starts.h5"
    with DataWriter(path, level_of_theory="none", licence="CC0-1.0", positions_dtype="float64") as writer:
        for seed, height in enumerate((1.2, 1.4, 3.6, 1.3)):
            writer.append(slab(height, seed))
    return path


def make(starts: Path, out: Path, teacher: BaseTeacher, **options: Any) -> tuple[module.SynthesisReport, list[Structure], dict[str, Any]]:
    with DataFile(starts) as source:
        report = synthesize(source, out, teacher, SynthesisOptions(**({"steps": 6} | options)))
    with DataFile(out) as made:
        return report, made.read(list(range(len(made)))), made.provenance


def test_relaxations_are_written_with_the_teachers_labels(starts: Path, tmp_path: Path, teacher: BaseTeacher) -> None:
    report, frames, provenance = make(starts, tmp_path / "out.h5", teacher, steps=30, fmax=0.1)
    assert report.starts == 4
    assert report.desorbed == 1
    assert report.kept == len(frames) == report.frames - report.filtered
    assert not (tmp_path / "out.h5.synthesis").exists()
    last = []
    for frame in frames:
        atoms = atoms_of(frame)
        atoms.calc = EMT()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(apply_constraint=False), atol=1e-5)
        assert frame.split == "train"
        last.append(np.linalg.norm(atoms.get_forces(), axis=1).max())
    with DataFile(starts) as source:
        first = source.read([0])[0]
    of_first = [frame for frame in frames if np.allclose(frame.positions[first.fixed], first.positions[first.fixed], atol=0)]
    assert len(of_first) == len(frames)  # fixed atoms of all are those of the same slab, and never moved
    np.testing.assert_array_equal(frames[0].positions, first.positions)
    assert min(last) < 0.1
    assert provenance["synthesized_by"]["path"] == EMT_PATH
    assert provenance["options"]["fmax"] == 0.1
    assert provenance["counts"]["desorbed"] == 1
    np.testing.assert_array_equal(frames[0].tags, first.tags)


def test_the_filters_are_joined_by_and() -> None:
    energy = np.array([0.0, 3.0, 12.0, -11.0])
    forces = np.zeros((4, 2, 3))
    forces[1, 0] = [40.0, 40.0, 0.0]
    frames = Trajectory(np.zeros((4, 2, 3)), energy, forces, np.zeros(4), DONE)
    assert moderate(frames, SynthesisOptions()).tolist() == [True, False, False, False]
    assert moderate(frames, SynthesisOptions(max_force=0)).tolist() == [True, True, False, False]
    assert moderate(frames, SynthesisOptions(max_energy=0)).tolist() == [True, False, True, True]
    shifted = Trajectory(frames.positions, energy - 100, forces, np.zeros(4), DONE)
    assert moderate(shifted, SynthesisOptions()).tolist() == [True, False, False, False]
    assert not moderate(shifted, SynthesisOptions(zero="absolute")).any()


def test_an_adsorbate_has_left_when_its_lowest_atom_is_too_high() -> None:
    tags = np.array([0, 1, 1, 2, 2])
    positions = np.zeros((5, 3))
    positions[:, 2] = [0, 2, 2.5, 5.4, 9]
    assert not has_desorbed(positions, tags, 3.0)
    positions[3, 2] = 5.6
    assert has_desorbed(positions, tags, 3.0)
    assert not has_desorbed(positions, None, 3.0)
    assert not has_desorbed(positions, np.ones(5), 3.0)


def test_dynamics_are_seeded_and_hold_fixed_atoms(starts: Path, tmp_path: Path, teacher: BaseTeacher) -> None:
    runs = [
        make(starts, tmp_path / f"{name}.h5", teacher, method="md", every=2, seed=seed)[1] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = ([frame.positions for frame in frames] for frames in runs)
    assert len(first) == 12  # three trajectories, steps 0, 2, 4, 6
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    assert not np.allclose(first[3], third[3], atol=1e-4)
    frames = runs[0]
    assert [frame.time_fs for frame in frames[:4]] == [0.0, 1.0, 2.0, 3.0]
    fixed = frames[0].fixed
    assert fixed is not None
    np.testing.assert_array_equal(frames[3].positions[fixed], frames[0].positions[fixed])


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_a_stopped_synthesis_goes_on_and_ends_the_same(
    starts: Path, tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    teacher = load_teacher(str(teacher_folder))
    options = {"limit": 7, "at_once": at_once}
    _, whole, _ = make(starts, tmp_path / "whole.h5", teacher, **options)
    original = module._write

    def dying(file: Path, trajectory: Trajectory) -> None:
        if file.stem == "00000003":
            raise KeyboardInterrupt
        original(file, trajectory)

    monkeypatch.setattr(module, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        make(starts, tmp_path / "parts.h5", teacher, **options)
    monkeypatch.undo()
    with pytest.raises(DataError, match="another source, teacher or method"):
        make(starts, tmp_path / "parts.h5", teacher, **options, fmax=0.5)
    report, parts, _ = make(starts, tmp_path / "parts.h5", teacher, **options)
    # of a group that is not whole nothing is kept
    assert report.resumed == {1: 3, 2: 2, 16: 0}[at_once]
    assert len(parts) == len(whole) == 7
    assert all(np.array_equal(one.positions, two.positions) for one, two in zip(parts, whole, strict=True))
    with DataFile(tmp_path / "parts.h5") as one, DataFile(tmp_path / "whole.h5") as two:
        assert one.content_hash == two.content_hash


@pytest.mark.parametrize("method", ["relax", "md"])
def test_side_by_side_is_as_one_after_the_other(starts: Path, tmp_path: Path, teacher: BaseTeacher, method: str) -> None:
    found = [make(starts, tmp_path / f"{at_once}.h5", teacher, at_once=at_once, method=method, fmax=0.3, steps=9) for at_once in (1, 3, 16)]
    assert len(found[0][1]) > 4
    for _, frames, _ in found[1:]:
        for one, two in zip(frames, found[0][1], strict=True):
            # the order of EMT's sums over neighbours depends on what it was asked before
            np.testing.assert_allclose(one.positions, two.positions, rtol=0, atol=1e-9)
            assert one.energy == pytest.approx(two.energy, abs=1e-9)
    batches = [report.cost.batches for report, _, _ in found]
    assert batches[2] < batches[1] < batches[0]
    assert len({report.cost.structures for report, _, _ in found}) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_force": 1e-9}, DataError, "no frame is left of 4 trajectories"),
        ({"steps": 0}, ConfigError, "--steps must be at least 1"),
        ({"at_once": 0}, ConfigError, "--at-once must be at least 1"),
        ({"fmax": 0.0}, ConfigError, "--fmax must be positive"),
        ({"max_energy": -1.0}, ConfigError, "--max-energy must not be negative"),
    ],
)
def test_mistakes(starts: Path, tmp_path: Path, teacher: BaseTeacher, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(starts, tmp_path / "out.h5", teacher, **options)
    assert not (tmp_path / "out.h5").exists()


def test_a_teacher_that_fails_loses_the_trajectory_only(starts: Path, tmp_path: Path, teacher: BaseTeacher) -> None:
    path = tmp_path / "odd.h5"
    with DataFile(starts) as source, DataWriter(path, level_of_theory="none") as writer:
        good = source.read([0])[0]
        writer.append(good)
        positions = good.positions.copy()
        positions[-1] = positions[-2]  # two atoms in one place: EMT has no number for it
        writer.append(Structure(good.atomic_numbers, positions, good.cell, good.pbc, tags=good.tags, fixed=good.fixed))
    report, frames, _ = make(path, tmp_path / "out.h5", teacher)
    assert report.broken == 1
    assert frames


def test_the_command_and_a_teacher_of_ours(
    tmp_path: Path, data_file: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.h5"
    command = [
        "synthesize",
        str(data_file),
        str(out),
        "--teacher",
        str(teacher_folder),
        "--steps",
        "2",
        "--limit",
        "10",
        "--max-force",
        "1e3",
    ]
    assert main([*command, "--max-energy", "1e4"]) == 0
    text = capsys.readouterr().out
    assert "10 of" in text
    assert f"augment.synthetic={out}" in text
    with DataFile(out) as made:
        assert len(made) == 10
        assert json.loads(json.dumps(made.provenance))["counts"]["starts"] == 24  # of the training split
        frame = made.read([3])[0]
    atoms = atoms_of(frame)
    atoms.calc = TeacherCalculator(load_teacher(teacher_folder))
    assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-6)
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
