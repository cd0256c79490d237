"""Reports of runs from anywhere: grouping, baseline, teacher, and what cannot be compared."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastkd.analysis.joint import gather
from fastkd.analysis.report import build_joint_report, build_report
from fastkd.analysis.runs import Predictions
from fastkd.cli import main
from fastkd.errors import CheckpointError, ConfigError, DataError

from .common import make_comparison, make_predictions, make_run

N2N = "[{kind: n2n, weight: 10.0}]"


def student(folder: Path, seed: int, *, terms: str = "[]", width: int = 32, errors=(0.01, 0.1), order: int = 0, title: str = "run") -> Path:
    make_run(folder, "run", order, seed=seed, errors=errors, title=title)
    text = f"run: {{dir: '{folder}', seed: {seed}, threads: {seed + 1}}}\nmodel: {{width: {width}}}\ndistill: {{terms: {terms}}}\n"
    (folder / "config.yaml").write_text(text + "teacher: {path: embedded}\n", encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two seeds alone, two distilled, one wider, a teacher beside the first; each run in a place of its own, distilled ones first."""
    made = [student(tmp_path / f"kd_{seed}", seed, terms=N2N, errors=(0.006, 0.06), order=1) for seed in (0, 1)]
    made += [student(tmp_path / f"plain_{seed}", seed) for seed in (0, 1)]
    made += [student(tmp_path / "wide", 0, terms=N2N, width=64, errors=(0.004, 0.04), order=2)]
    make_run(tmp_path / "plain_0" / "teacher", "teacher", 9, role="teacher", errors=(0.002, 0.02), extra={"sha256": "t1", "path": "big"})
    return made


def test_runs_are_grouped_by_their_configs(folders: list[Path], tmp_path: Path) -> None:
    report = build_joint_report(folders, tmp_path / "out", resamples=200)
    teacher, alone, distilled, wide = report.rows
    assert teacher.role == "teacher"
    # the first that is not distilled, wherever it was named; titles are folders where the summary has none
    assert (alone.title, alone.seeds, alone.gap_forces) == ("plain_0", (0, 1), None)
    assert (distilled.title, distilled.seeds) == ("kd_0", (0, 1))
    assert distilled.gap_forces is not None
    assert distilled.gap_forces.percent == pytest.approx(50, abs=8)
    assert distilled.gap_forces.low < distilled.gap_forces.percent < distilled.gap_forces.high
    assert dict(report.differences) == {
        "kd_0": "distill.terms = n2n (λ 10)",
        "wide": "model.width = 64; distill.terms = n2n (λ 10)",
    }
    assert wide.seeds == (0,)
    text, page = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for part in ("model.width = 64", str(distilled.gap_forces), "plain_0"):
        assert part in text
        assert part in page
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        names, units, *rows = list(csv.reader(file))
    assert len(names) == len(units) == len(rows[0])
    assert float(rows[2][names.index("gap_forces_low")]) == pytest.approx(distilled.gap_forces.low)
    assert rows[1][names.index("gap_forces")] == ""
    assert rows[1][names.index("seeds")] == "0 1"
    assert (tmp_path / "out" / "summary.json").is_file()
    # nothing was written into the runs
    assert not list(tmp_path.glob("*_*/report*"))


def test_the_same_numbers_as_the_report_of_a_comparison(tmp_path: Path) -> None:
    root = make_comparison(tmp_path / "all")
    whole = build_report(root, resamples=100, html=False)
    parts = [root / name for name in ("teacher", "alone", "distilled", "unlabelled")]
    joint = build_joint_report(parts, tmp_path / "out", baseline="alone", resamples=100, html=False)
    assert [row.cells() for row in joint.rows] == [row.cells() for row in whole.rows]
    # a run named twice counts once
    again = build_joint_report([root, *parts], tmp_path / "out", baseline="alone", resamples=100, html=False)
    assert [row.seeds for row in again.rows] == [row.seeds for row in whole.rows]


def test_the_baseline_is_chosen_by_title_or_folder(folders: list[Path], tmp_path: Path) -> None:
    for name in ("wide", str(tmp_path / "wide")):
        runs, _ = gather(folders, baseline=name)
        assert next(run for run in runs if run.summary.role == "student").summary.title == "wide"
    with pytest.raises(ConfigError, match=r"no student is called 'narrow' .*'plain_0', 'wide'"):
        gather(folders, baseline="narrow")
    with pytest.raises(ConfigError, match="means 3 different configs"):
        gather(folders, baseline="run")


def test_any_finished_run_can_be_the_teacher(folders: list[Path], tmp_path: Path) -> None:
    big = student(tmp_path / "elsewhere" / "big", 0, width=256, errors=(0.003, 0.03), order=5)
    runs, _ = gather(folders, teacher=str(big))
    teachers = [run for run in runs if run.summary.role == "teacher"]
    assert [run.folder for run in teachers] == [big]
    assert all(run.summary.title != "big" for run in runs if run.summary.role == "student")
    report = build_joint_report(folders, tmp_path / "out", teacher=str(big), resamples=50, html=False)
    assert report.rows[0].metrics["forces_mae"].mean == pytest.approx(0.03, rel=0.1)


