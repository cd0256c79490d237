"""What is particular to the gated sum: GemNet's own formula, the closed family to fourth order, widths beyond a tile, memory, mistakes."""

import os
from itertools import product

import pytest
import torch
from fastkd_kernels import CSRGraph, cpu, edge_to_node
from fastkd_kernels.gated_edge_to_node import reference
from fastkd_kernels.gated_edge_to_node.op import gated_edge_to_node
from fastkd_kernels.tolerances import TOLERANCES, relative_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])

Inputs = tuple[Tensor, Tensor, Tensor]


def make(nodes: int = 7, edges: int = 23, width: int = 5, rank: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Inputs, CSRGraph]:
    generator = torch.Generator().manual_seed(0)
    src, dst = (torch.randint(max(nodes - 2, 1), (edges,), generator=generator) for _ in range(2))
    edge, basis, weight = (
        torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((edges, width), (edges, rank), (width, rank))
    )
    return (edge, basis, weight), CSRGraph.from_edges(src, dst, nodes)


def exact(inputs: Inputs, graph: CSRGraph) -> Tensor:
    return reference.gated_edge_to_node(*inputs, graph.edge_dst, graph.num_nodes)


def nested_gradients(output: Tensor, inputs: tuple[Tensor, ...], order: int) -> list[tuple[Tensor, ...]]:
    """Gradients of Σ sin(y), of Σ sin of these, and so on: each holds all derivatives of the operator up to its order."""
    found, outputs = [], (output,)
    for _ in range(order):
        outputs = torch.autograd.grad(sum(tensor.sin().sum() for tensor in outputs), inputs, create_graph=True)
        found.append(outputs)
    return found


@each_backend
def test_an_example_by_hand(backend):
    graph = CSRGraph.from_edges(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2]), 3)
    edge = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    basis = torch.tensor([[1.0], [10.0], [-1.0]])
    weight = torch.tensor([[2.0], [1.0]])
    # gates: [2, 1], [20, 10], [−2, −1]
    assert gated_edge_to_node(edge, basis, weight, graph, backend=backend).tolist() == [[60, 40], [0, 0], [-8, -4]]


@each_backend
def test_gemnets_atom_update(backend):
    """The same as the linear layer, product and scatter of the model, with gradients by the layer's weight."""
    (edge, basis, _), graph = make(width=6, rank=4)
    layer = torch.nn.Linear(4, 6, bias=False, dtype=torch.float64)
    want = torch.zeros(graph.num_nodes, 6, dtype=torch.float64).index_add(0, graph.edge_dst, edge * layer(basis))
    got = gated_edge_to_node(edge, basis, layer.weight, graph, backend=backend)
    torch.testing.assert_close(got, want)
    inputs = (edge, basis, layer.weight)
    torch.testing.assert_close(nested_gradients(got, inputs, 2), nested_gradients(want, inputs, 2))


@each_backend
def test_a_gate_of_one_is_the_plain_sum(backend):
    (edge, _, _), graph = make()
    ones = torch.ones(graph.num_edges, 1, dtype=torch.float64), torch.ones(edge.shape[1], 1, dtype=torch.float64)
    torch.testing.assert_close(gated_edge_to_node(edge, *ones, graph, backend=backend), edge_to_node(edge, graph, backend=backend))


@each_backend
def test_four_orders(backend):
    inputs, graph = make(5, 9, 3, 2)
    # small enough that the nested sines do not amplify rounding
    inputs = tuple((tensor.detach() / 2).requires_grad_() for tensor in inputs)
    got = nested_gradients(gated_edge_to_node(*inputs, graph, backend=backend), inputs, 4)
    want = nested_gradients(exact(inputs, graph), inputs, 4)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])
@pytest.mark.parametrize(("nodes", "edges", "width", "rank"), [(2, 41, 70, 35), (3, 70, 129, 1), (40, 29, 1, 65), (1, 11, 33, 16)])
def test_widths_and_ranks_beyond_a_tile(backend, nodes, edges, width, rank):
    """Ragged tiles of edges, features and basis; segments of 8, 4 and single edges; more nodes than edges."""
    inputs, graph = make(nodes, edges, width, rank)
    got, want = gated_edge_to_node(*inputs, graph, backend=backend), exact(inputs, graph)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(nested_gradients(got, inputs, 2), nested_gradients(want, inputs, 2), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needs", [needs for needs in product([False, True], repeat=4) if any(needs)])
def test_gradients_of_the_gradient_for_any_subset_of_inputs(needs):
    """Each output of the gradient operator alone and with the others, by each subset of its inputs; and operators with fewer outputs."""
    inputs, graph = make(5, 11, 4, 2)
    node = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip((node, *inputs), needs, strict=True)]
    wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    index = graph.edge_dst, graph.edge_ptr, graph.edge_order
    for made in product([False, True], repeat=3):
        got = torch.ops.fastkd.gated_edge_gradients(*tensors, *index, list(made), "numba")
        want = reference.gradients(*tensors, graph.edge_dst, made)
        assert [tensor.numel() > 0 for tensor in got] == list(made)
        for used in product([False, True], repeat=3):
            both = [sum(o.sin().sum() for o, use in zip(outputs, used, strict=True) if use) for outputs in (got, want)]
            if not torch.is_tensor(both[1]) or not both[1].requires_grad:
                continue
            results = [torch.autograd.grad(one, wanted, retain_graph=True, allow_unused=True, materialize_grads=True) for one in both]
            torch.testing.assert_close(*results)


