"""Teacher features of any layer: which there are, that they are what the model computed there, and that a cache keeps them apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import build_terms
from fastkd.errors import ConfigError
from fastkd.models.base import split_layer
from fastkd.teachers import CachedTeacher, LiveTeacher, Offer, Teacher
from fastkd.teachers.output import at_layer, split_need
from tests.models.structures import CUTOFF, batch_of, make_model, random_molecule

from .common import prediction

MOLECULES = [random_molecule(9, 1), random_molecule(5, 2)]
STUDENT = Offer("student", {"node": 4, "vector": 4}, blocks=2, cutoff=CUTOFF)
#: model → layers with the kinds of features there
OFFERED = {
    "painn": {
        "regular_0": {"node"},
        "regular_1": {"node", "vector", "edge"},
        "regular_2": {"node", "vector", "edge"},
    },
    "schnet": {f"regular_{k}": {"node"} for k in range(3)},
    "mxmnet": {f"regular_{k}": {"node"} for k in range(3)},
    "pamnet": {f"regular_{k}": {"node"} for k in range(3)},
    "dimenet_pp": {f"regular_{k}": {"node", "edge"} for k in range(3)} | {f"x_{k}": {"node"} for k in range(3)},
    "gemnet_oc": {f"regular_{k}": {"node", "edge"} for k in range(3)} | {f"x_{k}": {"node"} for k in range(3)},
    "gemnet_oc_direct": {f"{stack}_{k}": {"node", "edge"} for k in range(2) for stack in ("regular", "x")},
}


def terms_of(teacher: Offer, *items: dict[str, object]):
    return build_terms(DistillConfig(terms=[TermConfig(**item) for item in items]), STUDENT, teacher).double()


def test_names_of_layers():
    assert split_layer("regular_12") == ("regular", 12)
    assert split_layer("x_0") == ("x", 0)
    for wrong in ("final", "regular_", "y_1", "x_-1", "x_a"):
        with pytest.raises(ValueError, match="is no layer"):
            split_layer(wrong)
    for need in ("node", "node@x_2", "edge_sum@regular_0"):
        assert at_layer(*split_need(need)) == need
    with pytest.raises(ValueError, match="teacher_layer"):
        TermConfig(kind="n2n", teacher_layer="last")


@pytest.mark.parametrize("name", OFFERED)
def test_every_layer_that_is_offered_is_there_with_its_width(name):
    model = make_model(name)
    widths = model.layer_widths
    assert {layer: set(kinds) for layer, kinds in widths.items() if layer != "final"} == OFFERED[name]
    model.kept_layers = frozenset(widths)
    features = model(batch_of(*MOLECULES)).features.detach()
    seen: list[Tensor] = []
    for layer, kinds in widths.items():
        for kind, width in kinds.items():
            if kind == "atom_energy":
                continue
            value = features.at(kind, layer)
            assert value is not None, (kind, layer)
            assert value.shape[-1] == width, (kind, layer)
            assert not value.requires_grad
            seen.append(value)
    assert features.at("node", "regular_9") is features.at("edge", "regular_9") is features.at("node", "x_9") is None
    last = f"regular_{model.num_blocks}"
    if "gemnet" not in name:
        assert torch.equal(features.at("node", last), features.node)
    assert len({float(value.sum()) for value in seen}) > model.num_blocks


def test_layers_of_edges_are_held_only_when_asked_for():
    model, batch = make_model("gemnet_oc_direct"), batch_of(*MOLECULES)
    features = model(batch).features
    assert features.at("edge", "regular_1") is features.at("edge", "x_1") is None
    assert features.at("node", "x_1") is not None
    assert features.edge is not None
    model.kept_layers = frozenset({"x_1"})
    features = model(batch).features
    assert features.at("edge", "x_1") is not None
    assert features.at("edge", "x_0") is None


def test_x_features_are_what_the_global_output_layers_are_made_of():
    """GemNet-OC's x_k of all blocks, put side by side, give x_E and x_F of the final layer."""
    model = make_model("gemnet_oc_direct")
    model.kept_layers = frozenset(model.layer_widths)
    features = model(batch_of(*MOLECULES)).features
    blocks = range(model.num_blocks + 1)
    for kind, layers in (("node", model.energy_mlp), ("edge", model.force_mlp)):
        together = torch.cat([features.at(kind, f"x_{k}") for k in blocks], 1)
        torch.testing.assert_close(layers(together), features.at(kind))


