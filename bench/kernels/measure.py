"""Time, memory and bandwidth, the same way for every provider.

CPU: wall time, providers in turns. GPU: CUDA events around one call after the L2 cache was overwritten, providers in turns; and once more
with the call captured in a CUDA graph, so that the time of launching is not in it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from fastkd_kernels import CSRGraph

from bench.common import Timing, interleaved

Calls = Mapping[str, Callable[[], Any]]
_FLUSH_BYTES = 256 * 2**20  #: several times the L2 cache of any GPU


def first_call(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, compilation included."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def repeats_for(calls: Calls, device: torch.device, *, seconds: float, most: int) -> int:
    """How often each may be called so that all together take about ``seconds``, from 3 to ``most``."""
    one_round = sum(first_call(call, device) for call in calls.values())
    return max(3, min(most, int(seconds / max(one_round, 1e-9))))


def time_all(calls: Calls, device: torch.device, *, repeats: int) -> dict[str, Timing]:
    """Median and quantiles of each provider, in turns A B A B."""
    if device.type != "cuda":
        return interleaved(calls, repeats=repeats, warmup=1)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    for call in calls.values():
        call()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            events[name].append((start, end))
        # memory that a call frees is reused by the next one, so the queue may not grow without end
        torch.cuda.synchronize(device)
    return {name: Timing.of([start.elapsed_time(end) / 1e3 for start, end in pairs]) for name, pairs in events.items()}


def time_graphs(calls: Calls, device: torch.device, *, repeats: int) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings of the calls as CUDA graphs, and for those that cannot be captured the reason."""
    graphs, reasons = {}, {}
    for name, call in calls.items():
        try:
            graphs[name], _ = capture(call, device)
        except RuntimeError as error:
            reasons[name] = str(error).strip().splitlines()[0]
    timings = time_all({name: graph.replay for name, graph in graphs.items()}, device, repeats=repeats) if graphs else {}
    for graph in graphs.values():
        graph.reset()
    return timings, reasons


def capture(call: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The call as a CUDA graph, and the results that a replay writes; warmed up on another stream first, as capturing asks for."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph):
            results = call()
    finally:
        # a capture that fails stays on its own stream
        torch.cuda.set_stream(before)
    return graph, results


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most memory in use at one time during a call, beyond what was in use before it; its results count.

    CUDA: torch's allocator (`max_memory_allocated`). CPU: every allocation and release of torch's allocator, as the profiler records
    them, those inside of operators and of compiled code too. What numba allocates itself is in neither; our kernels take
    their memory from torch.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = call()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's native part reports its start and stop on standard error, whatever its log level."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy: what a kernel that only moves memory can hope for."""
    count = (2**29 if device.type == "cuda" else 2**25) // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    timing = time_all({"copy": lambda: target.copy_(source)}, device, repeats=20)["copy"]
    # the calm fifth: this is a ceiling, and other work on the machine would lower it
    return 2 * source.numel() * source.element_size() / timing.low


def graph_seconds(graph: CSRGraph, device: torch.device) -> float:
    """Median time of sorting the edges of a batch."""
    calls = {"graph": lambda: CSRGraph.from_edges(graph.edge_src, graph.edge_dst, graph.num_nodes)}
    return time_all(calls, device, repeats=5)["graph"].median


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
