"""Each example runs, shortened; so does the default config that ships with the package."""

from pathlib import Path

import pytest

from fastkd.cli import main

ROOT = Path(__file__).resolve().parent.parent
SHORT = [
    "train.steps=4",
    "train.warmup=1",
    "train.evaluate_every=2",
    "train.checkpoint_every=2",
    "run.threads=1",
    "run.inference_repeats=1",
]
SMALL = ["data.val_size=4", "data.test_size=8"]


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.stem)
def test_example(example, tmp_path, capsys):
    options = [*SHORT, *SMALL, "data.labelled=20", f"run.dir={tmp_path / 'run'}"]
    assert main(["train", str(example), *options]) == 0
    assert "force MAE" in capsys.readouterr().out
    assert {"model.safetensors", "report.html", "metrics.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_default_config(tmp_path, capsys):
    options = [*SHORT, *SMALL, "compare.seeds=[0]", "compare.bootstrap=50", f"run.dir={tmp_path / 'run'}"]
    assert main(["train", *options]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("teacher", "(a) student alone", "(b) student distilled", "(c) distilled + unlabelled"))
    assert {"student.safetensors", "report.html", "metrics.csv", "summary.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    units = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()[1]
    assert "eV/atom" in units
    assert "eV/Å" in units


def test_embedded_files_are_within_their_sizes():
    assets = ROOT / "fastkd" / "assets"
    assert (assets / "xtb_md.h5").stat().st_size <= 3_000_000
    assert (assets / "teacher" / "model.safetensors").stat().st_size <= 5_000_000
