"""What ``fastkd train`` does: one run, or a comparison of several, from an empty folder to the table.

A run folder and its files are described in `fastkd.engine.folder`; the order of events is the order of the functions below.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fastkd.analysis import Metrics, RunSummary, build_report
from fastkd.config import ArmConfig, Config
from fastkd.config_loading import arm_config, to_tree
from fastkd.engine.datasets import RunData
from fastkd.engine.environment import describe_environment
from fastkd.engine.evaluate import can_test, inference_rate, predict
from fastkd.engine.folder import is_finished, open_folder, release_folder
from fastkd.engine.loop import Job, train
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.state import has_checkpoint, load_checkpoint
from fastkd.engine.threads import thread_count
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.files import cannot_write, write_atomically
from fastkd.models import save_model
from fastkd.teachers import BaseTeacher, Committee

TEACHER = "teacher"
#: Columns that the table needs; narrower terminals and log files get plain lines, which do not lose digits.
_TABLE_WIDTH = 130


def run(config: Config, console: Console | None = None) -> None:
    """Do what a config says, and print the table.

    Raises:
        UserError: for every mistake that can be mended.
        Interrupted: when asked to stop, with the checkpoint written.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    open_folder(config)
    bench = Workbench(say=lambda message: console.print(message, markup=False))
    started = time.perf_counter()
    try:
        if config.compare.arms:
            _compare(config, bench, console)
        else:
            run_one(config, bench, console)
        report = build_report(config.run.dir, resamples=config.compare.bootstrap, html=config.run.report)
    except OSError as error:
        raise CheckpointError(cannot_write(config.run.dir, error)) from error
    except (ConfigError, DataError, CheckpointError):
        release_folder(config.run.dir)
        raise
    if console.is_terminal and console.width >= _TABLE_WIDTH:
        console.print(report.table())
    else:
        console.print(report.text(), markup=False)
    console.print(f"everything is in {config.run.dir} ({time.perf_counter() - started:.0f} s)", markup=False)
    if config.run.report:
        console.print(f"report: {config.run.dir / 'report.html'}", markup=False)


def run_one(config: Config, bench: Workbench, console: Console, *, name: str = "run", title: str = "", order: int = 0) -> None:
    """One run, from its folder to its summary; the folder is open already.

    Args:
        config: of this run alone.
        bench: shared with other runs.
        console: for progress.
        name: of the arm.
        title: how tables call it.
        order: place in tables.
    """
    label = f"{name} seed {config.run.seed}" if name != "run" else "training"
    job, data = prepare(config, label, bench, resume=has_checkpoint(config.run.dir))
    with thread_count(job.threads):
        train(job, console)
        _finish(job, data, name, title or name, order)
        if config.named_teachers and name == "run":
            measure_teachers(config, bench, config.run.dir)


def _finish(job: Job, data: RunData, name: str, title: str, order: int) -> None:
    """Test the averaged weights of the best step, and write model, predictions and summary (last: it says that all is there)."""
    config, student = job.config, job.trainee.student
    # of the whole run, also of steps after the best one
    warnings = [*job.warnings, *job.collapse.said]
    weighting = list(job.trainee.balance.said) if job.trainee.balance is not None else []
    best = load_checkpoint(job.folder, "best")
    job.restore(best)
    with job.trainee.average.applied():
        batches = data.test_batches(student.cutoff)
        predictions = predict(student, batches, free_atoms=config.train.eval_on_free_atoms)
        metrics = predictions.metrics()
        rate = inference_rate(student, batches, config.run.inference_repeats)
        save_model(student, job.folder, provenance(config, data, metrics, best.step) | _teacher_card(job))
    predictions.save(job.folder)
    summary = RunSummary(
        name=name,
        title=title,
        role="student",
        seed=config.run.seed,
        order=order,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        atoms_per_second=rate,
        test=metrics,
        train_seconds=float(load_checkpoint(job.folder).tree["progress"]["seconds"]),
        versions=describe_environment()["versions"],
        extra={
            "best_step": best.step,
            "steps": config.train.steps,
            "val_score": job.progress.best,
            "threads": job.threads,
            "warnings": warnings,
            "weighting": weighting,
        },
    )
    summary.save(job.folder)


def _teacher_card(job: Job) -> dict[str, Any]:
    """Whom the student learned from, and under which licence that was given away; goes into the model file."""
    if job.teacher is None:
        return {}
    several = {"teachers": job.teacher.cards()} if isinstance(job.teacher, Committee) else {}
    return {"teacher": job.teacher.card(), **several}


