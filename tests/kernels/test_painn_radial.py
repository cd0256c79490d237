"""What painn_radial promises beyond the tests of all ops: it is painn_message with a tabulated filter, also for training on forces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastkd_kernels import CSRGraph, cpu, painn_message
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.painn_radial import op, reference
from fastkd_kernels.painn_radial.op import painn_radial
from fastkd_kernels.radial_conv.cases import GRID, random_lengths
from fastkd_kernels.radial_conv.places import RadialIndex
from fastkd_kernels.radial_conv.reference import filters
from fastkd_kernels.registry import Shape, random_graph, random_tensor
from fastkd_kernels.testing import available_backends, three_orders
from torch import Tensor

BACKENDS = available_backends(torch.device("cpu"), torch.float64)
each_backend = pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.triton if b == "triton" else ()) for b in BACKENDS])
both_units = pytest.mark.parametrize("paired", [False, True], ids=["edges", "pairs"])


def _inputs(shape: Shape, paired: bool, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[tuple[Tensor, ...], CSRGraph, Any]:
    generator = torch.Generator().manual_seed(seed)
    pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
    units, width = graph.num_edges if pairs is None else pairs.num_pairs, shape.width
    sizes = ((shape.nodes, 3 * width), (shape.nodes, 3, width), (units, 3), (GRID.rows, 3 * width))
    phi, vector, direction, table = (random_tensor(*size, dtype=dtype, generator=generator) for size in sizes)
    made = (phi, vector, random_lengths(units, dtype, generator), direction, table)
    return tuple(tensor.requires_grad_() for tensor in made), graph, pairs


def _stored(index: RadialIndex, graph: CSRGraph, pairs: Any) -> Any:
    """The same by way of painn_message: filters of all directed edges in memory, directions of the second edges of pairs reversed."""

    def message(phi: Tensor, vector: Tensor, length: Tensor, direction: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        weight = filters(length, table, index.knot, index.fraction, GRID.step, 0)
        if pairs is not None:
            sign = torch.ones(graph.num_edges, 1, dtype=phi.dtype)
            sign[pairs.pair_edges[:, 1]] = -1
            weight, direction = weight[pairs.pair], direction[pairs.pair] * sign
        return painn_message(phi, vector, weight, direction, graph, backend="reference")

    return message


@each_backend
@both_units
def test_equals_the_message_with_stored_filters(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(7, 40, 6), paired)
    index = RadialIndex.from_lengths(inputs[2], GRID, graph, pairs, backend=backend)
    where = RadialIndex.from_lengths(inputs[2], GRID, graph, pairs, backend="reference")
    ours = three_orders(lambda *x: painn_radial(*x, index), inputs, torch.float64)
    want = three_orders(_stored(where, graph, pairs), inputs, torch.float64)
    for got, exact in zip(ours, want, strict=True):
        for a, b in zip(got, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def _positions(paired: bool) -> tuple[Tensor, CSRGraph, Any, Tensor, Tensor]:
    """Positions, graph, pairs, and the ends of the units."""
    _, graph, pairs = _inputs(Shape(9, 60, 5), paired, seed=4)
    apart = graph.edge_src != graph.edge_dst
    graph = CSRGraph.from_edges(graph.edge_src[apart], graph.edge_dst[apart], graph.num_nodes)
    src, dst = graph.edge_src, graph.edge_dst
    if paired:
        pairs = type(pairs).from_pair(torch.unique(pairs.pair[apart], return_inverse=True)[1], graph)
        src, dst = src[pairs.pair_edges[:, 0]], dst[pairs.pair_edges[:, 0]]
    positions = 0.6 * torch.randn(graph.num_nodes, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return positions.requires_grad_(), graph, pairs, src, dst


def _force_loss(message: Any, positions: Tensor, src: Tensor, dst: Tensor, parameters: tuple[Tensor, ...], layers: int = 2) -> Tensor:
    phi, vector, table, targets = parameters
    edge = positions[dst] - positions[src]
    length = edge.norm(dim=1)
    direction = edge / length.unsqueeze(1)
    # features that depend on positions themselves, as in every layer but the first
    scalar, carried = message(phi, None, length, direction, table)
    for _ in range(layers - 1):
        mixed = phi * scalar.tanh().repeat(1, 3)
        scalar, carried = message(mixed, (vector + carried).tanh(), length, direction, table)
    energy = scalar.tanh().sum() + (carried.tanh() * vector).sum()
    (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
    return energy.square() + (forces - targets).square().sum()


@each_backend
@both_units
def test_gradient_of_a_loss_on_forces_is_fused_and_exact(backend: str, paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    positions, graph, pairs, src, dst = _positions(paired)
    generator = torch.Generator().manual_seed(6)
    sizes = ((graph.num_nodes, 15), (graph.num_nodes, 3, 5), (GRID.rows, 15))
    leaves = tuple(random_tensor(*size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes)
    targets = random_tensor(graph.num_nodes, 3, dtype=torch.float64, generator=generator)

    lengths = (positions[dst] - positions[src]).norm(dim=1)
    index = RadialIndex.from_lengths(lengths, GRID, graph, pairs, backend=backend)
    plain = RadialIndex.from_lengths(lengths, GRID, graph, pairs, backend="reference").arguments
    exact = _force_loss(lambda *x: reference.painn_radial(*x, plain), positions, src, dst, (*leaves, targets))
    want = torch.autograd.grad(exact, leaves)

    needed: list[list[bool]] = []
    real = op._backward

    def recorded(*args: Any) -> Any:
        needed.append(args[-2])
        return real(*args)

    monkeypatch.setattr(op, "_backward", recorded)
    monkeypatch.setattr(op, "through_reference", lambda *args: pytest.fail("training on forces must not leave the fused path"))
    ours = _force_loss(lambda *x: painn_radial(*x, index), positions, src, dst, (*leaves, targets))
    in_force_pass = len(needed)
    got = torch.autograd.grad(ours, leaves)

    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))
    # phi, vector, length, direction, table: no table in the force pass, no lengths and directions in the loss pass
    assert all(needs[2] and needs[3] and not needs[4] for needs in needed[:in_force_pass])
    assert all(needs[4] and not needs[2] and not needs[3] for needs in needed[in_force_pass:])


@each_backend
@both_units
def test_places_once_drops_second_derivatives_in_places_alone(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(4, 8, 2), paired, seed=2)
    index = RadialIndex.from_lengths(inputs[2], GRID, graph, pairs, backend=backend)
    found = []
    for once in (False, True):
        scalar, vector = painn_radial(*inputs, index, places_once=once)
        energy = scalar.tanh().sum() + vector.tanh().sum()
        forces = torch.autograd.grad(energy, inputs[2:4], create_graph=True)
        loss = energy.square() + sum(force.square().sum() for force in forces)
        found.append((loss, *torch.autograd.grad(loss, inputs, allow_unused=True)))
    for number, (every, kept) in enumerate(zip(*found, strict=True)):
        if number in (3, 4):
            assert every is not None
            assert kept is None
        else:
            torch.testing.assert_close(kept, every, rtol=1e-12, atol=1e-12 * float(every.detach().abs().max()))


@each_backend
@both_units
def test_third_order(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(4, 8, 2), paired, seed=2)
    index = RadialIndex.from_lengths(inputs[2], GRID, graph, pairs, backend=backend)
    plain = RadialIndex.from_lengths(inputs[2], GRID, graph, pairs, backend="reference").arguments
    generator = torch.Generator().manual_seed(3)
    weights = [random_tensor(*tensor.shape, dtype=torch.float64, generator=generator) for tensor in inputs]

    def contracted(gradients: Any) -> Tensor:
        return sum((g * w).sum() for g, w in zip(gradients, weights, strict=True))

    found = []
    for function in (lambda *x: painn_radial(*x, index), lambda *x: reference.painn_radial(*x, plain)):
        scalar, vector = function(*inputs)
        total = scalar.pow(3).sum() + vector.pow(3).sum()
        for _ in range(2):
            total = contracted(torch.autograd.grad(total, inputs, create_graph=True))
        found.append(torch.autograd.grad(total, inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


@each_backend
@both_units
def test_nothing_comes_from_beyond_the_cutoff(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(6, 20, 4), paired)
    far = inputs[2].detach().clone().fill_(GRID.cutoff).requires_grad_()
    inputs = (*inputs[:2], far, *inputs[3:])
    index = RadialIndex.from_lengths(far, GRID, graph, pairs, backend=backend)
    for order in three_orders(lambda *x: painn_radial(*x, index), inputs, torch.float64):
        assert not any(bool(tensor.detach().any()) for tensor in order)


@each_backend
def test_a_pair_of_a_node_with_itself_sends_nothing_along_its_direction(backend: str) -> None:
    graph = CSRGraph.from_edges(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 1)
    _, _, pairs_like = _inputs(Shape(3, 4, 2), paired=True)
    pairs = type(pairs_like).from_pair(torch.zeros(2, dtype=torch.int64), graph)
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 6), (1, 3), (GRID.rows, 6))
    phi, direction, table = (random_tensor(*size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes)
    length = torch.ones(1, dtype=torch.float64)
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend)
    scalar, vector = painn_radial(phi, None, length, direction, table, index)
    assert bool(scalar.detach().all())
    assert not bool(vector.detach().any())
    (gradient,) = torch.autograd.grad(vector.sum(), direction)
    assert not bool(gradient.any())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.slow
def test_same_bits_on_one_thread_and_two(monkeypatch: pytest.MonkeyPatch) -> None:
    # slow because each kernel is compiled once more, threaded
    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    # small components one after another, so that units fall into groups
    graph = CSRGraph.from_edges(*(torch.randint(5, (2, 400)) + 5 * (torch.arange(400) // 40)), 50)
    generator = torch.Generator().manual_seed(1)
    sizes = ((50, 27), (50, 3, 9), (400, 3), (GRID.rows, 27))
    phi, vector, direction, table = (random_tensor(*size, dtype=torch.float32, generator=generator).requires_grad_() for size in sizes)
    length = random_lengths(400, torch.float32, generator).requires_grad_()
    index = RadialIndex.from_lengths(length, GRID, graph, backend="numba")
    assert (index.group_ptr.diff() > 0).sum() > 1
    runs = []
    for count in (1, 2):
        torch.set_num_threads(count)
        runs.append(three_orders(lambda *x: painn_radial(*x, index), (phi, vector, length, direction, table), torch.float32))
    for one, two in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_dtypes_must_agree() -> None:
    inputs, graph, _ = _inputs(Shape(5, 12, 3), paired=False)
    index = RadialIndex.from_lengths(inputs[2], GRID, graph, backend="reference")
    with pytest.raises(ValueError, match="float32"):
        painn_radial(inputs[0].float(), *inputs[1:], index)
