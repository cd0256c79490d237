"""From a config to a job that is ready to train: data, student, teacher, terms, optimiser.

Runs of one comparison share a `Workbench`, so that data, teacher and teacher outputs are read or computed once per process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan

from fastkd.config import Config, TeacherConfig
from fastkd.data.reader import DataFile
from fastkd.data.select import open_data_file
from fastkd.distill import Balance, Terms, ValidationErrors, build_terms
from fastkd.distill.augment import build_perturbation, check_augment
from fastkd.distill.terms import FeatureTerm
from fastkd.engine.datasets import RunData
from fastkd.engine.devices import DTYPES, choose_device
from fastkd.engine.ema import Average
from fastkd.engine.evaluate import can_test, predict
from fastkd.engine.loop import Job, validation_errors
from fastkd.engine.schedule import Schedule
from fastkd.engine.sources import Lesson, Source, Sources, config_of, members_of, offers
from fastkd.engine.state import Checkpoint, load_checkpoint
from fastkd.engine.step import Trainee, label_loss, make_optimizer, trainable
from fastkd.engine.students import new_student
from fastkd.engine.teacher_cache import build_cache, described, find_cache, measure_loss_error, plan_cache
from fastkd.engine.threads import choose_threads, thread_count
from fastkd.engine.watch import PairWatch
from fastkd.errors import ConfigError
from fastkd.models import Potential
from fastkd.teachers import BaseTeacher, Committee, Feature, Offer, load_teacher
from fastkd.teachers.committee import live_sources
from fastkd.teachers.loading import is_foreign

Say = Callable[[str], None]


@dataclass(eq=False)
class Workbench:
    """What the runs of one process share."""

    say: Say = print
    teachers: dict[str, BaseTeacher] = field(default_factory=dict)
    files: dict[str, DataFile] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)  #: data sets whose card has been shown
    threads: int = 0  #: measured once for all runs
    planned: tuple[Config, ...] = ()  #: all runs of a comparison: what one of them keeps of the teacher serves the others
    sources: Sources = field(init=False)

    def __post_init__(self) -> None:
        self.sources = Sources(self.teacher, lambda: self.planned, self.say)

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
        """The teacher of a config, or all of several as one; see `_one_teacher`."""
        asked = config.named_teachers
        if list(asked) == [""]:
            return self._one_teacher(config, asked[""])
        return Committee({name: self._one_teacher(config, item) for name, item in asked.items()})

    def _one_teacher(self, config: Config, asked: TeacherConfig) -> BaseTeacher:
        """A teacher; where the config leaves it open, on the run's device and, if it is ours, in the run's dtype."""
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


def prepare(config: Config, label: str, bench: Workbench, *, resume: bool) -> tuple[Job, RunData]:
    """Put a run together, and go back to its last checkpoint if it has one.

    Raises:
        UserError: for everything that the config, the data, the teacher or the checkpoint may have wrong.
    """
    device = choose_device(config.run.device)
    teacher = bench.teacher(config) if config.named_teachers else None
    data = bench.data(config)
    if teacher is not None:
        for name, member in teacher.members.items() if isinstance(teacher, Committee) else [("", teacher)]:
            data.require_elements(member.known_element, f"the teacher {config.named_teachers[name].path}")
        teacher.start(data.sample(*teacher.cutoffs))
    student = new_student(config, data, device, teacher)
    checkpoint = load_checkpoint(config.run.dir) if resume else None
    bench.threads = _threads(config, bench, student, data, stored=int(checkpoint.tree["threads"]) if checkpoint else 0)
    with thread_count(bench.threads):
        trainee = _trainee(config, bench, student, teacher, data, checkpoint)
        # a cached teacher needs no neighbour graph of its own
        cutoffs = {config.model.cutoff}
        # nor does one that sees moved atoms only, whose graphs are found when they have moved
        moves = trainee.perturbation is not None and not trainee.perturbation.wants_forces
        for live in live_sources(trainee.teacher).values():
            cutoffs.update(() if moves else live.teacher.cutoffs)
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
    if student.force_mode == "direct" and not trainee.wants_forces:
        job.warnings.append("nothing trains the head for forces: what it says means nothing; set model.forces=conservative")
        bench.say(f"{label}: warning: {job.warnings[0]}")
    if checkpoint is not None:
        job.restore(checkpoint)
        bench.say(f"{label}: going on from step {checkpoint.step} of {config.train.steps}")
    return job, data


def build_cache_of(
    config: Config, bench: Workbench, *, rank: int = 0, world: int = 1, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Build the cache files of a run without training; ``rank`` and ``world`` as in `fastkd.engine.teacher_cache.build_cache`.

    Returns:
        Whether there is anything to keep, that is, whether a term asks a teacher for something.

    Raises:
        UserError: for everything that config, data, teacher or an existing file may have wrong.
    """
    teacher, data = bench.teacher(config), bench.data(config)
    _start(config, teacher, data)
    student = new_student(config, data, data.device, teacher)
    terms = _terms(config, student, teacher, data)
    bench.sources.check_dtypes(config, terms, teacher)
    for name, member in members_of(teacher).items():
        needs = terms.needs_of(name)
        if not needs:
            continue
        one = config_of(config, name)
        kept = needs | bench.sources.needs_to_come(config, name)
        plan = plan_cache(one, member, kept, data)
        file = find_cache(one, plan)
        if file is not None:
            bench.say(described(file))
            file.close()
            continue
        error = measure_loss_error(one, student, terms, teacher, data, name, kept=kept)
        build_cache(plan, member, data, bench.say, rank=rank, world=world, loss_error=error, progress=progress)
    return bool(terms.needs)


