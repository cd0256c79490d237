"""DimeNet++ against PyTorch Geometric's: same weights, same energies, forces and gradients, in float64."""

from functools import cache

import pytest
import torch

from bench.training_step import ethanol, relative, training_step
from fastkd.models.dimenet_pp_weights import dimenet_pp_name, load_dimenet_pp

from .structures import batch_of, random_molecule
from .test_dimenet_pp import brute_force_triplets

pytest.importorskip("sympy", reason="needs the extra `peers`")
pyg = pytest.importorskip("torch_geometric.nn.models.dimenet", reason="needs the extra `peers`")
utils = pytest.importorskip("torch_geometric.nn.models.dimenet_utils", reason="needs the extra `peers`")

#: sympy takes half a minute for each basis
cached_basis = cache(utils.bessel_basis)

pytestmark = pytest.mark.peers

CUTOFF = 5.0
SIZES = {
    "hidden_channels": 24,
    "num_blocks": 2,
    "int_emb_size": 16,
    "basis_emb_size": 8,
    "out_emb_channels": 20,
    "num_spherical": 7,
    "num_radial": 6,
    "cutoff": CUTOFF,
    "envelope_exponent": 5,
}


def pair(batch, monkeypatch, **changes):
    """Both models, and the function that gives theirs energies and forces; edges and triplets are found here, by brute force."""
    graph = batch.graph(CUTOFF)
    edges = torch.stack([graph.csr.edge_src, graph.csr.edge_dst])
    found = torch.tensor(sorted(brute_force_triplets(graph)), dtype=torch.int64).view(-1, 2)

    def triplets(edge_index, num_nodes):
        (source, target), (kj, ji) = edge_index, found.T
        return target, source, target[ji], source[ji], source[kj], kj, ji

    monkeypatch.setattr(utils, "bessel_basis", cached_basis)
    monkeypatch.setattr(pyg, "radius_graph", lambda *args, **options: edges)
    monkeypatch.setattr(pyg, "triplets", triplets)
    torch.manual_seed(0)
    sizes = {**SIZES, **changes}
    theirs = pyg.DimeNetPlusPlus(out_channels=1, output_initializer="glorot_orthogonal", **sizes).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = load_dimenet_pp(sizes, theirs.state_dict()).train()

    def outputs():
        positions = batch.positions.detach().requires_grad_()
        energy = theirs(batch.atomic_numbers, positions, batch.graph_index).squeeze(-1)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -gradient

    return ours, theirs, outputs


def ours_outputs(model, batch):
    prediction = model(batch)
    return prediction.energy, prediction.forces


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),  # PyTorch Geometric's symbolic basis is built in ten seconds
        {"num_spherical": 3, "num_radial": 9, "envelope_exponent": 3},
        pytest.param({"num_before_skip": 2, "num_after_skip": 1, "num_output_layers": 1}, marks=pytest.mark.slow),
    ],
    ids=["paper", "other_basis", "other_depth"],
)
def test_energies_forces_and_weight_gradients_are_equal(monkeypatch, changes):
    batch = ethanol(2, 1, torch.float64)
    ours, theirs, outputs = pair(batch, monkeypatch, **changes)
    target = 0.1 * torch.randn(batch.num_atoms, 3, dtype=torch.float64)
    got = training_step(lambda: ours_outputs(ours, batch), target, ours.parameters())
    want = training_step(outputs, target, theirs.parameters())
    assert relative(got[0], want[0]) < 1e-11
    assert relative(got[1], want[1]) < 1e-11
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None, name
        assert relative(mine[dimenet_pp_name(name)].grad[: len(parameter)], parameter.grad) < 1e-10, name
    assert len(mine) == len(list(theirs.parameters()))


def test_random_molecules_with_neighbours_beyond_the_cutoff(monkeypatch):
    batch = batch_of(random_molecule(14, 1), random_molecule(9, 2), cutoff=CUTOFF)
    ours, _, outputs = pair(batch, monkeypatch)
    for got, want in zip(ours_outputs(ours, batch), outputs(), strict=True):
        assert relative(got, want) < 1e-11


def test_a_difference_is_noticed(monkeypatch):
    batch = ethanol(1, 1, torch.float64)
    ours, _, outputs = pair(batch, monkeypatch)
    with torch.no_grad():
        ours.interactions[1].spherical[0].weight[3, 12] += 1e-3
    assert relative(ours_outputs(ours, batch)[1], outputs()[1].detach()) > 1e-9
