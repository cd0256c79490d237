"""What the edge-to-node losses promise beyond the tests of all ops: they are the composition, with the teacher as a constant."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels import CSRGraph, edge_to_node, edge_to_node_vector, projected_loss, segment_reduce, vector_loss
from fastkd_kernels.edge_to_node_loss import numba_launch, reference
from fastkd_kernels.edge_to_node_loss.op import edge_to_node_loss, edge_to_node_vector_loss
from fastkd_kernels.projected_loss.kinds import KINDS, Kind
from fastkd_kernels.registry import Shape, random_graph
from torch import Tensor

BACKENDS = [
    "reference",
    "numba",
    pytest.param(
        "triton",
        marks=[
            pytest.mark.triton,
            pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only"),
        ],
    ),
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_loss = pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])


class Problem:
    """One random student and teacher; ``loss`` calls either function on the student's tensors."""

    def __init__(self, shape: Shape, *, vector: bool, width: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)

        self.vector, self.graph = vector, random_graph(shape, generator)
        self.x = draw(shape.nodes, *((3,) if vector else ()), shape.width).requires_grad_()
        self.weight = (draw(width, shape.width) / shape.width**0.5).requires_grad_()
        self.bias = draw(width).requires_grad_()
        self.edge, self.direction = draw(shape.edges, width), draw(shape.edges, 3)

    @property
    def student(self) -> tuple[Tensor, ...]:
        return (self.x, self.weight) if self.vector else (self.x, self.weight, self.bias)

    def teacher(self, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        tensors = (self.edge, self.direction) if self.vector else (self.edge,)
        return (*(tensor if dtype is None else tensor.to(dtype) for tensor in tensors), self.graph)

    def loss(self, *student: Tensor, kind: Kind = "mse", **options: Any) -> Tensor:
        function: Callable[..., Tensor] = edge_to_node_vector_loss if self.vector else edge_to_node_loss
        return function(*(student or self.student), *self.teacher(), kind, **options)

    def exact(self, *student: Tensor, kind: Kind = "mse", **options: Any) -> Tensor:
        function: Callable[..., Tensor] = reference.edge_to_node_vector_loss if self.vector else reference.edge_to_node_loss
        return function(*(student or self.student), *self.teacher(), kind, **options)


@each_backend
@each_kind
def test_same_as_reduce_then_compare(backend: str, kind: Kind) -> None:
    problem = Problem(Shape(9, 40, 4), vector=False)
    want = projected_loss(*problem.student, edge_to_node(problem.edge, problem.graph), kind)
    got = problem.loss(kind=kind, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, problem.student), torch.autograd.grad(want, problem.student))
    problem = Problem(Shape(9, 40, 4), vector=True)
    want = vector_loss(*problem.student, edge_to_node_vector(problem.edge, problem.direction, problem.graph), kind)
    got = problem.loss(kind=kind, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, problem.student), torch.autograd.grad(want, problem.student))


@each_backend
def test_mean_over_edges(backend: str) -> None:
    problem = Problem(Shape(9, 40, 4), vector=False)
    mean = segment_reduce(problem.edge[problem.graph.edge_order], problem.graph.edge_ptr, "mean")
    torch.testing.assert_close(problem.loss(reduce="mean", backend=backend), projected_loss(*problem.student, mean))
    problem = Problem(Shape(9, 40, 4), vector=True)
    degree = problem.graph.edge_ptr.diff().clamp(min=1)
    mean = edge_to_node_vector(problem.edge, problem.direction, problem.graph) / degree[:, None, None]
    got = problem.loss(reduce="mean", kind="huber", backend=backend)
    want = vector_loss(*problem.student, mean, "huber")
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, problem.student), torch.autograd.grad(want, problem.student))


