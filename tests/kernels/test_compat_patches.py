"""Other people's models, patched and not: equal energies, forces and gradients, and nothing else changed."""

from __future__ import annotations

import copy
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastkd_kernels.compat.patches import PatchError, patch, unpatch
from fastkd_kernels.graph import CSRGraph
from fastkd_kernels.tolerances import relative_error
from fastkd_kernels.triplet_reduce.triplets import TripletIndex
from torch import Tensor, nn

from .peer_models import PEERS, Molecules, Peer

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")
pytestmark = [
    pytest.mark.peers,
    # the other packages' own use of deprecated functions
    pytest.mark.filterwarnings("ignore:.*jittable' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using torch.cross without specifying the dim arg:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

#: of a relative error: sums in another order, differentiated twice
LIMITS = {torch.float64: 1e-10, torch.float32: 5e-5}


@pytest.fixture(params=sorted(PEERS))
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Peer:
    return ready(request.param, monkeypatch)


def ready(name: str, monkeypatch: pytest.MonkeyPatch) -> Peer:
    PEERS[name].prepare(monkeypatch)
    return PEERS[name]


def make(peer: Peer, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peer.build().to(dtype)
        torch.manual_seed(seed + 1)
        with torch.no_grad():  # nothing may be zero and hide a wrong term
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, dtype=torch.float64).to(dtype))
    return model


def energy_and_forces(peer: Peer, model: nn.Module, molecules: Molecules) -> tuple[Tensor, Tensor]:
    positions = molecules.positions.detach().clone().requires_grad_()
    energy = peer.energy(model, molecules, positions)
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return energy, -gradient


def everything(peer: Peer, model: nn.Module, molecules: Molecules) -> dict[str, Tensor]:
    """Energies, forces, and the gradient of a loss on both by every parameter."""
    energy, forces = energy_and_forces(peer, model, molecules)
    model.zero_grad()
    ((energy - 0.3).square().mean() + (forces - 0.1).square().mean()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    return {"energy": energy.detach(), "forces": forces.detach(), **{name: g.clone() for name, g in gradients.items()}}


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    assert got.keys() == want.keys()
    return {name: relative_error(got[name], want[name]) for name in want}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_energies_forces_and_gradients_are_equal(peer: Peer, dtype: torch.dtype) -> None:
    molecules, model = Molecules.random(dtype=dtype), make(peer, dtype)
    want = everything(peer, model, molecules)
    assert want["forces"].abs().max() > 1e-4
    report = patch(model)
    got = everything(peer, model, molecules)
    if dtype == torch.float64:
        worst = errors(got, want)
    else:
        # where float32 itself is far from the truth, ours may be as far
        truth = everything(peer, make(peer), Molecules.random())
        mine, theirs = errors(got, truth), errors(want, truth)
        worst = {name: max(0.0, mine[name] - 3 * theirs[name]) for name in mine}
    assert max(worst.values()) < LIMITS[dtype], worst
    assert {row.kernel for row in report.replaced} == peer.kernels
    assert (len(report.replaced), len(report.left)) == (peer.replaced, peer.left), str(report)
    assert all(row.name in str(report) for row in report.replaced)


def test_nothing_but_the_forward_changes_and_unpatching_restores_it(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer)
    want = everything(peer, model, molecules)
    before = [(id(m), type(m), list(vars(m))) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    report = patch(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.load_state_dict(state)
    everything(peer, model, molecules)
    report.undo()
    assert [(id(m), type(m), list(vars(m))) for m in model.modules()] == before
    got = everything(peer, model, molecules)
    assert all(torch.equal(got[name], want[name]) for name in want)
    with pytest.raises(PatchError, match="not patched any more"):
        report.undo()
    with pytest.raises(PatchError, match="is not patched"):
        unpatch(model)
    patch(model)
    unpatch(model)
    assert [(id(m), type(m), list(vars(m))) for m in model.modules()] == before


def test_a_patched_model_is_deterministic_and_knows_no_old_batch(peer: Peer) -> None:
    small, large = Molecules.random((3, 6), seed=1), Molecules.random((8, 2, 5), seed=2)
    model = make(peer)
    want = [everything(peer, model, batch) for batch in (small, large, small)]
    patch(model)
    got = [everything(peer, model, batch) for batch in (small, large, small)]
    assert all(max(errors(mine, theirs).values()) < LIMITS[torch.float64] for mine, theirs in zip(got, want, strict=True))
    assert all(torch.equal(got[0][name], got[2][name]) for name in got[0])


@pytest.mark.parametrize("name", ["pyg_schnet", "schnetpack_painn", "dimenet++"])
def test_an_index_rewritten_behind_torchs_back_is_read_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready(name, monkeypatch), Molecules.random()
    model, plain = make(peer), make(peer)
    patch(model)
    first = energy_and_forces(peer, model, molecules)[0]
    # the same tensor with the same version counter: the last atom's edges become loops of pairs elsewhere
    version, edges = molecules.edge_index._version, molecules.edge_index.numpy()
    edges[:, edges[1] == edges.max()] = [[0], [1]]
    assert molecules.edge_index._version == version
    energy = energy_and_forces(peer, model, molecules)[0]
    torch.testing.assert_close(energy, energy_and_forces(peer, plain, molecules)[0], rtol=1e-10, atol=1e-10)
    assert (energy - first).abs().max() > 1e-6


def test_edges_are_sorted_once_a_forward(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counted(cls: type, name: str) -> None:
        original = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *args, **kwargs: built.append(name) or original(*args, **kwargs))

    counted(CSRGraph, "from_edges")
    counted(TripletIndex, "from_triplets")
    molecules, model = Molecules.random(), make(peer)
    patch(model)
    for forwards in (1, 2):
        peer.energy(model, molecules, molecules.positions)
        assert len(built) == forwards * peer.indices


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3, 1), (1, 1)], ids=["no triplets", "lone atoms", "no edges"])
def test_small_molecules(peer: Peer, sizes: tuple[int, ...]) -> None:
    if 1 in sizes and not peer.lone_atoms:
        pytest.skip("the model itself refuses images without neighbours")
    molecules, model = Molecules.random(sizes), make(peer)
    want = everything(peer, model, molecules)
    patch(model)
    assert max(errors(everything(peer, model, molecules), want).values()) < LIMITS[torch.float64]


def test_modes_of_inference(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer).eval()
    want = peer.energy(model, molecules, molecules.positions).detach()
    patch(model)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(peer.energy(model, molecules, molecules.positions).clone(), want, rtol=1e-10, atol=1e-12)


def test_threads_do_not_share_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, batches = ready("schnetpack_painn", monkeypatch), [Molecules.random((3, 4 + i), seed=i) for i in range(4)]
    model = make(peer)
    patch(model)
    want = [peer.energy(model, batch, batch.positions) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda batch: [peer.energy(model, batch, batch.positions) for _ in range(10)], batches))
    assert all(torch.equal(energy, value) for energies, value in zip(got, want, strict=True) for energy in energies)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_backend_can_be_chosen(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready("ocp_painn", monkeypatch), Molecules.random()
    model = make(peer)
    want = everything(peer, model, molecules)
    assert f"backend {backend}" in str(patch(model, backend=backend))
    assert max(errors(everything(peer, model, molecules), want).values()) < LIMITS[torch.float64]


@pytest.mark.triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs here only with TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", ["pyg_schnet", "ocp_painn", "dimenet"])
def test_triton(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready(name, monkeypatch), Molecules.random((3, 4))
    model = make(peer)
    want = everything(peer, model, molecules)
    patch(model, backend="triton")
    assert max(errors(everything(peer, model, molecules), want).values()) < LIMITS[torch.float64]


def test_copies_and_pickles(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer)
    plain = energy_and_forces(peer, model, molecules)[0]
    patch(model)
    want = energy_and_forces(peer, model, molecules)[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    # the copy runs on its own weights, and on the kernels
    assert torch.equal(energy_and_forces(peer, twin, molecules)[0], want)
    unpatch(twin)
    assert torch.equal(energy_and_forces(peer, twin, molecules)[0], plain)


@pytest.mark.parametrize("name", ["pyg_schnet", "schnetpack_painn"])
def test_a_pickle_loads_unpatched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready(name, monkeypatch), Molecules.random()
    model = make(peer)
    want = energy_and_forces(peer, model, molecules)[0]
    patch(model)
    stored = pickle.dumps(model)
    assert b"fastkd_kernels" not in stored
    loaded = pickle.loads(stored)
    assert torch.equal(energy_and_forces(peer, loaded, molecules)[0], want)
    patch(loaded)
    buffer = io.BytesIO()
    torch.save(loaded, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(energy_and_forces(peer, again, molecules)[0], want)


#: ocp_schnet and ocp_dimenet++ run the kernels of torch_geometric's
TRAINED = sorted(set(PEERS) - {"ocp_schnet", "ocp_dimenet++"})
LONG = {"dimenet", "gemnet_oc"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in TRAINED])
def test_training_on_forces_takes_the_same_course(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 steps of Adam. In float64 rounding differences (1e-15) stay below 1e-7 of the loss, though Adam and the loss's course let them grow."""
    peer, molecules = ready(name, monkeypatch), Molecules.random((4, 5))
    generator = torch.Generator().manual_seed(3)
    forces_wanted = 0.1 * torch.randn(molecules.positions.shape, dtype=torch.float64, generator=generator)
    curves = []
    for fused in (False, True):
        model = make(peer)
        if fused:
            patch(model)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(100):
            energy, forces = energy_and_forces(peer, model, molecules)
            loss = (energy - 0.5).square().mean() + (forces - forces_wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses, dtype=torch.float64))
    plain, fused_curve = curves
    assert plain[-1] < 0.7 * plain[0]
    torch.testing.assert_close(fused_curve, plain, rtol=1e-7, atol=0)
