"""Where synthesis starts, what of a start the teacher sees, and that precision is part of what is gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.cli import main
from fastkd.config import ModelConfig
from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure
from fastkd.data.writer import DataWriter
from fastkd.engine import label, synthesize
from fastkd.engine.label import LabelOptions, label_file
from fastkd.errors import DataError
from fastkd.models import build_model, save_model
from fastkd.teachers import TeacherCost, load_teacher
from fastkd.teachers.calculator import energies_and_forces

#: One step, and no frame is dropped.
ONE = ("--steps", "1", "--max-force", "0", "--max-energy", "0", "--device", "cpu")


def read(path: Path) -> list[Structure]:
    with DataFile(path) as data:
        return data.read(list(range(len(data))))


def few(source: Path, path: Path, splits: list[str], **changes: object) -> Path:
    """The first structures of a file, in splits of our choice."""
    with DataWriter(path, level_of_theory="none", positions_dtype="float64") as writer:
        for structure, split in zip(read(source), splits, strict=False):
            writer.append(replace(structure, split=split, **changes))  # type: ignore[arg-type]
    return path


def numbers_of(starts: list[Structure], frames: list[Structure]) -> set[int]:
    """Which starts are among the frames."""
    return {k for k, start in enumerate(starts) if any(np.array_equal(start.positions, frame.positions) for frame in frames)}


@pytest.mark.parametrize(
    ("splits", "options", "expected"),
    [
        (["test", "train", "val", "train"], [], {1, 3}),
        (["test", "train", "val", "train"], ["--split", "val"], {2}),
        # nothing says which of them may be trained on
        (["a", "b", "b"], [], {0, 1, 2}),
    ],
)
def test_only_structures_to_train_on_are_started_from(
    data_file: Path, teacher_folder: Path, tmp_path: Path, splits: list[str], options: list[str], expected: set[int]
) -> None:
    source = few(data_file, tmp_path / "in.h5", splits)
    out = tmp_path / "out.h5"
    assert main(["synthesize", str(source), str(out), "--teacher", str(teacher_folder), *ONE, *options]) == 0
    frames = read(out)
    assert numbers_of(read(source), frames) == expected
    assert {frame.split for frame in frames} == {"train"}
    with DataFile(out) as made:
        assert made.provenance["counts"]["starts"] == len(expected)


def test_a_split_that_is_not_there(data_file: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = few(data_file, tmp_path / "in.h5", ["train", "val"])
    words = ["synthesize", str(source), str(tmp_path / "out.h5"), "--teacher", str(teacher_folder), *ONE]
    assert main([*words, "--split", "tset"]) == 2
    assert "has no structures in split 'tset' to start from" in capsys.readouterr().err
    # nothing is left that would refuse the right name
    assert not list(tmp_path.glob("out.h5*"))


def test_the_teacher_sees_the_bonds_of_the_start(data_file: Path, tmp_path: Path) -> None:
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    source = few(data_file, tmp_path / "in.h5", ["train", "train"], bonds=bonds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bonded = build_model(ModelConfig(kind="pamnet", width=8, layers=1, local="bonds"))
        for weight in bonded.parameters():
            # an untrained one says zero everywhere
            torch.nn.init.normal_(weight, std=0.3)
    bonded.know_elements([1, 6])
    save_model(bonded, tmp_path / "teacher")
    out = tmp_path / "out.h5"
    assert main(["synthesize", str(source), str(out), "--teacher", str(tmp_path / "teacher"), *ONE, "--fmax", "1e-6"]) == 0
    frames = read(out)
    assert len(frames) == 4
    for frame, answer in zip(frames, energies_and_forces(load_teacher(str(tmp_path / "teacher")), frames, TeacherCost()), strict=True):
        assert not isinstance(answer, Exception)
        assert frame.bonds is not None
        assert frame.bonds.tolist() == bonds.tolist()
        assert frame.energy == pytest.approx(answer[0], rel=1e-5)
        assert np.abs(answer[1]).max() > 1e-4


def stop_at(name: str, write: Callable[..., None]) -> Callable[..., None]:
    def dying(file: Path, what: object) -> None:
        if file.stem == name:
            raise KeyboardInterrupt
        write(file, what)

    return dying


def test_a_stopped_synthesis_goes_on_in_its_precision(
    data_file: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = few(data_file, tmp_path / "in.h5", ["train"] * 3)
    words = ["synthesize", str(source), str(tmp_path / "out.h5"), "--teacher", str(teacher_folder), *ONE, "--at-once", "1"]
    monkeypatch.setattr(synthesize, "_write", stop_at("00000002", synthesize._write))
    assert main([*words, "--dtype", "float32"]) == 130
    monkeypatch.undo()
    assert main([*words, "--dtype", "float64"]) == 2
    assert "another source, teacher or method" in capsys.readouterr().err
    assert main([*words, "--dtype", "float32"]) == 0
    assert main([*words, "--dtype", "float64", "--restart", "--overwrite"]) == 0


def test_stopped_labels_go_on_in_their_precision(
    data_file: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = few(data_file, tmp_path / "in.h5", ["train"] * 3, energy=float("nan"), forces=None)
    single, double = (load_teacher(str(teacher_folder), dtype=dtype) for dtype in (torch.float32, torch.float64))
    # weights are the same, so the teacher is
    assert single.hash == double.hash
    monkeypatch.setattr(label, "CHUNK", 1)
    with DataFile(source) as data:
        with monkeypatch.context() as patch:
            patch.setattr(label, "_write", stop_at("00000002", label._write))
            with pytest.raises(KeyboardInterrupt):
                label_file(data, tmp_path / "out.h5", single, LabelOptions())
        with pytest.raises(DataError, match="another source, teacher or choice of options"):
            label_file(data, tmp_path / "out.h5", double, LabelOptions())
        assert label_file(data, tmp_path / "out.h5", single, LabelOptions()).resumed == 2
