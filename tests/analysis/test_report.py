"""Reports from run folders that were made up."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from fastkd.analysis import build_report
from fastkd.analysis.page import headline
from fastkd.analysis.plots import composition_mean
from fastkd.analysis.report import build_joint_report
from fastkd.analysis.report_command import add_report_arguments, run_report
from fastkd.errors import CheckpointError, DataError

from .common import make_comparison, make_predictions, make_run

TITLES = ["the teacher", "the alone", "the distilled", "the unlabelled"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = make_comparison(tmp_path_factory.mktemp("report") / "comparison")
    build_report(root, resamples=200)
    return root


def printed(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


def test_every_form_of_the_table_holds_every_row(root):
    report = build_report(root, resamples=200, html=False)
    page = (root / "report.html").read_text(encoding="utf-8")
    for text in (printed(report.table()), report.text(), report.markdown(), page):
        for row, title in zip(report.rows, TITLES, strict=True):
            assert row.title == title
            for cell in row.cells():
                assert cell in text
        for name, unit in report.columns:
            assert name in text or "\n" in name
            assert unit in text


def test_numbers_of_the_table(root):
    rows = build_report(root, resamples=200, html=False).rows
    teacher, alone, distilled, unlabelled = rows
    assert (teacher.gap_energy, teacher.gap_forces, alone.gap_energy, alone.gap_forces) == (None,) * 4
    # made with force errors of 20, 100, 80 and 40 meV/Å
    assert [row.metrics["forces_mae"].mean for row in rows] == pytest.approx([0.02, 0.1, 0.08, 0.04], rel=0.08)
    assert distilled.gap_forces.percent == pytest.approx(25, abs=6)
    assert unlabelled.gap_forces.percent == pytest.approx(75, abs=6)
    assert distilled.gap_forces.low < distilled.gap_forces.percent < distilled.gap_forces.high
    assert alone.seeds == (0, 1, 2)
    assert alone.atoms_per_second.mean == 5001
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", alone.cells()[1])
    assert "±" not in teacher.cells()[1]
    assert teacher.cells()[6] == "654,321"


def test_metrics_csv_has_a_units_row_and_a_row_per_run(root):
    with (root / "metrics.csv").open(encoding="utf-8", newline="") as file:
        names, units, *rows = list(csv.reader(file))
    assert len(names) == len(units)
    assert dict(zip(names, units, strict=True))["forces_mae"] == "eV/Å"
    assert len(rows) == 10
    assert {row[names.index("name")] for row in rows} == {"teacher", "alone", "distilled", "unlabelled"}
    assert all(float(row[names.index("forces_mae")]) > 0 for row in rows)


def test_summary_json_says_what_the_table_says(root):
    content = json.loads((root / "summary.json").read_text(encoding="utf-8"))
    assert content["kind"] == "comparison"
    assert [row["title"] for row in content["rows"]] == TITLES
    assert content["rows"][0]["gap_forces"] is None
    assert content["rows"][3]["gap_forces"]["percent"] == pytest.approx(75, abs=6)


class _Page(HTMLParser):
    """Collects tags that are left open, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_rows_with_fewer_seeds_are_named(tmp_path):
    root = make_comparison(tmp_path / "runs")
    for name in ("seed1", "seed2"):
        shutil.rmtree(root / "unlabelled" / name)
    assert "over 3 seeds ('the unlabelled' 1)." in build_report(root, resamples=50, html=False).caption


def test_a_teacher_that_tells_no_number_of_parameters(tmp_path):
    root = make_comparison(tmp_path / "runs")
    shutil.rmtree(root / "teacher")
    make_run(root / "teacher", "teacher", 0, role="teacher", errors=(0.002, 0.02), parameters=0)
    sentence = headline(build_report(root, resamples=50).rows)
    assert "of the force gap" in sentence
    assert "parameters" not in sentence


def test_members_without_a_mean_are_no_reference(tmp_path):
    root = make_comparison(tmp_path / "runs")
    shutil.rmtree(root / "teacher")
    for order, (name, scale) in enumerate({"teacher_big": 1, "teacher_pbe": 3}.items()):
        make_run(root / name, name, order, role="teacher", errors=(0.002 * scale, 0.02 * scale))
    rows = {row.name: row for row in build_report(root, resamples=50, html=False).rows}
    assert rows["distilled"].gap_forces is None
    assert rows["distilled"].reduced_forces.percent == pytest.approx(20, abs=3)


