"""What ablations may vary and what they go on with: trials are judged alike, are of so many steps, and one that fails is a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastkd.analysis.metrics import Metrics
from fastkd.analysis.runs import RunSummary
from fastkd.config import ArmConfig, Config
from fastkd.config_loading import arm_config, load_config
from fastkd.engine import trials
from fastkd.engine.ablate import _made_from
from fastkd.engine.trials import make_trials
from fastkd.errors import CheckpointError, ConfigError

from .test_ablate import config, names, run

#: Needs no teacher, so that little is computed.
LKM = "distill.terms=[{kind: lkm, weight: 0.01}]"
SHORT = ("ablate.overhead_steps=0", "train.steps=4")


def vary(**values: list[Any]) -> str:
    """Values of keys, whose dots are written as two underscores."""
    return f"ablate.vary={ {key.replace('__', '.'): tried for key, tried in values.items()} }"


@pytest.mark.parametrize(
    ("option", "shared"),
    [
        (vary(loss__forces_weight=[1, 1000]), "loss.forces_weight changes"),
        (vary(train__steps=[3, 9]), "train.steps changes"),
        (vary(data__test_size=[2]), "data.test_size changes"),
        (vary(data__val_size=[2, 4]), "data.val_size changes"),
        (vary(train__eval_on_free_atoms=[True]), "train.eval_on_free_atoms changes"),
        (vary(loss=[{"forces_weight": 1.0}]), "loss changes what trials are judged by .*loss.per_atom_energy"),
    ],
)
def test_what_trials_are_judged_by_is_the_same_for_all(config_file: Path, tmp_path: Path, option: str, shared: str) -> None:
    # something else to vary does not hide it
    with pytest.raises(ConfigError, match=rf"ablate\.vary: {shared}"):
        run(load_config(config_file, [LKM, *SHORT, option, "ablate.weight_factors=[10]"]))
    assert not (tmp_path / "run").exists()


def test_keys_next_to_those_may_be_varied(config_file: Path, teacher_folder: Path) -> None:
    option = vary(train__ema_decay=[0.5], data__batch_size=[2], loss__train_on_free_atoms=[False])
    assert names(config(config_file, teacher_folder, option))[2:] == ["ema_decay-0p5", "batch_size-2", "train_on_free_atoms-false"]


def test_keys_are_names_of_folders(config_file: Path, teacher_folder: Path) -> None:
    options = "teacher.options={firstName: 1, second name: 1}"
    option = 'ablate.vary={"teacher.options.firstName": [2], "teacher.options.second name": [2]}'
    assert names(config(config_file, teacher_folder, options, option))[2:] == ["firstname-2", "second-name-2"]


def test_precision_may_be_varied(config_file: Path, teacher_folder: Path) -> None:
    # float32 is what the config says; where a run lies makes no trial
    option = vary(run__dtype=["float32", "float64"], run__report=[True], train__ema_decay=[0.5])
    assert names(config(config_file, teacher_folder, option))[2:] == ["dtype-float64", "ema_decay-0p5"]


def test_a_grid_is_not_built_beyond_the_most(config_file: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def counted(config: Config, arm: ArmConfig) -> Config:
        built.append(arm.name)
        return real(config, arm)

    real = trials._built
    monkeypatch.setattr(trials, "_built", counted)
    option = vary(train__ema_decay=[0.1, 0.2, 0.3, 0.4], train__warmup=[0, 1, 3], train__clip=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match=r"trials are more than ablate\.most = 5"):
        names(config(config_file, teacher_folder, option, "ablate.method=grid", "ablate.most=5"))
    assert len(built) == 6
    # as many as are allowed are allowed
    assert len(names(config(config_file, teacher_folder, vary(train__warmup=[0, 1, 3]), "ablate.most=5"))) == 5


def test_the_student_alone_keeps_noise(config_file: Path, teacher_folder: Path) -> None:
    noisy = load_config(config_file, [LKM, "augment.kind=noise", "augment.sigma=0.1", "ablate.weight_factors=[10]"])
    alone = make_trials(noisy, print)[0]
    assert arm_config(noisy, alone, 0, Path("unused")).augment == noisy.augment
    # what moves atoms for the teacher goes with it
    rattled = config(config_file, teacher_folder, "augment.kind=rattle", "ablate.weight_factors=[10]")
    assert arm_config(rattled, make_trials(rattled, print)[0], 0, Path("unused")).augment.kind == "none"


def test_a_trial_that_finds_its_data_unfit_is_a_line(config_file: Path, tmp_path: Path) -> None:
    options = [LKM, *SHORT, vary(data__batch_edges=[1], run__dtype=["float64"])]
    found, said = run(load_config(config_file, options))
    rows = {row.name: row for row in found.rows}
    assert "data.batch_edges" in rows["batch_edges-1"].note
    assert rows["batch_edges-1"].val is None
    assert "data.batch_edges = 1: " in said
    assert rows["batch_edges-1"].note in found.markdown()
    root = tmp_path / "run"
    assert not (root / "rung0" / "batch_edges-1" / "seed0").exists()
    assert rows["dtype-float64"].val is not None
    assert load_config(root / "rung0" / "dtype-float64" / "seed0" / "config.yaml", []).run.dtype == "float64"


def test_trials_of_other_steps_are_not_gone_on_with(config_file: Path, tmp_path: Path) -> None:
    options = [LKM, *SHORT, "ablate.weight_factors=[10]"]
    found, _ = run(load_config(config_file, options))
    root = tmp_path / "run"
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for steps in (8, 3):
        with pytest.raises(CheckpointError, match=rf"train\.steps: the trials in .* are of 4 steps, {steps} now"):
            run(load_config(config_file, [*options, f"train.steps={steps}", "run.resume=true"]))
    assert files == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again, _ = run(load_config(config_file, [*options, "run.resume=true"]))
    assert again.markdown() == found.markdown()
    assert _made_from(root / "test" / "base" / "seed0", root / "rung0" / "base" / "seed0")


def test_errors_of_a_test_belong_to_the_weights_that_were_tested(tmp_path: Path) -> None:
    source, folder = (tmp_path / name / "base" / "seed0" for name in ("rung0", "test"))
    extra: dict[str, Any] = {"steps": 4, "best_step": 3, "val_score": 1.5}

    def save(where: Path, **more: Any) -> None:
        where.mkdir(parents=True, exist_ok=True)
        RunSummary("base", "base", "student", 0, 0, 1, 1.0, Metrics(*[0.0] * 7), extra=extra | more).save(where)

    save(source)
    assert not _made_from(folder, source)
    save(folder, **{"from": "rung0/base/seed0"})
    assert _made_from(folder, source)
    for changed in ({"steps": 8}, {"best_step": 6}, {"val_score": 1.25}):
        save(source, **changed)
        assert not _made_from(folder, source)
