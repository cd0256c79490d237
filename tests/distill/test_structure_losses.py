"""cka, lsp, gsp and the geometric loss of vectors against restatements of their formulas in float64, and what they must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fastkd_kernels import edge_to_node_loss, edge_to_node_vector_loss
from torch import Tensor, nn

from fastkd.distill import Terms
from fastkd.distill import strategies as s
from fastkd.distill.projections import IdentityProjection, LinearProjection
from fastkd.errors import ConfigError
from fastkd.models import PaiNN, PaiNNOptions
from fastkd.teachers import Offer, TeacherOutput

from .common import make_batch, normal, prediction, radius_graph
from .test_terms import EDGE, EDGE_TEACHER, NODE, VECTOR_TEACHER, WIDTH, array, build, edge_output, summed_edges

STUDENT = Offer("student (test)", {"node": WIDTH, "vector": WIDTH, "atom_energy": 1}, blocks=2, cutoff=3.0)
#: structures of a batch: several, one, and none
SIZES = [[0, 1, 2, 3], [4], []]


def orthogonal(size: int, seed: int = 4) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def isolated(batch):
    """The same batch with its atoms too far apart to have neighbours."""
    return replace(batch, graphs={3.0: radius_graph(10 * batch.positions, batch.graph_index, 3.0)})


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """As published: centred n × n Gram matrices (spec 1.8)."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())


def lsp_of(x: np.ndarray, y: np.ndarray, batch, cutoff: float = 3.0) -> float:
    """Edge by edge: softmax of +distance over the edges that share a target, KL, mean over edges."""
    graph = batch.graph(cutoff).csr
    edges = list(zip(graph.edge_src.tolist(), graph.edge_dst.tolist(), strict=True))
    total = 0.0
    for target in range(batch.num_atoms):
        mine = [(i, j) for i, j in edges if j == target]
        student, teacher = (np.exp([np.linalg.norm(f[i] - f[j]) for i, j in mine]) for f in (x, y))
        student, teacher = student / student.sum(), teacher / teacher.sum()
        total += float((teacher * (np.log(teacher) - np.log(student))).sum())
    return total / max(len(edges), 1)


def gsp_of(x: np.ndarray, y: np.ndarray, ptr: list[int]) -> float:
    """Mean over structures of mean_i mean_j (D_s − D_t)², D the mean over channels (and axes) of squared differences."""
    images = []
    for first, last in pairwise(ptr):
        distances = [np.array([[((f[i] - f[j]) ** 2).mean() for j in range(first, last)] for i in range(first, last)]) for f in (x, y)]
        images.append(((distances[0] - distances[1]) ** 2).mean())
    return float(np.mean(images)) if images else 0.0


def geometric_of(u: np.ndarray, t: np.ndarray, ptr: list[int], mix: float) -> float:
    """Per atom and channel, mean over channels, atoms of a structure, structures."""
    images = []
    for first, last in pairwise(ptr):
        atoms = []
        for i in range(first, last):
            values = []
            for c in range(u.shape[2]):
                a, b = np.linalg.norm(u[i, :, c]), np.linalg.norm(t[i, :, c])
                # an atom without neighbours has a target of length 0, which has no direction
                cosine = u[i, :, c] @ t[i, :, c] / (a * b) if a * b else 0.0
                values.append((1 - mix) * abs(a - b) + mix * (1 - cosine))
            atoms.append(np.mean(values))
        images.append(np.mean(atoms))
    return float(np.mean(images)) if images else 0.0


def mapped(terms: Terms, feature: Tensor) -> np.ndarray:
    weight, *bias = (array(parameter) for parameter in terms.parameters())
    return array(feature) @ weight.T + (bias[0] if bias else 0.0)


@pytest.mark.parametrize("structures", SIZES, ids=["several", "one", "none"])
@pytest.mark.parametrize("kind", ["n2n", "e2n"])
@pytest.mark.parametrize("loss", ["lsp", "gsp"])
def test_structure_losses_of_atoms(kind, loss, structures):
    batch = make_batch(structures) if structures else nothing()
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(student=STUDENT, kind=kind, loss=loss)
    target = array(teacher.node) if kind == "n2n" else summed_edges(batch, teacher, vectors=False, mean=False)
    x = mapped(terms, student.features.node)
    expected = lsp_of(x, target, batch) if loss == "lsp" else gsp_of(x, target, batch.atom_ptr.tolist())
    assert terms(student, teacher, batch)[kind].raw.item() == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert (expected > 0) == bool(structures)


@pytest.mark.parametrize("kind", ["n2n", "e2n"])
def test_cka_is_that_of_gram_matrices(kind):
    batch = make_batch([0, 1, 2, 3])
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(student=STUDENT, kind=kind, loss="cka")
    target = array(teacher.node) if kind == "n2n" else summed_edges(batch, teacher, vectors=False, mean=False)
    expected = 1 - gram_cka(mapped(terms, student.features.node), target)
    assert terms(student, teacher, batch)[kind].raw.item() == pytest.approx(expected, rel=1e-11)


