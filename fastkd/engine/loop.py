"""The training loop: steps, evaluations, checkpoints, and an orderly end when asked to stop.

Everything that a step depends on is in the checkpoint, so that k steps, a resume and N − k steps give the same bits as N steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

from fastkd.analysis.metrics import Metrics
from fastkd.analysis.runs import CurveWriter
from fastkd.config import Config, LossConfig
from fastkd.data.batch import Batch
from fastkd.distill import CollapseWatch, ValidationErrors
from fastkd.engine.evaluate import have_forces, predict
from fastkd.engine.progress import Reporter
from fastkd.engine.schedule import Schedule
from fastkd.engine.signals import Interrupted, StopRequest
from fastkd.engine.state import Checkpoint, load_optimizer_state, optimizer_state, save_checkpoint
from fastkd.engine.step import Trainee, train_step
from fastkd.engine.watch import PairWatch
from fastkd.errors import CheckpointError, TrainingError
from fastkd.files import cannot_write
from fastkd.teachers import BaseTeacher
from fastkd.teachers.committee import live_sources

#: Units of the columns of metrics.csv that every run has; the losses come in between.
_FIRST_UNITS = {"step": "1", "learning_rate": "1"}
_LAST_UNITS = {
    "val_energy_mae": "meV/atom",
    "val_forces_mae": "meV/Å",
    "val_forces_cosine": "1",
    "val_score": "1",
    "atoms_per_second": "1/s",
    "data_wait": "%",
    "seconds": "s",
}
#: In runs with a live teacher: its time per batch, and its share of the time of a step.
_TEACHER_UNITS = {"teacher_ms": "ms", "teacher_share": "%"}


class Batches(Protocol):
    """An endless stream of training batches that can say where it is and be put back there."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """How far a run is; part of the checkpoint."""

    step: int = 0  #: optimiser steps done
    best: float | None = None  #: best validation score so far
    best_step: int = 0
    waited: int = 0  #: evaluations since the best
    seconds: float = 0.0  #: s, spent in the loop by all processes so far
    loss_sum: Tensor | None = None  #: [n_losses] float64, sums since the last evaluation
    loss_steps: int = 0


@dataclass(eq=False)
class Job:
    """One run, put together and ready to train (see `fastkd.engine.setup`)."""

    label: str
    config: Config
    trainee: Trainee
    schedule: Schedule
    batches: Batches
    val_batches: Sequence[Batch]
    teacher: BaseTeacher | None = None
    watch: PairWatch | None = None  #: looks at distilled layers at every evaluation
    threads: int = 0  #: CPU threads, kept in the checkpoint because sums may round differently with another number
    progress: Progress = field(default_factory=Progress)
    warnings: list[str] = field(default_factory=list)  #: against the config, for the report
    collapse: CollapseWatch = field(init=False)  #: of mixed layers (lkm)
    has_forces: bool = field(init=False)  #: whether the validation structures have forces

    def __post_init__(self) -> None:
        self.has_forces = have_forces(self.val_batches)
        self.collapse = CollapseWatch(self.trainee.terms or ())

    @property
    def folder(self) -> Path:
        return self.config.run.dir

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or it stopped early for lack of improvement."""
        train = self.config.train
        return self.progress.step >= train.steps or 0 < train.stop_after <= self.progress.waited

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        trainee = self.trainee
        return {
            "weights": trainee.student.state_dict(),
            "tables": trainee.student.tables.state_dict() if trainee.student.tables is not None else {},
            "projections": trainee.terms.state_dict() if trainee.terms is not None else {},
            "average": trainee.average.state_dict(),
            "optimizer": optimizer_state(trainee.optimizer),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state_dict(),
            "progress": vars(self.progress),
            "mixing": self.collapse.state_dict(),
            "balance": trainee.balance.state_dict() if trainee.balance is not None else {},
            "threads": self.threads,
            # what cache=auto came to for each teacher
            "live_teachers": sorted(live_sources(trainee.teacher)),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            CheckpointError: if it does not fit the model.
        """
        tree, trainee = checkpoint.tree, self.trainee
        try:
            trainee.student.load_state_dict(tree["weights"])
            if trainee.student.tables is not None:
                # checkpoints from before there were tables have no such entry
                trainee.student.tables.load_state_dict(tree.get("tables", {}))
            if trainee.terms is not None:
                trainee.terms.load_state_dict(tree["projections"])
            trainee.average.load_state_dict(tree["average"])
            load_optimizer_state(trainee.optimizer, tree["optimizer"])
            self.schedule.load_state_dict(tree["schedule"])
            self.batches.load_state_dict(tree["batches"])
            self.progress = Progress(**tree["progress"])
            self.collapse.load_state_dict(tree.get("mixing", {}))
            if trainee.balance is not None:
                trainee.balance.load_state_dict(tree["balance"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{checkpoint.path} does not fit this run: {error}") from error


def train(job: Job, console: Console | None = None) -> None:
    """Train until the last step, an early stop, or a signal.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with the checkpoint written.
        TrainingError: if the loss is not finite; the last checkpoint is kept.
        CheckpointError: if the folder cannot be written any more; the last checkpoint is kept.
    """
    config, progress = job.config.train, job.progress
    clock = _Clock(progress.seconds, job.trainee.teacher)
    if not job.collapse.start:
        job.collapse.look(job.trainee.student, job.val_batches[0])
    curve: CurveWriter | None = None
    with StopRequest() as stop, Reporter(job.label, config.steps, progress.step, console) as reporter:
        while not job.finished:
            batch = clock.timed(job.batches)
            rate = job.schedule.rate(progress.step)
            result = train_step(job.trainee, batch, rate, progress.step)
            progress.step += 1
            _add_losses(progress, result.losses)
            clock.atoms += batch.num_atoms

            last = progress.step == config.steps
            if last or progress.step % config.evaluate_every == 0:
                curve = curve or open_curve(job, list(result.losses))
                _evaluate(job, curve, list(result.losses), rate, clock, reporter)
            if last or stop.received or job.finished or progress.step % config.checkpoint_every == 0:
                progress.seconds = clock.seconds
                save_checkpoint(job.folder, "last", progress.step, job.state())
            if stop.received:
                raise Interrupted(stop.received, job.folder, progress.step)
            if reporter.due:
                reporter.show(progress.step, float(result.losses["total"]), clock.atoms, clock.waited)


def open_curve(job: Job, losses: Sequence[str]) -> CurveWriter:
    """The writer of metrics.csv: a new file, or the existing one without rows beyond the step that is gone on from."""
    terms = job.trainee.terms
    units = {"loss_energy": "eV", "loss_forces": "eV/Å", "loss_total": "1"}
    units |= {f"loss_kd_{name}": unit for name, unit in (terms.units.items() if terms is not None else ())}
    last = {name: unit for name, unit in _LAST_UNITS.items() if job.has_forces or not name.startswith("val_forces")}
    columns = _FIRST_UNITS | {f"loss_{name}": units.get(f"loss_{name}", "1") for name in losses} | last
    live = live_sources(job.trainee.teacher)
    if live:
        columns |= _TEACHER_UNITS | {f"teacher_{name}_ms": "ms" for name in live if name}
    columns |= job.collapse.columns
    if job.trainee.balance is not None:
        columns |= job.trainee.balance.columns
    if job.watch is not None:
        columns |= job.watch.units
    # rows of this very step and later are written again, with the same numbers
    try:
        return CurveWriter(job.folder, columns, resume_step=job.progress.step - 1)
    except OSError as error:
        raise CheckpointError(cannot_write(job.folder / "metrics.csv", error)) from error


def _evaluate(job: Job, curve: CurveWriter, names: list[str], rate: float, clock: _Clock, reporter: Reporter) -> None:
    """Validate the averaged weights, tell the schedule, keep the best, write a row."""
    progress, loss = job.progress, job.config.loss
    started = time.perf_counter()
    with job.trainee.average.applied():
        errors = predict(job.trainee.student, job.val_batches, free_atoms=job.config.train.eval_on_free_atoms).metrics()
        job.collapse.look(job.trainee.student, job.val_batches[0])
        alike = job.watch.measure(job.trainee.student) if job.watch is not None else {}
    found = validation_errors(errors, loss)
    score = found.score
    if not math.isfinite(score):
        raise TrainingError(
            f"the validation error is not finite after step {progress.step}; the last checkpoint is kept. Lower train.learning_rate"
        )
    job.schedule.observe(score)
    # before any checkpoint of this step, which keeps what was said
    for warning in job.collapse.new_warnings(progress.step):
        reporter.say(f"{job.label}: warning: {warning}")
    balance = job.trainee.balance
    weighed = balance.row() if balance is not None else {}
    for line in balance.observe(found, progress.step) if balance is not None else ():
        reporter.say(f"{job.label}: {line}")
    sums = progress.loss_sum
    means = (sums / max(progress.loss_steps, 1)).tolist() if sums is not None else []
    progress.loss_sum, progress.loss_steps = None, 0
    progress.waited += 1
    if progress.best is None or score < progress.best:
        progress.best, progress.best_step, progress.waited = score, progress.step, 0
        progress.seconds = clock.seconds
        save_checkpoint(job.folder, "best", progress.step, job.state())
    clock.paused += time.perf_counter() - started
    row = {"step": progress.step, "learning_rate": rate} | {f"loss_{name}": mean for name, mean in zip(names, means, strict=True)}
    row |= {"val_energy_mae": 1e3 * errors.energy_mae_per_atom, "val_score": score}
    if job.has_forces:
        row |= {"val_forces_mae": 1e3 * errors.forces_mae, "val_forces_cosine": errors.forces_cosine}
    row |= {"atoms_per_second": clock.rate, "data_wait": clock.wait_percent, "seconds": clock.seconds}
    row |= clock.teacher(job.trainee.teacher) | job.collapse.row | weighed | alike
    try:
        curve.append(row)
    except OSError as error:
        raise CheckpointError(cannot_write(curve.path, error)) from error
    reporter.evaluated(row["val_energy_mae"], row.get("val_forces_mae"), row.get("teacher_ms"), row.get("teacher_share"), alike)


def validation_errors(errors: Metrics, loss: LossConfig) -> ValidationErrors:
    """What a run is judged by on the validation structures; the score is what the best step is chosen by."""
    if not (loss.energy_weight or loss.forces_weight):
        # terms alone train: labels still judge, as they would by default, or the first evaluation would be the best for ever
        unjudged = LossConfig(per_atom_energy=loss.per_atom_energy)
        loss = unjudged if math.isfinite(errors.forces_mae) else unjudged.model_copy(update={"forces_weight": 0.0})
    energy = errors.energy_mae_per_atom if loss.per_atom_energy else errors.energy_mae
    score = loss.energy_weight * energy
    if loss.forces_weight:
        # where forces have no weight there may be none
        score += loss.forces_weight * errors.forces_mae
    return ValidationErrors(errors.energy_mae_per_atom, errors.forces_mae, score)


def _add_losses(progress: Progress, losses: dict[str, Tensor]) -> None:
    values = torch.stack([value.double() for value in losses.values()])
    progress.loss_sum = values if progress.loss_sum is None else progress.loss_sum.to(values.device) + values
    progress.loss_steps += 1


class _Clock:
    """Where the time of this process went; evaluations and checkpoints of the best are not counted as training."""

    def __init__(self, seconds_before: float, teacher: object = None) -> None:
        self._started = time.perf_counter()
        # counted from here: runs of one process share a teacher
        self._taught = {name: (live.cost.settle(), live.cost.batches) for name, live in live_sources(teacher).items()}
        self._before = seconds_before
        self.waited = self.paused = 0.0
        self.atoms = 0

    def timed(self, batches: Iterator[Batch] | Batches) -> Batch:
        """The next batch; the time it takes is waiting for data."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    @property
    def _training(self) -> float:
        return max(time.perf_counter() - self._started - self.paused, 1e-9)

    @property
    def seconds(self) -> float:
        """s, since the run began, in all processes."""
        return self._before + time.perf_counter() - self._started

    @property
    def rate(self) -> float:
        """Atoms per second in training."""
        return self.atoms / self._training

    def teacher(self, teacher: object) -> dict[str, float]:
        """What live teachers take: milliseconds per batch, percent of training. Waits for their devices; nothing for any other."""
        spent: dict[str, tuple[float, float]] = {}
        for name, live in live_sources(teacher).items():
            before, batches = self._taught[name]
            seconds = live.cost.settle() - before
            spent[name] = (seconds, 1e3 * seconds / max(live.cost.batches - batches, 1))
        if not spent:
            return {}
        whole = {"teacher_ms": sum(ms for _, ms in spent.values())}
        whole["teacher_share"] = 100.0 * sum(seconds for seconds, _ in spent.values()) / self._training
        return whole | {f"teacher_{name}_ms": ms for name, (_, ms) in spent.items() if name}

    @property
    def wait_percent(self) -> float:
        return 100.0 * self.waited / self._training
