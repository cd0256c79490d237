"""What people do with a patched model: move it, freeze it, run it in another mode, on nothing, or through another transformation."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from fastkd_kernels.compat.patches import patch, unpatch
from fastkd_kernels.tolerances import relative_error
from torch import Tensor

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")

from .peer_models import PEERS, Molecules, Peer, gemnet_oc
from .test_compat_patches import LIMITS, energy_and_forces, errors, everything, make, pytestmark, ready

assert pytestmark  # the same marks hold here
EXACT = LIMITS[torch.float64]


@pytest.fixture(params=sorted(PEERS))
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Peer:
    return ready(request.param, monkeypatch)


def test_moved_to_another_dtype_after_patching(peer: Peer) -> None:
    molecules, model, plain = Molecules.random(), make(peer, torch.float32), make(peer, torch.float32).double()
    patch(model)
    peer.energy(model, molecules_in_float32 := Molecules.random(dtype=torch.float32), molecules_in_float32.positions)
    model.double()
    assert max(errors(everything(peer, model, molecules), everything(peer, plain, molecules)).values()) < EXACT


def test_bfloat16(peer: Peer) -> None:
    """On a CPU the reference backend; no further from float64 than the plain model."""
    molecules = Molecules.random(dtype=torch.bfloat16)
    truth_of = Molecules(molecules.numbers, molecules.positions.double(), molecules.graph_index, molecules.edge_index)
    model = make(peer, torch.bfloat16)
    try:
        plain = peer.energy(model, molecules, molecules.positions)
    except RuntimeError as error:
        pytest.skip(f"the model itself refuses bfloat16: {error}")
    want = peer.energy(copy.deepcopy(model).double(), truth_of, truth_of.positions)
    patch(model)
    fused = peer.energy(model, molecules, molecules.positions)
    assert fused.dtype == plain.dtype
    assert relative_error(fused, want) < max(0.03, 2 * relative_error(plain, want))


def test_autocast_of_a_training_step(peer: Peer) -> None:
    """No further from float64 than the plain model under autocast, in energies, forces and gradients."""
    molecules, model = Molecules.random(dtype=torch.float32), make(peer, torch.float32)
    truth = everything(peer, make(peer), Molecules.random())
    results = []
    for fused in (False, True):
        if fused:
            patch(model)
        with torch.autocast("cpu", torch.bfloat16):
            try:
                results.append(everything(peer, model, molecules))
            except RuntimeError as error:
                if fused:
                    raise
                pytest.skip(f"the model itself refuses autocast: {error}")
    plain, got = (errors(result, truth) for result in results)
    assert {name: value.dtype for name, value in results[0].items()} == {name: value.dtype for name, value in results[1].items()}
    worst = {name: (got[name], plain[name]) for name in got if got[name] > max(0.05, 2 * plain[name])}
    assert not worst


def test_a_loss_on_forces_in_eval_mode(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer).eval()
    want = everything(peer, model, molecules)
    patch(model)
    assert max(errors(everything(peer, model, molecules), want).values()) < EXACT


def test_frozen_weights(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer).requires_grad_(False)
    want = energy_and_forces(peer, model, molecules)
    patch(model)
    got = energy_and_forces(peer, model, molecules)
    assert max(relative_error(a, b) for a, b in zip(got, want, strict=True)) < EXACT
    # some layers frozen
    parameters = list(model.named_parameters())
    for _, parameter in parameters[::2]:
        parameter.requires_grad_()
    got_some = everything(peer, model, molecules)
    unpatch(model)
    want_some = everything(peer, model, molecules)
    assert max(errors(got_some, want_some).values()) < EXACT


def test_no_atoms_at_all(peer: Peer) -> None:
    whole = Molecules.random((3,))
    none = Molecules(whole.numbers[:0], whole.positions[:0], whole.graph_index[:0], whole.edge_index[:, :0])
    model = make(peer)
    try:
        want = peer.energy(model, none, none.positions)
    except (RuntimeError, IndexError, ValueError) as error:
        pytest.skip(f"the model itself refuses an empty batch: {error}")
    patch(model)
    assert torch.equal(peer.energy(model, none, none.positions), want)


def test_weights_handed_in_from_outside(peer: Peer) -> None:
    molecules, model = Molecules.random(), make(peer)
    other = {name: value.detach() * 1.1 for name, value in model.named_parameters()}

    def energy(weights: dict[str, Tensor]) -> Tensor:
        holder = _Whole(peer, molecules, model)
        return torch.func.functional_call(holder, {f"model.{name}": value for name, value in weights.items()}, (molecules.positions,))

    want = energy(other)
    patch(model)
    torch.testing.assert_close(energy(other), want, rtol=EXACT, atol=1e-12)


class _Whole(torch.nn.Module):
    def __init__(self, peer: Peer, molecules: Molecules, model: torch.nn.Module) -> None:
        super().__init__()
        self.peer, self.molecules, self.model = peer, molecules, model

    def forward(self, positions: Tensor) -> Tensor:
        return self.peer.energy(self.model, self.molecules, positions)


@pytest.mark.parametrize(
    "on", [(), ("quad_interaction",), ("atom_edge_interaction", "edge_atom_interaction"), ("atom_interaction",)], ids=str
)
def test_gemnet_with_fewer_interactions(on: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    peer = dataclasses.replace(ready("gemnet_oc", monkeypatch), build=lambda: gemnet_oc(interactions=on))
    molecules, model = Molecules.random(), make(peer)
    want = everything(peer, model, molecules)
    patch(model)
    assert max(errors(everything(peer, model, molecules), want).values()) < EXACT


@pytest.mark.parametrize("name", ["pyg_schnet", "schnetpack_painn"])
def test_forward_mode_is_an_error_and_not_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready(name, monkeypatch), Molecules.random()
    model = make(peer)
    patch(model)
    with pytest.raises(NotImplementedError, match="not in forward mode"):
        torch.func.jvp(lambda x: peer.energy(model, molecules, x), (molecules.positions,), (torch.ones_like(molecules.positions),))
