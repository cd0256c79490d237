"""`python -m fastkd_kernels.check`, and that the comparison behind it notices what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastkd_kernels import check
from fastkd_kernels.cfconv.cases import CASES
from fastkd_kernels.registry import Shape
from fastkd_kernels.testing import errors
from torch import Tensor

CFCONV = CASES[0]
SHAPE = Shape(7, 23, 5)


class _Wrong(torch.autograd.Function):
    """x ↦ x², with a gradient or a gradient's gradient that is off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.order = order
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (2.001 * x * grad if ctx.order == 1 else 2 * x.detach() * grad), None


@pytest.mark.parametrize(
    ("order", "function"), [(0, lambda x: 1.001 * x * x), (1, lambda x: _Wrong.apply(x, 1)), (2, lambda x: _Wrong.apply(x, 2))]
)
def test_an_error_at_any_order_is_found_and_no_other(order: int, function: Any) -> None:
    right = replace(CFCONV, reference=lambda x, w, graph: w.sum() + x * x, function=lambda x, w, graph, backend: w.sum() + x * x)
    assert errors(right, SHAPE, torch.float64, None).ok
    found = errors(replace(right, function=lambda x, w, graph, backend: w.sum() + function(x)), SHAPE, torch.float64, None)
    assert not found.ok
    assert [error <= limit for error, limit in zip(found.by_order, found.limits, strict=True)].index(False) == order


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_found(value: float) -> None:
    broken = replace(CFCONV, function=lambda x, w, graph, backend: CFCONV.function(x, w, graph) + value)
    assert not errors(broken, SHAPE, torch.float32, "numba").ok


def test_prints_a_row_per_backend_and_dtype_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "check.json"
    assert check.main(["--device", "cpu", "--backend", "numba", "reference", "--only", "paired_cfconv", "--json", str(target)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("paired_cfconv")]
    assert len(rows) == 5
    assert all(" ok " in row for row in rows)
    document = json.loads(target.read_text(encoding="utf-8"))
    assert [entry["backend"] for entry in document["checks"]] == ["numba"] * 2 + ["reference"] * 3
    assert document["versions"]["torch"] == torch.__version__


def test_fails_when_an_op_is_wrong_or_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raises(*args: Any, **options: Any) -> Tensor:
        raise RuntimeError("no such luck\nand more")

    wrong = replace(CFCONV, name="wrong", function=lambda x, w, graph, backend: 1.01 * CFCONV.function(x, w, graph))
    monkeypatch.setattr(check, "all_cases", lambda: iter((CFCONV, wrong, replace(CFCONV, name="raises", function=raises))))
    assert check.main(["--device", "cpu", "--backend", "numba", "--dtype", "float32"]) == 1
    out = capsys.readouterr().out
    assert "3 checks, 2 failed" in out
    assert "RuntimeError: no such luck" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu:0"], "device 'tpu:0' cannot be used here"),
        (["--device", "cpu", "--only", "cfcnov"], "no op has cfcnov in its name; there are"),
    ],
)
def test_what_cannot_be_checked_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert check.main(["--device", "cpu", "--backend", "triton"]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err
