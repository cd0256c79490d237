"""From a config to a job that is ready to train: data, student, teacher, terms, optimiser.

Runs of one comparison share a `Workbench`, so that data, teacher and teacher outputs are read or computed once per process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fastkd.config import Config
from fastkd.data.batch import Batch
from fastkd.data.reader import DataFile
from fastkd.data.select import open_data_file
from fastkd.distill import Terms, build_terms
from fastkd.engine.datasets import RunData
from fastkd.engine.ema import Average
from fastkd.engine.loop import Job
from fastkd.engine.schedule import Schedule
from fastkd.engine.state import load_checkpoint
from fastkd.engine.step import Trainee, label_loss, make_optimizer, trainable
from fastkd.engine.threads import choose_threads, thread_count
from fastkd.errors import ConfigError
from fastkd.models import Potential, build_model
from fastkd.teachers import CachedTeacher, LiveTeacher, Offer, Teacher, TeacherOutput, load_teacher

DTYPES = {"float32": torch.float32, "float64": torch.float64}

Say = Callable[[str], None]


@dataclass(eq=False)
class Workbench:
    """What the runs of one process share."""

    say: Say = print
    teachers: dict[str, Teacher] = field(default_factory=dict)
    caches: list[tuple[str, frozenset[int], CachedTeacher]] = field(default_factory=list)
    files: dict[str, DataFile] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)  #: data sets whose card has been shown
    threads: int = 0  #: measured once for all runs

    def data(self, config: Config) -> RunData:
        """The data of a run; the card of each file is shown once."""
        if config.data.path not in self.files:
            self.files[config.data.path] = open_data_file(config.data.path)
        data = RunData(self.files[config.data.path], config, choose_device(config.run.device), DTYPES[config.run.dtype])
        if config.data.path not in self.shown:
            self.shown.add(config.data.path)
            self.say(data.card)
        return data

    def teacher(self, config: Config) -> Teacher:
        """The teacher of a config, on the run's device and in its dtype."""
        device = choose_device(config.run.device)
        key = f"{config.teacher.path} {device} {config.run.dtype}"
        if key not in self.teachers:
            self.teachers[key] = load_teacher(config.teacher.path, device=device, dtype=DTYPES[config.run.dtype])
        return self.teachers[key]

    def source(self, config: Config, teacher: Teacher, terms: Terms, data: RunData) -> Callable[[Batch], TeacherOutput]:
        """Where a run gets its teacher's outputs: live, or from a cache of every training structure, shared where it covers them."""
        if config.teacher.cache == "none":
            return LiveTeacher(teacher, terms.needs)
        wanted = frozenset(data.selection.train.tolist())
        key = f"{teacher.hash} {data.hash} {teacher.dtype}"
        for known, structures, cache in self.caches:
            if known == key and wanted <= structures and terms.needs <= cache.needs:
                return cache
        cache = CachedTeacher.build(teacher, terms.needs, data.teacher_batches(teacher.cutoff), dataset_hash=data.hash)
        self.caches.append((key, wanted, cache))
        self.say(f"teacher outputs kept in memory: {cache.cost}")
        return cache


def choose_device(name: str) -> torch.device:
    """The device of ``run.device``; auto takes CUDA where there is one.

    Raises:
        ConfigError: if the name is no device, or there is none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"run.device = {name!r}: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"run.device = {name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"run.device = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; set run.device=auto")
    return device


def new_student(config: Config, data: RunData, device: torch.device, teacher: Potential | None = None) -> Potential:
    """A student with weights from ``run.seed`` alone, reference energies and energy scale from the labelled training structures."""
    # only the CPU's generator is forked and seeded: weights are drawn there, and no caller's random numbers change
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        student = build_model(config.model)
    cast_model(student, DTYPES[config.run.dtype])
    data.apply_references(student, teacher)
    return student.to(device).train()


def cast_model(model: Potential, dtype: torch.dtype) -> Potential:
    """The same model with weights of another dtype; reference energies and scale stay in float64."""
    kept = {name: getattr(model, name).clone() for name in ("reference_energy", "energy_scale")}
    model.to(dtype)
    for name, value in kept.items():
        setattr(model, name, value)
    return model


def prepare(config: Config, label: str, bench: Workbench, *, resume: bool) -> tuple[Job, RunData]:
    """Put a run together, and go back to its last checkpoint if it has one.

    Raises:
        UserError: for everything that the config, the data, the teacher or the checkpoint may have wrong.
    """
    device = choose_device(config.run.device)
    teacher = bench.teacher(config) if config.teacher.path else None
    data = bench.data(config)
    if teacher is not None:
        data.require_elements(teacher.potential.known_element, f"the teacher {config.teacher.path}")
    student = new_student(config, data, device, teacher.potential if teacher is not None else None)
    checkpoint = load_checkpoint(config.run.dir) if resume else None
    bench.threads = _threads(config, bench, student, data, stored=int(checkpoint.tree["threads"]) if checkpoint else 0)
    with thread_count(bench.threads):
        trainee = _trainee(config, bench, student, teacher, data)
        # a cached teacher needs no neighbour graph of its own
        cutoffs = {config.model.cutoff} | ({teacher.cutoff} if teacher is not None and isinstance(trainee.teacher, LiveTeacher) else set())
        job = Job(label, config, trainee, Schedule(config.train), data.training_batches(*cutoffs), data.val_batches(), bench.threads)
    if checkpoint is not None:
        job.restore(checkpoint)
        bench.say(f"{label}: going on from step {checkpoint.step} of {config.train.steps}")
    return job, data


def _trainee(config: Config, bench: Workbench, student: Potential, teacher: Teacher | None, data: RunData) -> Trainee:
    terms = source = None
    if teacher is not None and config.distill.terms:
        terms = build_terms(config.distill, Offer.of(student, "student"), teacher.offer, seed=config.run.seed)
        terms = terms.to(device=data.device, dtype=data.dtype)
        source = bench.source(config, teacher, terms, data)
    parameters = trainable(student, terms)
    return Trainee(
        student=student,
        terms=terms,
        teacher=source,
        optimizer=make_optimizer(parameters, config.train),
        average=Average(parameters, config.train.ema_decay),
        loss=config.loss,
        clip=config.train.clip,
    )


def _threads(config: Config, bench: Workbench, student: Potential, data: RunData, stored: int) -> int:
    """Threads as configured, else as in the checkpoint (the bits depend on it), else as measured; 0 on an accelerator: leave them."""
    if config.run.threads:
        return config.run.threads
    if stored or data.device.type != "cpu":
        return stored
    if bench.threads:
        return bench.threads
    batch = data.training_batches(config.model.cutoff).peek()

    def work() -> None:
        label_loss(student(batch), batch, config.loss).total.backward()  # type: ignore[no-untyped-call]

    threads, message = choose_threads(work)
    for parameter in student.parameters():
        parameter.grad = None
    bench.say(message)
    return threads
