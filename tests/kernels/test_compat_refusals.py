"""What `patch` does not replace, and how it says so; and what it must not disturb."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from fastkd_kernels.compat.patches import PatchError, patch, unpatch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")

from torch_geometric.nn import GCNConv
from torch_geometric.nn.aggr import MeanAggregation
from torch_geometric.nn.models import SchNet
from torch_geometric.nn.models.schnet import CFConv

from . import peer_packages
from .peer_models import PEERS, Molecules, default_dtype, fairchem_data, gemnet_oc
from .test_compat_patches import energy_and_forces, make, pytestmark, ready

assert pytestmark  # the same marks hold here

SCHNET = PEERS["pyg_schnet"]


def forwards(model: nn.Module) -> list[Any]:
    return [vars(module).get("forward") for module in model.modules()]


def refused(model: nn.Module, match: str, **arguments: Any) -> None:
    before = forwards(model)
    with pytest.raises(PatchError, match=match):
        patch(model, **arguments)
    assert forwards(model) == before


def test_nothing_to_patch_is_an_error() -> None:
    refused(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "nothing to patch in Sequential")
    refused(nn.ModuleDict({"conv": GCNConv(3, 3)}), r"left: conv \(GCNConv\): message passing of a class that no kernel is known for")


def test_other_message_passing_is_named_and_left() -> None:
    model = nn.ModuleDict({"schnet": make(SCHNET), "other": GCNConv(4, 4)})
    report = patch(model)
    assert [row.name for row in report.replaced] == [f"schnet.interactions.{i}.conv" for i in range(3)]
    assert [(row.name, row.class_name) for row in report.left] == [("other", "GCNConv")]
    assert "no kernel is known" in str(report)


def test_patching_twice_is_an_error() -> None:
    model = make(SCHNET)
    report = patch(model)
    refused(model, "is patched already")
    refused(nn.Sequential(model), "is patched already")
    report.undo()
    patch(model)


def test_another_aggregation_is_refused_and_everything_else_stays_too() -> None:
    model = make(SCHNET)
    model.interactions[1].conv.aggr_module = MeanAggregation()
    refused(model, r"interactions\.1\.conv \(CFConv\): aggregation MeanAggregation, not SumAggregation")
    model = make(SCHNET)
    model.interactions[2].conv.decomposed_layers = 2
    refused(model, "decomposed_layers is 2")
    model = make(SCHNET)
    model.interactions[0].conv.node_dim = 1
    refused(model, "node_dim is 1")


def test_another_version_of_the_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(self: Any, x_j: Tensor, W: Tensor) -> Tensor:
        return x_j * W * 2

    model = make(SCHNET)
    with monkeypatch.context() as patched:
        patched.setattr(CFConv, "message", message)
        refused(model, r"CFConv.message of torch_geometric [\d.]+ is none of the versions")
    with monkeypatch.context() as patched:
        patched.setattr(CFConv, "update", message, raising=False)
        refused(model, "defines 'update', which is not known")
    patch(model)


def test_a_comment_or_an_annotation_more_is_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(self, x_j, W: Tensor):
        """Documented."""
        return x_j * W

    monkeypatch.setattr(CFConv, "message", message)
    patch(make(SCHNET))


def test_a_subclass_may_mean_something_else() -> None:
    class Mine(CFConv):
        def message(self, x_j: Tensor, W: Tensor) -> Tensor:
            return x_j + W

    model = make(SCHNET)
    conv = model.interactions[0].conv
    conv.__class__ = Mine
    report = patch(model)
    assert [(row.name, row.class_name) for row in report.left] == [("interactions.0.conv", "Mine")]
    assert "derived from CFConv" in report.left[0].reason


def test_a_forward_replaced_by_others_is_not_touched() -> None:
    model = make(SCHNET)
    conv = model.interactions[0].conv
    conv.forward = MethodType(lambda self, *args: args[0], conv)
    refused(model, "something replaced 'forward' on this module before")
    model = make(SCHNET)
    report = patch(model)
    conv = model.interactions[1].conv
    ours, theirs = conv.forward, lambda *args: None
    conv.forward = theirs
    for undo in (report.undo, lambda: unpatch(model)):
        with pytest.raises(PatchError, match="something else replaced its forward since; nothing was changed"):
            undo()
    assert conv.forward is theirs
    conv.forward = ours
    unpatch(model)
    assert not any(forwards(model))


def test_a_forward_of_the_whole_model_replaced_by_others_is_not_touched() -> None:
    model = make(SCHNET)
    model.forward = MethodType(lambda self, *args: type(self).forward(self, *args) * 2, model)
    refused(model, "something replaced the forward of this SchNet before")
    wrapper = nn.ModuleDict({"conv": make(SCHNET).interactions[0].conv})
    wrapper.forward = lambda: None
    refused(wrapper, "something replaced the forward of this ModuleDict before")


def test_compiled_models_are_refused() -> None:
    refused(torch.compile(make(SCHNET)), "patch the model first and compile it then")
    model = make(SCHNET)
    model.interactions[0].compile()
    refused(model, "patch the model first and compile it then")


def test_wrong_arguments() -> None:
    model = make(SCHNET)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        patch(model, backend="cuda")
    for wrong in ("cfconv", {"cfconv", "conv"}):
        with pytest.raises(ValueError, match="kernels must be some of cfconv, gated_edge_to_node"):
            patch(model, kernels=wrong)
    assert not any(forwards(model))


def test_kernels_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(ready("dimenet++", monkeypatch))
    report = patch(model, kernels={"cfconv"})
    assert {row.kernel for row in report.replaced} == {"cfconv"}
    assert len(report.left) == 3
    assert all("'gated_edge_to_node' was not asked for" in row.reason for row in report.left)
    unpatch(model)
    refused(model, "nothing to patch", kernels={"painn_message"})


def test_a_sparse_edge_index_is_refused_when_it_comes() -> None:
    model = make(SCHNET)
    patch(model)
    conv, x = model.interactions[0].conv, torch.rand(3, 12, dtype=torch.float64)
    adjacency = torch.eye(3, dtype=torch.float64).to_sparse()
    with pytest.raises(ValueError, match=r"needs a dense edge_index \[2, n_edges\]"):
        conv(x, adjacency, torch.rand(3).double(), torch.rand(3, 8).double())


def test_the_other_flow() -> None:
    model, molecules = make(SCHNET), Molecules.random()
    for interaction in model.interactions:
        interaction.conv.flow = "target_to_source"
    molecules.edge_index[:] = molecules.edge_index[:, torch.randperm(molecules.edge_index.shape[1])]
    keep = molecules.edge_index[0] * 3 % 5 < molecules.edge_index[1]  # no longer symmetric
    molecules = Molecules(molecules.numbers, molecules.positions, molecules.graph_index, molecules.edge_index[:, keep])
    want = energy_and_forces(SCHNET, model, molecules)
    patch(model)
    torch.testing.assert_close(energy_and_forces(SCHNET, model, molecules), want, rtol=1e-10, atol=1e-10)


def test_hooks_on_modules_and_messages_still_run() -> None:
    model, molecules = make(SCHNET), Molecules.random()
    report, seen = patch(model), []
    conv = model.interactions[0].conv
    conv.register_forward_hook(lambda module, args, output: seen.append("module"))
    conv.lin1.register_forward_hook(lambda module, args, output: seen.append("lin1"))
    want = energy_and_forces(SCHNET, model, molecules)[0]
    assert seen == ["lin1", "module"]
    handle = conv.register_message_forward_hook(lambda module, args, output: seen.append("message"))
    torch.testing.assert_close(energy_and_forces(SCHNET, model, molecules)[0], want, rtol=1e-10, atol=1e-10)
    assert seen[2:] == ["lin1", "message", "module"]
    handle.remove()
    report.undo()
    energy_and_forces(SCHNET, model, molecules)
    assert seen[5:] == ["lin1", "module"]


def test_hooks_on_a_gate_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, molecules = ready("dimenet", monkeypatch), Molecules.random()
    model = make(peer)
    patch(model)
    want, seen = energy_and_forces(peer, model, molecules), []
    gate = model.output_blocks[0].lin_rbf
    handle = gate.register_forward_hook(lambda *args: seen.append("forward"))
    torch.testing.assert_close(energy_and_forces(peer, model, molecules), want, rtol=1e-10, atol=1e-10)
    assert seen == ["forward"]
    handle.remove()
    gate.register_full_backward_pre_hook(lambda *args: seen.append("backward"))
    torch.testing.assert_close(energy_and_forces(peer, model, molecules), want, rtol=1e-10, atol=1e-10)
    assert seen == ["forward", "backward"]


def test_a_gate_of_another_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear, self._activation = linear, nn.Identity()

        def forward(self, basis: Tensor) -> Tensor:
            return 2 * self._activation(self.linear(basis))

    peer, molecules = ready("dimenet", monkeypatch), Molecules.random()
    model = make(peer)
    model.output_blocks[1].lin_rbf = Twice(model.output_blocks[1].lin_rbf)
    parametrize.register_parametrization(model.output_blocks[0].lin_rbf, "weight", nn.Softplus())
    want = energy_and_forces(peer, model, molecules)
    patch(model)
    torch.testing.assert_close(energy_and_forces(peer, model, molecules), want, rtol=1e-10, atol=1e-10)


def test_a_single_layer_can_be_patched() -> None:
    model = make(SCHNET)
    conv, edges = model.interactions[0].conv, torch.tensor([[0, 1, 2], [1, 2, 0]])
    arguments = (torch.rand(3, 12).double(), edges, torch.rand(3).double(), torch.rand(3, 8).double())
    want = conv(*arguments)
    patch(conv)
    torch.testing.assert_close(conv(*arguments), want)
    assert any(forwards(model))
    unpatch(model)


def test_activation_checkpointing() -> None:
    class Checkpointed(SchNet):
        def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
            edge_index, length = self.interaction_graph(pos, batch)
            h, attributes = self.embedding(z), self.distance_expansion(length)
            for interaction in self.interactions:
                h = h + checkpoint(interaction, h, edge_index, length, attributes, use_reentrant=False)
            return self.readout(self.lin2(self.act(self.lin1(h))), batch, dim=0)

    model, molecules = make(SCHNET), Molecules.random()
    model.__class__ = Checkpointed
    want = torch.autograd.grad(energy_and_forces(SCHNET, model, molecules)[1].square().sum(), model.embedding.weight)
    patch(model)
    got = torch.autograd.grad(energy_and_forces(SCHNET, model, molecules)[1].square().sum(), model.embedding.weight)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["SchNet", "PaiNN"])
def test_a_patched_representation_compiles_to_one_graph(name: str) -> None:
    peer, molecules = PEERS[f"schnetpack_{name.lower()}"], Molecules.random()
    model = make(peer)
    want = energy_and_forces(peer, model, molecules)
    patch(model)
    model.representation = torch.compile(model.representation, backend="aot_eager", fullgraph=True)
    energy = peer.energy(model, molecules, positions := molecules.positions.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    torch.testing.assert_close((energy, -gradient), want, rtol=1e-10, atol=1e-10)


# fairchem


@pytest.mark.parametrize("kind", ["painn", "gemnet_oc"])
def test_direct_forces(kind: str) -> None:
    """Whole models of fairchem, which end in float32."""
    torch.manual_seed(0)
    if kind == "painn":
        painn = peer_packages.fairchem("painn.painn")
        model = painn.PaiNN(hidden_channels=12, num_layers=2, num_rbf=8, cutoff=5.0, otf_graph=False)
    else:
        model = gemnet_oc(direct_forces=True, cls="GemNetOC")
    molecules = Molecules.random(dtype=torch.float32)
    data = fairchem_data(molecules, molecules.positions)
    want, report = model(data), patch(model)
    got = model(data)
    assert got.keys() == want.keys() == {"energy", "forces"}
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    report.undo()
    torch.testing.assert_close(model(data), want, rtol=0, atol=0)


def test_scaling_factors_are_fitted_to_the_same_statistics() -> None:
    molecules, stats = Molecules.random(), []
    for fused in (False, True):
        torch.manual_seed(0)
        with default_dtype(torch.float64):
            model = gemnet_oc()
            if fused:
                patch(model)
            scales = [module for module in model.modules() if type(module).__name__ == "ScaleFactor"]
            contexts = [scale.fit_context_() for scale in scales]
            for context in contexts:
                context.__enter__()
            model(fairchem_data(molecules, molecules.positions))
            stats.append([list(scale.stats.values()) for scale in scales])
    torch.testing.assert_close(torch.tensor(stats[1]), torch.tensor(stats[0]), rtol=1e-10, atol=1e-12)
    assert torch.tensor(stats[0]).max() > 0


def test_parts_of_gemnet_need_the_whole() -> None:
    block = gemnet_oc().int_blocks[0]
    report = patch(block)
    assert {row.class_name for row in report.replaced} == {"AtomUpdateBlock"}
    assert {row.class_name for row in report.left} == {"TripletInteraction", "QuadrupletInteraction", "PairInteraction"}
    assert all("only inside a GemNetOC" in row.reason for row in report.left)


def test_hooks_that_would_not_run_are_refused() -> None:
    model, molecules = gemnet_oc().float(), Molecules.random(dtype=torch.float32)
    hooked = model.int_blocks[0].trip_interaction.mlp_cbf
    handle = hooked.register_forward_hook(lambda *args: None)
    refused(model, "hooks on mlp_cbf, which a fused kernel does not call")
    handle.remove()
    patch(model)
    hooked.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="hooks were put on the bilinear layer of a patched TripletInteraction"):
        model(fairchem_data(molecules, molecules.positions))


def test_bases_stay_padded_where_somebody_else_takes_them() -> None:
    """Half of a GemNet cannot be patched: its bases have another shape then."""
    molecules = Molecules.random(dtype=torch.float32)
    data = fairchem_data(molecules, molecules.positions)

    def derived(module: nn.Module, **methods: Any) -> None:
        module.__class__ = type("Mine", (type(module),), methods)

    model = gemnet_oc()
    derived(model.int_blocks[1].trip_interaction)
    refused(model, "a Mine takes bases, and is not known")
    for kernels in ({"triplet_reduce"}, None):
        model = gemnet_oc()
        derived(model.int_blocks[0], forward=lambda self, *args, **kwargs: None)
        refused(model, r"in Mine, which hands on bases: Mine.forward of fairchem-core [\d.]+ is none of the versions", kernels=kernels)
    model = gemnet_oc()
    derived(model, get_bases=lambda self, *args, **kwargs: None)
    refused(model, r"in Mine, which hands on bases: Mine.get_bases")
    # others than the bases are safe
    patch(model, kernels={"gated_edge_to_node"})
    model = gemnet_oc()
    derived(model.int_blocks[0])
    derived(model)
    want = model(data)["xs_E"]
    patch(model)
    torch.testing.assert_close(model(data)["xs_E"], want, rtol=1e-4, atol=1e-5)


def test_a_bilinear_layer_of_another_class_is_refused() -> None:
    for step, name in (("trip_interaction", "mlp_cbf"), ("quad_interaction", "mlp_sbf")):
        model = gemnet_oc()
        layer = getattr(getattr(model.int_blocks[0], step), name)
        layer.__class__ = type("Mine", (type(layer),), {})
        refused(model, f"{name} is a Mine, not an EfficientInteractionBilinear")
