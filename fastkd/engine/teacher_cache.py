"""From a config to a cache file of teacher outputs: where it is, what goes into it, whether it pays, and what its dtype costs in accuracy."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastkd.config import Config
from fastkd.config_checks import CACHE_FILES
from fastkd.data.batch import Batch
from fastkd.distill import Terms
from fastkd.engine.datasets import RunData
from fastkd.errors import CheckpointError, UserError
from fastkd.models import Potential
from fastkd.teachers import BaseTeacher, CachedTeacher, Committee, LiveTeacher, Need, TeacherOutput
from fastkd.teachers.base import TeacherCost
from fastkd.teachers.cache_build import CachePlan, build_shards, join
from fastkd.teachers.cache_dtypes import OWN, dtypes_of, narrow, rounded
from fastkd.teachers.cache_file import CacheFile, open_cache
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.cache_shards import find_shards
from fastkd.teachers.store import Block, per, whole_rows

#: teacher.cache=auto: a cache is worth its disk space if each GB of it saves so many seconds, and it leaves half of the free space free.
SECONDS_PER_GB, SHARE_OF_FREE = 10.0, 0.5
#: What a disk is taken to read and write, bytes/s: that of a slow one.
DISK_SPEED = 2e8

Say = Callable[[str], None]


def plan_cache(config: Config, teacher: BaseTeacher, needs: frozenset[Need], data: RunData) -> CachePlan:
    """What goes into the cache file of a run, and where it is.

    ``teacher.cache_path`` is a file if it ends in .h5, else a folder, in which each cache gets a name of its own.

    Raises:
        ConfigError: if ``teacher.cache_dtype`` does not fit the needs.
    """
    dtypes = dtypes_of(config.teacher.cache_dtype, needs, strict=not config.teacher.members)
    key = CacheKey.of(teacher, dtypes, data=data.hash, data_dtype=config.run.dtype)
    batches = tuple(tuple(chunk) for chunk in data.dataset(*teacher.cutoffs).chunks(data.training.tolist()))
    path = config.teacher.cache_path
    if path.suffix in CACHE_FILES:
        return CachePlan(key, path, batches)
    named = CachePlan(key, path / "cache.h5", batches)
    return CachePlan(key, path / f"{teacher.hash[:12]}-{named.hash[:12]}.h5", batches)


def find_cache(config: Config, plan: CachePlan) -> CacheFile | None:
    """A finished file that serves a plan; in a folder also one that holds more than is needed.

    Raises:
        CheckpointError: if the file that the config names was made for something else, saying what differs.
        DataError: if it is damaged.
    """
    wanted = {number for batch in plan.batches for number in batch}
    if plan.path.exists():
        file = open_cache(plan.path)
        try:
            file.key.require(plan.key, plan.path)
            present = len(wanted & file.layout.structures)
            if present < len(wanted):
                raise CheckpointError(
                    f"{plan.path} was made for other training structures: it has {present} of {len(wanted)}; "
                    "build another with `fastkd cache build`, at another teacher.cache_path"
                )
        except UserError:
            file.close()
            raise
        return file
    if plan.path.parent == config.teacher.cache_path and plan.path.parent.is_dir():
        for path in sorted(plan.path.parent.glob(f"{plan.key.teacher[:12]}-*.h5")):
            # those that do not serve are other runs' business
            with suppress(UserError):
                file = open_cache(path)
                try:
                    file.key.require(plan.key, path)
                    if wanted <= file.layout.structures:
                        return file
                except UserError:
                    pass
                file.close()
    return None


def build_cache(
    plan: CachePlan,
    teacher: BaseTeacher,
    data: RunData,
    say: Say,
    *,
    rank: int = 0,
    world: int = 1,
    loss_error: dict[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Build the shards of one process, and the file if all shards are there then.

    Returns:
        Whether the file is finished.

    Raises:
        DataError: as `build_shards` and `join`.
        ConfigError: if there is no such rank.
    """
    dataset = data.dataset(*teacher.cutoffs)

    def make_batch(numbers: Sequence[int]) -> Batch:
        return dataset.batch(numbers).to(data.device)

    report = build_shards(plan, teacher, make_batch, rank=rank, world=world, progress=progress)
    resumed = f", {report.resumed} found finished" if report.resumed else ""
    say(f"{plan.path}: {report.structures} structures asked of the teacher in {report.cost.settle():.1f} s{resumed}")
    gaps = plan.missing(find_shards(plan.folder, plan.hash))
    if gaps and world > 1:
        say(
            f"{plan.path}: {sum(map(len, gaps))} of {len(plan.batches)} batches are left to other ranks; the last of them finishes the file"
        )
        return False
    join(plan, {"loss_error": loss_error or {}, "device": str(teacher.device)})
    with open_cache(plan.path) as file:
        say(described(file))
    return True


