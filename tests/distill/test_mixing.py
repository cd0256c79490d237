"""LKM: the formula, what the mean's gradient changes, every architecture's embeddings, and embeddings that collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import CollapseWatch, Terms, build_terms
from fastkd.distill.mixing import Spread, mixing_loss
from fastkd.errors import ConfigError
from fastkd.models import PAMNet, PAMNetOptions
from fastkd.teachers import Offer
from tests.models.structures import batch_of, make_model, random_molecule

from .common import normal

ARCHITECTURES = ["painn", "schnet", "gemnet_oc", "dimenet_pp", "mxmnet", "pamnet", "pamnet_s"]
#: what each offers, in order (the first is auto), and how many embeddings of its two blocks that is
CANDIDATES = {
    "painn": {"blocks": 2, "embedding_blocks": 3},
    "schnet": {"blocks": 2, "embedding_blocks": 3},
    "gemnet_oc": {"blocks": 2, "embedding_blocks": 3, "outputs": 3},
    "dimenet_pp": {"outputs": 3, "sums": 3},
    "mxmnet": {"blocks": 2, "embedding_blocks": 3, "planes": 4, "outputs": 2},
    "pamnet": {"blocks": 2, "embedding_blocks": 3, "planes": 4, "outputs": 2, "plane_outputs": 4},
    "pamnet_s": {"blocks": 2, "embedding_blocks": 3, "planes": 4, "outputs": 2, "plane_outputs": 4},
}
MOLECULES = [random_molecule(9, 1), random_molecule(5, 2)]


def embeddings(layers: int = 4, atoms: int = 7, width: int = 5) -> list[Tensor]:
    return [normal(atoms, width, seed=60 + layer).requires_grad_() for layer in range(layers)]


def lkm(student: Offer, **options: object) -> Terms:
    return build_terms(DistillConfig(terms=[TermConfig(kind="lkm", **options)]), student, None).double()


@pytest.mark.parametrize(("kind", "p"), [("mae", 1), ("mse", 2)])
@pytest.mark.parametrize(("layers", "atoms", "width"), [(4, 7, 5), (2, 1, 3), (6, 3, 1)])
def test_the_formula(kind, p, layers, atoms, width):
    e = embeddings(layers, atoms, width)
    values = np.array([layer.detach().numpy() for layer in e])
    total = 0.0
    for i in range(atoms):
        mean = values[:, i].mean(0)
        total += sum(np.abs(values[j, i] - mean) ** p for j in range(layers)).sum()
    assert mixing_loss(e, kind).item() == pytest.approx(total / (layers * atoms * width), rel=1e-13)


def test_no_atoms_are_worth_zero():
    assert mixing_loss([torch.zeros(0, 4), torch.zeros(0, 4)]).item() == 0


def test_the_gradient_through_the_mean_matters_for_p_1_alone():
    e = embeddings()

    def gradient(kind: str, *, detach: bool) -> Tensor:
        return torch.stack(torch.autograd.grad(mixing_loss(e, kind, detach_mean=detach), e))

    torch.testing.assert_close(gradient("mse", detach=True), gradient("mse", detach=False), rtol=0, atol=1e-15)
    assert (gradient("mae", detach=True) - gradient("mae", detach=False)).abs().max() > 1e-3
    stacked = torch.stack([layer.detach() for layer in e])
    sign = torch.sign(stacked - stacked.mean(0)) / stacked.numel()
    torch.testing.assert_close(gradient("mae", detach=True), sign)
    torch.testing.assert_close(gradient("mae", detach=False), sign - sign.mean(0))


def test_equal_layers_are_worth_zero_and_have_a_finite_gradient():
    one = normal(5, 3, seed=1).requires_grad_()
    loss = mixing_loss([one, one])
    assert loss.item() == 0
    assert torch.autograd.grad(loss, one)[0].isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_offers_its_candidates(name):
    model = make_model(name)
    assert {key: number for key, (number, _) in model.mixing.items()} == CANDIDATES[name]
    features = model(batch_of(*MOLECULES)).features
    assert list(features.mixing) == list(model.mixing)
    for key, (number, width) in model.mixing.items():
        layers = features.mixing[key]
        assert [tuple(layer.shape) for layer in layers] == [(14, width)] * number, key
        assert len({float(layer.detach().sum()) for layer in layers}) == number, key
    if "blocks" in model.mixing:
        assert torch.equal(features.mixing["blocks"][-1], features.layers[-1])
        assert torch.equal(features.mixing["embedding_blocks"][0], features.layers[0])
    if "planes" in model.mixing:
        for local, plane in zip(features.mixing["blocks"], features.mixing["planes"][1::2], strict=True):
            assert torch.equal(local, plane)
    if name == "dimenet_pp":
        # (b) is what (a) is made of
        output, total = model.outputs[1], features.mixing["sums"][1]
        torch.testing.assert_close(output.dense(output.up(total)), features.mixing["outputs"][1])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_mixing_needs_no_teacher_and_leaves_the_model_alone(name, loss):
    """No parameters, the same state dict, and at inference the same operations in the same order."""
    model, batch = make_model(name), batch_of(*MOLECULES)
    names = {key: value.clone() for key, value in model.state_dict().items()}
    before = operations(model, batch)
    offer = Offer.of(model, "student")
    for chosen in model.mixing:
        terms = lkm(offer, loss=loss, embeddings=chosen, weight=0.5)
        assert not list(terms.parameters())
        assert terms.needs == frozenset()
        value = terms(model(batch), None, batch)["lkm"]
        assert value.raw.item() > 0
        assert value.weighted.item() == pytest.approx(0.5 * value.raw.item())
        grads = torch.autograd.grad(value.weighted, list(model.parameters()), allow_unused=True)
        assert sum(grad.abs().sum().item() for grad in grads if grad is not None) > 0
    assert operations(model, batch) == before
    assert list(model.state_dict()) == list(names)
    assert all(torch.equal(value, names[key]) for key, value in model.state_dict().items())


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of all operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(model, batch) -> list[str]:
    """What the model runs at inference."""
    model.eval()(batch)
    with Recorder() as recorder:
        model(batch)
    model.train()
    return recorder.names


def test_auto_is_the_first_and_others_go_by_name():
    model = make_model("mxmnet")
    offer = Offer.of(model, "student")
    assert lkm(offer).terms["lkm"].embeddings == "blocks"
    assert lkm(offer, embeddings="planes").terms["lkm"].embeddings == "planes"
    assert lkm(Offer.of(make_model("dimenet_pp"), "student")).terms["lkm"].embeddings == "outputs"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embeddings": "sums"}, ["sums", "blocks, embedding_blocks, planes"]),
        ({"loss": "huber"}, ["mae (p = 1) or mse (p = 2)"]),
        ({"loss": "cka"}, ["mae (p = 1) or mse (p = 2)"]),
        ({"projection": "identity"}, ["projection belongs to"]),
        ({"student_layers": [1]}, ["student_layers belongs to"]),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ConfigError) as caught:
        lkm(Offer.of(make_model("pamnet"), "student"), **options)
    for word in words:
        assert word in str(caught.value)


def test_one_layer_has_nothing_to_mix_with():
    model = PAMNet(PAMNetOptions(width=6, layers=1, radial=4, cutoff=3.0, spherical=3, spherical_radial=2))
    with pytest.raises(ConfigError, match=r"are 1, .*model.layers"):
        lkm(Offer.of(model, "student"))
    lkm(Offer.of(model, "student"), embeddings="planes")


def test_other_terms_still_need_a_teacher():
    with pytest.raises(ConfigError, match="needs a teacher"):
        build_terms(DistillConfig(terms=[TermConfig(kind="energy")]), Offer.of(make_model("schnet"), "student"), None)


def test_spread_by_hand():
    e = [layer.detach() for layer in embeddings(3, 6, 4)]
    values = np.array([layer.numpy() for layer in e])
    cosines = [
        values[j, i] @ values[k, i] / np.linalg.norm(values[j, i]) / np.linalg.norm(values[k, i])
        for i in range(6)
        for j in range(3)
        for k in range(3)
        if j < k
    ]
    spread = Spread.of(e)
    assert spread.similarity == pytest.approx(np.mean(cosines), rel=1e-12)
    assert spread.variance == pytest.approx(values.var(1).mean(), rel=1e-12)
    assert spread.distance == pytest.approx(((values - values.mean(0)) ** 2).mean(), rel=1e-12)
    assert Spread.of([torch.zeros(0, 3), torch.zeros(0, 3)]) == Spread(0.0, 0.0, 0.0)


def test_what_counts_as_a_collapse():
    e = [layer.detach() for layer in embeddings(3, 40, 8)]
    start, mean = Spread.of(e), torch.stack(e).mean(0)
    assert start.collapse(start) == ""
    # shrinking all embeddings alike is no collapse of layers; losing what tells atoms apart is one
    assert Spread.of([0.3 * layer for layer in e]).collapse(start) == ""
    assert "tell atoms apart" in Spread.of([0.01 * layer for layer in e]).collapse(start)
    assert "tell atoms apart" in Spread.of([layer.mean(0).expand(40, 8) for layer in e]).collapse(start)
    assert "layers have become the same" in Spread.of([mean + 1e-3 * layer for layer in e]).collapse(start)
    assert Spread.of([mean + 0.5 * layer for layer in e]).collapse(start) == ""


def test_a_watch_remembers_the_start():
    model, batch = make_model("schnet"), batch_of(*MOLECULES)
    watch = CollapseWatch(lkm(Offer.of(model, "student")))
    watch.look(model, batch)
    assert not watch.new_warnings(0)
    assert watch.row["lkm_variance"] == 1.0
    assert set(watch.columns) == set(watch.row)
    with torch.no_grad():
        for block in model.interactions:
            block.last.weight.zero_()
            block.last.bias.zero_()
    # blocks that add nothing: all layers are the embedding, which still tells elements apart
    resumed = CollapseWatch(lkm(Offer.of(model, "student")))
    resumed.load_state_dict(watch.state_dict())
    resumed.look(model, batch)
    (warning,) = resumed.new_warnings(7)
    assert warning.startswith("step 7: lkm: layers have become the same")
    assert resumed.new_warnings(8) == []
    assert resumed.said == [warning]
    again = CollapseWatch(lkm(Offer.of(model, "student")))
    again.load_state_dict(resumed.state_dict())
    again.look(model, batch)
    assert again.new_warnings(9) == []
    assert again.said == [warning]
    assert resumed.row["lkm_similarity"] == pytest.approx(1.0)
    assert CollapseWatch([]).row == {}
