"""The files of a run: what is written is read back, and what is damaged is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fastkd.analysis import Curve, CurveWriter, Predictions, Run, RunSummary, find_runs
from fastkd.errors import CheckpointError, DataError

from .common import make_comparison, make_predictions, make_run


def test_predictions_survive_the_disk(tmp_path):
    written = make_predictions(0.01, 0.1)
    written = replace(written, free=np.arange(written.natoms.sum()) % 3 > 0)
    written.save(tmp_path)
    read = Predictions.load(tmp_path)
    for name, value in vars(written).items():
        assert np.array_equal(getattr(read, name), value)
        assert getattr(read, name).dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_summary_survives_the_disk(tmp_path):
    run = make_run(tmp_path / "run", "arm", 2, seed=1, atoms_per_second=math.nan, extra={"λ": [1, math.inf]})
    read = RunSummary.load(tmp_path / "run")
    assert math.isnan(read.atoms_per_second)
    assert math.isnan(read.train_seconds)
    assert (read.name, read.seed, read.order, read.role) == ("arm", 1, 2, "student")
    assert read.test == run.predictions.metrics()
    # other programs read the file too: it must be JSON proper
    text = (tmp_path / "run" / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))["units"]["test"]["forces_mae"] == "eV/Å"


def test_curve_goes_on_after_a_resume(tmp_path):
    units = {"step": "1", "loss_total": "1", "val_forces_mae": "meV/Å"}
    writer = CurveWriter(tmp_path, units)
    for step in range(0, 50, 10):
        writer.append({"step": step, "loss_total": 0.1 * step})
    resumed = CurveWriter(tmp_path, units, resume_step=20)
    resumed.append({"step": 30, "loss_total": 1 / 3, "val_forces_mae": 5.5})
    curve = Curve.load(tmp_path)
    assert curve.units == units
    assert curve["step"].tolist() == [0, 10, 20, 30]
    assert curve["loss_total"].tolist() == [0.0, 1.0, 2.0, 1 / 3]
    assert np.isnan(curve["val_forces_mae"][:3]).all()
    assert curve["val_forces_mae"][3] == 5.5


def test_resume_keeps_every_byte_of_the_rows_before(tmp_path):
    units = {"step": "1", "loss_total": "1"}
    writer = CurveWriter(tmp_path, units)
    for step in range(4):
        writer.append({"step": step, "loss_total": math.sin(step) * 1e-7})
    before = (tmp_path / "metrics.csv").read_bytes()
    CurveWriter(tmp_path, units, resume_step=3)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_curve_has_fixed_columns(tmp_path):
    writer = CurveWriter(tmp_path, {"step": "1"})
    with pytest.raises(KeyError, match="surprise"):
        writer.append({"step": 1, "surprise": 2})
    with pytest.raises(DataError, match="columns step"):
        CurveWriter(tmp_path, {"step": "1", "loss_total": "1"}, resume_step=5)
    with pytest.raises(ValueError, match="step"):
        CurveWriter(tmp_path, {"loss_total": "1"})


def test_runs_are_found_in_the_order_of_the_table(tmp_path):
    runs = find_runs(make_comparison(tmp_path / "all"))
    assert [run.summary.name for run in runs] == ["teacher", *["alone"] * 3, *["distilled"] * 3, *["unlabelled"] * 3]
    assert [run.summary.seed for run in runs[1:4]] == [0, 1, 2]
    assert len(find_runs(tmp_path / "all" / "alone" / "seed1")) == 1


def break_npz(run):
    path = run / "predictions.npz"
    path.write_bytes(path.read_bytes()[:200])


def break_csv(run):
    path = run / "metrics.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("100", "a hundred"), encoding="utf-8")


def break_units_row(run):
    path = run / "metrics.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0]]), encoding="utf-8")


def break_nan(run):
    predictions = make_predictions(0.1, 0.1)
    predictions.energy_pred[3] = np.nan
    predictions.save(run)


def break_shape(run):
    predictions = make_predictions(0.1, 0.1)
    predictions.natoms[0] += 1
    predictions.save(run)


def break_arrays(run):
    np.savez(run / "predictions.npz", energy=np.zeros(3))


def break_npy(run):
    with (run / "predictions.npz").open("wb") as file:
        np.save(file, np.zeros(3))


def break_role(run):
    path = run / "summary.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"student"', '"pupil"'), encoding="utf-8")


def break_test(run):
    content = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    del content["test"]["forces_mae"]
    (run / "summary.json").write_text(json.dumps(content), encoding="utf-8")


def break_json(run):
    (run / "summary.json").write_text('{"kind": "run"', encoding="utf-8")


def break_schema(run):
    (run / "summary.json").write_text('{"kind": "run", "schema": 99}', encoding="utf-8")


def set_free(value):
    def damage(run):
        replace(Predictions.load(run), free=value).save(run)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (break_npz, DataError, "predictions.npz cannot be read"),
        (break_csv, DataError, "metrics.csv has a cell that is not a number"),
        (break_units_row, DataError, "a row of as many units"),
        (break_nan, DataError, "energy_pred holds NaN"),
        (break_shape, DataError, "forces has shape"),
        (break_arrays, DataError, "lacks energy_pred"),
        (break_npy, DataError, "not an archive"),
        (set_free(np.ones(5, bool)), DataError, "free has shape"),
        (set_free(np.zeros(make_predictions(1.0, 1.0).natoms.sum(), bool)), DataError, "true for some; evaluate the run again"),
        (set_free(np.ones(make_predictions(1.0, 1.0).natoms.sum())), DataError, "free must be true or false"),
        (break_role, CheckpointError, "role 'pupil'"),
        (break_test, CheckpointError, "forces_mae"),
        (break_json, CheckpointError, "summary.json cannot be read"),
        (break_schema, CheckpointError, "schema 1"),
        (lambda run: (run / "predictions.npz").unlink(), DataError, "predictions.npz cannot be read"),
        (lambda run: (run / "metrics.csv").unlink(), DataError, "metrics.csv cannot be read"),
        (lambda run: (run / "summary.json").unlink(), CheckpointError, "summary.json cannot be read"),
    ],
)
def test_damage_is_named(tmp_path, damage, error, words):
    folder = tmp_path / "run"
    make_run(folder, "arm", 0)
    damage(folder)
    with pytest.raises(error, match=words):
        Run.load(folder)


def test_folders_without_runs(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no finished run"):
        find_runs(tmp_path)
