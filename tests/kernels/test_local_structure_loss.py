"""What the tests over all operators do not look at: loops by hand, invariance, distances of 0, tiny losses, hubs, memory, third order."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels.graph import CSRGraph
from fastkd_kernels.local_structure_loss import reference
from fastkd_kernels.local_structure_loss.op import edge_distance, local_structure_loss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def make(nodes: int, edges: int, width: int = 4, wide: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, CSRGraph]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(nodes, size, dtype=torch.float64, generator=generator) for size in (width, wide))
    src, dst = (torch.randint(max(nodes, 1), (edges,), generator=generator) for _ in range(2))
    return x.requires_grad_(), y, CSRGraph.from_edges(src, dst, nodes)


def by_hand(x: Tensor, y: Tensor, graph: CSRGraph) -> float:
    """The definition, one edge after the other, on Python's numbers."""
    source, target, edges = graph.edge_src.tolist(), graph.edge_dst.tolist(), range(graph.num_edges)

    def distribution(features: Tensor) -> list[float]:
        rows = features.detach().tolist()
        grown = [math.exp(math.dist(rows[source[e]], rows[target[e]])) for e in edges]
        return [grown[e] / sum(grown[k] for k in edges if target[k] == target[e]) for e in edges]

    student, teacher = distribution(x), distribution(y)
    return sum(t * (math.log(t) - math.log(s)) for s, t in zip(student, teacher, strict=True)) / graph.num_edges