def described(file: CacheFile) -> str:
    """What a file holds and what its dtypes cost, in a line or two."""
    cost = file.cost
    text = f"teacher outputs on disk: {file.path}, {cost.structures} structures ({cost.atoms} atoms), {1e-6 * file.num_bytes:.1f} MB"
    lossy = {need: error for need, error in file.errors().items() if error}
    if lossy:
        text += "; relative errors of what is kept: " + ", ".join(f"{need} {error:.2g}" for need, error in lossy.items())
        if file.told.get("loss_error"):
            text += "; of the loss at the start: " + ", ".join(f"{name} {error:.2g}" for name, error in file.told["loss_error"].items())
    return text


def measure_loss_error(
    config: Config,
    student: Potential,
    terms: Terms,
    teacher: BaseTeacher,
    data: RunData,
    name: str = "",
    *,
    kept: frozenset[Need] | None = None,
) -> dict[str, float]:
    """How much the kept dtypes change each distillation loss at the start of training, relative to the loss; empty if they keep every bit.

    Measured on the first batch of training structures; nothing of the student changes.

    Args:
        config: with the teacher that is kept as its only one.
        student: at the start.
        terms: of the run.
        teacher: that is kept, or a committee with it.
        data: of the run.
        name: which of a committee is kept.
        kept: everything that is kept, for other runs too; None: what the terms need.
    """
    asked = terms.needs_of(name)
    chosen = dtypes_of(config.teacher.cache_dtype, asked if kept is None else kept, strict=not config.teacher.members)
    dtypes = {need: dtype for need, dtype in chosen.items() if need in asked}
    if set(dtypes.values()) == {OWN}:
        return {}
    members = teacher.members if isinstance(teacher, Committee) else {"": teacher}
    batch = data.dataset(config.model.cutoff, *teacher.cutoffs).batch(data.training[: config.data.batch_size].tolist()).to(data.device)
    batch = terms.teacher_batch(batch, 0)
    said = {who: member.ask(batch, needs) for who, member in members.items() if (needs := terms.needs_of(who))}
    stored = said | {name: rounded(said[name], dtypes)}
    if all(torch.equal(_present(said[name], need), _present(stored[name], need)) for need in dtypes):
        return {}
    # a copy: a student may tabulate filters when it is first asked
    twin, losses = copy.deepcopy(student), []
    terms.attach(twin)
    for outputs in (said, stored):
        output = outputs if isinstance(teacher, Committee) else outputs[""]
        seen = terms.student_batch(batch, output)
        values = terms(twin(seen, forces=True), output, replace(batch, positions=seen.positions))
        losses.append({term: float(value.raw.detach()) for term, value in values.items()})
    terms.attach(student)
    tiny = torch.finfo(torch.float32).tiny
    return {term: abs(losses[1][term] - loss) / max(abs(loss), tiny) for term, loss in losses[0].items()}


def _present(output: TeacherOutput, need: Need) -> Tensor:
    value = output.get(need)
    if value is None:
        raise ValueError(f"the teacher was asked for {need} and did not give it")
    return value


def disk_source(
    config: Config, teacher: BaseTeacher, needs: frozenset[Need], data: RunData, say: Say, loss_error: Callable[[], dict[str, float]]
) -> CachedTeacher:
    """The outputs of a run from a cache file, which is built if it is not there; ``loss_error`` measures what the dtypes cost.

    Raises:
        CheckpointError: if the file that the config names was made for something else.
        DataError: if it is damaged or cannot be written.
    """
    plan = plan_cache(config, teacher, needs, data)
    file = find_cache(config, plan)
    if file is None:
        build_cache(plan, teacher, data, say, loss_error=loss_error())
        file = open_cache(plan.path)
    else:
        say(described(file))
    live = LiveTeacher(teacher, needs)
    size = file.memory_bytes(needs)
    if size <= 1e9 * config.teacher.cache_preload:
        say(f"loaded into memory: {1e-6 * size:.1f} MB (teacher.cache_preload={config.teacher.cache_preload:g} GB)")
        return file.teacher(needs, live=live, store=file.load(needs).to(data.device))
    return file.teacher(needs, live=live)


