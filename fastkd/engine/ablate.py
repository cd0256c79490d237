"""``fastkd ablate``: trials on a budget, one table, chosen on validation, tested once.

    run.dir/rung0/<trial>/seed<n>   a run folder each, tested on the validation structures; rung1, … with successive halving
    run.dir/overhead/<trial>.json   what a step costs
    run.dir/test/<trial>/seed<n>    test errors of the chosen trial, the student alone and the config as it is
    run.dir/ablation.md, .csv, .html

Trials see the validation structures in place of the test structures, so that nothing but the last table has looked at these.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from fastkd.analysis.ablation import Ablation, Overhead, TrialRow
from fastkd.analysis.gap import mean_std
from fastkd.analysis.report import Row, Spread, make_rows
from fastkd.analysis.runs import CURVE, Run, RunSummary
from fastkd.config import ArmConfig, Config
from fastkd.config_checks import check_seeds
from fastkd.config_loading import arm_config, read_yaml, validate
from fastkd.engine.devices import DTYPES, choose_device
from fastkd.engine.evaluate import predict
from fastkd.engine.folder import CONFIG, is_finished, open_folder, release_folder
from fastkd.engine.profile import ALL, ALONE, profile
from fastkd.engine.run import TEACHER, measure_teachers, run_arm
from fastkd.engine.setup import Workbench
from fastkd.engine.students import cast_model
from fastkd.engine.threads import thread_count
from fastkd.engine.trials import ALONE as STUDENT
from fastkd.engine.trials import BASE, make_trials
from fastkd.errors import CheckpointError, ConfigError, DataError, TrainingError
from fastkd.files import cannot_write, write_json
from fastkd.models import load_model

TEST = "test"


@dataclass
class _Rung:
    """Trials that were run for the same number of steps."""

    number: int
    steps: int
    arms: list[ArmConfig]
    done: dict[str, list[Path]] = field(default_factory=dict)  #: trial → folders of finished runs, by seed
    failed: dict[str, str] = field(default_factory=dict)  #: trial → why

    def folder(self, root: Path, arm: str, seed: int) -> Path:
        return root / f"rung{self.number}" / arm / f"seed{seed}"

    @property
    def shared(self) -> int:
        """How many seeds every trial has finished, those apart that are not possible; 1 while the first is under way."""
        counts = [len(self.done.get(arm.name, ())) for arm in self.arms if arm.name not in self.failed]
        return max(1, min(counts, default=1))

    def score(self, name: str, seeds: int | None = None) -> Spread:
        """Validation score over the finished seeds, or the first so many of them."""
        return Spread(*mean_std([RunSummary.load(folder).extra["val_score"] for folder in self.done[name][:seeds]]))

    def ranking(self) -> list[str]:
        """Trials with terms, the best first, on the seeds that all have finished: whoever runs first must not win for it."""
        names = [name for name in self.done if name != STUDENT and name not in self.failed]
        return sorted(names, key=lambda name: self.score(name, self.shared).mean)


def ablate(config: Config, console: Console | None = None) -> Ablation:
    """Run the trials of a config, or what is left of them, and write the table.

    Args:
        config: with terms and a section ``ablate``; ``run.dir`` is where everything goes, ``run.resume`` goes on there.
        console: for progress.

    Raises:
        UserError: for every mistake that can be mended.
        Interrupted: when asked to stop, with the checkpoint written.
    """
    console = console or Console(highlight=False, soft_wrap=True)

    def say(message: str) -> None:
        console.print(message, markup=False)

    if 0 < config.ablate.overhead_steps < 3:
        raise ConfigError(f"ablate.overhead_steps = {config.ablate.overhead_steps}: at least 3, or 0 for none")
    if config.ablate.halving == 1:
        raise ConfigError("ablate.halving = 1 keeps every trial for as many steps; at least 2, or 0 for none")
    arms = make_trials(config, say)
    _require_same_steps(config)
    open_folder(config)
    try:
        found = _Ablation(config, arms, console, say).run()
        found.save()
    except OSError as error:
        raise CheckpointError(cannot_write(config.run.dir, error)) from error
    except (ConfigError, DataError, CheckpointError):
        release_folder(config.run.dir)
        raise
    return found


def _require_same_steps(config: Config) -> None:
    """A run may be extended, a trial not: it would be no run of so many steps, and what was tested is that of before."""
    stored = config.run.dir / CONFIG
    if not config.run.resume or config.ablate.steps or not stored.exists():
        return
    before = validate(read_yaml(stored), str(stored)).train.steps
    if before != config.train.steps:
        raise CheckpointError(
            f"train.steps: the trials in {config.run.dir} are of {before} steps, {config.train.steps} now; set it back, or choose another run.dir"
        )


def plan(config: Config, trials: int) -> list[int]:
    """Optimiser steps of each rung, the last one whole; with ``ablate.halving`` = η the ones before are η, η², … times shorter.

    There are as many rungs as leave one trial in the last, and none that is over before the warm-up is.
    """
    whole, keep = config.ablate.steps or config.train.steps, config.ablate.halving
    steps = [whole]
    while keep > 1 and keep ** len(steps) <= trials and math.ceil(whole / keep ** len(steps)) > config.train.warmup:
        steps.append(math.ceil(whole / keep ** len(steps)))
    return steps[::-1]


class _Ablation:
    def __init__(self, config: Config, arms: list[ArmConfig], console: Console, say: Callable[[str], None]) -> None:
        self.config, self.arms, self.console, self.say = config, arms, console, say
        self.bench = Workbench(say=say)
        self.root = config.run.dir
        self.seeds = config.ablate.seeds or config.compare.seeds or [config.run.seed]
        check_seeds(config, "ablate.seeds" if config.ablate.seeds else "compare.seeds", self.seeds)
        self.spent = 0.0  # s
        self.notes: list[str] = []

    def run(self) -> Ablation:
        # its card is that of the splits as they are; trials are tested on the validation structures
        self.bench.data(self.config)
        rungs: list[_Rung] = []
        arms = self.arms
        steps = plan(self.config, len(arms) - 2)
        runs = len(arms) * len(self.seeds)
        self.say(
            f"{len(arms)} trials × {len(self.seeds)} seeds = {runs} runs of {steps[0]} steps" + (", then the best" if steps[1:] else "")
        )
        for number, count in enumerate(steps):
            rung = _Rung(number, count, arms)
            whole = self._rung(rung)
            rungs.append(rung)
            if not whole or number + 1 == len(steps):
                break
            swept = [name for name in rung.ranking() if name != BASE]
            kept = swept[: max(1, len(swept) // self.config.ablate.halving)]
            self.notes.append(f"After {count} steps kept: {', '.join(kept)}.")
            arms = [arm for arm in self.arms if arm.name in (STUDENT, BASE, *kept)]
        ranked = [rung for rung in rungs if rung.ranking() and rung.done.get(STUDENT)]
        if not ranked:
            raise CheckpointError(
                f"ablate.seconds = {self.config.ablate.seconds:g} was over before a trial was; raise it, and go on by run.resume=true"
            )
        # a rung that the budget ended before any trial but the config as it is has chosen nothing
        last = next((rung for rung in reversed(ranked) if rung.ranking() != [BASE]), ranked[-1])
        return self._table(rungs, last, last.ranking()[0])

    def _common(self, steps: int) -> Config:
        """The config of all runs of a rung: tested on the validation structures."""
        config = self.config
        data = config.data.model_copy(update={"test_split": config.data.val_split, "test_size": config.data.val_size})
        train = config.train.model_copy(update={"steps": steps})
        run = config.run.model_copy(update={"report": False})
        return config.model_copy(update={"data": data, "train": train, "run": run})

    def _rung(self, rung: _Rung) -> bool:
        """Every trial for every seed; whether the budget allowed all."""
        common, limit = self._common(rung.steps), self.config.ablate.seconds
        self.bench.planned = tuple(arm_config(common, arm, seed, self.root / arm.name) for seed in self.seeds for arm in rung.arms)
        for seed in self.seeds:
            for order, arm in enumerate(rung.arms):
                folder = rung.folder(self.root, arm.name, seed)
                if arm.name in rung.failed:
                    continue
                if limit and self.spent >= limit and not is_finished(folder, rung.steps):
                    done = sum(map(len, rung.done.values()))
                    self.notes.append(
                        f"The budget of {limit:g} s was spent after {done} of {len(rung.arms) * len(self.seeds)} runs of {rung.steps} steps."
                    )
                    return False
                self._trial(rung, common, arm, seed, folder, order)
        return True

    def _trial(self, rung: _Rung, common: Config, arm: ArmConfig, seed: int, folder: Path, order: int) -> None:
        started = time.perf_counter()
        try:
            run_arm(common, arm, seed, folder, self.bench, self.console, order=order)
        except (ConfigError, DataError, TrainingError) as error:
            # what holds for all trials is an error; what one of them cannot do is a result
            if arm.name in (STUDENT, BASE):
                raise
            release_folder(folder)
            self.spent += time.perf_counter() - started
            rung.failed[arm.name] = str(error).split(";")[0].splitlines()[0]
            self.say(f"{arm.title}: {error}")
            return
        rung.done.setdefault(arm.name, []).append(folder)
        self.spent += RunSummary.load(folder).train_seconds

    def _overheads(self, rung: _Rung) -> dict[str, Overhead]:
        """Of each trial that ran; trials that compute the same share one measurement."""
        steps = self.config.ablate.overhead_steps
        if not steps:
            return {}
        found: dict[str, Overhead] = {}
        by_cost: dict[str, Overhead] = {}
        for arm in self.arms:
            one = arm_config(self._common(rung.steps), arm, self.seeds[0], self.root / arm.name)
            if not one.distill.terms or not any(self._folders(arm.name)):
                continue
            # λ costs nothing
            terms = [term.model_copy(update={"weight": 1.0, "weight_start": 0.0}) for term in one.distill.terms]
            key = one.model_copy(
                update={
                    "distill": one.distill.model_copy(update={"terms": terms}),
                    "run": self.config.run.model_copy(update={"dtype": one.run.dtype}),
                }
            ).model_dump_json()
            if key not in by_cost:
                by_cost[key] = self._overhead(one, self.root / "overhead" / f"{arm.name}.json", steps)
            found[arm.name] = by_cost[key]
        return found

    def _overhead(self, one: Config, file: Path, steps: int) -> Overhead:
        if file.exists():
            return Overhead(**json.loads(file.read_text(encoding="utf-8")))
        self.say(f"measuring what each term adds to a step: {file.stem}")
        # a term whose λ is 0, or begins there, would look free
        constant = {"weight_schedule": "constant", "weight_start": 0.0, "weight_from": 0, "weight_until": 0}
        terms = [term.model_copy(update={**constant, "weight": term.weight or 1.0}) for term in one.distill.terms]
        one = one.model_copy(update={"distill": one.distill.model_copy(update={"terms": terms})})
        measured = profile(one, steps=steps, warmup=2, say=self.say, bench=self.bench)
        found = Overhead(measured.variants[ALL], measured.variants[ALONE], measured.overhead)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(found))
        return found

    def _folders(self, name: str) -> list[Path]:
        return [path for path in self.root.glob(f"rung*/{name}/seed*") if is_finished(path)]

    def _table(self, rungs: list[_Rung], last: _Rung, chosen: str) -> Ablation:
        overheads = self._overheads(last)
        val_teacher = self._teacher(self._common(last.steps), self.root / TEACHER)
        tested = self._test(last, chosen)
        rows: list[TrialRow] = []
        results: dict[str, Row] = {}
        place: dict[str, _Rung] = {}
        for rung in rungs:
            if not rung.done.get(STUDENT):
                continue
            runs = [*val_teacher, *(Run.load(path) for arm in rung.arms for path in rung.done.get(arm.name, ()))]
            for row in make_rows(runs, self.config.compare.bootstrap):
                results[row.name], place[row.name] = row, rung
        if val_teacher:
            rows.append(TrialRow(TEACHER, TEACHER, 0, results[TEACHER], Spread(math.nan, math.nan), test=tested.get(TEACHER)))
        for arm in self.arms:
            why = next((rung.failed[arm.name] for rung in rungs if arm.name in rung.failed), "")
            if arm.name not in results:
                note = why or "not run"
                rows.append(TrialRow(arm.name, arm.title, rungs[0].steps, None, Spread(math.nan, math.nan), note=note))
                continue
            rung = place[arm.name]
            rows.append(
                TrialRow(
                    arm.name,
                    arm.title,
                    rung.steps,
                    results[arm.name],
                    rung.score(arm.name),
                    overheads.get(arm.name),
                    tested.get(arm.name),
                    chosen=arm.name == chosen,
                    note=why,
                )
            )
        return self._ablation(_sorted(rows), last, chosen)

    def _ablation(self, rows: list[TrialRow], last: _Rung, chosen: str) -> Ablation:
        if last.score(STUDENT, last.shared).mean <= last.score(chosen, last.shared).mean:
            self.notes.append("No trial is better than the student alone on validation.")
        self.notes.append(f"Models of the chosen trial: rung{last.number}/{chosen}/seed*.")
        sizes = [
            len(Run.load(path).predictions.natoms) for path in (last.done[chosen][0], self.root / TEST / chosen / last.done[chosen][0].name)
        ]
        title = next(arm.title for arm in self.arms if arm.name == chosen)
        return Ablation(self.root, tuple(rows), title, self.config.compare.bootstrap, sizes[0], sizes[1], tuple(self.notes))

    def _teacher(self, config: Config, folder: Path) -> list[Run]:
        """The teacher, measured on the test structures of a config, unless that has been done; nothing if there is none."""
        if not config.named_teachers:
            return []
        if not is_finished(folder):
            with thread_count(config.run.threads or self.bench.threads):
                measure_teachers(config, self.bench, folder.parent)
        return [Run.load(folder)] if is_finished(folder) else []

    def _test(self, rung: _Rung, chosen: str) -> dict[str, Row]:
        """Test errors of the chosen trial and of what it is compared with."""
        runs = self._teacher(self.config, self.root / TEST / TEACHER)
        for arm in self.arms:
            if arm.name not in (STUDENT, BASE, chosen):
                continue
            for source in rung.done.get(arm.name, ()):
                folder = self.root / TEST / arm.name / source.name
                if not _made_from(folder, source):
                    self._test_one(arm, source, folder)
                runs.append(Run.load(folder))
        return {row.name: row for row in make_rows(runs, self.config.compare.bootstrap)}

    def _test_one(self, arm: ArmConfig, source: Path, folder: Path) -> None:
        summary = RunSummary.load(source)
        one = arm_config(self.config, arm, summary.seed, folder)
        device = choose_device(one.run.device)
        student = cast_model(load_model(source), DTYPES[one.run.dtype]).to(device).eval()
        with thread_count(one.run.threads or self.bench.threads):
            batches = self.bench.data(one).test_batches(student.cutoff)
            predictions = predict(student, batches, free_atoms=one.train.eval_on_free_atoms)
        folder.mkdir(parents=True, exist_ok=True)
        predictions.save(folder)
        shutil.copyfile(source / CURVE, folder / CURVE)
        extra = {
            "val_score": summary.extra["val_score"],
            "best_step": summary.extra["best_step"],
            "steps": summary.extra["steps"],
            "from": str(source.relative_to(self.root)),
        }
        replace(summary, test=predictions.metrics(), extra=extra).save(folder)


def _made_from(folder: Path, source: Path) -> bool:
    """Whether the test errors in a folder are those of this very run: with more time another rung may be the last."""
    if not is_finished(folder):
        return False
    made, run = RunSummary.load(folder).extra, RunSummary.load(source).extra
    return made.get("from") == str(Path(*source.parts[-3:])) and all(
        made.get(key) == run[key] for key in ("steps", "best_step", "val_score")
    )


def _sorted(rows: list[TrialRow]) -> list[TrialRow]:
    """The teacher, the student alone, then the longest trials, the best first; what did not run comes last."""
    first = {TEACHER: 0, STUDENT: 1}
    return sorted(
        rows,
        key=lambda row: (first.get(row.name, 2), row.val is None, -row.steps, row.score.mean if not math.isnan(row.score.mean) else 0.0),
    )
