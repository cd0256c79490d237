"""The quick set under pytest-benchmark: ``pytest bench --benchmark-only``.

An op whose three orders are wrong fails here before it is timed. pytest-benchmark runs its tests one after another, so that ratios
on a busy machine are rough; those of ``python -m bench.kernels`` are measured in turns.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from bench.kernels.cases import MODES, BenchOp, Problem, find_ops, make_problem
from bench.kernels.gate import WRONG, Verdict, check, difference
from bench.kernels.measure import first_call, peak_bytes
from bench.kernels.peers import PEERS, UnavailableError
from bench.kernels.providers import COMPILED, OURS, REFERENCE, make_call
from bench.kernels.run import QUICK_SHAPE, quick_problems
from bench.kernels.shapes import SHAPES

# inductor and the peers use what torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {op.name: (op, case) for op, case in find_ops() if case is not None}
SECONDS = 0.25  #: of timing for each test


def providers_of(op: BenchOp, shape: str) -> list[str]:
    # compiling takes tens of seconds on a CPU
    compiled = [COMPILED] if op.quick and shape == QUICK_SHAPE else []
    return [OURS, REFERENCE, *compiled, *(peer for name, peer in PEERS if name == op.name)]


PARAMETERS = [
    (op.name, shape.name, mode, provider)
    for op, _, shape in quick_problems(DEVICE)
    for mode in MODES
    for provider in providers_of(op, shape.name)
]


@functools.cache
def verdict(name: str) -> Verdict:
    return check(CASES[name][1], torch.float32, DEVICE, seed=0)


# the last one only: parameters are in the order of problems, and large ones need not be kept
@functools.lru_cache(maxsize=1)
def problem_of(name: str, shape: str) -> Problem:
    return make_problem(*CASES[name], SHAPES[shape], torch.float32, DEVICE, seed=0)


@functools.lru_cache(maxsize=1)
def exact(name: str, shape: str, mode: str) -> tuple[torch.Tensor | None, ...]:
    return make_call(REFERENCE, problem_of(name, shape), mode)()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "shape", "mode", "provider"), PARAMETERS, ids=["-".join(one) for one in PARAMETERS])
def test_speed(benchmark: Any, name: str, shape: str, mode: str, provider: str) -> None:
    assert verdict(name).ok, f"no speed, because its results are wrong: {verdict(name).text}"
    problem = problem_of(name, shape)
    ours = provider in {OURS, REFERENCE}
    try:
        call = make_call(provider, problem, mode)
        error = difference(call(), exact(name, shape, mode))
    except (UnavailableError, RuntimeError) as failure:
        # not installed, or differentiable once only
        if ours:
            raise
        pytest.skip(str(failure).splitlines()[0])
    if error > WRONG[torch.float32] and not ours:
        pytest.skip(f"{provider} differs from the reference by {error:.1e}")
    assert error <= WRONG[torch.float32]

    def timed() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    rounds = max(3, min(50, int(SECONDS / first_call(call, DEVICE))))
    benchmark.group = f"{name} {shape} {mode}"
    benchmark.extra_info.update(provider=provider, floor_bytes=problem.floor(mode), peak_bytes=peak_bytes(call, DEVICE), error=error)
    benchmark.pedantic(timed, rounds=rounds)
