"""Where the runs of one process get the outputs of their teachers: live, or from caches that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from fastkd.config import Config
from fastkd.distill import Terms, build_terms
from fastkd.engine.datasets import RunData
from fastkd.engine.students import initial_student
from fastkd.engine.teacher_cache import disk_source, judge, measure_loss_error
from fastkd.errors import UserError
from fastkd.models import Potential
from fastkd.teachers import BaseTeacher, CachedTeacher, Committee, Council, LiveTeacher, Need, Offer
from fastkd.teachers.cache_dtypes import dtypes_of

Say = Callable[[str], None]
Source = LiveTeacher | CachedTeacher | Council
#: `augment.kind`s that show the teacher structures which no cache has.
MOVING = ("rattle", "adversarial")


class Offers(TypedDict):
    """What `build_terms` is told of teachers."""

    teacher: Offer | None
    teachers: dict[str, Offer]


def offers(teacher: BaseTeacher | None) -> Offers:
    """What a teacher offers, and where it is several, what each of them does."""
    members = teacher.members if isinstance(teacher, Committee) else {}
    return {"teacher": None if teacher is None else teacher.offer, "teachers": {name: member.offer for name, member in members.items()}}


def members_of(teacher: BaseTeacher) -> dict[str, BaseTeacher]:
    """Teachers by name; a single one has none."""
    return teacher.members if isinstance(teacher, Committee) else {"": teacher}


def config_of(config: Config, name: str) -> Config:
    """The config of a run as if one of its teachers were the only one."""
    # of an ensemble its members stay: they have one cache_dtype together
    one = config.named_teachers[name].model_copy(update={"members": config.teacher.members})
    return config.model_copy(update={"teacher": one, "teachers": []})


@dataclass(frozen=True)
class Lesson:
    """What a run wants to know of its teachers."""

    config: Config
    teacher: BaseTeacher  #: or all of several as one
    terms: Terms
    data: RunData
    student: Potential  #: in the state of the first step, to say what the dtype of a cache changes

    @property
    def pupils(self) -> tuple[object, ...]:
        """Equal for runs that can share what is kept of a teacher."""
        return _shared(self.config)


def _shared(config: Config) -> tuple[object, ...]:
    # a seed chooses structures where a number of them is asked for
    seed = config.run.seed if config.data.labelled or config.data.unlabelled else 0
    return config.teacher, config.teachers, config.data, config.augment.synthetic, seed


@dataclass(eq=False)
class Sources:
    """Live teachers and shared caches.

    Args:
        teacher_of: the teacher of a config, loaded once.
        planned: all runs of a comparison: what one of them keeps of the teacher serves the others.
        say: for what is kept and what it takes.
    """

    teacher_of: Callable[[Config], BaseTeacher]
    planned: Callable[[], tuple[Config, ...]]
    say: Say
    kept: list[tuple[str, frozenset[int], CachedTeacher]] = field(default_factory=list)
    #: what ``auto`` has come to, once for all runs that would share the cache
    judged: dict[tuple[str, frozenset[int]], str] = field(default_factory=dict)

    def of(self, lesson: Lesson, live: Iterable[str] | None = None) -> Source:
        """Where a run gets its teacher's outputs, or those of each of several teachers.

        Args:
            lesson: what it wants.
            live: names of the teachers for which ``auto`` came to a live one when the run began; None: it comes to something now.
        """
        chosen = None if live is None else frozenset(live)
        if not isinstance(lesson.teacher, Committee):
            return self._one(lesson, "", lesson.teacher, chosen)
        asked = {name: member for name, member in lesson.teacher.members.items() if lesson.terms.needs_of(name)}
        self.check_dtypes(lesson.config, lesson.terms, lesson.teacher)
        return Council({name: self._one(lesson, name, member, chosen) for name, member in asked.items()})

    def check_dtypes(self, config: Config, terms: Terms, teacher: BaseTeacher) -> None:
        """Of an ensemble, whose members keep different things: that every name in ``teacher.cache_dtype`` is kept of one of them.

        Raises:
            ConfigError: if one is not.
        """
        if config.teacher.members and config.teacher.cache in ("disk", "auto"):
            needs = (terms.needs_of(name) | self.needs_to_come(config, name) for name in members_of(teacher))
            dtypes_of(config.teacher.cache_dtype, frozenset[Need]().union(*needs))

    def _one(self, lesson: Lesson, name: str, teacher: BaseTeacher, live: frozenset[str] | None) -> LiveTeacher | CachedTeacher:
        """One teacher live, or from a cache of every training structure, shared where it covers them."""
        config, data, asked = config_of(lesson.config, name), lesson.data, lesson.terms.needs_of(name)
        mode: str = config.teacher.cache
        if config.augment.kind in MOVING:
            if mode != "none":
                self.say(
                    f"augment.kind={config.augment.kind} moves atoms: the teacher is asked anew for every batch, nothing of it is kept"
                )
            mode = "none"
        if mode == "auto" and live is not None:
            mode = "none" if name in live else "disk"
        elif mode == "auto":
            mode = self._judged(lesson, config, name, teacher)
        if mode == "none":
            return LiveTeacher(teacher, asked)
        wanted = frozenset(data.training.tolist())
        key = _cache_key(config, teacher, data, mode)
        for known, structures, cache in self.kept:
            if known == key and wanted <= structures and asked <= cache.needs:
                return cache.narrowed(asked)
        needs = asked | self.needs_to_come(lesson.config, name)
        if mode == "disk":
            cache = disk_source(
                config,
                teacher,
                needs,
                data,
                self.say,
                lambda: measure_loss_error(config, lesson.student, lesson.terms, lesson.teacher, data, name, kept=needs),
            )
        else:
            cache = self._in_memory(teacher, needs, data, f"teacher {name}: " if name else "teacher ")
        self.kept.append((key, wanted, cache))
        return cache.narrowed(asked)

    def _in_memory(self, teacher: BaseTeacher, needs: frozenset[Need], data: RunData, who: str) -> CachedTeacher:
        cache = CachedTeacher.build(teacher, needs, data.teacher_batches(*teacher.cutoffs), dataset_hash=data.hash)
        # on a GPU, looking whether a structure has moved would wait for the device in every step
        cache.live = LiveTeacher(teacher, needs) if data.device.type == "cpu" else None
        self.say(f"{who}outputs kept in memory: {cache.cost}, {1e3 * cache.cost.seconds / max(cache.cost.batches, 1):.1f} ms per batch")
        return cache

    def _judged(self, lesson: Lesson, config: Config, name: str, teacher: BaseTeacher) -> str:
        """What ``auto`` comes to."""
        # longer runs ask more often
        key = f"{_cache_key(config, teacher, lesson.data, 'disk')} {config.train.steps}", frozenset(lesson.data.training.tolist())
        if key in self.judged:
            return self.judged[key]
        sharing = [run for run in self.planned() if _shared(run) == lesson.pupils and run.distill.terms and run.augment.kind not in MOVING]
        needs = lesson.terms.needs_of(name) | self.needs_to_come(lesson.config, name)
        verdict = judge(config, teacher, needs, lesson.data, lesson.terms, runs=max(1, len(sharing)))
        self.say(f"teacher {name}: {verdict}" if name else str(verdict))
        self.judged[key] = "disk" if verdict.cached else "none"
        return self.judged[key]

    def needs_to_come(self, config: Config, name: str = "") -> frozenset[Need]:
        """What other runs of the comparison will ask of the same teacher about the same structures."""
        needs: frozenset[Need] = frozenset()
        pupils = _shared(config)
        sharing = [run for run in self.planned() if run.augment.kind not in MOVING and _shared(run) == pupils]
        for other in {f"{run.distill} {run.model}": run for run in sharing}.values():
            # a run whose terms cannot be built says so itself, when it is its turn
            with contextlib.suppress(UserError):
                student = Offer.of(initial_student(other), "student")
                needs |= build_terms(other.distill, student, **offers(self.teacher_of(other)), seed=other.run.seed).needs_of(name)
        return needs


def _cache_key(config: Config, teacher: BaseTeacher, data: RunData, mode: str) -> str:
    asked = config.teacher
    where = f" {asked.cache_path} {asked.cache_dtype} {asked.cache_preload}" if mode == "disk" else ""
    return f"{teacher.hash} {data.hash} {data.dtype} {teacher.dtype} {teacher.cutoff} {mode}{where}"
