"""From a config to a job that is ready to train: data, student, teacher, terms, optimiser.

Runs of one comparison share a `Workbench`, so that data, teacher and teacher outputs are read or computed once per process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from fastkd.config import Config
from fastkd.data.batch import Batch
from fastkd.data.reader import DataFile
from fastkd.data.select import open_data_file
from fastkd.distill import Terms, build_terms
from fastkd.distill.augment import build_perturbation, check_augment
from fastkd.distill.terms import FeatureTerm
from fastkd.engine.datasets import RunData
from fastkd.engine.ema import Average
from fastkd.engine.loop import Job
from fastkd.engine.schedule import Schedule
from fastkd.engine.state import Checkpoint, load_checkpoint
from fastkd.engine.step import Trainee, label_loss, make_optimizer, trainable
from fastkd.engine.teacher_cache import build_cache, described, disk_source, find_cache, judge, measure_loss_error, plan_cache
from fastkd.engine.threads import choose_threads, thread_count
from fastkd.engine.watch import PairWatch
from fastkd.errors import ConfigError, UserError
from fastkd.models import Potential, build_model
from fastkd.teachers import BaseTeacher, CachedTeacher, Feature, LiveTeacher, Need, Offer, TeacherOutput, load_teacher
from fastkd.teachers.loading import is_foreign

DTYPES = {"float32": torch.float32, "float64": torch.float64}

Say = Callable[[str], None]
CacheMode = Literal["disk", "none"]
#: `augment.kind`s that show the teacher structures which no cache has.
MOVING = ("rattle", "adversarial")


@dataclass(eq=False)
class Workbench:
    """What the runs of one process share."""

    say: Say = print
    teachers: dict[str, BaseTeacher] = field(default_factory=dict)
    caches: list[tuple[str, frozenset[int], CachedTeacher]] = field(default_factory=list)
    files: dict[str, DataFile] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)  #: data sets whose card has been shown
    threads: int = 0  #: measured once for all runs
    planned: tuple[Config, ...] = ()  #: all runs of a comparison: what one of them keeps of the teacher serves the others

    def data(self, config: Config) -> RunData:
        """The data of a run; the card of each file is shown once."""
        if config.data.path not in self.files:
            self.files[config.data.path] = open_data_file(config.data.path)
        synthetic = config.augment.synthetic
        if synthetic and synthetic not in self.files:
            self.files[synthetic] = open_data_file(synthetic)
        more = self.files[synthetic] if synthetic else None
        data = RunData(self.files[config.data.path], config, choose_device(config.run.device), DTYPES[config.run.dtype], more)
        if config.data.path not in self.shown:
            self.shown.add(config.data.path)
            self.say(data.card)
        if synthetic and synthetic not in self.shown:
            self.shown.add(synthetic)
            share, weight = config.augment.synthetic_fraction, config.augment.synthetic_weight
            self.say(f"{synthetic}: {len(data.synthetic):,} synthetic structures, {100 * share:g} % of what is drawn, weight {weight:g}")
        return data

    def teacher(self, config: Config) -> BaseTeacher:
        """The teacher of a config; where the config leaves it open, on the run's device and, if it is ours, in the run's dtype."""
        asked = config.teacher
        device = choose_device(config.run.device if asked.device == "auto" else asked.device, "teacher.device")
        own = config.run.dtype if not is_foreign(asked.path) else ""
        dtype = own if asked.dtype == "auto" else asked.dtype
        key = f"{asked.path} {asked.options} {asked.features} {device} {dtype}"
        if key not in self.teachers:
            features = [Feature(**item.model_dump()) for item in asked.features]
            self.teachers[key] = load_teacher(
                asked.path, options=asked.options, features=features, device=device, dtype=DTYPES[dtype] if dtype else None
            )
        return self.teachers[key]

    def source(
        self, config: Config, teacher: BaseTeacher, terms: Terms, data: RunData, student: Potential, chosen: CacheMode | None = None
    ) -> Callable[[Batch], TeacherOutput]:
        """Where a run gets its teacher's outputs: live, or from a cache of every training structure, shared where it covers them.

        Args:
            config: of the run.
            teacher: of the run.
            terms: of the run.
            data: of the run.
            student: in the state of the first step, to say what the dtype of a cache changes.
            chosen: what ``auto`` came to when the run began; None: it comes to it now.
        """
        mode: str = config.teacher.cache
        if config.augment.kind in MOVING:
            if mode != "none":
                self.say(
                    f"augment.kind={config.augment.kind} moves atoms: the teacher is asked anew for every batch, nothing of it is kept"
                )
            mode = "none"
        if mode == "auto":
            mode = chosen or self._judged(config, teacher, terms, data)
        if mode == "none":
            return LiveTeacher(teacher, terms.needs)
        wanted, asked = frozenset(data.training.tolist()), config.teacher
        key = f"{teacher.hash} {data.hash} {teacher.dtype} {teacher.cutoff} {mode}"
        key += f" {asked.cache_path} {asked.cache_dtype} {asked.cache_preload}" if mode == "disk" else ""
        for known, structures, cache in self.caches:
            if known == key and wanted <= structures and terms.needs <= cache.needs:
                return cache
        needs = terms.needs | self.needs_to_come(config, teacher)
        if mode == "disk":
            cache = disk_source(config, teacher, needs, data, self.say, lambda: measure_loss_error(config, student, terms, teacher, data))
        else:
            cache = CachedTeacher.build(teacher, needs, data.teacher_batches(teacher.cutoff), dataset_hash=data.hash)
            # on a GPU, looking whether a structure has moved would wait for the device in every step
            cache.live = LiveTeacher(teacher, needs) if data.device.type == "cpu" else None
            per_batch = 1e3 * cache.cost.seconds / max(cache.cost.batches, 1)
            self.say(f"teacher outputs kept in memory: {cache.cost}, {per_batch:.1f} ms per batch")
        self.caches.append((key, wanted, cache))
        return cache

    def _judged(self, config: Config, teacher: BaseTeacher, terms: Terms, data: RunData) -> CacheMode:
        sharing = [
            run
            for run in self.planned
            if (run.teacher, run.data, run.augment.synthetic) == (config.teacher, config.data, config.augment.synthetic)
            and run.distill.terms
        ]
        verdict = judge(config, teacher, terms.needs | self.needs_to_come(config, teacher), data, runs=max(1, len(sharing)))
        self.say(str(verdict))
        return "disk" if verdict.cached else "none"

    def needs_to_come(self, config: Config, teacher: BaseTeacher) -> frozenset[Need]:
        """What other runs of the comparison will ask of the same teacher about the same structures."""
        needs: frozenset[Need] = frozenset()
        for other in {str(run.distill): run for run in self.planned}.values():
            if (other.teacher, other.data, other.augment.synthetic) != (config.teacher, config.data, config.augment.synthetic):
                continue
            # a run whose terms cannot be built says so itself, when it is its turn
            with contextlib.suppress(UserError):
                student = Offer.of(initial_student(other), "student")
                needs |= build_terms(other.distill, student, teacher.offer, seed=other.run.seed).needs
        return needs


def choose_device(name: str, key: str = "run.device") -> torch.device:
    """The device that a config names under ``key``; auto takes CUDA where there is one.

    Raises:
        ConfigError: if the name is no device, or there is none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{key} = {name!r}: must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} = {name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"{key} = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; set {key}=auto")
    return device