def test_cka_does_not_see_orthogonal_maps_scales_and_shifts():
    x, other = normal(23, 7, seed=1), normal(23, 7, seed=2)
    same = s.alignment(x, 3.5 * x @ orthogonal(7) + 2.0, IdentityProjection())
    assert abs(same.item()) < 1e-12
    assert s.alignment(x, other, IdentityProjection()).item() > 0.1


def nothing():
    """A batch without structures."""
    batch = make_batch([0])
    none = torch.zeros(0, dtype=torch.int64)
    return replace(
        batch,
        atomic_numbers=none,
        positions=batch.positions[:0],
        atom_ptr=torch.zeros(1, dtype=torch.int64),
        graph_index=none,
        cell=batch.cell[:0],
        pbc=batch.pbc[:0],
        energy=batch.energy[:0],
        forces=batch.forces[:0],
        labelled=batch.labelled[:0],
        structure_index=none,
        graphs={3.0: radius_graph(batch.positions[:0], none, 3.0)},
    )


def test_one_atom_and_no_neighbours():
    """One atom has no similarity (cka is 1, without a gradient), no pair and no edge (0)."""
    one, target = normal(1, WIDTH, seed=1).requires_grad_(), normal(1, NODE, seed=2)
    ptr = torch.tensor([0, 1])
    loss = s.alignment(one, target, IdentityProjection())
    assert loss.item() == 1
    assert torch.equal(torch.autograd.grad(loss, one)[0], torch.zeros(1, WIDTH, dtype=torch.float64))
    assert s.global_structure(one, target, IdentityProjection(), ptr).item() == 0
    batch = isolated(make_batch([0, 1]))
    far = s.local_structure(
        normal(batch.num_atoms, 4, seed=1), normal(batch.num_atoms, 3, seed=2), IdentityProjection(), batch.graph(3.0).csr
    )
    assert far.item() == 0


@pytest.mark.parametrize("structures", SIZES, ids=["several", "one", "none"])
@pytest.mark.parametrize("mix", [0.0, 0.5, 0.3, 1.0])
@pytest.mark.parametrize("offer", [VECTOR_TEACHER, EDGE_TEACHER], ids=["vector", "edges"])
def test_v2v_geometric(offer, mix, structures):
    batch = make_batch(structures) if structures else nothing()
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(teacher=offer, student=STUDENT, kind="v2v_geometric", geometric_mix=mix)
    target = array(teacher.vector) if offer is VECTOR_TEACHER else summed_edges(batch, teacher, vectors=True, mean=False)
    expected = geometric_of(mapped(terms, student.features.vector), target, batch.atom_ptr.tolist(), mix)
    assert terms(student, teacher, batch)["v2v_geometric"].raw.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_gsp_of_vectors():
    batch = make_batch([0, 1, 2])
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(teacher=VECTOR_TEACHER, student=STUDENT, kind="v2v", loss="gsp")
    expected = gsp_of(mapped(terms, student.features.vector), array(teacher.vector), batch.atom_ptr.tolist())
    assert terms(student, teacher, batch)["v2v"].raw.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("options", [{"kind": "v2v_geometric"}, {"kind": "v2v", "loss": "gsp"}], ids=["geometric", "gsp"])
@pytest.mark.parametrize("projection", ["linear", "identity"])
def test_losses_of_vectors_do_not_change_under_rotation(options, projection):
    batch = make_batch([0, 1, 2])
    student, teacher = prediction(batch, EDGE), edge_output(batch)
    wide = replace(STUDENT, widths={"node": EDGE, "vector": EDGE})
    terms = build(teacher=VECTOR_TEACHER, student=wide, projection=projection, **options)
    turn = orthogonal(3)
    vector = student.features.vector
    turned = replace(student, features=replace(student.features, vector=torch.einsum("ab,ibc->iac", turn, vector)))
    target = replace(teacher, vector=torch.einsum("ab,ibc->iac", turn, teacher.vector))
    name = options["kind"]
    values = [terms(a, b, batch)[name].raw for a, b in ((student, teacher), (turned, target), (turned, teacher))]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-11)
    grads = [torch.autograd.grad(value, vector, retain_graph=True)[0] for value in values[:2]]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)
    # gsp sees distances alone, so one side may turn by itself; angles between vectors must not
    changed = abs(values[2].item() / values[0].item() - 1) > 1e-3
    assert changed == (name == "v2v_geometric")