@each_backend
@each_kind
@each_loss
def test_weights_enter_as_a_weighted_mean(backend: str, kind: Kind, vector: bool) -> None:
    problem = Problem(Shape(6, 25, 3), vector=vector)
    node_weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    inputs = (*problem.student, node_weight)

    def function(*tensors: Tensor) -> Tensor:
        return problem.loss(*tensors[:-1], kind=kind, node_weight=tensors[-1], backend=backend)

    loss = function(*inputs)
    want = problem.exact(kind=kind, node_weight=node_weight)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(problem.loss(kind=kind, node_weight=17 * node_weight, backend=backend), want)
    gradients = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(want, inputs))
    assert not gradients[0][node_weight == 0].any()
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    assert problem.loss(kind=kind, node_weight=torch.zeros(6, dtype=torch.float64), backend=backend).item() == 0


@each_backend
@each_loss
def test_a_hub_and_repeated_edges(backend: str, vector: bool) -> None:
    """All edges into one node of many, in every length of the kernels' groups of edges."""
    for edges in (1, 2, 3, 4, 5, 7, 8, 41):
        problem = Problem(Shape(35, edges, 3), vector=vector, width=5)
        zeros = torch.zeros(edges, dtype=torch.int64)
        problem.graph = CSRGraph.from_edges(zeros + 1, zeros + 33, 35)
        got, want = problem.loss(backend=backend), problem.exact()
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, problem.student), torch.autograd.grad(want, problem.student))


@each_backend
@each_kind
@each_loss
def test_no_nodes_no_edges_no_channels(backend: str, kind: Kind, vector: bool) -> None:
    for shape, width in ((Shape(0, 0, 3), 4), (Shape(5, 0, 3), 4), (Shape(4, 6, 3), 0), (Shape(4, 6, 1), 1)):
        problem = Problem(shape, vector=vector, width=width)
        got, want = problem.loss(kind=kind, backend=backend), problem.exact(kind=kind)
        torch.testing.assert_close(got, want)
        gradients = torch.autograd.grad(got, problem.student)
        torch.testing.assert_close(gradients, torch.autograd.grad(want, problem.student))
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in problem.student]


@each_backend
@each_loss
def test_the_teacher_is_constant(backend: str, vector: bool) -> None:
    problem = Problem(Shape(5, 12, 3), vector=vector)
    problem.edge.requires_grad_()
    with pytest.raises(ValueError, match="teacher_edge requires grad"):
        problem.loss(backend=backend)
    problem.edge = problem.edge.detach()
    if vector:
        problem.direction.requires_grad_()
        with pytest.raises(ValueError, match="direction requires grad"):
            problem.loss(backend=backend)


def test_the_operator_itself_has_no_silent_gradient() -> None:
    problem = Problem(Shape(5, 12, 3), vector=False)
    from fastkd_kernels.edge_to_node_loss.op import edge_to_node_rows

    graph = problem.graph
    rows = edge_to_node_rows(
        *problem.student, problem.edge.requires_grad_(), None, graph.edge_dst, graph.edge_ptr, graph.edge_order, False, "mse", "numba"
    )
    with pytest.raises(RuntimeError, match="teacher"):
        rows.sum().backward()


@each_loss
@pytest.mark.parametrize("name", ["edge_to_node_rows", "edge_to_node_rows_backward"])
def test_registration(name: str, vector: bool) -> None:
    problem = Problem(Shape(5, 12, 3), vector=vector)
    graph, rows = problem.graph, 15 if vector else 5
    x = problem.x.detach().reshape(rows, 3).requires_grad_()
    upstream = torch.randn(rows, dtype=torch.float64, requires_grad=True)
    direction, bias = (problem.direction, None) if vector else (None, problem.bias)
    teacher = (problem.edge, direction, graph.edge_dst, graph.edge_ptr, graph.edge_order)
    more: tuple[Any, ...] = (upstream, False, "mse", [True, True, not vector]) if name.endswith("backward") else (False, "mse")
    torch.library.opcheck(getattr(torch.ops.fastkd, name).default, (x, problem.weight, bias, *teacher, *more, "numba"))


