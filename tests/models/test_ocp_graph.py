"""The neighbour graph with a limit, against brute force."""

from dataclasses import replace

import pytest
import torch

from fastkd.models import PaiNN, PaiNNOptions
from fastkd.models.ocp_graph import limited_graph, ocp_graph

from .structures import batch_of, make_model, random_molecule

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


def vectors(graph):
    csr = graph.csr
    return POSITIONS[csr.edge_dst] - POSITIONS[csr.edge_src] - graph.edge_shift.double() @ CELL


@pytest.mark.parametrize("symmetric", [False, True], ids=["directed", "symmetric"])
@pytest.mark.parametrize("limit", [0, 1, 7, 13, 20, 10000])
def test_a_whole_graph_is_cut_to_the_same(limit, symmetric):
    whole, want = make(0, symmetric=False), make(limit, symmetric=symmetric)
    part, kept = limited_graph(whole, vectors(whole), limit, symmetric=symmetric)
    assert edge_set(part) == edge_set(want)
    assert (part.pairs is None) == (want.pairs is None)
    if kept is None:
        assert part is whole
    else:
        assert torch.equal(part.csr.edge_src, whole.csr.edge_src[kept])
        assert torch.equal(part.edge_shift, whole.edge_shift[kept])
        assert torch.equal(vectors(part), vectors(whole)[kept])
        length = vectors(part).norm(dim=1)
        torch.testing.assert_close(length[part.pair_edge][part.pair], length)


def test_a_graph_without_reverse_edges_cannot_be_mirrored():
    directed = make(20, symmetric=False)
    with pytest.raises(ValueError, match="cannot be made symmetric"):
        limited_graph(directed, vectors(directed), 7, symmetric=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mirrored", [False, True], ids=["directed", "mirrored"])
def test_models_with_a_limit(mirrored, dtype):
    """Batches do not matter, forces are the gradient of the energy, and edges outside the limit have features still."""
    torch.manual_seed(0)
    options = {"width": 8, "layers": 2, "radial": 6, "cutoff": 3.0}
    model = PaiNN(PaiNNOptions(**options, max_neighbors=3, mirrored=mirrored)).to(dtype)
    free = PaiNN(PaiNNOptions(**options)).to(dtype)
    free.load_state_dict(model.state_dict())
    molecules = [random_molecule(12, 2), random_molecule(2, 3), random_molecule(1, 4)]
    batch = batch_of(*molecules, dtype=dtype)
    together, unlimited = model(batch), free(batch)
    alone = [model(batch_of(molecule, dtype=dtype)) for molecule in molecules]
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in alone]), **tolerance)
    torch.testing.assert_close(together.forces, torch.cat([one.forces for one in alone]), **tolerance)
    assert abs(together.energy[0] - unlimited.energy[0]) > 1e-4
    torch.testing.assert_close(together.energy[1:], unlimited.energy[1:], **tolerance)
    assert together.features.edge.shape == unlimited.features.edge.shape
    if dtype == torch.float64:
        positions = batch.positions.clone().requires_grad_(True)
        energy = model(replace(batch, positions=positions), forces=False).energy.sum()
        (gradient,) = torch.autograd.grad(energy, positions)
        torch.testing.assert_close(together.forces, -gradient, rtol=1e-10, atol=1e-12)


def test_schnet_with_a_limit_has_weight_gradients_as_on_a_cut_graph():
    molecule = random_molecule(12, 2)
    model = make_model("schnet")
    whole, cut = batch_of(molecule), batch_of(molecule, max_neighbors=3)
    want = model(cut)
    want.forces.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.options = replace(model.options, max_neighbors=3)
    got = model(whole)
    got.forces.square().sum().backward()
    torch.testing.assert_close(got.forces, want.forces, rtol=1e-10, atol=1e-12)
    for gradient, parameter in zip(gradients, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