@pytest.mark.parametrize("name", ["gemnet_oc_direct", "painn"])
def test_targets_of_a_layer_live_and_cached(name):
    model = make_model(name)
    teacher = Teacher(model)
    x = "x_0" if name == "gemnet_oc_direct" else "regular_1"
    last = f"regular_{model.num_blocks}"
    items = [
        {"kind": "n2n", "teacher_layer": "regular_1"},
        {"kind": "n2n", "teacher_layer": x},
        {"kind": "n2n"},
        {"kind": "e2n", "teacher_layer": x},
        {"kind": "e2n", "teacher_layer": last, "reduce": "mean"},
        {"kind": "v2v", "teacher_layer": x},
    ]
    terms = terms_of(teacher.offer, *items)
    vector = f"vector@{x}" if name == "painn" else f"edge_vector_sum@{x}"
    assert terms.needs == {"node@regular_1", f"node@{x}", "node", f"edge_sum@{x}", f"edge_sum@{last}", "degree", vector}
    batch = batch_of(*MOLECULES)
    live = LiveTeacher(teacher, terms.needs)(batch)
    model.kept_layers = frozenset(model.layer_widths)
    features = model(batch).features
    graph = batch.graph(CUTOFF).csr if features.edge_graph is None else features.edge_graph.csr
    torch.testing.assert_close(live.get(f"node@{x}"), features.at("node", x).detach())
    total = torch.zeros(batch.num_atoms, features.at("edge", x).shape[1], dtype=torch.float64)
    torch.testing.assert_close(live.get(f"edge_sum@{x}"), total.index_add(0, graph.edge_dst, features.at("edge", x).detach()))
    if name != "painn":
        spread = features.edge_graph.direction.detach()[:, :, None] * features.at("edge", x).detach()[:, None, :]
        want = torch.zeros(batch.num_atoms, 3, spread.shape[2], dtype=torch.float64).index_add(0, graph.edge_dst, spread)
        torch.testing.assert_close(live.get(vector), want)
    cache = CachedTeacher.build(teacher, terms.needs, [batch], dataset_hash="data")
    cached = cache(batch)
    for need in terms.needs:
        assert torch.equal(cached.get(need), live.get(need)), need
    out = prediction(batch, 4)
    a, b = terms(out, live, batch), terms(out, cached, batch)
    assert len(a) == len(items)
    for key, value in a.items():
        assert torch.equal(value.raw, b[key].raw)
    moved = live.to("cpu")
    assert torch.equal(moved.get(vector), live.get(vector))


def test_a_term_compares_with_the_layer_it_names():
    teacher = Teacher(make_model("schnet"))
    terms = terms_of(teacher.offer, {"kind": "n2n", "teacher_layer": "regular_1", "loss": "mae"})
    batch = batch_of(*MOLECULES)
    out = prediction(batch, 4)
    layers = make_model("schnet")(batch).features.layers
    weight, bias = terms.parameters()
    want = (nn.functional.linear(out.features.node, weight, bias) - layers[1]).abs().mean()
    torch.testing.assert_close(terms(out, LiveTeacher(teacher, terms.needs)(batch), batch)["n2n"].raw, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("schnet", {"kind": "n2n", "teacher_layer": "x_1"}, ["teacher_layer = x_1", "regular_0, regular_1, regular_2"]),
        ("schnet", {"kind": "n2n", "teacher_layer": "regular_3"}, ["regular_3", "regular_2"]),
        ("painn", {"kind": "v2v", "teacher_layer": "regular_0"}, ["vector or edge", "node [8]", "regular_1, regular_2"]),
        ("gemnet_oc", {"kind": "e2n", "teacher_layer": "x_1"}, ["edge features", "at layer x_1", "regular_0"]),
    ],
)
def test_layers_that_are_not_there(name, options, words):
    with pytest.raises(ConfigError) as caught:
        terms_of(Offer.of(make_model(name), "teacher"), options)
    for word in words:
        assert word in str(caught.value)


def test_a_foreign_teacher_has_its_final_layer_only():
    with pytest.raises(ConfigError, match=r"final layer only.*teacher.features"):
        terms_of(Offer("teacher (Net)", {"node": 4}), {"kind": "n2n", "teacher_layer": "regular_1"})