@each_backend
@each_kind
@each_loss
def test_nothing_of_the_projections_size_is_saved(backend: str, kind: Kind, vector: bool) -> None:
    problem = Problem(Shape(37, 90, 4), vector=vector, width=11)
    graph = problem.graph
    given = (*problem.student, problem.edge, problem.direction, *graph.tensors)
    pointers = {tensor.data_ptr() for tensor in given}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = problem.loss(kind=kind, backend=backend)
    assert loss.requires_grad
    assert saved
    assert all(tensor.data_ptr() in pointers or tensor.numel() <= 3 * 37 for tensor in saved)


@each_backend
@each_loss
def test_scaling_and_a_retained_graph(backend: str, vector: bool) -> None:
    """Two upstream scales and two passes over one graph give gradients in exactly that proportion, and the first is not touched."""
    problem = Problem(Shape(8, 30, 3), vector=vector)
    inputs = problem.student
    loss = problem.loss(backend=backend)
    one = torch.tensor(1.0, dtype=torch.float64)
    first = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    eighth = torch.autograd.grad(loss, inputs, one / 8, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for a, b, c, d in zip(first, kept, eighth, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, 8 * c)
        assert torch.equal(a, d)


@each_backend
@each_kind
@each_loss
def test_every_set_of_inputs_that_require_grad(backend: str, kind: Kind, vector: bool) -> None:
    problem = Problem(Shape(5, 14, 3), vector=vector)
    for needed in itertools.product((False, True), repeat=len(problem.student)):
        if not any(needed):
            continue
        found: list[list[Tensor]] = []
        for function, options in ((problem.loss, {"backend": backend}), (problem.exact, {})):
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(problem.student, needed, strict=True)]
            leaves = [tensor for tensor in tensors if tensor.requires_grad]
            gradients = torch.autograd.grad(function(*tensors, kind=kind, **options), leaves, create_graph=True)
            curved = [(gradient * torch.linspace(1, 2, gradient.numel()).reshape(gradient.shape)).sum() for gradient in gradients]
            curved = [value for value in curved if value.requires_grad]
            seconds = torch.autograd.grad(curved, leaves, allow_unused=True, materialize_grads=True) if curved else ()
            found.append([*gradients, *seconds])
        ours, theirs = found
        torch.testing.assert_close(ours[: len(theirs)], theirs)


@each_backend
@each_kind
@each_loss
def test_third_order(backend: str, kind: Kind, vector: bool) -> None:
    problem = Problem(Shape(4, 9, 2), vector=vector, width=3)

    def third(function: Callable[..., Tensor], **options: Any) -> tuple[Tensor, ...]:
        inputs = problem.student
        scalar = function(kind=kind, **options)
        for _ in range(2):
            gradients = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
            scalar = sum(gradient.square().sum() for gradient in gradients) + sum(tensor.pow(3).sum() for tensor in inputs)  # type: ignore[assignment]
        return torch.autograd.grad(scalar, inputs)

    torch.testing.assert_close(third(problem.loss, backend=backend), third(problem.exact))


