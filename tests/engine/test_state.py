"""Checkpoint files: round trip, atomic replacement, damage."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch

from fastkd.engine.state import FOLDER, has_checkpoint, load_checkpoint, load_optimizer_state, optimizer_state, save_checkpoint
from fastkd.errors import CheckpointError
from fastkd.files import write_json, write_text

TREE = {"a": {"w": torch.tensor([1.5, math.inf]), "empty": {}}, "n": 3, "x": 0.1, "none": None, "list": [torch.arange(3), "text", True]}


def test_round_trip_keeps_tensors_numbers_and_structure(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, "last", 7, TREE)
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 7
    assert torch.equal(loaded.tree["a"]["w"], TREE["a"]["w"])
    assert torch.equal(loaded.tree["list"][0], torch.arange(3))
    assert loaded.tree["a"]["empty"] == {}
    assert loaded.tree["list"][1:] == ["text", True]
    assert (loaded.tree["n"], loaded.tree["x"], loaded.tree["none"]) == (3, 0.1, None)


def test_a_new_checkpoint_replaces_the_old_one_and_its_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "best", 1, TREE)
    save_checkpoint(tmp_path, "last", 1, TREE)
    save_checkpoint(tmp_path, "last", 2, TREE)
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert [name.split("-")[0:2] for name in names] == [["best", "000000001"], ["best.json"], ["last", "000000002"], ["last.json"]]


def test_the_tensors_of_a_checkpoint_are_never_written_over(tmp_path: Path) -> None:
    """The same step with other content, as after a resume with more steps: a kill before the JSON is replaced must do no harm."""
    save_checkpoint(tmp_path, "last", 1, {"w": torch.zeros(2)})
    (before,) = (tmp_path / FOLDER).glob("*.safetensors")
    save_checkpoint(tmp_path, "last", 1, {"w": torch.ones(2)})
    (after,) = (tmp_path / FOLDER).glob("*.safetensors")
    assert before != after
    assert torch.equal(load_checkpoint(tmp_path).tree["w"], torch.ones(2))


@pytest.mark.parametrize("failing", ["last-000000002", "last.json"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int) -> None:
    save_checkpoint(tmp_path, "last", 1, TREE)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if failing in path.name:
            real(path, data[: len(data) // 2])
            raise OSError(code, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device; (free some space|choose a folder)"):
        save_checkpoint(tmp_path, "last", 2, {"other": torch.ones(2)})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).step == 1
    assert not [path for path in (tmp_path / FOLDER).iterdir() if "partial" in path.name]


def test_damage_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, "last", 1, TREE)
    (tensors,) = (tmp_path / FOLDER).glob("*.safetensors")
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(tmp_path)
    json_file = tmp_path / FOLDER / "last.json"
    record = json.loads(json_file.read_text())
    json_file.write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="upgrade fastkd"):
        load_checkpoint(tmp_path)
    json_file.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a/b: a set"):
        save_checkpoint(tmp_path, "last", 1, {"a": {"b": {1}}})


def test_optimizer_state_goes_on_bitwise() -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        return weight, torch.optim.AdamW([weight], lr=0.1, amsgrad=True, fused=True)

    def step(weight: torch.nn.Parameter, optimizer: torch.optim.AdamW, number: int) -> None:
        weight.grad = torch.sin(weight.detach() * number)
        optimizer.step()

    whole, whole_optimizer = make()
    for number in range(6):
        step(whole, whole_optimizer, number)
    first, first_optimizer = make()
    for number in range(3):
        step(first, first_optimizer, number)
    second, second_optimizer = make()
    second.data.copy_(first.data)
    load_optimizer_state(second_optimizer, optimizer_state(first_optimizer))
    for number in range(3, 6):
        step(second, second_optimizer, number)
    assert torch.equal(whole, second)


def test_text_and_json_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "Å")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "Å"
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        write_json(tmp_path / "c.json", {"x": math.nan})
    assert not (tmp_path / "c.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"a part of the path is a file|Not a directory|File exists"):
        write_text(tmp_path / "file" / "x.txt", "")