@dataclass(frozen=True)
class Verdict:
    """Whether a cache file pays for a run: disk space against time saved."""

    live_s: float  #: s, that a live teacher takes in the whole run
    cached_s: float  #: s, for building, writing and reading a cache
    bytes: int  #: of the file
    free: int  #: bytes free on its disk
    exists: bool  #: whether the file is there already

    @property
    def saved_s(self) -> float:
        """s, may be negative."""
        return self.live_s - self.cached_s

    @property
    def cached(self) -> bool:
        """A file that is there is used; else it must save `SECONDS_PER_GB` and leave enough of the disk free."""
        if self.exists:
            return True
        return self.saved_s > max(0.0, SECONDS_PER_GB * 1e-9 * self.bytes) and self.bytes <= SHARE_OF_FREE * self.free

    def __str__(self) -> str:
        if self.exists:
            return "teacher.cache=auto: on disk, because the cache is there"
        why = (
            f"a cache takes {1e-9 * self.bytes:.3g} GB ({1e-9 * self.free:.3g} GB are free) and saves {self.saved_s:.3g} s of {self.live_s:.3g} s; "
            f"asked for are {SECONDS_PER_GB:g} s per GB and at most {100 * SHARE_OF_FREE:g} % of the free space"
        )
        return f"teacher.cache=auto: {'on disk' if self.cached else 'live'}, because {why}"


def judge(config: Config, teacher: BaseTeacher, needs: frozenset[Need], data: RunData, terms: Terms, runs: int = 1) -> Verdict:
    """Ask the teacher about one training batch twice, and reckon from the second time.

    A step asks for some rows of Hessians, a cache for all of them: where there are any, both are measured.

    Args:
        config: of the run.
        teacher: of the run.
        needs: that would be kept.
        data: of the run.
        terms: of the run; they say which rows of Hessians a step looks at.
        runs: that would use the cache.

    Raises:
        CheckpointError: if the file that the config names was made for something else.
    """
    plan = plan_cache(config, teacher, needs, data)
    file = find_cache(config, plan)
    if file is not None:
        file.close()
    free = shutil.disk_usage(_existing(plan.path.parent)).free
    batch = data.dataset(*teacher.cutoffs).batch(data.training[: config.data.batch_size].tolist()).to(data.device)
    whole = whole_rows(batch, needs)
    output, seconds = _timed(teacher, whole, needs)
    step_s = seconds if whole is batch else _step_seconds(teacher, terms.teacher_batch(batch, 0), needs)
    batch = whole
    block, dtypes = Block.of(batch, output, needs), dict(plan.key.dtypes)
    kept = {name: narrow(value, dtypes.get(name, OWN), name) for name, value in block.values.items()}
    per_structure = sum(value.numel() * value.element_size() for value in kept.values()) / batch.num_graphs
    structures, steps = len(data.training), runs * config.train.steps
    size = per_structure * structures
    fits = size <= 1e9 * config.teacher.cache_preload
    read = size if fits else steps * batch.num_graphs * per_structure
    cached_s = seconds * structures / batch.num_graphs + (size + read) / DISK_SPEED
    return Verdict(step_s * steps, cached_s, round(size), free, file is not None)


def _step_seconds(teacher: BaseTeacher, batch: Batch, needs: frozenset[Need]) -> float:
    """What a live teacher takes for one batch, s, asked for the rows of Hessians that the batch names, if it names any."""
    asked = needs if batch.hessian_rows is not None else frozenset(need for need in needs if per(need) != "matrix")
    return _timed(teacher, batch, asked)[1]


def _timed(teacher: BaseTeacher, batch: Batch, needs: frozenset[Need]) -> tuple[TeacherOutput, float]:
    """What a teacher says, and the seconds that it takes the second time."""
    cost = TeacherCost()
    cost.measured(teacher, batch, needs)
    before = cost.settle()
    output = cost.measured(teacher, batch, needs)
    return output, cost.settle() - before


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
