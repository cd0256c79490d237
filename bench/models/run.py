"""From cases, shapes and modes to rows: check, measure, print, write."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels import measure
from bench.models import goals, steps
from bench.models.cases import CASES, Case
from bench.models.shapes import SHAPES, Shape, small
from bench.session import Row, Session
from bench.training_step import Pair

HEADER = (
    f"{'model':<26}{'shape':<10}{'atoms':>6}{'edges':>7}  {'mode':<10}{'threads':>7}  {'theirs, median (20 % to 80 %)':<38}"
    f"{'ours':<38}{'ours is':>9}  {'':<7}{'MB theirs':>10}{'ours':>8}{'share':>7}"
)


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    device: torch.device
    models: tuple[str, ...] = ()  #: cases whose name starts with one of these
    shapes: tuple[str, ...] = ()
    modes: tuple[str, ...] = steps.MODES
    threads: tuple[int, ...] = (1,)
    frames: Shape | None = None  #: instead of the droplet
    seed: int = 0
    quick: bool = False
    seconds: float = 2.0  #: for the timing of one row, both models together
    repeats: int = 31  #: at most, of each
    budget: float = float("inf")  #: no shape of a model starts after so many seconds
    json: Path | None = None


def run(options: Options, say: Callable[[str], None] = print) -> Session[Options]:
    """Measure everything that the options ask for."""
    session = Session("models", options)
    say(HEADER)
    for case in CASES.values():
        if options.models and not any(case.name == name or case.name.startswith(name) for name in options.models):
            continue
        for shape in shapes_of(case, options):
            if session.out_of_time:
                session.skipped.append(f"{case.name} {shape.name}: out of time")
                continue
            with torch_threads(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the packages' own use of deprecated functions
                try:
                    _run_case(session, case, shape, say)
                except (pytest.skip.Exception, ModuleNotFoundError, SystemExit) as error:
                    session.skipped.append(f"{case.name}: {error}")
                    break
            session.write()
    for reason in session.skipped:
        say(f"left out: {reason}")
    if session.failed:
        say(f"no speeds, because the models differ: {'; '.join(session.failed)}")
    session.write()
    return session


def shapes_of(case: Case, options: Options) -> list[Shape]:
    """Shapes of a case, the first alone if it has to be quick."""
    asked = options.shapes or (*case.shapes, *(case.large if options.device.type == "cuda" else ()))
    found = [SHAPES[name] for name in (*case.shapes, *case.large)]
    if options.frames is not None:
        # frames of a file are measured wherever the droplet would be, also if they are asked for by that name
        asked = tuple(options.frames.name if name == "droplet" else name for name in asked)
        found = [options.frames if shape.name == "droplet" else shape for shape in found]
    found = [shape for shape in found if shape.name in asked]
    return [small(shape) for shape in found[:1]] if options.quick else found


def _run_case(session: Session[Options], case: Case, shape: Shape, say: Callable[[str], None]) -> None:
    """Check the two models in float64 and in float32, and only then measure them in float32."""
    options = session.options
    structures = shape.structures(options.seed)
    errors: dict[str, Any] = {}
    for dtype in (torch.float64, torch.float32):
        pair = case.pair(structures, dtype, options.device, options.seed, small=options.quick)
        verdict = steps.check(pair, options.modes)
        errors[str(dtype).removeprefix("torch.")] = verdict.error
        if verdict.reason:
            session.failed.append(f"{case.name} {shape.name} ({verdict.reason})")
            say(f"{case.name} {shape.name}: no speed is printed, the two models differ: {verdict.reason}")
            return
        if dtype == torch.float64:
            del pair
    for mode in options.modes:
        for row in measure_mode(case, shape, pair, mode, options):
            row["error"] = errors
            session.rows.append(row)
            say(line(row))


def measure_mode(case: Case, shape: Shape, pair: Pair, mode: str, options: Options) -> Iterator[Row]:
    """A row for each number of threads: times of both models in turns, and their peak memory, which is the same for all."""
    steps.prepare(pair, mode)
    calls = {"theirs": steps.theirs_step(pair, mode), "ours": steps.ours_step(pair, mode)}
    forget(pair)
    peaks = {}
    for name, call in calls.items():
        call()  # what is made once and kept is no part of a step
        forget(pair)
        gc.collect()
        peaks[name] = measure.peak_bytes(call, options.device)
        forget(pair)
    graph = pair.batch.graph(pair.ours.cutoff)
    about = {"case": case.name, "model": case.model, "peer": case.peer, "kind": case.kind, "forces": case.forces}
    about |= {"shape": shape.name, "structures": shape.text, "atoms": pair.batch.num_atoms, "edges": graph.num_edges, "mode": mode}
    about |= {"device_type": options.device.type, "dtype": "float32", "tiny": options.quick}
    for threads in options.threads if options.device.type == "cpu" else (torch.get_num_threads(),):
        torch.set_num_threads(threads)
        repeats = measure.repeats_for(calls, options.device, seconds=options.seconds, most=options.repeats)
        timings = measure.time_all(calls, options.device, repeats=repeats)
        yield {
            **about,
            "threads": threads,
            **timings,
            "repeats": repeats,
            "ratio": timings["theirs"].median / timings["ours"].median,
            "theirs_peak_bytes": peaks["theirs"],
            "ours_peak_bytes": peaks["ours"],
            "memory": peaks["ours"] / peaks["theirs"],
        }


def forget(pair: Pair) -> None:
    """Drop gradients, so that memory is counted from the same start."""
    for model in (pair.ours, pair.theirs):
        model.zero_grad(set_to_none=True)


@contextmanager
def torch_threads() -> Iterator[None]:
    """Put torch's number of threads back afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def line(row: Row) -> str:
    """A row of the table."""
    speed, memory = goals.verdicts(row)
    start = f"{row['case']:<26}{row['shape']:<10}{row['atoms']:>6}{row['edges']:>7}  {row['mode']:<10}{row['threads']:>7}  "
    peaks = f"{row['theirs_peak_bytes'] / 1e6:>10.1f}{row['ours_peak_bytes'] / 1e6:>8.1f}{row['memory']:>7.0%} {memory}"
    return f"{start}{row['theirs']!s:<38}{row['ours']!s:<38}{row['ratio']:>8.2f}×  {speed:<7}{peaks}".rstrip()