def provenance(config: Config, data: RunData, metrics: Metrics, step: int) -> dict[str, Any]:
    """Where a model comes from: config, data, versions, errors; goes into the model file."""
    environment = describe_environment()
    return {
        "config": to_tree(config),
        "data_hash": data.hash,
        "step": step,
        "test": metrics.measured(),
        "versions": environment["versions"],
        "git": environment["git"],
        "command": environment["command"],
    }


def measure_teachers(config: Config, bench: Workbench, folder: Path) -> None:
    """The errors of the teacher, or of the mean of several and of each of them, below a folder."""
    teacher = bench.teacher(config)
    if isinstance(teacher, Committee):
        for name, member in teacher.members.items():
            measure_teacher(config, bench, member, folder, f"{TEACHER}_{name}", member.source)
    # last: where it is there, all are
    measure_teacher(config, bench, teacher, folder, TEACHER, config.teacher.path if not isinstance(teacher, Committee) else teacher.source)


def measure_teacher(config: Config, bench: Workbench, teacher: BaseTeacher, run: Path, name: str, path: str) -> None:
    """A teacher's errors on the same test structures, as a run of its own in the folder ``name``."""
    folder = run / name
    teacher.start(bench.data(config).sample(*teacher.cutoffs))
    batches = bench.data(config).test_batches(*teacher.cutoffs)
    if not can_test(teacher, batches):
        bench.say(f"{teacher.offer.name} does not predict what the test structures have labels of, so it is not in the table")
        return
    predictions = predict(teacher, batches, free_atoms=config.train.eval_on_free_atoms)
    folder.mkdir(parents=True, exist_ok=True)
    predictions.save(folder)
    RunSummary(
        name=name,
        title=name.replace("_", " ", 1) if not isinstance(teacher, Committee) else "mean of teachers",
        role="teacher",
        seed=config.run.seed,
        order=-1,
        parameters=teacher.num_parameters,
        atoms_per_second=inference_rate(teacher, batches, config.run.inference_repeats),
        test=predictions.metrics(),
        extra={"path": path, "sha256": teacher.hash, "licence": teacher.licence},
    ).save(folder)


def _compare(config: Config, bench: Workbench, console: Console) -> None:
    """Every arm for every seed, each in its own folder; finished runs are not run again."""
    seeds = config.compare.seeds or [config.run.seed]
    teacher_tested = is_finished(config.run.dir / TEACHER)
    bench.planned = tuple(arm_config(config, arm, seed, config.run.dir / arm.name) for seed in seeds for arm in config.compare.arms)
    for seed in seeds:
        for order, arm in enumerate(config.compare.arms):
            one = run_arm(config, arm, seed, config.run.dir / arm.name / f"seed{seed}", bench, console, order=order)
            if one.named_teachers and not teacher_tested:
                with thread_count(one.run.threads or bench.threads):
                    measure_teachers(one, bench, config.run.dir)
                teacher_tested = True
    _keep_best_student(config)


def run_arm(config: Config, arm: ArmConfig, seed: int, folder: Path, bench: Workbench, console: Console, *, order: int) -> Config:
    """One run of several in a folder of its own: begun, gone on with, or left alone if it is finished.

    Args:
        config: what all have in common; ``run.resume`` allows to go on.
        arm: what this one changes.
        seed: of this one.
        folder: of this one.
        bench: shared with the others.
        console: for progress.
        order: place in tables.

    Returns:
        The config of the run.
    """
    one = arm_config(config, arm, seed, folder)
    one = _resumed(one, config.run.resume and folder.exists() and any(folder.iterdir()))
    open_folder(one)
    if not is_finished(folder, one.train.steps):
        run_one(one, bench, console, name=arm.name, title=arm.title or arm.name, order=order)
    return one


def _resumed(config: Config, resume: bool) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"resume": resume})})


def _keep_best_student(config: Config) -> None:
    """Copy the student with the best validation score, among those that had a teacher, to ``student.safetensors``."""
    arms = [arm for arm in config.compare.arms if arm_config(config, arm, config.run.seed, config.run.dir).distill.terms]
    folders = [path for arm in arms or config.compare.arms for path in sorted((config.run.dir / arm.name).iterdir())]
    # chosen on validation, not on test: the test errors in the table stay honest
    best = min(folders, key=lambda folder: RunSummary.load(folder).extra["val_score"])
    for suffix in (".safetensors", ".json"):
        write_atomically(config.run.dir / f"student{suffix}", lambda path, s=suffix: shutil.copyfile(best / f"model{s}", path))  # type: ignore[misc]
