"""Who may use a run folder, and what the messages say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastkd.config_loading import load_config
from fastkd.engine.environment import describe_environment
from fastkd.engine.folder import is_finished, open_folder
from fastkd.engine.state import save_checkpoint
from fastkd.errors import CheckpointError

from .synthetic import make_config


def test_a_new_folder_gets_config_and_environment(tmp_path: Path) -> None:
    config = make_config(tmp_path / "deep" / "run")
    assert open_folder(config) is False
    assert load_config(config.run.dir / "config.yaml") == config
    environment = json.loads((config.run.dir / "environment.json").read_text())
    assert {"versions", "git", "command", "cpus", "system"} <= environment.keys()
    assert environment["versions"]["torch"]
    assert not is_finished(config.run.dir)


def test_the_environment_names_no_machine_and_no_folder() -> None:
    text = json.dumps(describe_environment(["/somewhere/bin/fastkd", "train", "a.b=c"]))
    assert os.uname().nodename not in text
    assert "/somewhere" not in text
    assert json.loads(text)["command"] == ["fastkd", "train", "a.b=c"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    open_folder(make_config(tmp_path))
    with pytest.raises(CheckpointError, match=r"already holds a run .*run\.resume=true.*run\.dir="):
        open_folder(make_config(tmp_path))


@pytest.mark.parametrize("name", ["metrics.csv", "model.safetensors", "report.html"])
def test_results_without_a_config_are_not_overwritten_either(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match="already holds a run"):
        open_folder(make_config(tmp_path))
    assert (tmp_path / name).read_text() == "mine"


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    open_folder(make_config(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        open_folder(make_config(tmp_path, "run.resume=true"))


def test_resume_says_whether_there_is_a_checkpoint(tmp_path: Path) -> None:
    open_folder(make_config(tmp_path))
    assert open_folder(make_config(tmp_path, "run.resume=true")) is False
    save_checkpoint(tmp_path, "last", 1, {})
    assert open_folder(make_config(tmp_path, "run.resume=true", "train.steps=99")) is True


def test_another_config_is_refused_key_by_key(tmp_path: Path) -> None:
    open_folder(make_config(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.width: 8 in the run, 9 now\n  train\.clip: 10\.0 in the run, 1\.0 now"):
        open_folder(make_config(tmp_path, "run.resume=true", "model.width=9", "train.clip=1"))
    with pytest.raises(CheckpointError, match="it can be extended, not cut"):
        open_folder(make_config(tmp_path, "run.resume=true", "train.steps=3"))
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(CheckpointError, match=r"config\.yaml is missing"):
        open_folder(make_config(tmp_path, "run.resume=true"))


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*a part of the path is a file"):
        open_folder(make_config(tmp_path / "file" / "run"))


def test_read_only_and_full_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    for code, cure in ((errno.EROFS, "not read-only"), (errno.EACCES, "may write to"), (errno.ENOSPC, "free some space")):

        def fail(path: Path, data: bytes, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(CheckpointError, match=cure):
            open_folder(make_config(tmp_path / str(code)))
        monkeypatch.undo()
        assert not list((tmp_path / str(code)).iterdir())
