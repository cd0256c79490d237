"""The loop: it learns, resumes to the bit, stops when asked, and never loses a checkpoint."""

from __future__ import annotations

import errno
import io
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastkd.analysis.runs import Curve
from fastkd.engine.loop import Job, train
from fastkd.engine.signals import Interrupted
from fastkd.engine.state import FOLDER, load_checkpoint
from fastkd.errors import CheckpointError, TrainingError

from .synthetic import make_job, same

SILENT = Console(file=io.StringIO())
TERMS = "distill.terms=[{kind: n2n}, {kind: v2v}, {kind: energy}, {kind: forces, weight: 10}, {kind: n2n, projection: mlp}]"
SCHEDULED = (
    "distill.terms=[{kind: lkm, weight: 2, weight_schedule: cosine, weight_from: 2, weight_until: 9}, {kind: e2e}, {kind: v2v_geometric}, "
    "{kind: n2n, loss: cka, weight_start: 3, weight: 0, weight_schedule: step, weight_until: 7}]"
)
BALANCED = (
    "distill.terms=[{kind: forces, weight: 0.5, weight_rule: gradient_ratio, when_passed: halve}, {kind: n2n, when_passed: stop}, "
    "{kind: v2v, weight: 2, weight_rule: gradient_ratio, weight_schedule: linear, weight_until: 6}]",
    "distill.gradient_every=2",
)
SCHEDULES = {
    "constant": ("train.schedule=constant",),
    "cosine": ("train.schedule=cosine",),
    "step": ("train.schedule=step", "train.schedule_milestones=[3, 7]"),
    "plateau": ("train.schedule=plateau", "train.schedule_patience=0", "train.amsgrad=true"),
}


def resumed(folder: Path, *options: str) -> Job:
    job = make_job(folder, *options)
    job.restore(load_checkpoint(folder))
    return job


def curve_without_clock(folder: Path) -> dict[str, list[float | None]]:
    curve = Curve.load(folder)
    clock = {"seconds", "atoms_per_second", "data_wait", "teacher_ms", "teacher_share"}
    # a cell may be empty, and NaN is not equal to itself
    rows = {name: curve[name].tolist() for name in curve.units if name not in clock}
    return {name: [None if math.isnan(value) else value for value in values] for name, values in rows.items()}


def test_loss_goes_down(tmp_path: Path) -> None:
    job = make_job(tmp_path, "train.steps=60", "train.evaluate_every=20")
    train(job, SILENT)
    curve = Curve.load(tmp_path)
    assert curve["step"].tolist() == [20, 40, 60]
    assert curve["val_forces_mae"][-1] < 0.6 * curve["val_forces_mae"][0]
    assert curve.units["val_forces_mae"] == "meV/Å"
    assert curve.units["loss_forces"] == "eV/Å"
    assert load_checkpoint(tmp_path).step == 60
    assert load_checkpoint(tmp_path, "best").step == job.progress.best_step


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "terms", [(), (TERMS,), (SCHEDULED,), BALANCED, ("model.filters=table",)], ids=["alone", "distilled", "scheduled", "balanced", "tables"]
)
def test_resume_is_bitwise(tmp_path: Path, schedule: str, terms: tuple[str, ...]) -> None:
    options = (*SCHEDULES[schedule], *terms, "train.checkpoint_every=5")
    train(make_job(tmp_path / "whole", *options), SILENT)

    class Stop(Exception):  # noqa: N818
        pass

    broken = make_job(tmp_path / "parts", *options)
    stream, drawn = broken.batches, []

    class Dying:
        """A process that dies while it waits for the 9th batch: after an evaluation (6) and a checkpoint (5)."""

        def __next__(self) -> Any:
            drawn.append(1)
            if len(drawn) == 9:
                raise Stop
            return next(stream)

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    broken.batches = Dying()
    with pytest.raises(Stop):
        train(broken, SILENT)
    second = resumed(tmp_path / "parts", *options)
    assert second.progress.step == 5
    train(second, SILENT)
    for name in ("last", "best"):
        whole, parts = load_checkpoint(tmp_path / "whole", name), load_checkpoint(tmp_path / "parts", name)
        assert whole.step == parts.step
        same(whole.tree, parts.tree)
    assert curve_without_clock(tmp_path / "whole") == curve_without_clock(tmp_path / "parts")


