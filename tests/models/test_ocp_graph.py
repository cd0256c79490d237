"""The neighbour graph with a limit, against brute force."""

import pytest
import torch

from fastkd.models.ocp_graph import ocp_graph

CELL = torch.tensor([[4.1, 0, 0], [0.5, 4.6, 0], [0.2, 0.3, 5.0]], dtype=torch.float64)
ATOMS = 5
POSITIONS = 4 * torch.rand(ATOMS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
CUTOFF = 5.0


def brute_force(limit):
    """Set of (source, target, shift), the nearest of each target first."""
    images = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3)
    edges = []
    for target in range(ATOMS):
        found = []
        for source in range(ATOMS):
            lengths = (POSITIONS[target] - POSITIONS[source] - images.double() @ CELL).norm(dim=1)
            found += [
                (lengths[k].item(), source, target, tuple(images[k].tolist()))
                for k in ((lengths <= CUTOFF) & (lengths > 0)).nonzero().flatten()
            ]
        edges += sorted(found)[: limit or None]
    return {(source, target, shift) for _, source, target, shift in edges}


def edge_set(graph):
    return {
        (s, d, tuple(k))
        for s, d, k in zip(graph.csr.edge_src.tolist(), graph.csr.edge_dst.tolist(), graph.edge_shift.tolist(), strict=True)
    }


def make(limit, *, symmetric):
    return ocp_graph(POSITIONS, CELL[None], torch.tensor([ATOMS]), CUTOFF, limit, symmetric=symmetric)


def test_without_a_limit():
    for graph in (make(0, symmetric=False), make(0, symmetric=True), make(10000, symmetric=False)):
        assert edge_set(graph) == brute_force(0)
        assert graph.pairs is not None
        assert graph.csr.edge_dst.equal(graph.csr.edge_dst.sort().values)


def others(edges):
    """Edges between different atoms: the images of one atom lie at equal distances two by two, and either may be cut off."""
    return {edge for edge in edges if edge[0] != edge[1]}


@pytest.mark.parametrize("limit", [1, 7, 13, 20])
def test_the_nearest_are_kept(limit):
    graph = make(limit, symmetric=False)
    assert others(edge_set(graph)) == others(brute_force(limit))
    assert torch.bincount(graph.csr.edge_dst, minlength=ATOMS).tolist() == [limit] * ATOMS
    assert graph.pairs is None


@pytest.mark.parametrize("limit", [7, 20])
def test_mirrored_edges(limit):
    graph, kept = make(limit, symmetric=True), brute_force(limit)
    lower = {(s, d, k) for s, d, k in kept if s < d}
    assert others(edge_set(graph)) == lower | {(d, s, tuple(-x for x in k)) for s, d, k in lower}
    pairs = graph.pairs
    first, second = pairs.pair_edges.unbind(1)
    assert torch.equal(graph.csr.edge_src[first], graph.csr.edge_dst[second])
    assert torch.equal(graph.edge_shift[first], -graph.edge_shift[second])
    assert torch.equal(graph.pair[graph.pair_edge], torch.arange(pairs.num_pairs))


def test_no_neighbours_at_all():
    graph = ocp_graph(
        torch.zeros(1, 3, dtype=torch.float64), 50 * torch.eye(3, dtype=torch.float64)[None], torch.tensor([1]), 5.0, 10, symmetric=True
    )
    assert graph.num_edges == 0
    assert graph.csr.num_nodes == 1
    assert graph.pairs.num_pairs == 0
