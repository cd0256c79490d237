"""Steps of tiny models under pytest-benchmark: ``pytest bench --benchmark-only``.

pytest-benchmark runs its tests one after another, so that ratios on a busy machine are rough; those of ``python -m bench.step`` are
measured in turns, and at the sizes of the published models.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.models.shapes import SHAPES
from bench.step import steps
from bench.step.cases import PAIRS
from bench.step.setup import Workbench

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 5
#: What the names of the calls mean is in `steps.Calls`.
CALLS = ("own", "cached", "plain", "live", "plain_live")


@functools.lru_cache(maxsize=1)
def checked(pair_name: str, terms_name: str) -> tuple[Workbench, steps.Calls, str]:
    """Everything in float32, and why it may not be timed."""
    pair = PAIRS[pair_name]
    terms = next(terms for terms in pair.terms if terms.name == terms_name)
    shape = replace(SHAPES[pair.shapes[0]], copies=1)
    for dtype in (torch.float64, torch.float32):
        bench = Workbench.of(pair, shape, dtype, DEVICE, 0, small=True)
        if reason := steps.check(bench, terms, 0).reason:
            break
    return bench, steps.make_calls(bench, terms, 0), reason


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("pair", "terms"), [(pair.name, pair.terms[-1].name) for pair in PAIRS.values()])
def test_step(benchmark: Any, pair: str, terms: str, call: str) -> None:
    bench, calls, reason = checked(pair, terms)
    assert not reason, f"no time, because the two differ: {reason}"
    step = (calls.fast | calls.slow)[call]

    def timed() -> None:
        step(bench.fresh())
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{pair} {terms}"
    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