def test_the_page_stands_alone_and_is_light(root):
    text = (root / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "<script" not in text
    assert len(text) < 600_000
    for words in ("Learning curves", "Predictions against labels", "Force error by element", "GFN2-xTB", "torch 2.13.0"):
        assert words in text
    # what the user wrote cannot become markup
    assert "&lt;features&gt;" in text
    assert "closes 7" in text


def test_the_same_runs_give_the_same_bytes(root):
    before = {name: (root / name).read_bytes() for name in ("report.html", "report.md", "metrics.csv", "summary.json")}
    build_report(root, resamples=200)
    assert before == {name: (root / name).read_bytes() for name in before}


def test_without_a_teacher_errors_are_measured_from_the_baseline(tmp_path):
    for order, (name, mae) in enumerate({"plain": (0.010, 0.10), "mixed": (0.008, 0.05)}.items()):
        for seed in range(3):
            make_run(tmp_path / name / f"seed{seed}", name, order, seed=seed, errors=mae)
    report = build_report(tmp_path, resamples=200)
    plain, mixed = report.rows
    assert (plain.reduced_energy, plain.reduced_forces, mixed.gap_energy, mixed.gap_forces) == (None,) * 4
    assert mixed.reduced_forces.percent == pytest.approx(50, abs=5)
    assert mixed.reduced_energy.low < mixed.reduced_energy.percent < mixed.reduced_energy.high
    text = report.markdown()
    assert "MAE reduced, forces" in text
    assert "gap closed" not in text
    assert "MAE of 'the plain'" in text
    assert "MAE reduced, forces" in (tmp_path / "report.html").read_text(encoding="utf-8")
    names, units, _, row = csv.reader((tmp_path / "report.csv").read_text(encoding="utf-8").splitlines())
    assert len(names) == len(units) == len(row)
    assert float(row[names.index("reduced_forces")]) == pytest.approx(mixed.reduced_forces.percent)
    assert row[names.index("gap_forces")] == ""


def without_forces(folder, name: str, order: int, energy_mae: float, **options):
    """A run folder whose test structures have energies alone."""
    run = make_run(folder, name, order, errors=(energy_mae, 0.1), **options)
    predictions = replace(run.predictions, forces=None, forces_pred=None)
    predictions.save(folder)
    replace(run.summary, test=predictions.metrics()).save(folder)


def test_energies_alone_leave_no_trace_of_forces(tmp_path):
    without_forces(tmp_path / "teacher", "teacher", 0, 0.002, role="teacher")
    for order, (name, mae) in enumerate({"alone": 0.010, "distilled": 0.006}.items()):
        without_forces(tmp_path / name / "seed0", name, order, mae)
    report = build_report(tmp_path, resamples=100)
    teacher, alone, distilled = (row.metrics["energy_mae_per_atom"].mean for row in report.rows)
    assert report.rows[2].gap_energy.percent == pytest.approx(100 * (alone - distilled) / (alone - teacher))
    assert report.rows[2].gap_forces is None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (printed(report.table()), report.text(), report.markdown(), page.split("Learning curves")[0]):
        assert "gap closed, energy" in text
        assert "force" not in text.split("Learning")[0].lower()
        assert "nan" not in text.lower()
    assert "of the energy gap" in page
    assert "Force error by element" not in page
    assert "NaN" not in (tmp_path / "summary.json").read_text(encoding="utf-8")


def test_runs_with_and_without_forces_are_not_compared(tmp_path):
    make_run(tmp_path / "a" / "seed0", "a", 0)
    without_forces(tmp_path / "b" / "seed0", "b", 1, 0.01)
    with pytest.raises(DataError, match="energies alone"):
        build_report(tmp_path)
    with pytest.raises(DataError, match="energies alone"):
        build_joint_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_a_single_run_keeps_its_own_files(tmp_path):
    make_run(tmp_path / "run", "run", 0)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.csv", "summary.json")}
    report = build_report(tmp_path / "run")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}
    assert len(report.rows) == 1
    assert report.rows[0].gap_forces is None
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Gap closed" not in report.caption


def test_without_elements_or_teacher_there_is_still_a_report(tmp_path):
    for order, name in enumerate(("first", "second")):
        make_run(tmp_path / name, name, order)
        predictions = make_predictions(0.01, 0.1)
        type(predictions)(**{**vars(predictions), "atomic_numbers": None}).save(tmp_path / name)
    report = build_report(tmp_path)
    assert [row.gap_forces for row in report.rows] == [None, None]
    assert "Force error by element" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_damaged_run_stops_the_report(tmp_path):
    root = make_comparison(tmp_path / "all")
    (root / "alone" / "seed1" / "predictions.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"seed1.*predictions.npz"):
        build_report(root)
    assert not (root / "report.html").exists()


def test_runs_on_other_structures_stop_the_report(tmp_path):
    root = make_comparison(tmp_path / "all")
    predictions = make_predictions(0.01, 0.1)
    predictions.structure_index[0] += 1
    predictions.save(root / "distilled" / "seed0")
    with pytest.raises(DataError, match="different structures"):
        build_report(root)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    root = make_comparison(tmp_path / "all")
    (root / "report.md").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        build_report(root, resamples=10)
    assert not list(root.glob(".*.tmp"))


def test_energies_are_shown_relative_to_their_composition():
    predictions = make_predictions(0.01, 0.1)
    mean = composition_mean(predictions)
    for kind in range(3):
        same = np.arange(len(predictions.natoms)) % 3 == kind
        assert mean[same] == pytest.approx(predictions.energy[same].mean())


def test_the_command(root, capsys):
    parser = argparse.ArgumentParser()
    add_report_arguments(parser)
    assert run_report(parser.parse_args([str(root), "--no-html", "--format", "text", "--bootstrap", "50"])) == 0
    text = capsys.readouterr().out
    assert all(title in text for title in TITLES)
    with pytest.raises(CheckpointError, match="at least 1"):
        run_report(parser.parse_args([str(root), "--bootstrap", "0"]))
    with pytest.raises(CheckpointError, match="not a folder"):
        run_report(parser.parse_args([str(root / "nowhere")]))