def _start(config: Config, teacher: BaseTeacher, data: RunData) -> None:
    """Let teachers look at the data.

    Raises:
        UserError: if one does not know an element, or something has another shape than was declared.
    """
    for name, member in members_of(teacher).items():
        data.require_elements(member.known_element, f"the teacher {config.named_teachers[name].path}")
    teacher.start(data.sample(*teacher.cutoffs))


def _terms(config: Config, student: Potential, teacher: BaseTeacher | None, data: RunData) -> Terms:
    """The terms of a run, and the student set to give what they want."""
    free_atoms = config.loss.train_on_free_atoms
    terms = build_terms(config.distill, Offer.of(student, "student"), **offers(teacher), seed=config.run.seed, free_atoms=free_atoms)
    student.kept_layers = terms.student_keeps
    terms.attach(student)
    return terms.to(device=data.device, dtype=data.dtype)


def _trainee(
    config: Config, bench: Workbench, student: Potential, teacher: BaseTeacher | None, data: RunData, checkpoint: Checkpoint | None
) -> Trainee:
    terms: Terms | None = None
    source: Source | None = None
    if config.distill.terms:
        terms = _terms(config, student, teacher, data)
        # a teacher whom no term asks has nothing to compute
        if teacher is not None and terms.needs:
            # what auto came to when the run began: its bits depend on it
            live = None if checkpoint is None else checkpoint.tree.get("live_teachers")
            source = bench.sources.of(Lesson(config, teacher, terms, data, student), live)
    check_augment(config, teacher, terms, unlabelled=data.lacks_forces)
    parameters = trainable(student, terms)
    balance = _balance(config, student, terms, teacher, data)
    return Trainee(
        student=student,
        terms=terms,
        teacher=source,
        optimizer=make_optimizer(parameters, config.train),
        average=Average(parameters, config.train.ema_decay),
        loss=config.loss,
        clip=config.train.clip,
        perturbation=build_perturbation(
            config.augment,
            config.run.seed,
            {config.model.cutoff, *(teacher.cutoffs if teacher is not None else ())},
            scale=None if balance is None else balance.scale,
        ),
        balance=balance,
    )


def _balance(config: Config, student: Potential, terms: Terms | None, teacher: BaseTeacher | None, data: RunData) -> Balance | None:
    """Who weighs the terms, if the config asks for that; the teacher is tried on the validation structures where a rule compares with it."""
    bars: dict[str, ValidationErrors] = {}
    for term in terms or ():
        if term.when_passed == "keep":
            continue
        who = teacher.members[term.teacher] if term.teacher and isinstance(teacher, Committee) else teacher
        if term.teacher not in bars:
            batches = data.val_batches(who.cutoffs) if who is not None else []
            if who is None or not can_test(who, batches):
                raise ConfigError(
                    f"when_passed of {term.name} compares the student with the teacher, and there is none that predicts what the "
                    "validation structures have labels of; leave it away"
                )
            errors = predict(who, batches, free_atoms=config.train.eval_on_free_atoms).metrics()
            bars[term.teacher] = validation_errors(errors, config.loss)
        if term.kind == "forces" and isnan(bars[term.teacher].forces):
            raise ConfigError(f"when_passed of {term.name} compares forces, and the validation structures have none; leave it away")
    ratio = next((term.name for term in terms or () if term.rule == "gradient_ratio"), None)
    if ratio is not None and not len(data.selection.labelled) and not len(data.synthetic):
        raise ConfigError(
            f"weight_rule=gradient_ratio of {ratio} holds λ against the gradient of the loss on labels, and no training structure has any; "
            "set weight_rule=fixed"
        )
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    return Balance.of(config.distill, terms or (), weights, teachers=bars)


def _watch(config: Config, terms: Terms | None, teacher: BaseTeacher | None, data: RunData) -> PairWatch | None:
    """Who looks at the distilled layers, if anybody shall and there are any."""
    if not config.distill.watch_cka:
        return None
    if terms is None or teacher is None or not any(isinstance(term, FeatureTerm) for term in terms.terms.values()):
        raise ConfigError("distill.watch_cka looks at terms on features (n2n, e2n, v2v), and there are none; add one, or set it to 0")
    cutoffs = {config.model.cutoff, *teacher.cutoffs}
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
        label_loss(student(batch, forces=config.loss.forces_weight > 0), batch, config.loss).total.backward()  # type: ignore[no-untyped-call]

    threads, message = choose_threads(work)
    for parameter in student.parameters():
        parameter.grad = None
    bench.say(message)
    return threads
