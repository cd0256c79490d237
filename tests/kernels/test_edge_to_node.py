"""What is particular to edge-to-node sums: the closed family to third order, partial gradients, geometry, mistakes."""

import os
from itertools import product

import pytest
import torch
from fastkd_kernels import CSRGraph, edge_to_node, edge_to_node_both, edge_to_node_vector
from fastkd_kernels.edge_to_node import reference

INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])


def make(nodes: int = 7, edges: int = 23, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, CSRGraph]:
    generator = torch.Generator().manual_seed(0)
    src, dst = (torch.randint(nodes - 2, (edges,), generator=generator) for _ in range(2))
    edge = torch.randn(edges, width, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(edges, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return edge, direction, CSRGraph.from_edges(src, dst, nodes)


def nested_gradients(outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], order: int) -> list[tuple[torch.Tensor, ...]]:
    """Gradients of Σ sin(y), of Σ sin of these, and so on: each holds all derivatives of the operator up to its order."""
    found = []
    for _ in range(order):
        scalar = sum(output.sin().sum() for output in outputs)
        outputs = torch.autograd.grad(scalar, inputs, create_graph=True)
        found.append(outputs)
    return found


@each_backend
def test_an_example_by_hand(backend):
    graph = CSRGraph.from_edges(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2]), 3)
    edge = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    direction = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, -1.0, 0.0]])
    scalar, vector = edge_to_node_both(edge, direction, graph, backend=backend)
    assert scalar.tolist() == [[3, 4], [0, 0], [6, 8]]
    assert vector.tolist() == [[[0, 0], [0, 0], [6, 8]], [[0, 0], [0, 0], [0, 0]], [[1, 2], [-5, -6], [0, 0]]]


@each_backend
@pytest.mark.parametrize("function", [edge_to_node_vector, edge_to_node_both])
def test_four_orders(backend, function):
    edge, direction, graph = make(5, 9, 3)
    got = function(edge, direction, graph, backend=backend)
    want = getattr(reference, function.__name__)(edge, direction, graph.edge_dst, graph.num_nodes)
    pack = lambda value: value if isinstance(value, tuple) else (value,)  # noqa: E731
    for mine, theirs in zip(
        nested_gradients(pack(got), (edge, direction), 4), nested_gradients(pack(want), (edge, direction), 4), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@each_backend
def test_one_pass_is_the_two_passes(backend):
    edge, direction, graph = make()
    scalar, vector = edge_to_node_both(edge, direction, graph, backend=backend)
    torch.testing.assert_close(scalar, edge_to_node(edge, graph, backend=backend))
    torch.testing.assert_close(vector, edge_to_node_vector(edge, direction, graph, backend=backend))


@each_backend
@pytest.mark.parametrize("used", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_partial_gradients_are_parts_of_the_whole(backend, used, needs):
    """An output that is not used has no cotangent, an input that needs no gradient has none; the rest is exact, twice."""
    edge, direction, graph = make()
    inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip((edge, direction), needs, strict=True)]
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]

    def second(outputs):
        loss = sum(output.sin().sum() for output, use in zip(outputs, used, strict=True) if use)
        if not loss.requires_grad:
            return None
        first = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
        total = sum(gradient.square().sum() for gradient in first)
        again = torch.autograd.grad(total, wanted, materialize_grads=True) if total.requires_grad else ()
        return (*first, *again)

    got = second(edge_to_node_both(*inputs, graph, backend=backend))
    want = second(reference.edge_to_node_both(*inputs, graph.edge_dst, graph.num_nodes))
    if want is None:
        # the scalars do not depend on the directions
        assert got is None or all((gradient == 0).all() for gradient in got)
    else:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("needs", [needs for needs in product([False, True], repeat=4) if any(needs)])
def test_gradients_of_the_gradient_for_any_subset_of_inputs(needs):
    edge, direction, graph = make(5, 11, 2)
    cotangents = torch.randn(5, 3, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip((edge, direction, *cotangents), needs, strict=True)]
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
    m, r, vector, scalar = inputs
    graph_tensors = graph.edge_dst, graph.edge_ptr, graph.edge_order
    got = torch.ops.fastkd.edge_to_node_backward(m, r, vector, scalar, *graph_tensors, "numba")
    want = reference.node_to_edge(r, vector, scalar, graph.edge_dst), reference.node_dot_edge(m, vector, graph.edge_dst)
    for part in ((0,), (1,), (0, 1)):
        losses = [sum(outputs[i].sin().sum() for i in part) for outputs in (got, want)]
        if not losses[1].requires_grad:
            continue
        results = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True) for loss in losses]
        torch.testing.assert_close(*results)


@each_backend
def test_vectors_turn_with_the_directions(backend):
    edge, direction, graph = make()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    turned = edge_to_node_vector(edge, direction @ rotation.T, graph, backend=backend)
    torch.testing.assert_close(turned, torch.einsum("kl,nld->nkd", rotation, edge_to_node_vector(edge, direction, graph, backend=backend)))


@each_backend
def test_the_order_of_edges_is_the_callers(backend):
    edge, direction, graph = make()
    mixed = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(2))
    other = CSRGraph.from_edges(graph.edge_src[mixed], graph.edge_dst[mixed], graph.num_nodes)
    for mine, theirs in zip(
        edge_to_node_both(edge[mixed], direction[mixed], other, backend=backend),
        edge_to_node_both(edge, direction, graph, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@each_backend
def test_no_columns_no_edges_no_nodes(backend):
    for nodes, edges, width in ((3, 4, 0), (3, 0, 2), (0, 0, 2)):
        index = torch.zeros(edges, dtype=torch.int64)
        graph = CSRGraph.from_edges(index, index, nodes)
        edge, direction = torch.ones(edges, width, requires_grad=True), torch.ones(edges, 3, requires_grad=True)
        scalar, vector = edge_to_node_both(edge, direction, graph, backend=backend)
        assert torch.equal(scalar, torch.zeros(nodes, width))
        assert torch.equal(vector, torch.zeros(nodes, 3, width))
        by_edge, by_direction = torch.autograd.grad(vector.sum(), (edge, direction))
        assert by_edge.shape == (edges, width)
        assert torch.equal(by_direction, torch.zeros(edges, 3))


def test_mistakes_are_named():
    edge, direction, graph = make()
    with pytest.raises(ValueError, match=r"edge_to_node needs edge \[23, D\].*got edge \[22, 5\]"):
        edge_to_node(edge[1:], graph)
    with pytest.raises(ValueError, match=r"direction \[23, 3\].*got edge \[23, 5\].*direction \[23, 2\]"):
        edge_to_node_vector(edge, direction[:, :2], graph)
    with pytest.raises(ValueError, match=r"torch.float32"):
        edge_to_node_both(edge, direction.float(), graph)
    with pytest.raises(ValueError, match=r"torch.int64"):
        edge_to_node(edge.detach().long(), graph)