def test_same_seed_same_bits_and_no_global_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train(make_job(tmp_path / "a"), SILENT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    train(make_job(tmp_path / "b"), SILENT)
    same(load_checkpoint(tmp_path / "a").tree, load_checkpoint(tmp_path / "b").tree)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_keeps_it(tmp_path: Path, number: int) -> None:
    job = make_job(tmp_path)
    stream = job.batches

    class Interrupting:
        def __next__(self) -> Any:
            if job.progress.step == 6:
                os.kill(os.getpid(), number)
            return next(stream)

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    before = signal.getsignal(number)
    job.batches = Interrupting()
    with pytest.raises(Interrupted) as stopped:
        train(job, SILENT)
    assert stopped.value.exit_code == 128 + number
    assert stopped.value.step == load_checkpoint(tmp_path).step == 7
    assert signal.getsignal(number) is before
    train(make_job(tmp_path / "whole"), SILENT)
    train(resumed(tmp_path), SILENT)
    same(load_checkpoint(tmp_path).tree, load_checkpoint(tmp_path / "whole").tree)


def test_early_stop_and_its_resume(tmp_path: Path) -> None:
    options = ("train.stop_after=2", "train.learning_rate=1e-9", "train.steps=100", "train.ema_decay=0")
    job = make_job(tmp_path, *options, "loss.energy_weight=0", "train.weight_decay=0")
    job.progress.best = 0.0  # nothing can be better
    train(job, SILENT)
    assert job.progress.step == 6
    assert resumed(tmp_path, *options, "loss.energy_weight=0").finished


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(tmp_path: Path) -> None:
    job = make_job(tmp_path, "train.learning_rate=1e-2")
    stream = job.batches

    class Poisoned:
        def __next__(self) -> Any:
            batch = next(stream)
            if job.progress.step == 6:
                batch.forces[0, 0] = float("nan")
            return batch

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    job.batches = Poisoned()
    with pytest.raises(TrainingError, match=r"the loss \(forces\) is not finite at step 7; the last checkpoint is kept"):
        train(job, SILENT)
    kept = load_checkpoint(tmp_path)
    assert kept.step == 4
    assert all(bool(torch.isfinite(value).all()) for value in kept.tree["weights"].values())
    # not even the weights in memory saw it
    assert all(bool(torch.isfinite(value).all()) for value in job.trainee.student.state_dict().values())


def test_a_full_disk_stops_with_the_last_checkpoint_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "last-000000008" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        train(job, SILENT)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).step == 4
    train(resumed(tmp_path), SILENT)
    train(make_job(tmp_path / "whole"), SILENT)
    same(load_checkpoint(tmp_path).tree, load_checkpoint(tmp_path / "whole").tree)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(make_job(tmp_path, "train.steps=1"), SILENT)
    other = make_job(tmp_path, "train.schedule=constant")
    checkpoint = load_checkpoint(tmp_path)
    del checkpoint.tree["weights"][next(iter(checkpoint.tree["weights"]))]
    with pytest.raises(CheckpointError, match="does not fit this run"):
        other.restore(checkpoint)
    assert (tmp_path / FOLDER / "last.json").exists()


def test_progress_lines_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkd.engine.progress.LINE_EVERY", 0.0)
    text = io.StringIO()
    train(make_job(tmp_path, "train.steps=4"), Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    for part in ("test: step 4/4", "loss", "meV/Å", "atoms/s", "data wait", "s left"):
        assert part in lines[-1]


def test_progress_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkd.engine.progress.REFRESH", 0.0)
    text = io.StringIO()
    train(make_job(tmp_path, "train.steps=4"), Console(file=text, width=200, force_terminal=True))
    assert "atoms/s" in text.getvalue()