@each_backend
@each_kind
def test_tiny_losses_keep_their_digits(backend: str, kind: Kind) -> None:
    """A converged student: residuals are a thousandth of the teacher's sum, which only the difference of the two shows."""
    size = 1e-3 if kind == "mae" else 1.0
    problem = Problem(Shape(96, 0, 32), vector=False, width=64, dtype=torch.float32)
    exact = size * (problem.x.double() @ problem.weight.double().T + problem.bias.double()).detach()
    noise = torch.randn(96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    goal = exact + 1e-3 * size * noise
    # five edges a node that sum to the goal
    shares = size * torch.randn(96, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shares = shares - shares.mean(1, keepdim=True) + goal[:, None] / 5
    nodes = torch.arange(96).repeat_interleave(5)
    graph = CSRGraph.from_edges(nodes, nodes, 96)
    x, bias = (size * problem.x).detach(), (size * problem.bias).detach()
    edge = shares.reshape(480, 64).float()
    want = reference.edge_to_node_loss(x.double(), problem.weight.double(), bias.double(), edge.double(), graph, kind)
    assert 1e-7 < want.item() < 2e-6
    got = edge_to_node_loss(x, problem.weight, bias, edge, graph, kind, backend=backend)
    assert abs(got.item() - want.item()) <= 2e-4 * want.item()


@each_loss
def test_tiles_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, vector: bool) -> None:
    problem = Problem(Shape(23, 80, 4), vector=vector)
    whole = problem.loss(kind="huber", backend="numba")
    gradients = torch.autograd.grad(whole, problem.student)
    monkeypatch.setattr(numba_launch, "TILE_ELEMENTS", 6 * 7)
    tiled = problem.loss(kind="huber", backend="numba")
    torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(torch.autograd.grad(tiled, problem.student), gradients, rtol=1e-13, atol=1e-15)


@pytest.mark.triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only")
@each_loss
def test_ranges_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, vector: bool) -> None:
    from fastkd_kernels.edge_to_node_loss import projection_launch

    problem = Problem(Shape(41, 80, 4), vector=vector)
    monkeypatch.setattr(projection_launch, "ROWS_PER_PART", 16)
    gradients = torch.autograd.grad(problem.loss(backend="triton"), problem.student)
    # 6 columns: each range is then one part of 16 rows, whose border cuts through a node's three
    monkeypatch.setattr(projection_launch, "PULL_ELEMENTS", 6 * 16)
    for a, b in zip(torch.autograd.grad(problem.loss(backend="triton"), problem.student), gradients, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(gradients, torch.autograd.grad(problem.exact(), problem.student))


@each_backend
@each_kind
@each_loss
def test_nan_is_not_hidden(backend: str, kind: Kind, vector: bool) -> None:
    problem = Problem(Shape(6, 20, 2), vector=vector)
    problem.edge[3, 2] = float("nan")
    node = problem.graph.edge_dst[3]
    loss = problem.loss(kind=kind, backend=backend)
    assert loss.isnan()
    gradient = torch.autograd.grad(loss, problem.x)[0]
    assert gradient[node].isnan().all()
    assert gradient[torch.arange(6) != node].isfinite().all()


@each_backend
def test_rotating_both_sides_leaves_the_vector_loss(backend: str) -> None:
    problem = Problem(Shape(5, 14, 4), vector=True)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    before = problem.loss(backend=backend)
    problem.direction = problem.direction @ rotation.T
    torch.testing.assert_close(problem.loss(rotation @ problem.x, problem.weight, backend=backend), before)


def test_wrong_arguments_are_named() -> None:
    problem = Problem(Shape(4, 9, 2), vector=False)
    x, weight, bias = problem.student
    edge, graph = problem.teacher()
    with pytest.raises(ValueError, match=r"teacher_edge \[8, 6\]"):
        edge_to_node_loss(x, weight, bias, edge[:8], graph)
    with pytest.raises(ValueError, match=r"N = 4, got x \[3, 2\]"):
        edge_to_node_loss(x[:3], weight, bias, edge, graph)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        edge_to_node_loss(x, weight, bias, edge.float(), graph)
    with pytest.raises(ValueError, match="mse, mae, huber, got 'l2'"):
        edge_to_node_loss(x, weight, bias, edge, graph, "l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sum or mean, got 'max'"):
        edge_to_node_loss(x, weight, bias, edge, graph, reduce="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"node_weight \[3\]"):
        edge_to_node_loss(x, weight, bias, edge, graph, node_weight=torch.ones(3, dtype=torch.float64))
    problem = Problem(Shape(4, 9, 2), vector=True)
    with pytest.raises(ValueError, match=r"direction \[9, 2\]"):
        edge_to_node_vector_loss(*problem.student, problem.edge, problem.direction[:, :2], problem.graph)
