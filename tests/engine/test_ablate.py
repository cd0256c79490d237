"""Ablations: what is tried, on what budget, and one table that chooses on validation."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastkd.analysis.ablation import CSV_COLUMNS
from fastkd.analysis.metrics import Metrics
from fastkd.analysis.runs import Predictions, RunSummary
from fastkd.cli import main
from fastkd.config import ArmConfig, Config
from fastkd.config_loading import load_config
from fastkd.engine import loop
from fastkd.engine.ablate import _Rung, ablate, plan
from fastkd.engine.ablate_command import budget
from fastkd.engine.state import load_checkpoint
from fastkd.engine.trials import make_trials
from fastkd.errors import CheckpointError, ConfigError

from .synthetic import same

TERMS = "distill.terms=[{kind: n2n, weight: 2}, {kind: forces, weight: 10}]"


def config(file: Path, teacher: Path, *options: str) -> Config:
    return load_config(file, [f"teacher.path={teacher}", TERMS, "ablate.overhead_steps=0", "train.steps=6", *options])


def run(config: Config) -> tuple[Any, str]:
    text = io.StringIO()
    return ablate(config, Console(file=text, width=200)), text.getvalue()


def names(config: Config, said: list[str] | None = None) -> list[str]:
    heard = [] if said is None else said
    return [arm.name for arm in make_trials(config, heard.append)]


def test_one_thing_changes_at_a_time_and_nothing_is_tried_twice(config_file: Path, teacher_folder: Path) -> None:
    one = config(config_file, teacher_folder, "ablate.losses=[mse, mae]", "ablate.weight_factors=[0.1, 1, 10]")
    # mse is what auto means, and λ × 1 is λ
    expected = ["n2n-loss-mae", "n2n-weight-0p1", "n2n-weight-10", "forces-weight-0p1", "forces-weight-10"]
    assert names(one) == ["alone", "base", *expected]
    by_name = {arm.name: arm for arm in make_trials(one, print)}
    assert by_name["n2n-weight-0p1"].set == {"distill.terms.0.weight": 0.2}
    assert by_name["n2n-weight-0p1"].title == "n2n: λ × 0.1"


def test_a_grid_combines_all(config_file: Path, teacher_folder: Path) -> None:
    options = ("ablate.losses=[mse, mae]", "ablate.projections=[linear, mlp]", "ablate.method=grid")
    assert names(config(config_file, teacher_folder, *options)) == [
        "alone",
        "base",
        "n2n-loss-mse_n2n-projection-mlp",
        "n2n-loss-mae_n2n-projection-linear",
        "n2n-loss-mae_n2n-projection-mlp",
    ]
    with pytest.raises(ConfigError, match=r"5 trials are more than ablate\.most = 4"):
        names(config(config_file, teacher_folder, *options, "ablate.most=4"))


def test_anything_can_be_varied_and_what_is_not_possible_is_said(config_file: Path, teacher_folder: Path) -> None:
    said: list[str] = []
    lists = '{"distill.terms": [[{kind: v2v}], [{kind: energy}]], "train.learning_rate": [0.01, 0.001, -1]}'
    found = names(config(config_file, teacher_folder, f"ablate.vary={lists}"), said)
    assert found == ["alone", "base", "terms-v2v", "terms-energy", "learning_rate-0p001"]
    assert len(said) == 1
    assert "train.learning_rate = -1" in said[0]
    said.clear()
    names(config(config_file, teacher_folder, "distill.terms=[{kind: v2v}]", "ablate.losses=[mae, cka]"), said)
    assert "loss cka is for n2n, e2n" in said[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["distill.terms=[]"], "there are none"),
        (["compare.arms=[{name: one}]"], r"compare.arms=\[\]"),
        (["ablate.losses=[mse]"], "nothing is left to vary"),
        (["ablate.halving=1"], "at least 2"),
        (["ablate.overhead_steps=2"], "at least 3"),
    ],
)
def test_mistakes(config_file: Path, teacher_folder: Path, tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(config(config_file, teacher_folder, *options))
    assert not (tmp_path / "run").exists()


def test_budgets() -> None:
    assert [budget(text) for text in ("500", "90s", "1.5 h", "30min")] == [
        "ablate.steps=500",
        "ablate.seconds=90.0",
        "ablate.seconds=5400.0",
        "ablate.seconds=1800.0",
    ]
    for wrong in ("", "5 parsecs", "1.5", "0"):
        with pytest.raises(ConfigError, match="number of steps"):
            budget(wrong)


def test_rungs(config_file: Path, teacher_folder: Path) -> None:
    def steps(trials: int, *options: str) -> list[int]:
        return plan(config(config_file, teacher_folder, "train.warmup=2", *options), trials)

    assert steps(9) == [6]
    assert steps(9, "ablate.steps=900") == [900]
    assert steps(9, "ablate.steps=900", "ablate.halving=3") == [100, 300, 900]
    assert steps(8, "ablate.steps=900", "ablate.halving=3") == [300, 900]
    # a run that ends in its warm-up says nothing
    assert steps(64, "ablate.steps=10", "ablate.halving=2") == [3, 5, 10]


def test_without_a_teacher_the_table_says_what_errors_were_reduced(config_file: Path, tmp_path: Path) -> None:
    options = ["ablate.overhead_steps=0", "train.steps=6", "ablate.seeds=[0, 1]"]
    found, _ = run(load_config(config_file, ["distill.terms=[{kind: lkm}]", "ablate.weight_factors=[10]", *options]))
    rows = {row.name: row for row in found.rows}
    assert rows.keys() == {"alone", "base", "lkm-weight-10"}
    reduced = rows["base"].val.reduced_forces
    errors = [rows[name].val.metrics["forces_mae"].mean for name in ("alone", "base")]
    assert reduced.percent == pytest.approx(100 * (errors[0] - errors[1]) / errors[0])
    assert str(reduced) in rows["base"].cells()
    assert "MAE reduced, forces [val, % [95 %]]" in found.markdown()
    assert "gap closed" not in found.markdown().lower()
    with (tmp_path / "run" / "ablation.csv").open(encoding="utf-8") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert float(table["base"]["val_reduced_forces"]) == pytest.approx(reduced.percent)
    assert table["base"]["val_gap_forces"] == table["alone"]["val_reduced_forces"] == ""


def test_who_runs_first_does_not_win_for_it(tmp_path: Path) -> None:
    """A round of seeds that the budget ended after ``alone`` and ``base`` chooses nothing."""
    arms = [ArmConfig(name=name) for name in ("alone", "base", "a", "b")]
    rung, scores = _Rung(0, 6, arms), {"alone": (9, 9), "base": (8, 1), "a": (5,), "b": (6,)}
    for name, values in scores.items():
        for seed, value in enumerate(values):
            folder = rung.folder(tmp_path, name, seed)
            folder.mkdir(parents=True)
            extra = {"val_score": float(value)}
            RunSummary(name, name, "student", seed, 0, 1, 1.0, Metrics(*[0.0] * 7), extra=extra).save(folder)
            rung.done.setdefault(name, []).append(folder)
    assert rung.shared == 1
    assert rung.ranking() == ["a", "b", "base"]
    # what is not possible holds nobody up
    rung.failed |= {"a": "no", "b": "no"}
    assert rung.shared == 2
    assert rung.score("base", rung.shared).mean == 4.5


def test_terms_of_a_trial_are_told_apart(config_file: Path, teacher_folder: Path) -> None:
    lists = '{"distill.terms": [[{kind: n2n, weight: 3}], [{kind: n2n, weight: 3, loss: mae}], [{kind: v2v}, {kind: energy, weight: 4}]]}'
    arms = make_trials(config(config_file, teacher_folder, f"ablate.vary={lists}"), print)[2:]
    assert [arm.title for arm in arms] == [
        "distill.terms = n2n (weight 3)",
        "distill.terms = n2n (weight 3, loss mae)",
        "distill.terms = v2v + energy (weight 4)",
    ]
    assert [arm.name for arm in arms] == ["terms-n2n-weight-3", "terms-n2n-weight-3-loss-mae", "terms-v2v-energy-weight-4"]


def test_a_seed_given_twice_is_a_mistake(config_file: Path, teacher_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"ablate\.seeds: 1 is given twice"):
        config(config_file, teacher_folder, "ablate.seeds=[0, 1, 1]")


def test_one_table_chosen_on_validation_and_tested_once(config_file: Path, tmp_path: Path, teacher_folder: Path) -> None:
    options = ("ablate.losses=[mse, mae]", "ablate.projections=[linear, identity]", "ablate.seeds=[0, 1]", "ablate.overhead_steps=3")
    one = config(config_file, teacher_folder, *options)
    found, said = run(one)
    root = tmp_path / "run"
    # the trials never saw the test structures: 24 to 29 are validation, 30 to 35 test
    for path in root.glob("rung*/*/seed*"):
        assert Predictions.load(path).structure_index.tolist() == list(range(24, 30))
    tested = {path.parent.name for path in root.glob("test/*/seed*")}
    assert tested == {"alone", "base", *(row.name for row in found.rows if row.chosen)}
    assert Predictions.load(root / "test" / "alone" / "seed1").structure_index.tolist() == list(range(30, 36))
    rows = {row.name: row for row in found.rows}
    assert [row.name for row in found.rows][:2] == ["teacher", "alone"]
    scores = {
        name: sum(RunSummary.load(root / "rung0" / name / f"seed{seed}").extra["val_score"] for seed in (0, 1)) / 2
        for name in ("base", "n2n-loss-mae")
    }
    best = min(scores, key=lambda name: scores[name])
    assert [row.name for row in found.rows if row.chosen] == [best]
    assert rows[best].score.mean == pytest.approx(scores[best])
    assert rows[best].test is not None
    assert rows[best].test.gap_forces is not None
    assert rows["alone"].overhead is None
    # 8 channels are not 12: not possible is a result, not an end
    assert "needs equal widths" in rows["n2n-projection-identity"].note
    overhead = rows["base"].overhead
    assert overhead is not None
    assert overhead.terms.keys() == {"n2n", "forces"}
    assert overhead.alone > 0
    for name in ("ablation.md", "ablation.csv", "ablation.html"):
        text = (root / name).read_text(encoding="utf-8")
        assert all(row.title in text for row in found.rows)
    with (root / "ablation.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert {len(line) for line in table} == {len(CSV_COLUMNS)}
    assert "6 validation structures" in found.caption
    assert "4 trials × 2 seeds" in said
    # everything is there: nothing is trained, profiled or tested again, and the table is the same
    before = {path: path.stat().st_mtime_ns for path in root.rglob("summary.json")}
    again, _ = run(load_config(config_file, [f"teacher.path={teacher_folder}", TERMS, "train.steps=6", *options, "run.resume=true"]))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert again.markdown() == found.markdown()


def test_halving_and_a_resume_in_the_middle(
    config_file: Path, tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("ablate.weight_factors=[0.01, 100]", "ablate.halving=2", "ablate.steps=12", "train.warmup=1")
    found, _ = run(config(config_file, teacher_folder, *options, f"run.dir={tmp_path / 'whole'}"))
    assert {path.name for path in (tmp_path / "whole").glob("rung*")} == {"rung0", "rung1", "rung2"}
    assert len(list((tmp_path / "whole" / "rung0").iterdir())) == 6
    assert len(list((tmp_path / "whole" / "rung1").iterdir())) == 4
    assert len(list((tmp_path / "whole" / "rung2").iterdir())) == 3
    steps = {row.name: row.steps for row in found.rows}
    assert steps["alone"] == steps["base"] == 12
    assert sorted(steps.values()) == [0, 3, 3, 6, 12, 12, 12]

    class Killed(Exception):  # noqa: N818
        pass

    done: list[int] = []

    def dying(*arguments: Any) -> Any:
        done.append(1)
        if len(done) == 6 * 3 + 11:
            raise Killed
        return real(*arguments)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        run(config(config_file, teacher_folder, *options))
    monkeypatch.undo()
    again, _ = run(config(config_file, teacher_folder, *options, "run.resume=true"))
    assert again.markdown() == found.markdown()
    for path in (tmp_path / "whole").glob("rung*/*/seed*"):
        same(load_checkpoint(path).tree, load_checkpoint(tmp_path / "run" / path.relative_to(tmp_path / "whole")).tree)


def test_time_that_is_over(config_file: Path, tmp_path: Path, teacher_folder: Path) -> None:
    options = ("ablate.weight_factors=[0.1]", "ablate.seeds=[0, 1]")
    with pytest.raises(CheckpointError, match="over before a trial was"):
        run(config(config_file, teacher_folder, *options, "ablate.seconds=1e-9"))
    first = tmp_path / "run" / "rung0" / "alone" / "seed0" / "summary.json"
    made = first.stat().st_mtime_ns
    # more time goes on from there
    spent = RunSummary.load(first.parent).train_seconds
    found, _ = run(config(config_file, teacher_folder, *options, f"ablate.seconds={1.0001 * spent}", "run.resume=true"))
    assert first.stat().st_mtime_ns == made
    assert "was spent after 2 of 8 runs" in found.caption
    assert {row.name: row.note for row in found.rows}["n2n-weight-0p1"] == "not run"


def test_the_command(config_file: Path, tmp_path: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"teacher.path={teacher_folder}", TERMS, "ablate.losses=[mae]", "ablate.overhead_steps=0"]
    assert main(["ablate", str(config_file), *options, "--budget", "4", "--out", str(tmp_path / "there")]) == 0
    said = capsys.readouterr().out
    assert "n2n: loss mae" in said
    assert (tmp_path / "there" / "ablation.html").is_file()
    assert main(["ablate", str(config_file), *options, "--budget", "soon"]) == 2