class _Largest(TorchDispatchMode):
    """Counts the tensors of a size that are made outside of our operators."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.made = shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor) and tuple(item.shape) == self.shape:
                self.made.append(str(func))
        return out


def test_only_answers_have_the_size_of_the_edges():
    """[E, D] at first order: the gradient by the edges. At second order: the same, once."""
    (edge, basis, weight), graph = make(6, 40, 17, 3)
    node = torch.randn(6, 17, dtype=torch.float64, requires_grad=True)
    with _Largest((40, 17)) as largest:
        first = torch.autograd.grad(gated_edge_to_node(edge, basis, weight, graph), (edge, basis, weight), node, create_graph=True)
        assert largest.made == ["fastkd.gated_edge_gradients.default"]
        # the cotangents are made outside of the count
        with torch.utils._python_dispatch._disable_current_modes():
            cotangents = [torch.randn_like(gradient) for gradient in first]
        torch.autograd.grad(first, (edge, basis, weight, node), cotangents)
        assert largest.made == ["fastkd.gated_edge_gradients.default"] * 2


@pytest.mark.parametrize("order", range(3))
def test_long_sums_of_float32(order):
    """Many parts of the CPU kernels, a hub of 10⁴ edges, and the weight's gradient over all of them."""
    generator = torch.Generator().manual_seed(3)
    dst = torch.cat([torch.zeros(10_000, dtype=torch.int64), torch.randint(50, (7_001,), generator=generator)])
    graph = CSRGraph.from_edges(dst.flip(0), dst, 50)
    shapes = (graph.num_edges, 12), (graph.num_edges, 7), (12, 7), (50, 12)
    *inputs, node = (torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (*inputs, node)]
    found = []
    for function, (*tensors, upstream) in (
        (lambda *x: gated_edge_to_node(*x, graph, backend="numba"), (*inputs, node)),
        (lambda *x: exact(x, graph), doubles),
    ):
        outputs = [function(*tensors)]
        if order:
            outputs = torch.autograd.grad(outputs, tensors, upstream, create_graph=True)
        if order == 2:
            cotangents = [tensor.detach().to(upstream.dtype) for tensor in inputs]
            outputs = torch.autograd.grad(outputs, (*tensors, upstream), cotangents)
        found.append(outputs)
    limit = TOLERANCES[torch.float32].by_order[order]
    assert max(relative_error(got, want) for got, want in zip(*found, strict=True)) < limit


@pytest.mark.slow
@pytest.mark.parametrize(("edges", "width", "rank"), [(9_000, 64, 16), (3_001, 33, 5), (1_025, 129, 33), (7, 257, 2)])
def test_same_bits_for_any_number_of_threads_over_ragged_parts(monkeypatch, edges, width, rank):
    """Sizes at which products by BLAS differ."""
    monkeypatch.setattr(cpu, "THREADED_WORK", 0)
    inputs, graph = make(100, edges, width, rank, torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(torch.autograd.grad(gated_edge_to_node(*inputs, graph, backend="numba").sin().sum(), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@each_backend
def test_nothing_to_sum(backend):
    for nodes, edges, width, rank in ((3, 4, 0, 2), (3, 4, 2, 0), (3, 0, 2, 2), (0, 0, 2, 2)):
        index = torch.zeros(edges, dtype=torch.int64)
        graph = CSRGraph.from_edges(index, index, nodes)
        inputs = tuple(torch.ones(*size, requires_grad=True) for size in ((edges, width), (edges, rank), (width, rank)))
        total = gated_edge_to_node(*inputs, graph, backend=backend)
        assert torch.equal(total, torch.zeros(nodes, width))
        for gradient, tensor in zip(torch.autograd.grad(total.sum(), inputs), inputs, strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@each_backend
def test_nan_in_one_edge_stays_with_its_node(backend):
    (edge, basis, weight), graph = make()
    broken = edge.detach().clone()
    broken[4, 2] = float("nan")
    total = gated_edge_to_node(broken, basis, weight, graph, backend=backend)
    node = int(graph.edge_dst[4])
    assert total[node].isnan().tolist() == [False, False, True, False, False]
    assert not total[torch.arange(graph.num_nodes) != node].isnan().any()


def test_mistakes_are_named():
    (edge, basis, weight), graph = make()
    with pytest.raises(ValueError, match=r"edge \[23, D\].*weight \[D, R\].*got edge \[22, 5\]"):
        gated_edge_to_node(edge[1:], basis, weight, graph)
    with pytest.raises(ValueError, match=r"weight \[3, 5\]"):
        gated_edge_to_node(edge, basis, weight.T, graph)
    with pytest.raises(ValueError, match=r"basis \[23\]"):
        gated_edge_to_node(edge, basis[:, 0], weight, graph)
    with pytest.raises(ValueError, match=r"torch.float32"):
        gated_edge_to_node(edge, basis.float(), weight, graph)
    with pytest.raises(ValueError, match=r"torch.int64"):
        gated_edge_to_node(*(tensor.detach().long() for tensor in (edge, basis, weight)), graph)
