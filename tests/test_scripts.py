"""The project's own scripts: the teacher is shipped only when finished, README commands are found, time blocks do not leak."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_readme_commands_are_found_and_hidden_blocks_left_out():
    text = "```console\n$ one a\noutput\n$ two\n```\n```console\n# not run\n$ three\n```\n```\n$ four\n```\n"
    assert load("readme_commands").commands(text) == ["one a", "two"]


@pytest.mark.parametrize("frames", [100, 1000, 2000])
def test_time_blocks_never_put_neighbours_in_train_and_test(frames):
    pytest.importorskip("ase")
    make_data = load("make_data")
    split = make_data.split_by_blocks(frames)
    used = [(index, name) for index, name in enumerate(split) if name]
    gaps = [after - before for (before, name), (after, other) in itertools.pairwise(used) if name != other]
    assert gaps, "several splits"
    assert min(gaps) > 1 + min(make_data.GUARD_FRAMES, frames // 40) - 1
    assert {name for _, name in used} == {"train", "val", "test"}
    assert np.mean(split == "train") > 0.6


def test_unfinished_teacher_is_not_shipped(tmp_path, monkeypatch, capsys):
    ship = load("ship_teacher")
    (tmp_path / "model.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["ship_teacher.py", str(tmp_path), "--out", str(tmp_path / "out")])
    assert ship.main() == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_large_teacher_is_not_shipped(tmp_path, monkeypatch, capsys):
    ship = load("ship_teacher")
    for name in ship.FILES:
        (tmp_path / name).write_bytes(b"x" * 10)
    monkeypatch.setattr(ship, "MAX_BYTES", 5)
    monkeypatch.setattr(sys, "argv", ["ship_teacher.py", str(tmp_path), "--out", str(tmp_path / "out")])
    assert ship.main() == 2
    assert "more than 5" in capsys.readouterr().err


def test_finished_teacher_is_shipped_whole(tmp_path, monkeypatch):
    ship = load("ship_teacher")
    for name in ship.FILES:
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(sys, "argv", ["ship_teacher.py", str(tmp_path), "--out", str(tmp_path / "out")])
    assert ship.main() == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(ship.FILES.values())