def new_student(config: Config, data: RunData, device: torch.device, teacher: BaseTeacher | None = None) -> Potential:
    """A student with weights from ``run.seed`` alone, reference energies and energy scale from the labelled training structures."""
    student = initial_student(config)
    data.apply_references(student, teacher)
    return student.to(device).train()


def initial_student(config: Config) -> Potential:
    """The weights that a run starts from, which follow from its config alone; energies of elements and their scale are not set."""
    # only the CPU's generator is forked and seeded: weights are drawn there, and no caller's random numbers change
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        student = build_model(config.model)
    return cast_model(student, DTYPES[config.run.dtype])


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
        data.require_elements(teacher.known_element, f"the teacher {config.teacher.path}")
        teacher.start(data.sample(teacher.cutoff))
    student = new_student(config, data, device, teacher)
    checkpoint = load_checkpoint(config.run.dir) if resume else None
    bench.threads = _threads(config, bench, student, data, stored=int(checkpoint.tree["threads"]) if checkpoint else 0)
    with thread_count(bench.threads):
        trainee = _trainee(config, bench, student, teacher, data, _chosen(checkpoint))
        # a cached teacher needs no neighbour graph of its own
        cutoffs = {config.model.cutoff}
        # nor does one that sees moved atoms only, whose graphs are found when they have moved
        moves = trainee.perturbation is not None and not trainee.perturbation.wants_forces
        if isinstance(trainee.teacher, LiveTeacher) and trainee.teacher.teacher.cutoff is not None and not moves:
            cutoffs.add(trainee.teacher.teacher.cutoff)
        job = Job(
            label,
            config,
            trainee,
            Schedule(config.train),
            data.training_batches(*cutoffs),
            data.val_batches(),
            teacher,
            _watch(config, trainee.terms, teacher, data),
            bench.threads,
        )
    if checkpoint is not None:
        job.restore(checkpoint)
        bench.say(f"{label}: going on from step {checkpoint.step} of {config.train.steps}")
    return job, data


