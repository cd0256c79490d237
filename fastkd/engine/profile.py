"""What a training step is spent on: its parts, what each term adds, and what a cache of the teacher's outputs would save and cost.

Real steps of the configured job are measured, with the job's own step function; the job is thrown away afterwards. What terms add is measured by
leaving each out, step against step on the same batch, so that drifts of the machine fall on all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.config import Config, DistillConfig
from fastkd.data.batch import Batch
from fastkd.distill import Terms
from fastkd.distill.terms import Term
from fastkd.engine.datasets import RunData
from fastkd.engine.loop import Job
from fastkd.engine.setup import Workbench, prepare
from fastkd.engine.step import Trainee, train_step
from fastkd.engine.threads import thread_count
from fastkd.engine.timing import OFF, StepTimer
from fastkd.errors import ConfigError
from fastkd.teachers import BaseTeacher, CachedTeacher, LiveTeacher, TeacherOutput
from fastkd.teachers.committee import Council, live_sources
from fastkd.teachers.hessian import HESSIAN
from fastkd.teachers.output import split_need

ALL, ALONE = "all terms", "student alone"
#: Parts of a step in the order of the table; KD terms come before the backward pass, and what is left at the end.
FIRST = ("data", "teacher", "student energy", "student forces", "labels")
LAST = ("backward", "optimiser", "rest")
_PER_STRUCTURE = {"energy", "graph_feature", "stress"}


@dataclass(frozen=True)
class Cache:
    """Live teacher against cached teacher, for the whole run."""

    live_ms: float  #: per step, median
    cached_ms: float  #: per step, median, measured on a cache of the profiled structures
    build_s: float  #: s, one pass of the teacher over all training structures
    saved_s: float  #: s, over the run, the building paid
    bytes: int  #: of a cache of all training structures
    structures: int
    steps: int


@dataclass(frozen=True)
class Profile:
    """All that was measured; times are medians over steps in ms."""

    parts: dict[str, float]
    step: float
    variants: dict[str, float]  #: what was run → ms per step; ``all terms``, ``without …``, ``student alone``
    overhead: dict[str, float]  #: term → ms that it adds to a step, teacher included where no other term needs it
    cache: Cache | None
    mode: str  #: memory, disk, auto or none: how the run gets its teacher's outputs
    steps: int  #: measured
    atoms: float  #: per batch, mean
    device: str
    threads: int
    timer_us: float  #: what the clocks themselves took of a step, µs
    spread: dict[str, float] = field(default_factory=dict)  #: interquartile range of each part


def profile(
    config: Config, *, steps: int = 30, warmup: int = 5, say: Callable[[str], None] = print, bench: Workbench | None = None
) -> Profile:
    """Measure steps of a run; nothing is written, and no run folder is needed.

    Args:
        config: of the run.
        steps: to measure.
        warmup: steps before, which are not.
        say: for the data card and the like.
        bench: what is loaded already; None loads anew.

    Raises:
        UserError: as `fastkd.engine.setup.prepare`; ConfigError for a comparison, or too few steps.
    """
    if config.compare.arms:
        raise ConfigError("this is a comparison of several runs; name one by its options, with compare.arms=[]")
    if steps < 3 or warmup < 1:
        raise ConfigError(f"at least 3 measured steps and 1 before them, got {steps} and {warmup}")
    live = config.model_copy(
        update={
            "teacher": config.teacher.model_copy(update={"cache": "none"}),
            "teachers": [item.model_copy(update={"cache": "none"}) for item in config.teachers],
            "distill": _every_step_alike(config.distill),
        }
    )
    bench = bench or Workbench(say=say)
    job, data = prepare(live, "profile", bench, resume=False)
    with thread_count(job.threads):
        return _Profiler(config, job, data, steps, warmup).run()


def _every_step_alike(distill: DistillConfig) -> DistillConfig:
    """Without what some steps do and others do not: measurements of gradients, and rules that need them."""
    terms = [term.model_copy(update={"weight_rule": "fixed", "when_passed": "keep"}) for term in distill.terms]
    return distill.model_copy(update={"watch_cka": 0, "gradient_every": 0, "terms": terms})


class _Profiler:
    def __init__(self, config: Config, job: Job, data: RunData, steps: int, warmup: int) -> None:
        self.config, self.job, self.data, self.steps, self.warmup = config, job, data, steps, warmup
        self.device = data.device
        self.batches: list[Batch] = []
        self.done = 0

    def run(self) -> Profile:
        trainee, teacher = self.job.trainee, self.job.teacher
        waits = self._draw()
        live = trainee.teacher
        still = trainee.perturbation is None  # what is kept of a structure says nothing about its moved copies
        cached = self._cache(teacher, trainee.terms) if isinstance(live, LiveTeacher) and teacher is not None and still else None
        use_cache = cached is not None and self.config.teacher.cache != "none"
        if cached is not None and use_cache:
            trainee = replace(trainee, teacher=cached)
        parts, step, spread = self._parts(trainee, waits)
        variants, overhead = self._variants(trainee, live if not use_cache else None)
        account = None
        if cached is not None and isinstance(live, LiveTeacher) and teacher is not None and trainee.terms is not None:
            account = self._account(live, cached, teacher, trainee.terms)
        return Profile(
            parts=parts,
            step=step,
            variants=variants,
            overhead=overhead,
            cache=account,
            mode=self.config.teacher.cache if cached is not None else "",
            steps=self.steps,
            atoms=float(np.mean([batch.num_atoms for batch in self.batches])),
            device=str(self.device),
            threads=self.job.threads,
            timer_us=timer_cost(self.device) * (len(FIRST) + len(LAST) + len(trainee.terms or ())),
            spread=spread,
        )

    def _draw(self) -> list[float]:
        """The batches of all steps, and how long each took to come, ms."""
        waits = []
        for _ in range(self.warmup + self.steps):
            started = time.perf_counter()
            self.batches.append(next(self.job.batches))
            waits.append(1e3 * (time.perf_counter() - started))
        return waits[self.warmup :]

    def _step(self, trainee: Trainee, batch: Batch) -> None:
        train_step(trainee, batch, self.job.schedule.rate(self.done), self.done)
        self.done += 1

    def _parts(self, trainee: Trainee, waits: list[float]) -> tuple[dict[str, float], float, dict[str, float]]:
        timer = StepTimer(self.device)
        timed = replace(trainee, timer=timer)
        with _timed_terms(trainee.terms, timer):
            for number, batch in enumerate(self.batches):
                if number >= self.warmup:
                    timer.next_step()
                with timer.part("step"):
                    self._step(timed, batch)
                # forces come out of the same call as energies: what they add is the difference to a call without
                if trainee.wants_forces:
                    with timer.part("student energy"):
                        trainee.student(batch, forces=False)
        rows = timer.milliseconds()
        for row, wait in zip(rows, waits, strict=True):
            row["data"] = wait
            if trainee.wants_forces:
                row["student forces"] = row.pop("student") - row["student energy"]
            else:
                row["student energy"] = row.pop("student")
            inside = sum(value for name, value in row.items() if name not in ("step", "data"))
            row["rest"] = row["step"] - inside
            row["step"] += wait
        terms = [name for name in rows[0] if name.startswith("kd ")]
        order = [*FIRST, *terms, *LAST]
        if trainee.teacher is None:
            order.remove("teacher")
        if not trainee.wants_forces:
            order.remove("student forces")
        medians = {name: float(np.median([row[name] for row in rows])) for name in order}
        spread = {name: float(np.subtract(*np.quantile([row[name] for row in rows], [0.75, 0.25]))) for name in order}
        return medians, float(np.median([row["step"] for row in rows])), spread

    def _variants(self, trainee: Trainee, live: Any) -> tuple[dict[str, float], dict[str, float]]:
        """Whole steps with all terms, without each, and without any, interleaved."""
        if trainee.terms is None:
            return {}, {}
        names = list(trainee.terms.terms)
        chosen: dict[str, list[str]] = {ALL: names}
        chosen |= {f"without {name}": [other for other in names if other != name] for name in names} if len(names) > 1 else {}
        chosen[ALONE] = []
        trainees = {name: _with_terms(trainee, kept, live) for name, kept in chosen.items()}
        found: dict[str, list[float]] = {name: [] for name in trainees}
        for number, batch in enumerate(self.batches):
            for name, variant in trainees.items():
                timer = StepTimer(self.device)
                timer.next_step()
                with timer.part("step"):
                    self._step(variant, batch)
                (row,) = timer.milliseconds()
                if number >= self.warmup:
                    found[name].append(row["step"])
        # of the same batch: batches differ more from each other than steps with and without a term
        whole = np.array(found[ALL])
        overhead = {name: float(np.median(whole - np.array(found.get(f"without {name}", found[ALONE])))) for name in names}
        return {name: float(np.median(times)) for name, times in found.items()}, overhead

    def _cache(self, teacher: BaseTeacher, terms: Terms | None) -> CachedTeacher | None:
        if terms is None:
            return None
        structures = sorted({int(index) for batch in self.batches for index in batch.structure_index.tolist()})
        batches = (batch.to(self.device) for batch in self.data.dataset(*teacher.cutoffs).batches(structures))
        return CachedTeacher.build(teacher, terms.needs, batches, dataset_hash=self.data.hash)

    def _account(self, live: LiveTeacher, cached: CachedTeacher, teacher: BaseTeacher, terms: Terms) -> Cache:
        """Live against cached on the same batches, and what both mean for the run."""
        sources: dict[str, Callable[[Batch], TeacherOutput]] = {"live": live, "cached": cached}
        times: dict[str, list[float]] = {name: [] for name in sources}
        batches = [terms.teacher_batch(batch, number) for number, batch in enumerate(self.batches)]
        for number, batch in enumerate(batches):
            for name, source in sources.items():
                timer = StepTimer(self.device)
                timer.next_step()
                with timer.part(name):
                    source(batch)
                if number >= self.warmup:
                    times[name].append(timer.milliseconds()[0][name])
        live_ms, cached_ms = (float(np.median(times[name])) for name in ("live", "cached"))
        train = len(self.data.training)
        measured = batches[self.warmup :]
        build_s = 1e-3 * sum(times["live"]) / sum(batch.num_graphs for batch in measured) * train
        if any(split_need(need)[0] == HESSIAN for need in terms.needs):
            # a step asks for some rows of each Hessian, a cache for all
            build_s = cached.cost.seconds / cached.cost.structures * train
        steps = self.config.train.steps
        sizes = self.data.training_sizes
        atoms, squares = int(sizes.sum()), int(np.square(sizes).sum())
        size = cache_bytes(live(measured[0]), terms, measured[0], structures=train, atoms=atoms, squares=squares)
        return Cache(live_ms, cached_ms, build_s, 1e-3 * (live_ms - cached_ms) * steps - build_s, size, train, steps)


def cache_bytes(output: TeacherOutput, terms: Terms, batch: Batch, *, structures: int, atoms: int, squares: int = 0) -> int:
    """Bytes of a cache in memory, from what the teacher says of one batch; other atoms are taken to have as many edges.

    Args:
        output: holds ``terms.needs`` for ``batch``.
        terms: of the run.
        batch: one.
        structures: to keep.
        atoms: that these have.
        squares: sum over structures of the square of their atoms, which Hessians take.
    """
    edges = 0 if output.graph is None else round(atoms * output.graph.num_edges / max(batch.num_atoms, 1))
    kept: list[tuple[Tensor | None, int]] = [(batch.positions, atoms)]
    for need in terms.needs:
        name = split_need(need)[0]
        if name == HESSIAN:
            # nine numbers for each pair of atoms, from one that came
            found = output.get(need)
            kept.append((None if found is None else found.flatten(), 9 * squares))
            continue
        kept.append((output.get(need), structures if name in _PER_STRUCTURE else edges if name == "edge" else atoms))
    if output.graph is not None and any(split_need(need)[0] == "edge" for need in terms.needs):
        # with features of edges, the edges themselves
        ends = (output.graph.edge_src, output.graph.edge_dst, output.edge_shift, output.edge_direction)
        kept += [(value, edges) for value in ends]
    return sum(rows * value.element_size() * value[:1].numel() for value, rows in kept if value is not None)


def timer_cost(device: torch.device, repeats: int = 200) -> float:
    """What timing one part costs the host, µs: the median of empty parts."""
    timer = StepTimer(device)
    spans = []
    for _ in range(repeats):
        timer.next_step()
        started = time.perf_counter()
        with timer.part("nothing"):
            pass
        spans.append(1e6 * (time.perf_counter() - started))
    return float(np.median(spans))


def _with_terms(trainee: Trainee, names: Iterable[str], live: Any) -> Trainee:
    """The same job with some of its terms; a live teacher is asked for no more than these need."""
    assert trainee.terms is not None
    kept = [term for name, term in trainee.terms.terms.items() if name in set(names) and isinstance(term, Term)]
    if not kept:
        return replace(trainee, terms=None, teacher=None, perturbation=None, timer=OFF)
    terms = Terms(kept, seed=trainee.terms.seed, references=trainee.terms.references)
    if not terms.needs:
        # whom no term asks has nothing to compute, and nothing to say about moved atoms
        moves = trainee.perturbation
        return replace(
            trainee, terms=terms, teacher=None, perturbation=moves if moves is not None and moves.for_labels else None, timer=OFF
        )
    source = trainee.teacher
    if isinstance(live, LiveTeacher):
        source = LiveTeacher(live.teacher, terms.needs)
    elif isinstance(live, Council):
        asked = {name: terms.needs_of(name) for name in live.sources}
        source = Council({name: LiveTeacher(one.teacher, asked[name]) for name, one in live_sources(live).items() if asked[name]})
    return replace(trainee, terms=terms, teacher=source, timer=OFF)


class _timed_terms:  # noqa: N801 - a context
    """Puts a clock around every term, and takes it away again."""

    def __init__(self, terms: Terms | None, timer: StepTimer) -> None:
        self._terms = list(terms.terms.items()) if terms is not None else []
        self._timer = timer

    def __enter__(self) -> None:
        for name, term in self._terms:
            object.__setattr__(term, "raw", self._timer.wrap(f"kd {name}", term.raw))  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        for _name, term in self._terms:
            object.__delattr__(term, "raw")
