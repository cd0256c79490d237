"""Sums that read edges as they lie give the bits of sums that go node by node, on any number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch
from fastkd_kernels import CSRGraph, cfconv, cpu, edge_to_node, edge_to_node_both, edge_to_node_vector
from fastkd_kernels.cfconv import numba_launch
from fastkd_kernels.testing import three_orders
from torch import Tensor

NODES, EDGES, WIDTH = 60, 3000, 33


def _graph(kind: str) -> CSRGraph:
    generator = torch.Generator().manual_seed(0)
    src, dst = (torch.randint(0, NODES, (EDGES,), generator=generator) for _ in range(2))
    if kind == "hub":
        # longer than one block of a sum
        dst[: EDGES // 2] = 7
    return CSRGraph.from_edges(src, dst, NODES)


def _run(op: str, graph: CSRGraph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, m, r = (torch.randn(*size, generator=generator) for size in ((NODES, WIDTH), (EDGES, WIDTH), (EDGES, 3)))
    functions = {
        "cfconv": (lambda x, m: cfconv(x, m, graph, backend="numba"), (x, m)),
        "edge_to_node": (lambda m: edge_to_node(m, graph, backend="numba"), (m,)),
        "edge_to_node_vector": (lambda m, r: edge_to_node_vector(m, r, graph, backend="numba"), (m, r)),
        "edge_to_node_both": (lambda m, r: edge_to_node_both(m, r, graph, backend="numba"), (m, r)),
    }
    function, inputs = functions[op]
    return [tensor.detach() for part in three_orders(function, [t.requires_grad_() for t in inputs], torch.float32) for tensor in part]


@pytest.mark.parametrize("op", ["cfconv", "edge_to_node", "edge_to_node_vector", "edge_to_node_both"])
@pytest.mark.parametrize("kind", ["random", "hub"])
def test_streamed_sums_have_the_bits_of_the_others(op: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, runs, streamed = _graph(kind), [], []
    real = cpu.streams
    threads = torch.get_num_threads()
    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    try:
        for beyond in (0, 2**60):
            monkeypatch.setattr(cpu, "EDGES_BEYOND", beyond)
            streamed.append(real(graph.edge_order.numpy(), torch.ones(EDGES, WIDTH).numpy(), torch.ones(1).numpy()))
            for number in (1, 2):
                torch.set_num_threads(number)
                runs.append(_run(op, graph))
    finally:
        torch.set_num_threads(threads)
    assert streamed == [True, False]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("kind", ["random", "hub"])
def test_both_gradients_in_one_pass_have_the_bits_of_two(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, generator, runs, passes = _graph(kind), torch.Generator().manual_seed(2), [], []
    x, weight, g = (torch.randn(rows, WIDTH, generator=generator) for rows in (NODES, EDGES, NODES))
    real, threads = numba_launch.gradients, torch.get_num_threads()
    monkeypatch.setattr(numba_launch, "gradients", lambda *args: passes.append(real(*args)) or passes[-1])
    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    try:
        for beyond, number in itertools.product((0, 2**60), (1, 2)):
            monkeypatch.setattr(cpu, "EDGES_BEYOND", beyond)
            torch.set_num_threads(number)
            leaves = x.requires_grad_(), weight.requires_grad_()
            runs.append(torch.autograd.grad(cfconv(*leaves, graph, backend="numba"), leaves, g))
    finally:
        torch.set_num_threads(threads)
    assert [found is not None for found in passes] == [True, True, False, False]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_edges_in_the_order_of_their_nodes_are_not_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "EDGES_BEYOND", 0)
    graph, rows = _graph("random"), torch.ones(EDGES, WIDTH).numpy()
    ordered = CSRGraph.from_edges(graph.edge_src, graph.edge_dst.sort().values, NODES)
    assert not cpu.streams(ordered.edge_order.numpy(), rows, rows)
    assert cpu.streams(ordered.src_order.numpy(), rows, rows)


def test_shares_cut_the_edges_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "threads_for", lambda work: 4)
    ptr = torch.tensor([0, 10, 10, 20, 30, 40]).numpy()
    assert cpu.shares(ptr, 1).tolist() == [0, 1, 3, 4, 5]
    assert cpu.shares(ptr[:1], 1).tolist() == [0, 0, 0, 0, 0]
