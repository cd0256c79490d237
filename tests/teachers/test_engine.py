"""Runs with foreign teachers from config to card, their cost in the log, and ``fastkd inspect teacher``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.analysis.runs import Curve
from fastkd.cli import main
from fastkd.data import DataFile, DataWriter
from fastkd.models.factory import read_header
from fastkd.teachers import load_teacher
from fastkd.teachers.hooks import Sizes
from fastkd.teachers.inspect import guess_kind, inspect_teacher
from tests.distill.common import make_batch

from .test_ase import LJ, write

FOREIGN = "module:tests.teachers.foreign:make"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = write(folder / "bare.h5", 18)
    assert main(["label", str(source), str(folder / "data.h5"), "--teacher", FOREIGN]) == 0
    return folder / "data.h5"


def config(folder: Path, path: Path, /, **sections) -> Path:
    tree = {
        "run": {"dir": str(folder / "run"), "threads": 1, "inference_repeats": 1, "device": "cpu", "report": False},
        "data": {"path": str(path), "batch_size": 3},
        "model": {"width": 8, "layers": 1, "radial": 6, "cutoff": 4.0},
        "teacher": {"path": FOREIGN},
        "distill": {"terms": [{"kind": kind} for kind in ("energy", "forces", "atom_energy", "n2n", "e2n", "v2v")]},
        "train": {"steps": 4, "warmup": 1, "evaluate_every": 2, "checkpoint_every": 2},
        "compare": {"bootstrap": 20},
    }
    for name, values in sections.items():
        tree[name] = tree[name] | values
    file = folder / "config.yaml"
    file.write_text(json.dumps(tree))
    return file


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_student_learns_from_a_foreign_module(tmp_path: Path, data: Path, cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, data, teacher={"cache": cache})
    assert main(["train", str(path)]) == 0
    run = tmp_path / "run"
    card = read_header(run)["provenance"]["teacher"]
    assert (card["path"], card["licence"]) == (FOREIGN, "CC-BY-4.0")
    curve = Curve.load(run)
    assert {"loss_kd_n2n", "loss_kd_e2n", "loss_kd_v2v", "loss_kd_atom_energy"} <= set(curve.units)
    assert np.isfinite(curve["loss_total"]).all()
    assert ("teacher_ms" in curve.units) == (cache == "none")
    if cache == "none":
        assert (curve["teacher_ms"] > 0).all()
        assert ((curve["teacher_share"] > 0) & (curve["teacher_share"] < 100)).all()
    else:
        assert "ms per batch" in capsys.readouterr().out
    # the teacher of the labels makes no error but rounding
    summary = json.loads((run / "teacher" / "summary.json").read_text())
    assert summary["test"]["forces_mae"] < 1e-5
    assert summary["extra"]["licence"] == "CC-BY-4.0"


def test_a_run_goes_on_with_a_foreign_teacher(tmp_path: Path, data: Path) -> None:
    path = config(tmp_path, data, teacher={"cache": "none"})
    assert main(["train", str(path), "train.steps=2", "train.schedule=constant"]) == 0
    assert main(["train", str(path), "train.steps=4", "train.schedule=constant", "run.resume=true"]) == 0
    assert Curve.load(tmp_path / "run")["step"].tolist() == [2, 4]


def test_features_are_chosen_in_the_config(tmp_path: Path, data: Path) -> None:
    features = [{"module": "embed", "kind": "node", "width": 6}]
    path = config(tmp_path, data, teacher={"features": features, "dtype": "float64"}, distill={"terms": [{"kind": "n2n"}]})
    assert main(["train", str(path), "train.steps=1"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"features": [{"module": "blok", "kind": "node"}]}}, "no module 'blok'; near ones: block"),
        ({"teacher": {"features": [{"module": "filter", "kind": "node"}]}}, "'filter' gives"),
        ({"teacher": {"features": [{"module": "embed", "kind": "node"}]}}, "needs edge features of the teacher"),
        ({"teacher": {"path": LJ, "options": {"sed": 3}}}, "unexpected keyword argument 'sed'"),
        ({"teacher": {"device": "tpu"}}, "teacher.device = 'tpu'"),
        ({"teacher": {"path": LJ}}, "needs atom_energy of the teacher, but teacher (LennardJones) predicts energy, forces, stress"),
        ({"data": {"labelled": 1, "unlabelled": 5}, "teacher": {"options": {"elements": ["H"]}}}, "was never trained on C, O"),
    ],
)
def test_mistakes_exit_2(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str) -> None:
    assert main(["train", str(config(tmp_path, data, **changes))]) == 2
    assert message in capsys.readouterr().err


def test_an_ase_calculator_teaches_energies_and_forces(tmp_path: Path, data: Path) -> None:
    terms = [{"kind": "energy"}, {"kind": "forces"}]
    path = config(tmp_path, data, teacher={"path": LJ}, distill={"terms": terms}, data={"labelled": 2, "unlabelled": 3})
    assert main(["train", str(path), "train.steps=2"]) == 0
    summary = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert summary["test"]["forces_mae"] > 0


def test_without_any_label_the_references_must_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "part.h5"
    with DataFile(write(tmp_path / "bare.h5", 18)) as bare, DataWriter(source, level_of_theory="x") as writer:
        for structure in bare.read(range(18)):
            labels = {} if structure.split == "train" else {"energy": -1.0, "forces": np.zeros((structure.num_atoms, 3))}
            writer.append(replace(structure, **labels))
    common = {"data": {"allow_missing_labels": True, "unlabelled": 6}}
    terms = {"terms": [{"kind": "energy"}, {"kind": "forces"}]}
    assert main(["train", str(config(tmp_path, source, teacher={"path": LJ}, distill=terms, **common))]) == 2
    assert "reference energies of the teacher" in capsys.readouterr().err
    assert main(["train", str(config(tmp_path, source, distill=terms, **common)), "train.steps=1"]) == 0


def test_inspect_lists_what_can_be_captured(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert main(["inspect", "teacher", FOREIGN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["module"], row["output"]): (row["kind"], row["shape"], row["layout"], row["class_name"]) for row in found["capturable"]}
    assert rows["block", "scalars"] == ("node", [7, 6], "", "Block")
    assert rows["block", "vectors"] == ("vector", [7, 6, 3], "axes_last", "Block")
    assert rows["filter", ""] == ("edge", [18, 6], "", "Linear")
    assert rows["out", ""] == ("atom_energy", [7, 1], "", "Linear")
    assert ("unused", "") not in rows
    assert found["facts"]["offers"] == "edge [6], node [6], vector [6]"
    assert found["facts"]["licence"] == "CC-BY-4.0"
    assert main(["inspect", "teacher", FOREIGN, "--data", str(data)]) == 0
    assert "12 atoms" in capsys.readouterr().out
    assert main(["inspect", "teacher", "embedded"]) == 0
    assert "messages.0.context" in capsys.readouterr().out
    assert main(["inspect", "teacher", LJ]) == 0
    assert "energy, forces, stress" in capsys.readouterr().out
    assert main(["inspect", "teacher", "nothing"]) == 2


def test_what_a_listed_row_says_can_be_captured() -> None:
    from fastkd.teachers import Feature, ModuleTeacher

    from .foreign import make

    teacher = load_teacher(FOREIGN, dtype=torch.float64)
    for row in inspect_teacher(teacher, make_batch([4, 0])).found:
        if row.kind is None:
            continue
        feature = Feature(row.module, row.kind, row.output, layout=row.layout or "auto")
        again = ModuleTeacher(make(features=[feature]), "foreign").to(dtype=torch.float64)
        again.start(make_batch([4, 0]))


@pytest.mark.parametrize(
    ("shape", "layout", "kind"),
    [
        ((7,), "", "atom_energy"),
        ((7, 1), "", "atom_energy"),
        ((7, 9), "", "node"),
        ((7, 3, 5), "", "vector"),
        ((7, 5, 3), "", "vector"),
        ((7, 14), "2x0e+4x1o", "node"),
        ((18, 4), "", "edge"),
        ((2, 4), "", "graph"),
        ((7, 4, 4), "", None),
        ((5, 4), "", None),
        ((), "", None),
    ],
)
def test_kinds_are_guessed_from_shapes(shape, layout, kind) -> None:
    assert guess_kind(shape, Sizes(7, 18, 2), layout)[0] == kind
