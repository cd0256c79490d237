"""From ops, shapes, modes and providers to rows: check, measure, print, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fastkd_kernels.registry import OpCase

from bench.common import Timing
from bench.kernels import measure
from bench.kernels.cases import MODES, BenchOp, Problem, find_ops, make_problem
from bench.kernels.gate import WRONG, Verdict, check, difference
from bench.kernels.peers import UnavailableError, reason_of
from bench.kernels.providers import COMPILED, OURS, REFERENCE, Call, make_call, peers_of
from bench.kernels.shapes import SHAPES, BenchShape
from bench.session import Row, Session

HEADER = (
    f"{'op':<24}{'shape':<14}{'mode':<16}{'provider':<15}{'median (20 % to 80 %)':<32}{'as CUDA graph':<16}"
    f"{'peak MB':>9}{'GB/s':>8}{'of copy':>9}{'ours is':>10}"
)
QUICK_SHAPE, QUICK_SHAPE_OF_FEW = "small", "qm9"


@dataclass(frozen=True)
class Options:
    """What to measure, and how long."""

    device: torch.device
    ops: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES
    providers: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    seed: int = 0
    quick: bool = False
    seconds: float = 2.0  #: for the timing of one row, all providers together
    repeats: int = 51  #: at most
    budget: float = float("inf")  #: no row starts after so many seconds
    json: Path | None = None


@dataclass
class KernelSession(Session[Options]):
    """With what all rows share."""

    missing: dict[str, str] = field(default_factory=dict)  #: peers that are not installed
    graph_seconds: dict[str, float] = field(default_factory=dict)  #: making the graph of each shape
    copy_bandwidth: float = float("nan")

    def about(self) -> Row:
        skipped = [*self.skipped, *self.missing.values()]
        return super().about() | {"copy_bandwidth": self.copy_bandwidth, "skipped": skipped, "graph_seconds": self.graph_seconds}


def run(options: Options, say: Callable[[str], None] = print) -> KernelSession:
    """Measure everything that the options ask for."""
    session = KernelSession("kernels", options)
    session.copy_bandwidth = measure.copy_bandwidth(options.device)
    say(f"copy: {session.copy_bandwidth / 1e9:.1f} GB/s read and written, the measure of the column 'of copy'")
    say(HEADER)
    for op, case in find_ops(options.ops):
        if case is None:
            session.skipped.append(f"{op.name}: not in this version of fastkd_kernels")
        elif session.out_of_time:
            session.skipped.append(f"{op.name}: out of time")
        else:
            _run_op(session, op, case, say)
        session.write()
    for reason in (*session.skipped, *session.missing.values()):
        say(f"left out: {reason}")
    if session.failed:
        say(f"no speeds, because results are wrong: {'; '.join(session.failed)}")
    session.write()
    return session


def _run_op(session: KernelSession, op: BenchOp, case: OpCase, say: Callable[[str], None]) -> None:
    options = session.options
    verdict = check(case, options.dtype, options.device, options.seed)
    if not verdict.ok:
        refuse(session, op.name, verdict, say)
        return
    shapes = shapes_of(op, options)
    for shape in shapes:
        problem = make_problem(op, case, shape, options.dtype, options.device, options.seed)
        if problem.graph is not None and shape.name not in session.graph_seconds:
            session.graph_seconds[shape.name] = measure.graph_seconds(problem.graph, options.device)
            say(f"{'CSRGraph.from_edges':<24}{shape.name:<14}{session.graph_seconds[shape.name] * 1e3:.2f} ms, once a batch for all layers")
        for mode in options.modes:
            if session.out_of_time:
                session.skipped.append(f"{op.name} {shape.name} {mode}: out of time")
                continue
            rows = measure_row(problem, mode, providers_of(problem, options, main=shape is shapes[0]), session)
            wrong = next((row for row in rows if row["provider"] == OURS and row["reason"]), None)
            if wrong:
                refuse(session, f"{op.name} {shape.name} {mode}", Verdict(False, wrong["reason"]), say)
                continue
            session.rows += [row for row in rows if not row["reason"].endswith("is not installed")]
            for row in rows:
                if row["reason"].endswith("is not installed"):
                    # once is enough
                    session.missing[row["provider"]] = row["reason"]
                else:
                    say(line(row))
            session.write()


def refuse(session: KernelSession, what: str, verdict: Verdict, say: Callable[[str], None]) -> None:
    """Say why an op gets no speeds; the exit code follows."""
    session.failed.append(f"{what} ({verdict.text})")
    say(f"{what}: no speed is printed, its results are wrong: {verdict.text}")


def shapes_of(op: BenchOp, options: Options) -> list[BenchShape]:
    """Shapes of an op that this device can hold, the one for torch.compile first."""
    names = [name for name in op.shapes if not SHAPES[name].gpu_only or options.device.type == "cuda"]
    if options.quick:
        names = [name for name in names if name == QUICK_SHAPE or (name == QUICK_SHAPE_OF_FEW and op.quick)]
    return [SHAPES[name] for name in names if not options.shapes or name in options.shapes]


def providers_of(problem: Problem, options: Options, *, main: bool) -> list[str]:
    """Ours, the reference, compiled on the main shape of an op (compiling takes most of a minute), and peers."""
    compiled = [COMPILED] if COMPILED in options.providers or (main and not options.quick and not options.providers) else []
    names = [OURS, REFERENCE, *compiled, *peers_of(problem)]
    return [name for name in names if not options.providers or name in {OURS, REFERENCE, *options.providers}]


def measure_row(problem: Problem, mode: str, names: Sequence[str], session: Session) -> list[Row]:
    """One row per provider: time, memory, bandwidth, and how far it is from the reference."""
    options, device = session.options, session.options.device
    rows = {name: _empty_row(problem, mode, name, options) for name in names}
    calls: dict[str, Call] = {}
    want = None
    for name in (REFERENCE, *(name for name in names if name != REFERENCE)):  # ours is the next
        try:
            start = time.perf_counter()
            call = make_call(name, problem, mode)
            rows[name]["prepare_s"] = time.perf_counter() - start + measure.first_call(call, device)
            rows[name]["peak_bytes"] = measure.peak_bytes(call, device)
            got = call()
            # where the reference does not fit into memory, ours, which was checked, takes its place
            want = got if want is None else want
            rows[name]["error"] = difference(got, want)
            if rows[name]["error"] > WRONG[options.dtype]:
                rows[name]["reason"] = f"differs from the reference by {rows[name]['error']:.1e}"
            del got
        except UnavailableError as error:
            rows[name]["reason"] = str(error)
            continue
        except Exception as error:
            # a provider that fails is a result; the others are still timed
            rows[name]["reason"] = reason_of(error)
            continue
        calls[name] = call
    del want
    if OURS in calls:
        _time(rows, calls, problem, mode, session)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return list(rows.values())


def _time(rows: dict[str, Row], calls: dict[str, Call], problem: Problem, mode: str, session: Session) -> None:
    options, device = session.options, session.options.device
    repeats = measure.repeats_for(calls, device, seconds=options.seconds, most=options.repeats)
    timings = measure.time_all(calls, device, repeats=repeats)
    graphs: dict[str, Timing] = {}
    if device.type == "cuda":
        graphs, reasons = measure.time_graphs(calls, device, repeats=repeats)
        for name, reason in reasons.items():
            rows[name]["graph_reason"] = reason
    floor = problem.floor(mode)
    for name, timing in timings.items():
        # a graph leaves out the time of launching, so it says better what the kernels move
        best = min(timing.median, graphs[name].median) if name in graphs else timing.median
        rows[name] |= {"median": timing.median, "low": timing.low, "high": timing.high, "repeats": repeats}
        rows[name] |= {"graph_median": graphs[name].median if name in graphs else None, "bandwidth": floor / best}
        rows[name] |= {"share_of_copy": floor / best / session.copy_bandwidth}
        if not rows[name]["reason"]:
            rows[name]["ours_faster"] = timing.median / timings[OURS].median


def _empty_row(problem: Problem, mode: str, provider: str, options: Options) -> Row:
    size = problem.shape.size
    about = {"op": problem.op.name, "shape": problem.shape.name, "mode": mode, "provider": provider, "graph": problem.shape.graph}
    about |= {"nodes": size.nodes, "edges": size.edges, "width": size.width, "dtype": str(options.dtype).removeprefix("torch.")}
    about |= {"threads": torch.get_num_threads(), "floor_bytes": problem.floor(mode)}
    empty = ("median", "low", "high", "repeats", "graph_median", "peak_bytes", "bandwidth", "share_of_copy", "error", "ours_faster")
    return {**about, **dict.fromkeys(empty), "prepare_s": None, "reason": "", "graph_reason": ""}


def line(row: Row) -> str:
    """A row of the table."""
    start = f"{row['op']:<24}{row['shape']:<14}{row['mode']:<16}{row['provider']:<15}"
    if row["median"] is None or row["reason"]:
        return f"{start}–  {row['reason']}"
    timing, graph = Timing(row["median"], row["low"], row["high"]), row["graph_median"]
    cells = f"{timing!s:<32}{'–' if graph is None else f'{graph * 1e3:.3f} ms':<16}{row['peak_bytes'] / 1e6:>9.1f}"
    ratio = "" if row["provider"] == OURS else f"{row['ours_faster']:>9.2f}×"
    return f"{start}{cells}{row['bandwidth'] / 1e9:>8.1f}{row['share_of_copy']:>8.0%} {ratio}"


def quick_problems(device: torch.device, seed: int = 0) -> Iterator[tuple[BenchOp, OpCase, BenchShape]]:
    """The quick set: every op on a small batch, a few on a middle one."""
    options = Options(device, quick=True)
    for op, case in find_ops():
        if case is not None:
            for shape in shapes_of(op, options):
                yield op, case, shape