def _chosen(checkpoint: Checkpoint | None) -> CacheMode | None:
    """What teacher.cache=auto came to when the run began: its bits depend on it."""
    live = None if checkpoint is None else checkpoint.tree.get("live_teacher")
    return None if live is None else "none" if live else "disk"


def build_cache_of(
    config: Config, bench: Workbench, *, rank: int = 0, world: int = 1, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Build the cache file of a run without training; ``rank`` and ``world`` as in `fastkd.engine.teacher_cache.build_cache`.

    Returns:
        Whether there is anything to keep, that is, whether a term asks the teacher for something.

    Raises:
        UserError: for everything that config, data, teacher or an existing file may have wrong.
    """
    if config.augment.kind in MOVING:
        raise ConfigError(f"augment.kind={config.augment.kind} moves atoms, so a run cannot use a cache of its teacher; drop one of them")
    teacher, data = bench.teacher(config), bench.data(config)
    data.require_elements(teacher.known_element, f"the teacher {config.teacher.path}")
    teacher.start(data.sample(teacher.cutoff))
    student = new_student(config, data, data.device, teacher)
    terms = _terms(config, student, teacher, data)
    if not terms.needs:
        return False
    plan = plan_cache(config, teacher, terms.needs | bench.needs_to_come(config, teacher), data)
    file = find_cache(config, plan)
    if file is not None:
        bench.say(described(file))
        file.close()
        return True
    error = measure_loss_error(config, student, terms, teacher, data)
    build_cache(plan, teacher, data, bench.say, rank=rank, world=world, loss_error=error, progress=progress)
    return True


def _terms(config: Config, student: Potential, teacher: BaseTeacher | None, data: RunData) -> Terms:
    """The terms of a run, and the student set to give what they want."""
    offer, free_atoms = None if teacher is None else teacher.offer, config.loss.train_on_free_atoms
    terms = build_terms(config.distill, Offer.of(student, "student"), offer, seed=config.run.seed, free_atoms=free_atoms)
    student.kept_layers = terms.student_keeps
    return terms.to(device=data.device, dtype=data.dtype)


def _trainee(
    config: Config, bench: Workbench, student: Potential, teacher: BaseTeacher | None, data: RunData, chosen: CacheMode | None = None
) -> Trainee:
    terms = source = None
    if config.distill.terms:
        terms = _terms(config, student, teacher, data)
        # a teacher whom no term asks has nothing to compute
        source = bench.source(config, teacher, terms, data, student, chosen) if teacher is not None and terms.needs else None
    check_augment(config, teacher, terms, unlabelled=bool(len(data.selection.unlabelled)))
    cutoffs = {config.model.cutoff} | ({teacher.cutoff} if teacher is not None and teacher.cutoff is not None else set())
    parameters = trainable(student, terms)
    return Trainee(
        student=student,
        terms=terms,
        teacher=source,
        optimizer=make_optimizer(parameters, config.train),
        average=Average(parameters, config.train.ema_decay),
        loss=config.loss,
        clip=config.train.clip,
        perturbation=build_perturbation(config.augment, config.run.seed, cutoffs),
    )


def _watch(config: Config, terms: Terms | None, teacher: BaseTeacher | None, data: RunData) -> PairWatch | None:
    """Who looks at the distilled layers, if anybody shall and there are any."""
    if not config.distill.watch_cka:
        return None
    if terms is None or teacher is None or not any(isinstance(term, FeatureTerm) for term in terms.terms.values()):
        raise ConfigError("distill.watch_cka looks at terms on features (n2n, e2n, v2v), and there are none; add one, or set it to 0")
    cutoffs = {config.model.cutoff} | ({teacher.cutoff} if teacher.cutoff is not None else set())
    return PairWatch(terms, teacher, data.val_sample(config.distill.watch_cka, *cutoffs))


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
