"""What the tests over all operators do not look at: infinities, NaN, long segments, large numbers, any order of rows, third order."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch
from fastkd_kernels.graph import CSRGraph, segments
from fastkd_kernels.segment_softmax import reference
from fastkd_kernels.segment_softmax.op import scatter_log_softmax, scatter_softmax, segment_log_softmax, segment_softmax
from fastkd_kernels.tolerances import TOLERANCES, relative_error
from torch import Tensor

BACKENDS = [
    "reference",
    "numba",
    pytest.param(
        "triton",
        marks=[
            pytest.mark.triton,
            pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only"),
        ],
    ),
]
INF, NAN = float("inf"), float("nan")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
both = pytest.mark.parametrize(
    ("function", "torchs"), [(segment_softmax, torch.softmax), (segment_log_softmax, torch.log_softmax)], ids=["softmax", "log"]
)


def pointers(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def normal(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(x: Tensor, ptr: Tensor, torchs: object) -> Tensor:
    return torch.cat([torchs(x[a:b], 0) for a, b in pairwise(ptr.tolist())])  # type: ignore[operator]


@each_backend
@both
@pytest.mark.parametrize("trailing", [(), (1,), (4,), (2, 3)], ids=str)
def test_is_torchs_softmax_of_each_segment(function, torchs, backend: str, trailing: tuple[int, ...]) -> None:
    ptr = pointers(3, 0, 1, 7, 0)
    x = normal(11, *trailing).requires_grad_()
    cotangent, tangent = normal(11, *trailing, seed=1), normal(11, *trailing, seed=2)
    found = []
    for value in (function(x, ptr, backend=backend), by_hand(x, ptr, torchs)):
        (slope,) = torch.autograd.grad(value, x, cotangent, create_graph=True)
        found.append((value, slope, torch.autograd.grad(slope, x, tangent)[0]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter, where NaN is the answer
@each_backend
@both
def test_infinities_and_nan_are_torchs(function, torchs, backend: str) -> None:
    x = torch.tensor([0.0, -INF, 1.0, -INF, -INF, -INF, INF, 2.0, 1.0, NAN, 3.0, 0.5, -2.0], dtype=torch.float64)
    ptr = pointers(3, 1, 2, 2, 3, 2)
    for rows in (x, torch.stack([x, x.nan_to_num(0.0, 1.0, -1.0)], 1)):
        ours, theirs = (rows.clone().requires_grad_() for _ in range(2))
        value, exact = function(ours, ptr, backend=backend), by_hand(theirs, ptr, torchs)
        torch.testing.assert_close(value, exact, equal_nan=True)
        weight = normal(*rows.shape, seed=4)
        keep = [0, 1, 2, 11, 12]  # the finite segments, and one with −∞
        gradients = [torch.autograd.grad(v, leaf, weight, create_graph=True)[0] for v, leaf in ((value, ours), (exact, theirs))]
        torch.testing.assert_close(gradients[0], gradients[1], equal_nan=True)
        assert gradients[0][keep].isfinite().all()
        seconds = [
            torch.autograd.grad(g[keep].sum() + g[keep].square().sum(), leaf)[0][keep]
            for g, leaf in zip(gradients, (ours, theirs), strict=True)
        ]
        torch.testing.assert_close(seconds[0], seconds[1], equal_nan=True)
        assert seconds[0].isfinite().all()


@each_backend
@both
@pytest.mark.parametrize("width", [1, 3])
def test_long_segments(function, torchs, backend: str, width: int) -> None:
    """Some hold whole pieces of 256 rows, start or end with one, or lie inside of one."""
    ptr = pointers(100, 700, 0, 224, 256, 5, 260)
    x = (10 * normal(1545, width, seed=5)).float()
    cotangent, tangent = normal(1545, width, dtype=torch.float32, seed=6), normal(1545, width, dtype=torch.float32, seed=7)
    found = []
    for dtype, call in ((torch.float32, lambda t: function(t, ptr, backend=backend)), (torch.float64, lambda t: by_hand(t, ptr, torchs))):
        leaf = x.to(dtype, copy=True).requires_grad_()
        value = call(leaf)
        (slope,) = torch.autograd.grad(value, leaf, cotangent.to(dtype), create_graph=True)
        found.append((value, slope, torch.autograd.grad(slope, leaf, tangent.to(dtype))[0]))
    for ours, exact, limit in zip(*found, TOLERANCES[torch.float32].by_order, strict=True):
        assert relative_error(ours, exact) < limit


def test_one_giant_segment_keeps_its_digits() -> None:
    x = normal(300_000, dtype=torch.float32)
    for shape in ((-1, 1), (-1, 2)):
        rows = x.reshape(shape)
        got = segment_softmax(rows, pointers(rows.shape[0]), backend="numba")
        exact = torch.softmax(rows.double(), 0)
        assert relative_error(got, exact) < 2e-7


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter, where a difference passes float32's range
@each_backend
@both
@pytest.mark.parametrize("size", [1e4, 3e38])
def test_nothing_overflows(function, torchs, backend: str, size: float) -> None:
    x = torch.tensor([size, -size, size, 0.0, -size], dtype=torch.float32, requires_grad=True)
    ptr = pointers(3, 2)
    value = function(x, ptr, backend=backend)
    torch.testing.assert_close(value, by_hand(x, ptr, torchs))
    (gradient,) = torch.autograd.grad(value, x, torch.arange(5.0))
    assert gradient.isfinite().all()


def test_log_keeps_what_the_softmax_rounds_to_zero() -> None:
    x = torch.tensor([0.0, -200.0, -400.0], dtype=torch.float32)
    assert segment_log_softmax(x, pointers(3)).tolist() == [0.0, -200.0, -400.0]


@each_backend
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_any_order_of_rows(backend: str, log: bool, width: int) -> None:
    index = torch.tensor([2, 0, 2, 4, 0, 0, 2, 1])
    scatter, segment = (scatter_log_softmax, segment_log_softmax) if log else (scatter_softmax, segment_softmax)
    ptr, order = segments(index, 6)
    x = normal(8, width).requires_grad_()
    straight = segment(x[order], ptr, backend=backend)
    for csr in (None, (ptr, order)):
        scattered = scatter(x, index, 6, csr=csr, backend=backend)
        torch.testing.assert_close(scattered[order], straight)
    graph = CSRGraph.from_edges(torch.zeros_like(index), index, 6)
    attention = scatter_softmax(x, graph.edge_dst, graph.num_nodes, csr=(graph.edge_ptr, graph.edge_order), backend=backend)
    torch.testing.assert_close(
        torch.zeros(6, width, dtype=torch.float64).index_add(0, index, attention)[:5:2], torch.ones(3, width).double()
    )
    a, b = (normal(8, width, seed=s) for s in (1, 2))
    found = []
    for value, g, h in ((scatter(x, index, 6, backend=backend), a, b), (straight, a[order], b[order])):
        (slope,) = torch.autograd.grad(value, x, g, create_graph=True)
        found.append((slope, torch.autograd.grad((slope * b).sum(), x)[0]))
        assert h.shape == g.shape
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)


@each_backend
@pytest.mark.parametrize("function", [segment_softmax, segment_log_softmax])
def test_third_and_fourth_order(function, backend: str) -> None:
    ptr = pointers(3, 0, 2)

    def fourth(call, **options: str) -> list[Tensor]:
        x = normal(5, 2).requires_grad_()
        weight = normal(5, 2, seed=8).requires_grad_()
        scalar, found = (weight * call(x, ptr, **options)).sum(), []
        for order in range(4):
            gradients = torch.autograd.grad(scalar, (x, weight), create_graph=order < 3)
            found += gradients
            scalar = sum(gradient.square().sum() for gradient in gradients) + x.pow(3).sum()
        return found

    for ours, exact in zip(fourth(function, backend=backend), fourth(getattr(reference, function.__name__)), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-11)


@each_backend
@pytest.mark.parametrize("function", [segment_softmax, segment_log_softmax])
def test_nothing_to_do(function, backend: str) -> None:
    for x, ptr in ((torch.zeros(0, 3), pointers(0, 0)), (torch.zeros(0, 3), pointers()), (torch.zeros(4, 0), pointers(4))):
        leaf = x.clone().requires_grad_()
        value = function(leaf, ptr, backend=backend)
        assert value.shape == x.shape
        assert torch.autograd.grad(value.sum(), leaf)[0].shape == x.shape


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="rise from 0 to the number of rows, 4"):
        segment_softmax(x, pointers(3))
    with pytest.raises(ValueError, match="falls"):
        segment_log_softmax(x, torch.tensor([0, 3, 2, 4]), backend="reference")
    with pytest.raises(ValueError, match=r"ptr \[m \+ 1\] int64, got \[3\] torch.float32"):
        segment_softmax(x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"index \[4\] int64"):
        scatter_softmax(x, torch.zeros(3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"csr = \(ptr \[3\]"):
        scatter_softmax(x, torch.zeros(4, dtype=torch.int64), 2, csr=segments(torch.zeros(4, dtype=torch.int64), 3))
    with pytest.raises(ValueError, match="floating dtype"):
        segment_softmax(x.long(), pointers(4))
