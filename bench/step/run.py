"""From pairs, terms and shapes to rows: check, measure, print, write."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.common import Timing
from bench.kernels.measure import peak_bytes
from bench.models.run import torch_threads
from bench.models.shapes import SHAPES, Shape, small
from bench.session import Row, Session
from bench.step import goals, steps
from bench.step.cases import PAIRS, Pair, Terms
from bench.step.measure import Call, Seconds, in_turns, paired, timings
from bench.step.setup import Workbench

HEADER = (
    f"{'pair':<19}{'terms':<13}{'shape':<10}{'atoms':>6}{'threads':>8}  {'own step, median (20 % to 80 %)':<36}{'teacher':>9}"
    f"{'cached/own':>12}         {'terms (alone)':>15}         {'live/(own+teacher)':>8}         {'memory':>7}          generic: step, terms, live, memory"
)


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    device: torch.device
    pairs: tuple[str, ...] = ()  #: those whose name starts with one of these
    terms: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    seed: int = 0
    quick: bool = False
    seconds: float = 8.0  #: for each of the two groups of calls of a row
    repeats: int = 41  #: rounds at most
    clock: str = "wall"  #: see `measure.CLOCKS`
    budget: float = float("inf")  #: no terms of a pair start after so many seconds
    json: Path | None = None


def run(options: Options, say: Callable[[str], None] = print) -> Session[Options]:
    """Measure everything that the options ask for."""
    session = Session("step", options)
    say(HEADER)
    for pair in PAIRS.values():
        if options.pairs and not any(pair.name.startswith(name) for name in options.pairs):
            continue
        for shape in shapes_of(pair, options):
            with torch_threads():
                _run_pair(session, pair, shape, say)
            session.write()
    for reason in session.skipped:
        say(f"left out: {reason}")
    if session.failed:
        say(f"no times, because the two differ: {'; '.join(session.failed)}")
    session.write()
    return session


def shapes_of(pair: Pair, options: Options) -> list[Shape]:
    """Shapes of a pair, the first alone if it has to be quick."""
    asked = options.shapes or (*pair.shapes, *(pair.large if options.device.type == "cuda" else ()))
    found = [SHAPES[name] for name in (*pair.shapes, *pair.large) if name in asked]
    return [small(shape) for shape in found[:1]] if options.quick else found


def _run_pair(session: Session[Options], pair: Pair, shape: Shape, say: Callable[[str], None]) -> None:
    """Check all terms in float64 and in float32, and only then measure those that agree in float32."""
    options = session.options
    chosen = [terms for terms in pair.terms if not options.terms or terms.name in options.terms]
    errors: dict[str, dict[str, float]] = {terms.name: {} for terms in chosen}
    differ: set[str] = set()
    if not chosen:
        return
    for dtype in (torch.float64, torch.float32):
        bench = Workbench.of(pair, shape, dtype, options.device, options.seed, small=options.quick)
        for terms in chosen:
            if terms.name in differ or session.out_of_time:
                continue
            verdict = steps.check(bench, terms, options.seed)
            errors[terms.name][str(dtype).removeprefix("torch.")] = verdict.error
            if verdict.reason:
                differ.add(terms.name)
                session.failed.append(f"{pair.name} {terms.name} {shape.name} ({verdict.reason})")
                say(f"{pair.name} {terms.name} {shape.name}: no time is printed, the two differ: {verdict.reason}")
    for terms in chosen:
        if terms.name in differ:
            continue
        if session.out_of_time or len(errors[terms.name]) < 2:
            session.skipped.append(f"{pair.name} {terms.name} {shape.name}: out of time")
            continue
        about = {"pair": pair.name, "text": pair.text, "teacher_model": pair.teacher, "student_model": pair.student, "terms": terms.name}
        about |= {"shape": shape.name, "structures": shape.text, "atoms": bench.batch.num_atoms, "error": errors[terms.name]}
        about |= {"edges": bench.batch.graph(bench.student.cutoff).num_edges, "dtype": "float32"}
        about |= {"device_type": options.device.type, "tiny": options.quick}
        for row in measure_terms(bench, terms, options):
            session.rows.append(about | row)
            say(line(session.rows[-1]))
        session.write()


def measure_terms(bench: Workbench, terms: Terms, options: Options) -> list[Row]:
    """A row for each number of threads: times of all calls in turns, and peak memory, which is the same for all."""
    device = options.device
    calls = steps.make_calls(bench, terms, options.seed)
    peaks = _peaks(bench, calls, device)
    rows = []
    for threads in options.threads if device.type == "cpu" else (torch.get_num_threads(),):
        torch.set_num_threads(threads)
        limits = {"seconds": options.seconds, "fewest": 3, "most": options.repeats, "clock": options.clock}
        fast, slow = (in_turns(group, bench.fresh, device, **limits) for group in (calls.fast, calls.slow))  # type: ignore[arg-type]
        # far shorter than a step, and there can be many
        parts = in_turns(calls.parts, bench.fresh, device, **{**limits, "seconds": options.seconds / 8, "most": 5 * options.repeats})  # type: ignore[arg-type]
        rows.append({"threads": threads, "clock": options.clock, **_numbers(fast, slow, parts), **peaks})
    bench.student.zero_grad(set_to_none=True)
    return rows


def _numbers(fast: Seconds, slow: Seconds, parts: Seconds) -> Row:
    """Times, and ratios of times of the same round."""
    together = [own + teacher for own, teacher in zip(slow["own"], slow["teacher"], strict=True)]
    added = {name: [a - b for a, b in zip(fast[name], fast["own"], strict=True)] for name in ("given", "cached")}
    gather = [cached - given for cached, given in zip(fast["cached"], fast["given"], strict=True)]
    alone = timings(parts)
    return {
        **timings(fast),
        **timings({name: values for name, values in slow.items() if name != "own"}),
        "repeats": len(fast["own"]),
        "slow_repeats": len(slow["own"]),
        "terms_seconds": Timing.of(added["given"]),
        "gather_seconds": Timing.of(gather),
        "alone": {name: asdict(timing) for name, timing in alone.items()},
        "alone_share": alone["terms"].median / Timing.of(fast["cached"]).median,
        "cached_ratio": paired(fast["cached"], fast["own"]),
        "terms_share": paired(added["given"], fast["cached"]),
        "live_ratio": paired(slow["live"], together),
        "plain_ratio": paired(fast["plain"], fast["cached"]),
        "plain_live_ratio": paired(slow["plain_live"], slow["live"]),
        "plain_terms": paired(parts["plain_terms"], parts["terms"]).median,
    }


def _peaks(bench: Workbench, calls: steps.Calls, device: torch.device) -> Row:
    """Peak bytes of steps, and where there are both sums over edges of the teacher's forward pass alone and with them."""

    def peak(call: Call) -> int:
        call(bench.fresh())  # what is made once and kept is no part of a step
        bench.student.zero_grad(set_to_none=True)
        calls.ours.zero_grad(set_to_none=True)
        gc.collect()
        batch = bench.fresh()
        return peak_bytes(lambda: call(batch), device)

    found: Row = {f"{name}_peak_bytes": peak(calls.fast[name]) for name in ("own", "cached", "plain")}
    found |= {"memory": None, "plain_memory": None}
    if calls.sums:
        alone = found["teacher_peak_bytes"] = peak(calls.slow["teacher"])
        found |= {f"teacher_sums_peak_bytes_{name}": peak(call) for name, call in calls.sums.items()}
        alone_sums = steps.sums_alone(bench)
        found |= {f"sums_peak_bytes_{name}": peak(call) for name, call in alone_sums.items()}
        found |= {"memory": found["teacher_sums_peak_bytes_ours"] / alone, "plain_memory": found["teacher_sums_peak_bytes_plain"] / alone}
    return found


def line(row: Row) -> str:
    """A row of the table."""
    judged = {goal.name: goals.verdict(goal, row) for goal in goals.GOALS}
    memory = "–" if row["memory"] is None else f"{row['memory']:.2f}"
    plain_memory = "–" if row["plain_memory"] is None else f"{row['plain_memory']:.2f}"
    return (
        f"{row['pair']:<19}{row['terms']:<13}{row['shape']:<10}{row['atoms']:>6}{row['threads']:>8}  {row['own']!s:<36}"
        f"{row['teacher'].median * 1e3:>6.0f} ms{row['cached_ratio'].median:>12.3f}  {judged['cached']:<7}"
        f"{row['terms_share'].median:>7.1%} ({row['alone_share']:.1%})  {judged['terms']:<7}{row['live_ratio'].median:>12.3f}  {judged['live']:<7}"
        f"{memory:>13}  {judged['memory']:<8}{row['plain_ratio'].median:>7.3f}× {row['plain_terms']:>6.2f}× {row['plain_live_ratio'].median:>7.3f}× "
        f"{plain_memory:>6}"
    ).rstrip()