@pytest.mark.parametrize("loss", ["cka", "lsp", "gsp"])
def test_structure_losses_compare_any_widths_without_a_map(loss):
    batch = make_batch([2, 3])
    terms = build(student=STUDENT, kind="n2n", loss=loss, projection="identity")
    assert not list(terms.parameters())
    assert terms(prediction(batch, WIDTH), edge_output(batch), batch)["n2n"].raw.item() > 0


@pytest.mark.parametrize("loss", ["cka", "lsp", "gsp"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_gradients_are_those_of_finite_differences(loss, projection):
    batch = make_batch([2, 3])
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    terms = build(student=STUDENT, kind="n2n", loss=loss, projection=projection)
    node = student.features.node

    def value(feature: Tensor) -> Tensor:
        return terms(replace(student, features=replace(student.features, node=feature)), teacher, batch)["n2n"].raw

    assert torch.autograd.gradcheck(value, (node,))
    weights = torch.autograd.grad(value(node), list(terms.parameters()))
    assert all(grad.abs().sum() > 0 for grad in weights[:1])


def test_a_teacher_that_is_the_student_gives_zero():
    # so far that every atom has a neighbour: vectors of length 0 have no direction, and 1 − cos is 1 even between two of them
    model = PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=6.0)).double().eval()
    batch = make_batch([0, 1, 2], cutoffs=(6.0,))
    out = model(batch)
    target = TeacherOutput(node=out.features.node, vector=out.features.vector)
    offer = Offer.of(model, "student")
    for options in (
        {"kind": "n2n", "loss": "cka"},
        {"kind": "n2n", "loss": "lsp"},
        {"kind": "n2n", "loss": "gsp"},
        {"kind": "v2v", "loss": "gsp"},
        {"kind": "v2v_geometric"},
    ):
        value = build(teacher=offer, student=offer, projection="identity", **options)(out, target, batch)[options["kind"]].raw
        assert abs(value.item()) < 1e-12, options


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_the_fused_path_is_the_straightforward_composition(kind):
    """Gather, scatter and Linear of plain torch against our terms and against the kernels that fuse the teacher's sum as well."""
    batch = make_batch([0, 1, 2, 3])
    student, teacher = prediction(batch, WIDTH), edge_output(batch)
    graph, edge, direction = teacher.graph, teacher.edge, teacher.edge_direction
    total = torch.zeros(batch.num_atoms, EDGE, dtype=torch.float64).index_add(0, graph.edge_dst, edge)
    spread = direction[:, :, None] * edge[:, None, :]
    vectors = torch.zeros(batch.num_atoms, 3, EDGE, dtype=torch.float64).index_add(0, graph.edge_dst, spread)
    plain = {"mse": nn.functional.mse_loss, "mae": nn.functional.l1_loss, "huber": nn.functional.huber_loss}[kind]
    for name, feature, target, fused in (
        ("e2n", student.features.node, total, edge_to_node_loss),
        ("v2v", student.features.vector, vectors, edge_to_node_vector_loss),
    ):
        terms = build(student=STUDENT, kind=name, loss=kind)
        projection = terms.terms[name].projection
        assert isinstance(projection, LinearProjection)
        leaves = [feature, *projection.parameters()]
        want = plain(nn.functional.linear(feature, projection.weight, projection.bias), target)
        got = terms(student, teacher, batch)[name].raw
        given = (projection.bias, edge, graph) if name == "e2n" else (edge, direction, graph)
        one = fused(feature, projection.weight, *given, kind)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(one, want, rtol=1e-12, atol=1e-13)
        expected = torch.autograd.grad(want, leaves)
        for value in (got, one):
            for a, b in zip(torch.autograd.grad(value, leaves), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "v2v", "loss": "cka"}, ["cka is for n2n, e2n", "mse"]),
        ({"kind": "v2v", "loss": "lsp"}, ["lsp is for n2n, e2n"]),
        ({"kind": "energy", "loss": "gsp"}, ["gsp is for n2n, e2n, v2v"]),
        ({"kind": "e2e", "loss": "cka"}, ["cka"]),
        ({"kind": "v2v_geometric", "loss": "mae"}, ["its own", "v2v"]),
        ({"kind": "v2v_geometric", "projection": "mlp"}, ["rotational symmetry"]),
        ({"kind": "n2n", "geometric_mix": 0.2}, ["geometric_mix belongs to v2v_geometric"]),
        ({"kind": "n2n", "edges": "teacher"}, ["edges belongs to e2e"]),
        ({"kind": "n2n", "reduce": "mean"}, ["reduce belongs to e2n and v2v"]),
        ({"kind": "n2n", "embeddings": "blocks"}, ["embeddings belongs to lkm"]),
        ({"kind": "forces", "teacher_layer": "regular_1"}, ["teacher_layer", "outputs are compared as they are"]),
    ],
)
def test_combinations_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        build(student=STUDENT, **options)
    for word in words:
        assert word in str(caught.value)