def derivatives(function: Callable[..., Tensor], x: Tensor, *extra: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient, and the gradient of |gradient|²."""
    value = function(x, *extra, **options)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return value, first, second


@each_backend
def test_the_definition_by_hand(backend: str) -> None:
    x, y, graph = make(7, 40)
    assert local_structure_loss(x, y, graph, backend=backend).item() == pytest.approx(by_hand(x, y, graph), rel=1e-12)
    source, target, rows = graph.edge_src.tolist(), graph.edge_dst.tolist(), x.tolist()
    want = [math.dist(rows[a], rows[b]) for a, b in zip(source, target, strict=True)]
    assert edge_distance(x, graph, backend=backend).tolist() == pytest.approx(want, rel=1e-13)


@each_backend
def test_moving_and_turning_the_features_changes_nothing(backend: str) -> None:
    x, y, graph = make(7, 40)
    generator = torch.Generator().manual_seed(1)
    plain = derivatives(local_structure_loss, x, y, graph, backend=backend)
    shift, other = (torch.randn(size, dtype=torch.float64, generator=generator) for size in (4, 6))
    moved = derivatives(local_structure_loss, (x.detach() + shift).requires_grad_(), y + other, graph, backend=backend)
    torch.testing.assert_close(moved, plain)
    turn, mirror = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q for size in (4, 6))
    value, first, second = derivatives(local_structure_loss, (x.detach() @ turn).requires_grad_(), y @ mirror, graph, backend=backend)
    torch.testing.assert_close((value, first @ turn.T, second @ turn.T), plain)
    # the sum of all forces of a translation-invariant loss is 0
    torch.testing.assert_close(plain[1].sum(0), torch.zeros(4, dtype=torch.float64))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_equal_to_the_teacher_is_at_the_minimum(backend: str, dtype: torch.dtype) -> None:
    x, _, graph = make(7, 40)
    x = x.detach().to(dtype).requires_grad_()
    loss = local_structure_loss(x, x.detach().clone(), graph, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_tiny_loss_is_kept_in_float32(backend: str) -> None:
    """Summed as p log p − p log q it would be noise of 1e-8, larger than the loss."""
    x, _, graph = make(12, 200, width=5)
    y = x.detach() + 1e-4 * torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rounded, target = x.detach().float(), y.float()
    want = local_structure_loss(rounded.double(), target.double(), graph, backend="numba").item()
    got = local_structure_loss(rounded, target, graph, backend=backend).item()
    assert want < 1e-8
    assert got == pytest.approx(want, rel=1e-2)


@each_backend
def test_distances_of_zero_have_finite_derivatives(backend: str) -> None:
    """Self loops, equal features, and one node whose neighbours are all equal to it."""
    x, y, _ = make(6, 0)
    with torch.no_grad():
        x[1] = x[0]
        x[5] = x[4] = x[3]
        y[2] = y[0]
    src, dst = torch.tensor([[0, 1, 2, 0, 3, 4, 5, 2, 2], [1, 0, 0, 0, 4, 4, 4, 1, 2]])
    graph = CSRGraph.from_edges(src, dst, 6)
    got = derivatives(local_structure_loss, x, y, graph, backend=backend)
    assert all(tensor.isfinite().all() for tensor in got)
    torch.testing.assert_close(got, derivatives(reference.local_structure_loss, x, y, graph))
    # nodes 3, 4 and 5 see distances of 0 only
    assert not got[1][3:].any()
    assert not got[2][3:].any()
    weight = torch.arange(1.0, 10.0, dtype=torch.float64)
    summed = derivatives(lambda x: (weight * edge_distance(x, graph, backend=backend)).sum(), x)
    assert all(tensor.isfinite().all() for tensor in summed)
    assert not summed[1][3:].any()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_smallest_distances_have_finite_derivatives(backend: str, dtype: torch.dtype) -> None:
    if backend == "numba" and dtype == torch.bfloat16:
        pytest.skip("numba runs float32 and float64")
    graph = CSRGraph.from_edges(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 0, 0]), 5)
    y = torch.randn(5, 2, generator=torch.Generator().manual_seed(4)).to(dtype)
    for step in (1e-3, 1e-8, 1.5e-12, 1e-12, 1e-13, 1e-22, 1e-38, 0.0):
        x = torch.zeros(5, 2, dtype=dtype)
        x[1, 0], x[2, 1], x[3] = step, -step, 1.0
        got = derivatives(local_structure_loss, x.requires_grad_(), y, graph, backend=backend)
        assert all(tensor.isfinite().all() for tensor in got), step
    assert not derivatives(lambda x: edge_distance(x, graph, backend=backend)[0], x)[1].any()


@each_backend
def test_large_distances_do_not_overflow(backend: str) -> None:
    x, y, graph = make(6, 30)
    value, first, second = derivatives(local_structure_loss, (1e3 * x.detach()).requires_grad_(), 300 * y, graph, backend=backend)
    torch.testing.assert_close(value, reference.local_structure_loss(1e3 * x.detach(), 300 * y, graph), rtol=1e-9, atol=0)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert value > 0


@each_backend
def test_no_edges_no_nodes_and_no_width(backend: str) -> None:
    for nodes, width in ((0, 3), (4, 3), (1, 1)):
        x, y, graph = make(nodes, 0, width)
        value, first, second = derivatives(local_structure_loss, x, y, graph, backend=backend)
        assert value.item() == 0
        assert first.shape == second.shape == x.shape
        assert not first.any()
        assert not second.any()
        assert edge_distance(x, graph, backend=backend).shape == (0,)
    x, y, graph = make(4, 9, width=0)
    uniform = local_structure_loss(x, y, graph, backend=backend)
    torch.testing.assert_close(uniform, reference.local_structure_loss(torch.zeros(4, 1, dtype=torch.float64), y, graph))


@each_backend
def test_a_hub_and_lonely_nodes(backend: str) -> None:
    x, y, _ = make(40, 0)
    src = torch.arange(200) % 37
    graph = CSRGraph.from_edges(torch.cat([src, torch.tensor([3])]), torch.cat([torch.zeros_like(src), torch.tensor([5])]), 40)
    got = derivatives(local_structure_loss, x, y, graph, backend=backend)
    torch.testing.assert_close(got, derivatives(reference.local_structure_loss, x, y, graph))
    # an only neighbour has probability 1 on both sides
    assert not got[1][37:].any()


@each_backend
def test_scaling_and_a_retained_graph(backend: str) -> None:
    """Two upstream scales and passes over one graph give gradients in exactly that proportion, and the first is not touched."""
    x, y, graph = make(7, 40)
    loss = local_structure_loss(x, y, graph, backend=backend)
    (first,) = torch.autograd.grad(loss, x, torch.tensor(1.0, dtype=torch.float64), retain_graph=True)
    kept = first.clone()
    (eighth,) = torch.autograd.grad(loss, x, torch.tensor(0.125, dtype=torch.float64), retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, kept)
    assert torch.equal(again, kept)
    assert torch.equal(eighth * 8, kept)


@each_backend
def test_third_order(backend: str) -> None:
    def third(function: Any, **options: Any) -> Tensor:
        x, y, graph = make(5, 14, 3)
        scalar = function(x, y, graph, **options)
        for _ in range(2):
            (gradient,) = torch.autograd.grad(scalar, x, create_graph=True)
            scalar = gradient.square().sum() + x.pow(3).sum()
        return torch.autograd.grad(scalar, x)[0]

    torch.testing.assert_close(third(local_structure_loss, backend=backend), third(reference.local_structure_loss))


@each_backend
def test_nan_stays_where_it_is(backend: str) -> None:
    x, y, _ = make(6, 0)
    graph = CSRGraph.from_edges(torch.tensor([1, 2, 4, 5]), torch.tensor([0, 0, 3, 3]), 6)
    with torch.no_grad():
        x[1, 2] = float("nan")
    loss = local_structure_loss(x, y, graph, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isnan()
    assert gradient[:2].isnan().all()
    assert gradient[3:].isfinite().all()


def test_nothing_of_edges_and_features_is_made() -> None:
    """The largest allocation of three orders is a number an edge, or the features."""
    x, y, graph = make(20, 3000, 64, 80)
    derivatives(local_structure_loss, x, y, graph, backend="numba")
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        warnings.simplefilter("ignore")
        derivatives(local_structure_loss, x, y, graph, backend="numba")
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert 0 < largest <= 8 * max(graph.num_edges, x.numel())


def test_wrong_arguments_are_named() -> None:
    x, y, graph = make(4, 5)
    with pytest.raises(ValueError, match=r"y \[4, 6\] requires a gradient"):
        local_structure_loss(x, y.requires_grad_(), graph)
    y = y.detach()
    with pytest.raises(ValueError, match=r"y \[3, 6\]"):
        local_structure_loss(x, y[:3], graph)
    with pytest.raises(ValueError, match=r"x \[3, 4\]"):
        edge_distance(x[:3], graph)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        local_structure_loss(x, y.float(), graph)
    with pytest.raises(ValueError, match=r"x \[4, 3, 4\]"):
        local_structure_loss(x[:, None].expand(4, 3, 4), y, graph)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        edge_distance(torch.zeros(4, 2, dtype=torch.int64), graph)
