"""`examples/strategies`: its arms are runs that can begin, and the command trains, goes on and prints one table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from examples.strategies import __main__ as strategies
from fastkd.config_loading import arm_config, load_config
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.step import train_step

SMALL = ["data.labelled=6", "data.val_size=4", "data.test_size=6", "data.batch_size=3", "train.steps=2", "model.width=8"]
KEPT = ("alone", "synthetic", "outputs", "n2n")


def few_arms(folder: Path) -> Path:
    """arms.yaml with a few of its arms."""
    tree = yaml.safe_load(strategies.ARMS.read_text(encoding="utf-8"))
    tree["compare"]["arms"] = [arm for arm in tree["compare"]["arms"] if arm["name"] in KEPT]
    tree["train"] |= {"warmup": 1, "evaluate_every": 2, "checkpoint_every": 2}
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_one_command_from_data_to_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(strategies, "ARMS", few_arms(tmp_path))
    monkeypatch.setattr(strategies, "STARTS", 2)
    monkeypatch.setattr(strategies, "DYNAMICS", ("--method", "md", "--steps", "4", "--every", "2"))
    words = ["--only", "embedded", "--out", str(tmp_path / "out"), *SMALL, "compare.seeds=[0]"]
    assert strategies.main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    titles = ["teacher", "student alone", "energies and forces", "n2n", "synthetic structures"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {title}" for title in titles]
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").splitlines() == lines
    made = (tmp_path / "out" / "embedded_synthetic.h5").stat().st_mtime_ns
    assert strategies.main(words) == 0
    assert (tmp_path / "out" / "embedded_synthetic.h5").stat().st_mtime_ns == made
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == lines


def test_what_is_missing_is_said(tmp_path, capsys):
    assert strategies.main(["--only", "aspirin", "--out", str(tmp_path)]) == 2
    assert "--rmd17" in capsys.readouterr().err
    (tmp_path / "ethanol.h5").touch()
    assert strategies.main(["--only", "ethanol", "--out", str(tmp_path)]) == 2
    assert "--ethanol-teacher" in capsys.readouterr().err


@pytest.mark.parametrize("name", [arm["name"] for arm in yaml.safe_load(strategies.ARMS.read_text(encoding="utf-8"))["compare"]["arms"]])
def test_every_arm_can_begin(name, tmp_path):
    config = load_config(str(strategies.ARMS), [*SMALL, "data.systems=[ethanol]", "teacher.path=embedded"])
    arm = next(arm for arm in config.compare.arms if arm.name == name)
    smaller = {"augment.synthetic": "", "data.unlabelled": 6}
    arm = arm.model_copy(update={"set": arm.set | {key: value for key, value in smaller.items() if key in arm.set}})
    job, _ = prepare(arm_config(config, arm, 0, tmp_path), name, Workbench(say=lambda _: None), resume=False)
    result = train_step(job.trainee, next(job.batches), 1e-3, 0)
    assert float(result.losses["total"]) > 0
    assert float(result.gradient_norm) > 0


def test_the_sweep_of_weights_can_begin():
    path = strategies.HERE / "weights.yaml"
    config = load_config(str(path), [])
    trials = config.ablate.vary["distill.terms"]
    assert len(trials) > 40
    # a seed that the table does not have
    assert config.run.seed not in load_config(str(strategies.ARMS), ["teacher.path=embedded"]).compare.seeds
