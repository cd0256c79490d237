"""What only cfconv and its twins on pairs promise."""

from __future__ import annotations

import pytest
import torch
from fastkd_kernels import CSRGraph, PairIndex, cfconv, edge_product, pair_product, paired_cfconv
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.registry import Shape

SRC, DST = torch.tensor([1, 0, 2, 2, 0, 1]), torch.tensor([0, 1, 2, 2, 1, 0])  # 0–1 twice, and 2 with two of its images
GRAPH = CSRGraph.from_edges(SRC, DST, 4)


def test_pairs_are_found_in_ascending_order() -> None:
    pairs = PairIndex.from_pair(torch.tensor([2, 0, 1, 1, 2, 0]), GRAPH)
    assert pairs.pair_edges.tolist() == [[1, 5], [2, 3], [0, 4]]
    assert pairs.num_pairs == 3


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ([0, 0, 1, 1, 2], r"\[6\] int64, one number per edge of the graph, got \[5\]"),
        ([0, 0, 1, 1, 1, 2], "pair 2 has not"),
        ([0, 0, 1, 1, 3, 3], "pair 2 has not"),
        ([0, 0, -1, -1, 1, 1], "pair 0 has not"),
        ([0, 1, 2, 2, 1, 0], "edges 0 and 5 of pair 0 do not"),
        ([0, 1, 0, 2, 1, 2], "opposite directions"),
    ],
)
def test_pairs_that_are_none_are_refused(pair: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairIndex.from_pair(torch.tensor(pair), GRAPH)


def test_an_odd_number_of_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="must be even"):
        PairIndex.from_pair(torch.zeros(1, dtype=torch.int64), CSRGraph.from_edges(torch.tensor([0]), torch.tensor([0]), 1))


def test_pairs_of_another_graph_are_refused() -> None:
    pairs, _ = random_pairs(Shape(5, 8, 3), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="8 edges, the graph has 6"):
        paired_cfconv(torch.zeros(4, 3), torch.zeros(4, 3), pairs, GRAPH)
    with pytest.raises(ValueError, match="8 edges, the graph has 6"):
        pair_product(torch.zeros(4, 3), torch.zeros(4, 3), pairs, GRAPH)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_pairs_equal_edges_with_shared_filters(backend: str) -> None:
    pairs, graph = random_pairs(Shape(9, 60, 5), torch.Generator().manual_seed(1))
    x, g, pair_weight = torch.randn(9, 5).double(), torch.randn(9, 5).double(), torch.randn(30, 5).double()
    torch.testing.assert_close(paired_cfconv(x, pair_weight, pairs, graph, backend=backend), cfconv(x, pair_weight[pairs.pair], graph))
    by_pair = torch.zeros(30, 5).double().index_add(0, pairs.pair, edge_product(g, x, graph))
    torch.testing.assert_close(pair_product(g, x, pairs, graph, backend=backend), by_pair)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_third_order(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(n, 2, dtype=torch.float64, generator=generator, requires_grad=True) for n in (4, 6))

    def curvature(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = cfconv(x, weight, GRAPH, backend=backend).pow(3).sum()
        first = torch.autograd.grad(value, (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, weight), create_graph=True)

    assert torch.autograd.gradcheck(curvature, (x, weight))
