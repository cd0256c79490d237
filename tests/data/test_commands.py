"""``fastkd convert`` and ``fastkd inspect`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastkd.cli import main
from fastkd.data import DataFile

from .common import molecule, write

WATER = str(Path(__file__).parents[1] / "fixtures" / "water.extxyz")


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "water.h5"
    assert main(["convert", WATER, str(out), "--level-of-theory", "GFN2-xTB", "--split", "0.6,0.2,0.2", "--system", "water"]) == 0
    said = capsys.readouterr().out
    assert "40 structures, 120 atoms" in said
    assert "train 24" in said
    assert "warning" not in said
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert "GFN2-xTB" in said
    assert "water (40)" in said
    assert "content hash agrees" in said
    assert main(["inspect", str(out), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    with DataFile(out) as data:
        assert card["content_hash"] == data.content_hash
    assert card["provenance"]["split"]["fractions"] == [0.6, 0.2, 0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--energy-unit", "kcal"], "unknown energy unit 'kcal'"),
        (["--split", "2"], "--split '2'"),
        (["--guard", "3"], "--guard needs --blocks"),
        (["--split-by", "system"], "--split-by needs --split"),
        (["--split-index", "train=a"], "--split-index needs an npz source"),
        (["--select", "x"], "--select 'x'"),
        (["--select", "100:"], "no structures in the part that --select takes"),
        (["--energy-key", "nrg"], "no structure has a property 'nrg'"),
        (["--pbc", "yes!"], "--pbc 'yes!'"),
    ],
)
def test_mistakes_exit_2_and_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["convert", WATER, str(tmp_path / "out.h5"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.h5", [molecule(0)])
    assert main(["convert", WATER, str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", WATER, str(path), "--overwrite"]) == 0
    with DataFile(path) as data:
        assert len(data) == 40


def test_inspect_refuses_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "absent.h5")]) == 2
    path = write(tmp_path / "x.h5", [molecule(0)])
    path.write_bytes(path.read_bytes()[:-50])
    assert main(["inspect", str(path)]) == 2
    assert main(["inspect", "embedded", "--cutoff", "-1"]) == 2
    assert "--cutoff" in capsys.readouterr().err
