"""``fastkd convert`` and ``fastkd inspect`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastkd.cli import main
from fastkd.data import DataFile
from fastkd.models.factory import save_model
from fastkd.models.painn import PaiNN, PaiNNOptions

from .common import molecule, write

WATER = str(Path(__file__).parents[1] / "fixtures" / "water.extxyz")


def test_convert_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "water.h5"
    assert main(["convert", WATER, str(out), "--level-of-theory", "GFN2-xTB", "--split", "0.6,0.2,0.2", "--system", "water"]) == 0
    said = capsys.readouterr().out
    assert "40 structures, 120 atoms" in said
    assert "40 energies [eV], 40 structures with forces [eV/Å]" in said
    assert [line.split()[:3] for line in said.splitlines() if line.startswith(("train", "val", "test"))] == [
        ["train", "24", "72"],
        ["val", "8", "24"],
        ["test", "8", "24"],
    ]
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


def test_missing_labels_have_to_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.xyz", tmp_path / "out.h5"
    source.write_text("2\n\nH 0 0 0\nH 0 0 0.8\n")
    assert main(["convert", str(source), str(out)]) == 2
    assert "--allow-missing-labels" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(source), str(out), "--allow-missing-labels"]) == 0
    said = capsys.readouterr().out
    assert "0 energies [eV], 0 structures with forces" in said
    assert "warning: 1 structure has no energy or forces" in said
    assert "warning: the file does not state its level of theory; convert again with --level-of-theory" in said


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkd.data.commands._EVERY", 1)
    assert main(["convert", WATER, str(tmp_path / "quiet.h5")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["convert", WATER, str(tmp_path / "told.h5")]) == 0
    said = capsys.readouterr()
    assert "water.extxyz 40 structures" in said.err
    assert "water.extxyz 40 structures" not in said.out


def test_inspect_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    file = save_model(PaiNN(PaiNNOptions(width=8, layers=1, radial=4, cutoff=4.0)), tmp_path / "model", {"made_by": "a test"})
    for path in (file, file.parent):
        assert main(["inspect", str(path)]) == 0
        header = json.loads(capsys.readouterr().out)
        assert header["architecture"] == "painn"
        assert header["options"]["width"] == 8
        assert header["provenance"] == {"made_by": "a test"}
    file.write_bytes(file.read_bytes()[:100])
    for path, message in ((file, "truncated"), (tmp_path, "no checkpoint at"), (tmp_path / "absent.safetensors", "no checkpoint at")):
        assert main(["inspect", str(path)]) == 2
        assert message in capsys.readouterr().err


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
