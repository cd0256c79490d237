"""Tiny models under pytest-benchmark: ``pytest bench --benchmark-only``.

pytest-benchmark runs its tests one after another, so that ratios on a busy machine are rough; those of ``python -m bench.models`` are
measured in turns, and at the sizes of the published models.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from bench.models import steps
from bench.models.cases import CASES
from bench.models.shapes import SHAPES
from bench.training_step import Pair

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own use of deprecated functions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 5


@functools.lru_cache(maxsize=1)
def checked(name: str) -> tuple[Pair, str]:
    """Both models in float32, and why they may not be timed."""
    case = CASES[name]
    structures = SHAPES[case.shapes[0]].structures(0, 1)
    for dtype in (torch.float64, torch.float32):
        pair = case.pair(structures, dtype, DEVICE, 0, small=True)
        if reason := steps.check(pair).reason:
            break
    return pair, reason


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("mode", steps.MODES)
@pytest.mark.parametrize("name", CASES)
def test_step(benchmark: Any, name: str, mode: str, side: str) -> None:
    try:
        pair, reason = checked(name)
    except (ModuleNotFoundError, SystemExit) as error:
        pytest.skip(str(error))
    assert not reason, f"no speed, because the models differ: {reason}"
    steps.prepare(pair, mode)
    step = (steps.ours_step if side == "ours" else steps.theirs_step)(pair, mode)

    def timed() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{name} {mode}"
    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
