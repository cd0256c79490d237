"""Every term against a restatement of its formula in float64 with loops or plain numpy-like torch, and what the user can get wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastkd.config import DistillConfig, TermConfig
from fastkd.distill import Terms, build_terms
from fastkd.distill.projections import IdentityProjection, LinearProjection, MLPProjection
from fastkd.distill.strategies import atom_energy_loss, energy_loss, forces_loss, node_to_node
from fastkd.errors import ConfigError
from fastkd.models import PaiNN, PaiNNOptions
from fastkd.teachers import Offer, TeacherOutput

from .common import make_batch, normal, prediction

WIDTH, NODE, EDGE = 5, 7, 6
STUDENT = Offer("student (test)", {"node": WIDTH, "vector": WIDTH, "atom_energy": 1}, blocks=2)
EDGE_TEACHER = Offer("teacher (edges)", {"node": NODE, "edge": EDGE, "atom_energy": 1})
VECTOR_TEACHER = Offer("teacher (vectors)", {"node": NODE, "vector": EDGE, "atom_energy": 1})

RHO = {
    "mse": lambda r: r**2,
    "mae": np.abs,
    "huber": lambda r: np.where(np.abs(r) <= 1, r**2 / 2, np.abs(r) - 0.5),
}


def build(teacher: Offer = EDGE_TEACHER, student: Offer = STUDENT, dtype: torch.dtype = torch.float64, **options: object) -> Terms:
    return build_terms(DistillConfig(terms=[TermConfig(**options)]), student, teacher, seed=3).to(dtype)


def edge_output(batch, seed: int = 7, dtype: torch.dtype = torch.float64) -> TeacherOutput:
    graph = batch.graph(3.0)
    direction = nn.functional.normalize(batch.edge_vectors(graph), dim=-1)
    return TeacherOutput(
        energy=normal(batch.num_graphs, seed=seed),
        forces=normal(batch.num_atoms, 3, seed=seed + 1, dtype=dtype),
        atom_energy=normal(batch.num_atoms, seed=seed + 2, dtype=dtype),
        node=normal(batch.num_atoms, NODE, seed=seed + 3, dtype=dtype),
        vector=normal(batch.num_atoms, 3, EDGE, seed=seed + 4, dtype=dtype),
        edge=normal(graph.num_edges, EDGE, seed=seed + 5, dtype=dtype),
        edge_direction=direction.to(dtype),
        graph=graph.csr,
        cutoff=3.0,
    )


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.fixture(scope="module")
def batch():
    return make_batch([0, 1, 2, 3])


@pytest.mark.parametrize("loss", ["auto", "mae", "mse", "huber"])
def test_energy(batch, loss):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    value = build(kind="energy", weight=2.5, loss=loss)(student, teacher, batch)["energy"]
    residual = array(student.energy) - array(teacher.energy)
    expected = np.mean(RHO["mae" if loss == "auto" else loss](residual))
    assert value.raw.item() == pytest.approx(expected, rel=1e-14)
    assert value.weighted.item() == pytest.approx(2.5 * expected, rel=1e-14)


def test_energy_of_large_totals_keeps_small_differences(batch):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    totals = torch.full((batch.num_graphs,), -41_234.567, dtype=torch.float64)
    student = replace(student, energy=totals + 1e-5)
    # float32 resolves 4e-3 eV at this size
    value = build(kind="energy", dtype=torch.float32)(student, replace(teacher, energy=totals), batch)["energy"]
    assert value.raw.dtype == torch.float64
    assert value.raw.item() == pytest.approx(1e-5, rel=1e-5)


@pytest.mark.parametrize("loss", ["auto", "mae", "mse", "huber"])
def test_forces(batch, loss):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    value = build(kind="forces", loss=loss)(student, teacher, batch)["forces"]
    residual = array(student.forces) - array(teacher.forces)
    expected = np.mean([np.sqrt((row**2).sum()) for row in residual]) if loss == "auto" else np.mean(RHO[loss](residual))
    assert value.raw.item() == pytest.approx(expected, rel=1e-14)


def test_fixed_atoms_take_no_part_in_forces():
    student, teacher = normal(6, 3, seed=1), normal(6, 3, seed=2)
    free = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(forces_loss(student, teacher, free=free), forces_loss(student[free], teacher[free]))
    assert forces_loss(student, teacher, free=torch.zeros(6, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("loss", ["auto", "mse", "mae", "huber"])
@pytest.mark.parametrize("on", [True, False])
def test_force_terms_leave_out_what_the_batch_holds_fixed(batch, loss, on):
    batch = replace(batch, fixed=torch.arange(batch.num_atoms) % 3 == 0)
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    config = DistillConfig(terms=[TermConfig(kind="forces", loss=loss), TermConfig(kind="atom_energy")])
    terms = build_terms(config, STUDENT, EDGE_TEACHER, free_atoms=on).double()
    values = terms(student, teacher, batch)
    rows = [i for i in range(batch.num_atoms) if not (on and i % 3 == 0)]
    residual = (array(student.forces) - array(teacher.forces))[rows]
    expected = np.mean([np.sqrt((row**2).sum()) for row in residual]) if loss == "auto" else np.mean(RHO[loss](residual))
    assert values["forces"].raw.item() == pytest.approx(expected, rel=1e-13)
    # all other terms see every atom
    everything = terms(student, teacher, replace(batch, fixed=None))
    assert torch.equal(values["atom_energy"].raw, everything["atom_energy"].raw)


def test_perfect_forces_have_a_finite_gradient():
    student = normal(4, 3, seed=1).requires_grad_()
    forces_loss(student, student.detach().clone()).backward()
    assert torch.equal(student.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_atom_energy_counts_reference_energies(batch):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    references = [normal(119, seed=seed) * 1000 for seed in (20, 21)]
    terms = build_terms(
        DistillConfig(terms=[TermConfig(kind="atom_energy")]),
        replace(STUDENT, reference_energy=references[0]),
        replace(EDGE_TEACHER, reference_energy=references[1]),
    )
    numbers = batch.atomic_numbers
    whole = [array(student.atom_energy + references[0][numbers]), array(teacher.atom_energy + references[1][numbers])]
    # cast to float32 on purpose: the shift of reference energies must stay in float64
    value = terms.to(torch.float32)(student, teacher, batch)["atom_energy"]
    assert value.raw.item() == pytest.approx(np.mean(np.abs(whole[0] - whole[1])), rel=1e-12)
    plain = build(kind="atom_energy")(student, teacher, batch)["atom_energy"]
    assert plain.raw.item() == pytest.approx(np.mean(np.abs(array(student.atom_energy) - array(teacher.atom_energy))), rel=1e-14)


@pytest.mark.parametrize("loss", ["auto", "mae", "huber"])
@pytest.mark.parametrize("layers", [[], [1], [1, 2]])
def test_n2n(batch, loss, layers):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(kind="n2n", loss=loss, student_layers=layers)
    feature = np.concatenate([array(student.features.layers[layer]) for layer in layers or [2]], axis=1)
    weight, bias = (array(parameter) for parameter in terms.parameters())
    assert weight.shape == (NODE, WIDTH * max(len(layers), 1))
    residual = feature @ weight.T + bias - array(teacher.node)
    expected = np.mean(RHO["mse" if loss == "auto" else loss](residual))
    assert terms(student, teacher, batch)["n2n"].raw.item() == pytest.approx(expected, rel=1e-12)


def summed_edges(batch, teacher: TeacherOutput, *, vectors: bool, mean: bool) -> np.ndarray:
    """Σ over edges s→i, one edge at a time; direction = (r_i − r_s)/|r_i − r_s|."""
    graph, positions, edge = batch.graph(3.0).csr, array(batch.positions), array(teacher.edge)
    out = np.zeros((batch.num_atoms, 3, EDGE) if vectors else (batch.num_atoms, EDGE))
    degree = np.zeros(batch.num_atoms)
    for e, (s, i) in enumerate(zip(graph.edge_src.tolist(), graph.edge_dst.tolist(), strict=True)):
        r = positions[i] - positions[s]
        out[i] += np.outer(r / np.linalg.norm(r), edge[e]) if vectors else edge[e]
        degree[i] += 1
    return out / np.maximum(degree, 1).reshape(-1, *[1] * (out.ndim - 1)) if mean else out


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("loss", ["auto", "mae", "huber"])
def test_e2n(batch, loss, reduce):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(kind="e2n", loss=loss, reduce=reduce)
    weight, bias = (array(parameter) for parameter in terms.parameters())
    target = summed_edges(batch, teacher, vectors=False, mean=reduce == "mean")
    residual = array(student.features.node) @ weight.T + bias - target
    expected = np.mean(RHO["mse" if loss == "auto" else loss](residual))
    assert terms(student, teacher, batch)["e2n"].raw.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offer", [VECTOR_TEACHER, EDGE_TEACHER], ids=["vector", "edges"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("layers", [[], [1, 2]])
def test_v2v(batch, offer, reduce, layers):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(teacher=offer, kind="v2v", reduce=reduce, student_layers=layers)
    (weight,) = (array(parameter) for parameter in terms.parameters())
    feature = np.concatenate([array(student.features.vector_layers[layer - 1]) for layer in layers or [2]], axis=2)
    target = array(teacher.vector)
    if offer is EDGE_TEACHER:
        target = summed_edges(batch, teacher, vectors=True, mean=reduce == "mean")
    expected = np.mean((np.einsum("iac,dc->iad", feature, weight) - target) ** 2)
    assert terms(student, teacher, batch)["v2v"].raw.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offer", [VECTOR_TEACHER, EDGE_TEACHER], ids=["vector", "edges"])
def test_v2v_does_not_change_under_rotation(batch, offer):
    rotation = torch.linalg.qr(normal(3, 3, seed=4)).Q
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    turned_student = replace(
        student, features=replace(student.features, vector=torch.einsum("ab,ibc->iac", rotation, student.features.vector))
    )
    turned_teacher = replace(
        teacher, vector=torch.einsum("ab,ibc->iac", rotation, teacher.vector), edge_direction=teacher.edge_direction @ rotation.T
    )
    terms = build(teacher=offer, kind="v2v")
    values = [terms(s, t, batch)["v2v"].raw for s, t in ((student, teacher), (turned_student, turned_teacher))]
    grads = [torch.autograd.grad(value, list(terms.parameters()))[0] for value in values]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)
    # turning one side alone must be seen
    assert abs(terms(turned_student, teacher, batch)["v2v"].raw.item() / values[0].item() - 1) > 1e-3


def test_identity_teacher_gives_zero():
    """A teacher that is the student, with identity maps: every loss is 0."""
    model = PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=3.0)).double().eval()
    batch = make_batch([0, 1, 2])
    out = model(batch)
    target = TeacherOutput(out.energy, out.forces, out.atom_energy, out.features.node, out.features.vector)
    kinds = [{"kind": kind} for kind in ("energy", "forces", "atom_energy")] + [
        {"kind": kind, "projection": "identity"} for kind in ("n2n", "v2v")
    ]
    offer = Offer.of(model, "student")
    terms = build_terms(DistillConfig(terms=[TermConfig(**kind) for kind in kinds]), offer, Offer.of(model, "teacher"))
    values = terms(out, target, batch)
    assert {name: value.raw.item() for name, value in values.items()} == dict.fromkeys(
        ("energy", "forces", "atom_energy", "n2n", "v2v"), 0.0
    )
    assert not list(terms.parameters())


def test_mlp_is_linear_relu_linear(batch):
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(kind="n2n", projection="mlp", student_layers=[1, 2])
    first, first_bias, last, last_bias = (array(parameter) for parameter in terms.parameters())
    assert first.shape == (2 * WIDTH, 2 * WIDTH)
    assert last.shape == (NODE, 2 * WIDTH)
    feature = np.concatenate([array(student.features.layers[layer]) for layer in (1, 2)], axis=1)
    residual = np.maximum(feature @ first.T + first_bias, 0) @ last.T + last_bias - array(teacher.node)
    assert terms(student, teacher, batch)["n2n"].raw.item() == pytest.approx(np.mean(residual**2), rel=1e-12)


def test_projections_start_as_torch_linear_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    ours = LinearProjection(11, 6, bias=True, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = nn.Linear(11, 6)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_gradients_reach_student_and_projection_but_never_the_teacher(batch):
    student = prediction(batch, WIDTH)
    teacher = edge_output(batch)
    teacher = replace(teacher, node=teacher.node.requires_grad_(), edge=teacher.edge.requires_grad_())
    config = DistillConfig(terms=[TermConfig(kind=kind) for kind in ("energy", "forces", "n2n", "e2n", "v2v", "n2n")])
    terms = build_terms(config, STUDENT, EDGE_TEACHER).double()
    values = terms(student, teacher, batch)
    assert list(values) == ["energy", "forces", "n2n", "e2n", "v2v", "n2n_2"]
    sum(value.weighted for value in values.values()).backward()
    for tensor in (student.energy, student.forces, student.features.node, student.features.vector, *terms.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert teacher.node.grad is None
    assert teacher.edge.grad is None


def test_the_gradient_of_a_projection_is_that_of_autograd(batch):
    node, target = normal(9, WIDTH, seed=1).requires_grad_(), normal(9, NODE, seed=2)
    ours = LinearProjection(WIDTH, NODE, bias=True, generator=torch.Generator().manual_seed(0)).double()
    loss = node_to_node(node, target, ours)
    plain = ((nn.functional.linear(node, ours.weight, ours.bias) - target) ** 2).mean()
    for got, want in zip(
        torch.autograd.grad(loss, [node, ours.weight, ours.bias]), torch.autograd.grad(plain, [node, ours.weight, ours.bias]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_autocast_does_not_reach_feature_terms(batch):
    student, teacher = prediction(batch, WIDTH, dtype=torch.float32), edge_output(batch, dtype=torch.float32)
    terms = build(kind="n2n", projection="mlp", dtype=torch.float32)
    plain = terms(student, teacher, batch)["n2n"].raw
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(terms(student, teacher, batch)["n2n"].raw, plain)
    low = replace(student, features=replace(student.features, node=student.features.node.bfloat16()))
    assert terms(low, teacher, batch)["n2n"].raw.dtype == torch.float32


def test_the_student_knows_nothing_of_projections(batch):
    student = PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=3.0))
    before = set(student.state_dict())
    terms = build_terms(DistillConfig(terms=[TermConfig(kind="n2n"), TermConfig(kind="v2v")]), Offer.of(student, "student"), VECTOR_TEACHER)
    assert set(student.state_dict()) == before
    assert set(terms.state_dict()) == {"terms.n2n.projection.weight", "terms.n2n.projection.bias", "terms.v2v.projection.weight"}


def test_needs_are_those_of_the_terms():
    def needs(teacher: Offer, *kinds: str, **options: str) -> set[str]:
        return set(build_terms(DistillConfig(terms=[TermConfig(kind=kind, **options) for kind in kinds]), STUDENT, teacher).needs)

    assert needs(VECTOR_TEACHER, "energy", "n2n", "v2v") == {"energy", "node", "vector"}
    assert needs(EDGE_TEACHER, "e2n", "v2v") == {"edge_sum", "edge_vector_sum"}
    assert needs(EDGE_TEACHER, "e2n", reduce="mean") == {"edge_sum", "degree"}
    assert needs(EDGE_TEACHER, "n2n") == {"node"}
    assert needs(EDGE_TEACHER) == set()


SCALAR_STUDENT = Offer("student (scalar)", {"node": WIDTH}, blocks=2)


@pytest.mark.parametrize(
    ("teacher", "student", "options", "words"),
    [
        (VECTOR_TEACHER, STUDENT, {"kind": "e2n"}, ["e2n", "edge", "teacher (vectors)", "use n2n"]),
        (Offer("teacher (bare)"), STUDENT, {"kind": "n2n"}, ["n2n", "no features", "outputs"]),
        (Offer("teacher (nodes)", {"node": 4}), STUDENT, {"kind": "v2v"}, ["vector or edge", "node [4]"]),
        (VECTOR_TEACHER, SCALAR_STUDENT, {"kind": "v2v"}, ["student (scalar)", "painn"]),
        (EDGE_TEACHER, STUDENT, {"kind": "n2n", "projection": "identity"}, ["identity", "5 channels", "has 7", "linear"]),
        (EDGE_TEACHER, STUDENT, {"kind": "v2v", "projection": "mlp"}, ["rotational symmetry"]),
        (EDGE_TEACHER, STUDENT, {"kind": "n2n", "loss": "l2"}, ["l2", "forces"]),
        (EDGE_TEACHER, STUDENT, {"kind": "energy", "projection": "mlp"}, ["outputs are compared as they are"]),
        (EDGE_TEACHER, STUDENT, {"kind": "n2n", "student_layers": [3]}, ["has 3", "from 1 to 2"]),
        (EDGE_TEACHER, STUDENT, {"kind": "n2n", "student_layers": [0]}, ["has 0"]),
    ],
)
def test_mistakes_are_named(teacher, student, options, words):
    with pytest.raises(ConfigError) as caught:
        build(teacher=teacher, student=student, **options)
    assert "distill.terms[0]" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_target_is_an_error(batch):
    with pytest.raises(ValueError, match="term n2n needs node"):
        build(kind="n2n")(prediction(batch, WIDTH), TeacherOutput(), batch)


def test_an_empty_batch_is_worth_zero():
    empty = torch.zeros(0, dtype=torch.float64)
    assert energy_loss(empty, empty).item() == 0
    assert atom_energy_loss(empty, empty).item() == 0
    assert forces_loss(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0
    assert IdentityProjection().node_loss(torch.zeros(0, 3), torch.zeros(0, 3), "mse").item() == 0
    mlp = MLPProjection(3, 3, 2, generator=torch.Generator().manual_seed(0))
    assert mlp.node_loss(torch.zeros(0, 3), torch.zeros(0, 2), "huber").item() == 0
