"""The command line: exit codes, messages, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastkd.cli import main
from fastkd.config import Config
from fastkd.config_loading import load_config
from fastkd.config_schema import options

ROOT = Path(__file__).parents[1]


def call(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_thin_door_lists_every_option() -> None:
    done = call("-m", "fastkd.train", "--help")
    assert done.returncode == 0
    assert "python -m fastkd.train" in done.stdout
    for option in options():
        assert f"{option.path} = {option.default}" in done.stdout
    assert "model.cutoff = 5.0 [Å]" in done.stdout


def test_a_mistake_exits_2_with_a_message_and_no_traceback(tmp_path: Path) -> None:
    done = call("-m", "fastkd.train", "train.stepz=5", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown key 'stepz' in train.stepz; did you mean train.steps?\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "a.yaml", "b.yaml"], "one config file at a time"),
        (["train", "absent.yaml"], "cannot read the config absent.yaml"),
        (["train", "train.steps", "=", "5"], "one config file at a time"),
        (["report", "/nowhere"], "nowhere"),
        (["eval", "/nowhere", "embedded"], "nowhere"),
    ],
)
def test_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")


def test_unknown_flags_and_commands_exit_2() -> None:
    for arguments in (["trian"], ["train", "--print"], []):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("fastkd.cli.load_config", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["train"])


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "train.steps=77", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["train"]["steps"] == 77
    (tmp_path / "printed.yaml").write_text(text)
    assert load_config(tmp_path / "printed.yaml") == load_config(None, ["train.steps=77"])


def test_schema_is_json_schema_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == Config.model_fields.keys()
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["TrainConfig"]["properties"]["steps"]["description"] == "optimiser steps"