def test_a_distilled_run_can_be_the_teacher_although_it_has_one(folders: list[Path], tmp_path: Path) -> None:
    big = student(tmp_path / "elsewhere" / "big", 0, terms=N2N, width=256, errors=(0.003, 0.03), order=5)
    make_run(big / "teacher", "teacher", 9, role="teacher", errors=(0.001, 0.01), extra={"sha256": "t3", "path": "biggest"})
    runs, _ = gather(folders, teacher=str(big))
    assert [run.folder for run in runs if run.summary.role == "teacher"] == [big]


def test_the_path_of_a_teacher_is_its_name_although_it_is_a_folder(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = str(tmp_path / "model")
    make_run(tmp_path / "kd_1" / "teacher", "teacher", 8, role="teacher", errors=(0.001, 0.01), extra={"sha256": "t2", "path": path})
    runs, _ = gather(folders, teacher=path)
    assert runs[0].folder == tmp_path / "kd_1" / "teacher"


def test_several_teachers_need_a_name(folders: list[Path], tmp_path: Path) -> None:
    extra = tmp_path / "wide" / "teacher"
    make_run(extra, "teacher", 9, role="teacher", errors=(0.002, 0.02), extra={"sha256": "t1", "path": "big"})
    assert sum(run.summary.role == "teacher" for run in gather(folders)[0]) == 1  # the same one, measured twice
    make_run(tmp_path / "kd_1" / "teacher", "teacher", 8, role="teacher", errors=(0.001, 0.01), extra={"sha256": "t2", "path": "huge"})
    with pytest.raises(ConfigError, match=r"several teachers \(big, huge\)"):
        gather(folders)
    runs, _ = gather(folders, teacher="huge")
    assert runs[0].folder == tmp_path / "kd_1" / "teacher"
    with pytest.raises(ConfigError, match="no teacher is called 'tiny'"):
        gather(folders, teacher="tiny")


def test_titles_that_clash_say_what_differs(tmp_path: Path) -> None:
    made = [student(tmp_path / "a", 0, title="mine"), student(tmp_path / "b", 0, width=64, title="mine", order=1)]
    runs, _ = gather(made)
    assert [run.summary.title for run in runs] == ["mine", "mine (model.width = 64)"]
    assert len({run.summary.name for run in runs}) == 2


def test_terms_that_differ_say_in_what(tmp_path: Path) -> None:
    mae = "[{kind: n2n, weight: 10.0, loss: mae, projection: mlp}]"
    made = [
        student(tmp_path / "a", 0, title="alone"),
        *(student(tmp_path / f"kd{i}", 0, terms=t, order=i, title="kd") for i, t in enumerate((N2N, mae), 1)),
    ]
    titles = [run.summary.title for run in gather(made)[0]]
    assert titles == ["alone", "kd (distill.terms = n2n (λ 10))", "kd (distill.terms = n2n (λ 10, loss mae, projection mlp))"]


def test_one_config_and_seed_twice(tmp_path: Path) -> None:
    student(tmp_path / "a", 0)
    student(tmp_path / "b", 0)
    assert len(gather([tmp_path / "a", tmp_path / "b"])[0]) == 1  # the same predictions: a copy
    predictions = make_predictions(0.01, 0.1, seed=77)
    predictions.save(tmp_path / "b")
    with pytest.raises(DataError, match=r"a and .*b have the same config and seed, and different predictions"):
        gather([tmp_path / "a", tmp_path / "b"])


def test_what_was_tested_otherwise_cannot_be_compared(folders: list[Path], tmp_path: Path) -> None:
    good = Predictions.load(folders[4])
    fewer = make_predictions(0.01, 0.1, structures=30)
    fewer.save(folders[4])
    with pytest.raises(DataError, match=r"kd_0 and .*wide were tested on different structures \(40 and 30, 30 numbers in common\)"):
        gather(folders)
    replace(good, energy=good.energy + 0.5).save(folders[4])
    with pytest.raises(DataError, match="different data files"):
        gather(folders)
    replace(good, free=np.arange(len(good.forces)) > 0).save(folders[4])
    with pytest.raises(DataError, match="eval_on_free_atoms"):
        gather(folders)


def test_the_command_line(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(folder) for folder in folders]
    assert main(["report", *names, "--no-html"]) == 2
    assert "--out DIR" in capsys.readouterr().err
    arguments = ["--no-html", "--bootstrap", "20", "--format", "markdown", "--baseline", "plain_0"]
    assert main(["report", *names, "--out", str(tmp_path / "out"), *arguments]) == 0
    assert "distill.terms = n2n (λ 10)" in capsys.readouterr().out
    assert main(["report", *names, "--out", names[0], *arguments]) == 2
    assert "is a run itself" in capsys.readouterr().err
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="cannot be written"):
        build_joint_report(folders, tmp_path / "file" / "out", resamples=5)
