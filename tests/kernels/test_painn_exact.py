"""What painn_exact promises beyond the tests of all ops: it is painn_message with filters made from distances, and stores none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastkd_kernels import CSRGraph, cpu, painn_message
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.painn_exact import op
from fastkd_kernels.painn_exact.op import painn_message_exact
from fastkd_kernels.painn_radial import radial
from fastkd_kernels.painn_radial.radial import painn_message_radial
from fastkd_kernels.radial_specs import BASES, ENVELOPES, BasisSpec, EnvelopeSpec, FilterLinear, filter_jets
from fastkd_kernels.registry import Shape, random_graph, random_tensor
from fastkd_kernels.testing import available_backends, three_orders
from fastkd_kernels.tolerances import TOLERANCES, relative_error
from torch import Tensor

from tests.kernels.memory import record

CUTOFF = 4.0
BACKENDS = available_backends(torch.device("cpu"), torch.float64)
each_backend = pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.triton if b == "triton" else ()) for b in BACKENDS])
both_units = pytest.mark.parametrize("paired", [False, True], ids=["edges", "pairs"])
with_and_without = pytest.mark.parametrize("first", [False, True], ids=["vector", "first"])

Inputs = tuple[Tensor | None, ...]


def _inputs(
    shape: Shape, *, paired: bool, first: bool = False, size: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0, reach: float = 1.1
) -> tuple[Inputs, CSRGraph, Any]:
    """phi, vector, length, direction, weight, bias; a part of the lengths beyond the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
    units, width = graph.num_edges if pairs is None else pairs.num_pairs, shape.width
    sizes = ((shape.nodes, 3 * width), (shape.nodes, 3, width), (units, 3), (3 * width, size), (3 * width,))
    phi, vector, direction, weight, bias = (random_tensor(*s, dtype=dtype, generator=generator) for s in sizes)
    length = (0.3 + reach * CUTOFF * torch.rand(units, dtype=torch.float64, generator=generator)).to(dtype)
    made = (phi, None if first else vector, length, direction, weight, bias)
    return tuple(None if tensor is None else tensor.requires_grad_() for tensor in made), graph, pairs


def _ours(basis: BasisSpec, envelope: Any, graph: CSRGraph, pairs: Any, backend: str | None, smooth: bool = True) -> Any:
    def message(phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, weight: Tensor, bias: Tensor) -> Any:
        linear = FilterLinear(weight, bias, smooth)
        return painn_message_exact(phi, vector, length, direction, basis, linear, envelope, graph, pairs=pairs, backend=backend)

    return message


def _stored(basis: BasisSpec, envelope: EnvelopeSpec, graph: CSRGraph, pairs: Any, smooth: bool = True) -> Any:
    """The same by way of painn_message: filters of all directed edges in memory, directions of the second edges of pairs reversed."""

    def message(phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, weight: Tensor, bias: Tensor) -> Any:
        filters = filter_jets(basis, FilterLinear(weight, bias, smooth), envelope, length, 0)[0].to(phi.dtype)
        if pairs is not None:
            sign = torch.ones(graph.num_edges, 1, dtype=phi.dtype)
            sign[pairs.pair_edges[:, 1]] = -1
            filters, direction = filters[pairs.pair], direction[pairs.pair] * sign
        return painn_message(phi, vector, filters, direction, graph, backend="reference")

    return message


def _orders(function: Any, inputs: Inputs) -> Any:
    """`three_orders` of a function one of whose inputs may be None."""
    given = [tensor for tensor in inputs if tensor is not None]

    def on_tensors(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        return function(*(None if tensor is None else next(rest) for tensor in inputs))

    return three_orders(on_tensors, given, torch.float64)


def _assert_alike(ours: Any, want: Any, tolerance: float = 1e-11) -> None:
    for order, (got, exact) in enumerate(zip(ours, want, strict=True)):
        for number, (a, b) in enumerate(zip(got, exact, strict=True)):
            scale = max(float(b.detach().abs().max()) if b.numel() else 0.0, 1.0)
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale), f"order {order}, tensor {number}"


@each_backend
@both_units
@with_and_without
@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "bias-outside"])
def test_equals_the_message_with_stored_filters(backend: str, paired: bool, first: bool, smooth: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(7, 40, 6), paired=paired, first=first)
    basis, envelope = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    assert inputs[2] is not None
    assert bool((inputs[2] > CUTOFF).any())
    ours = _orders(_ours(basis, envelope, graph, pairs, backend, smooth), inputs)
    _assert_alike(ours, _orders(_stored(basis, envelope, graph, pairs, smooth), inputs))


@each_backend
@pytest.mark.parametrize("kinds", list(itertools.product(BASES, ENVELOPES)), ids="-".join)
def test_every_basis_with_every_envelope(backend: str, kinds: Any) -> None:
    paired = sum(map(len, kinds)) % 2 == 0
    inputs, graph, pairs = _inputs(Shape(5, 16, 3), paired=paired, size=5, seed=1)
    basis, envelope = BasisSpec(kinds[0], 5, CUTOFF), EnvelopeSpec(kinds[1], CUTOFF, 4)
    ours = _orders(_ours(basis, envelope, graph, pairs, backend), inputs)
    _assert_alike(ours, _orders(_stored(basis, envelope, graph, pairs), inputs))


@each_backend
@both_units
@pytest.mark.parametrize("shape", [Shape(1, 0, 3), Shape(5, 0, 4), Shape(1, 4, 1), Shape(4, 30, 33), Shape(3, 12, 65)], ids=str)
@pytest.mark.parametrize("size", [2, 17, 33])
def test_odd_sizes(backend: str, paired: bool, shape: Shape, size: int) -> None:
    if backend == "triton" and size > 2 and (shape.width > 4 or size == 17):
        pytest.skip("the interpreter is slow, and numbers of functions are seen with small graphs")
    inputs, graph, pairs = _inputs(shape, paired=paired, size=size, seed=2)
    basis, envelope = BasisSpec("exp_normal", size, CUTOFF), EnvelopeSpec("polynomial", CUTOFF)
    ours = _orders(_ours(basis, envelope, graph, pairs, backend), inputs)
    _assert_alike(ours, _orders(_stored(basis, envelope, graph, pairs), inputs), 1e-10)


@each_backend
@both_units
def test_nothing_comes_from_beyond_the_cutoff(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(6, 20, 4), paired=paired)
    assert inputs[2] is not None
    far = inputs[2].detach().clone().fill_(CUTOFF).requires_grad_()
    message = _ours(BasisSpec("bessel", 6, CUTOFF), CUTOFF, graph, pairs, backend)
    for order in _orders(message, (*inputs[:2], far, *inputs[3:])):
        assert not any(bool(tensor.detach().any()) for tensor in order)


@each_backend
def test_a_pair_of_a_node_with_itself_sends_nothing_along_its_direction(backend: str) -> None:
    graph = CSRGraph.from_edges(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 1)
    (_, _, _, _, weight, bias), _, like = _inputs(Shape(1, 4, 2), paired=True)
    pairs = type(like).from_pair(torch.zeros(2, dtype=torch.int64), graph)
    generator = torch.Generator().manual_seed(0)
    phi, direction = (random_tensor(*s, dtype=torch.float64, generator=generator).requires_grad_() for s in ((1, 6), (1, 3)))
    assert weight is not None
    assert bias is not None
    length, basis, linear = torch.ones(1, dtype=torch.float64), BasisSpec("gaussian", 6, CUTOFF), FilterLinear(weight, bias)
    scalar, vector = painn_message_exact(phi, None, length, direction, basis, linear, CUTOFF, graph, pairs=pairs, backend=backend)
    assert bool(scalar.detach().all())
    assert not bool(vector.detach().any())
    (gradient,) = torch.autograd.grad(vector.sum(), direction)
    assert not bool(gradient.any())


@each_backend
@both_units
def test_third_order(backend: str, paired: bool) -> None:
    inputs, graph, pairs = _inputs(Shape(4, 8, 2), paired=paired, size=4, seed=2)
    basis, envelope = BasisSpec("gaussian", 4, CUTOFF), EnvelopeSpec("exponential", CUTOFF)
    generator = torch.Generator().manual_seed(3)
    weights = [random_tensor(*tensor.shape, dtype=torch.float64, generator=generator) for tensor in inputs if tensor is not None]
    found = []
    for function in (_ours(basis, envelope, graph, pairs, backend), _stored(basis, envelope, graph, pairs)):
        scalar, vector = function(*inputs)
        total = scalar.pow(3).sum() + vector.pow(3).sum()
        for _ in range(2):
            total = sum((g * w).sum() for g, w in zip(torch.autograd.grad(total, inputs, create_graph=True), weights, strict=True))
        found.append(torch.autograd.grad(total, inputs))
    _assert_alike(found[:1], found[1:], 1e-10)


def _positions(paired: bool) -> tuple[Tensor, CSRGraph, Any, Tensor, Tensor]:
    """Positions, graph, pairs, and the ends of the units."""
    _, graph, pairs = _inputs(Shape(9, 60, 5), paired=paired, seed=4)
    apart = graph.edge_src != graph.edge_dst
    graph = CSRGraph.from_edges(graph.edge_src[apart], graph.edge_dst[apart], graph.num_nodes)
    src, dst = graph.edge_src, graph.edge_dst
    if paired:
        pairs = type(pairs).from_pair(torch.unique(pairs.pair[apart], return_inverse=True)[1], graph)
        src, dst = src[pairs.pair_edges[:, 0]], dst[pairs.pair_edges[:, 0]]
    positions = 0.9 * torch.randn(graph.num_nodes, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return positions.requires_grad_(), graph, pairs, src, dst


def _force_loss(message: Any, positions: Tensor, src: Tensor, dst: Tensor, parameters: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    phi, vector, weight, bias = parameters
    edge = positions[dst] - positions[src]
    length = edge.norm(dim=1)
    direction = edge / length.unsqueeze(1)
    scalar, carried = message(phi, None, length, direction, weight, bias)
    mixed = phi * scalar.tanh().repeat(1, 3)
    scalar, carried = message(mixed, (vector + carried).tanh(), length, direction, weight, bias)
    energy = scalar.tanh().sum() + (carried.tanh() * vector).sum()
    (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
    return energy.square() + (forces - targets).square().sum(), forces


@each_backend
@both_units
def test_gradient_of_a_loss_on_forces_is_fused_and_exact(backend: str, paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    positions, graph, pairs, src, dst = _positions(paired)
    generator = torch.Generator().manual_seed(6)
    sizes = ((graph.num_nodes, 15), (graph.num_nodes, 3, 5), (15, 6), (15,))
    leaves = tuple(random_tensor(*size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes)
    targets = random_tensor(graph.num_nodes, 3, dtype=torch.float64, generator=generator)
    basis, envelope = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    exact, _ = _force_loss(_stored(basis, envelope, graph, pairs), positions, src, dst, leaves, targets)
    want = torch.autograd.grad(exact, leaves)

    needed: list[list[bool]] = []
    real = op._backward

    def recorded(*args: Any) -> Any:
        needed.append(args[-2])
        return real(*args)

    monkeypatch.setattr(op, "_backward", recorded)
    monkeypatch.setattr(op, "through_reference", lambda *args: pytest.fail("training on forces must not leave the fused path"))
    ours, forces = _force_loss(_ours(basis, envelope, graph, pairs, backend), positions, src, dst, leaves, targets)
    assert float(forces.detach().sum(0).abs().max()) < 1e-11 * float(forces.detach().abs().max()), "the net force must vanish"
    in_force_pass = len(needed)
    got = torch.autograd.grad(ours, leaves)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * float(b.abs().max()))
    # phi, vector, length, direction, weight: no weight in the force pass, no lengths and directions in the loss pass
    assert all(needs[2] and needs[3] and not needs[4] for needs in needed[:in_force_pass])
    assert all(needs[4] and not needs[2] and not needs[3] for needs in needed[in_force_pass:])


@both_units
def test_many_tiles_in_float32(paired: bool) -> None:
    """More units than a tile, the usual widths; every order against float64."""
    basis, envelope = BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    inputs, graph, pairs = _inputs(Shape(60, 1500, 128), paired=paired, size=20, dtype=torch.float32, reach=0.9)
    doubled = tuple(None if t is None else t.detach().double().requires_grad_() for t in inputs)
    given = [t for t in inputs if t is not None]
    want = three_orders(_stored(basis, envelope, graph, pairs), [t for t in doubled if t is not None], torch.float32)
    got = three_orders(_ours(basis, envelope, graph, pairs, "numba"), given, torch.float32)
    for ours, exact, limit in zip(got, want, TOLERANCES[torch.float32].by_order, strict=True):
        for a, b in zip(ours, exact, strict=True):
            assert relative_error(a, b) <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_may_be_more_precise_than_features(dtype: torch.dtype) -> None:
    inputs, graph, pairs = _inputs(Shape(6, 30, 5), paired=True, dtype=dtype)
    phi, vector, length, direction, weight, bias = (t if t is None else t.detach() for t in inputs)
    assert length is not None
    fine = (length.double() + 1e-3).requires_grad_()
    basis, envelope = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    wide = [t if t is None else t.double() for t in (phi, vector, fine, direction, weight, bias)]
    backends = ["reference"] if dtype == torch.bfloat16 else ["reference", "numba"]
    (want,) = torch.autograd.grad(_stored(basis, envelope, graph, pairs)(*wide)[0].square().sum(), fine)
    for backend in backends:
        scalar, _ = _ours(basis, envelope, graph, pairs, backend)(phi, vector, fine, direction, weight, bias)
        assert scalar.dtype == dtype
        (got,) = torch.autograd.grad(scalar.double().square().sum(), fine)
        assert got.dtype == torch.float64
        assert relative_error(got, want) <= TOLERANCES[dtype].by_order[1]


@both_units
def test_nothing_of_edges_times_features_is_made(paired: bool) -> None:
    """In a training step on forces, both layers: no tensor but of scalars and directions grows with the number of edges."""
    basis, envelope = BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    most = []
    for edges in (20_000, 40_000):
        inputs, graph, pairs = _inputs(Shape(10, edges, 16), paired=paired, size=20, dtype=torch.float32)

        def step(graph: CSRGraph = graph, pairs: Any = pairs, inputs: Inputs = inputs) -> Any:
            phi, vector, length, direction, weight, bias = inputs
            scalar, carried = _ours(basis, envelope, graph, pairs, "numba")(phi, vector, length, direction, weight, bias)
            energy = scalar.square().sum() + carried.square().sum()
            moved = torch.autograd.grad(energy, (phi, vector, length, direction), create_graph=True)
            return torch.autograd.grad(energy + sum(m.square().sum() for m in moved), (phi, vector, weight, bias))

        most.append(record(step))
    added = (most[1].peak - most[0].peak) / 4 / 20_000
    assert added <= 24, f"{added:.1f} numbers an edge"
    assert most[1].largest <= max(8 * 40_000 * 4, 3 * 49_152 * 4), most[1].largest_name


@both_units
@pytest.mark.parametrize("smooth", [True, False])
def test_is_the_exact_method_of_painn_message_radial(paired: bool, smooth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (phi, vector, _, edge_vector, weight, bias), graph, pairs = _inputs(Shape(7, 40, 6), paired=paired)
    assert weight is not None
    assert bias is not None
    basis, envelope, linear = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF), FilterLinear(weight, bias, smooth)
    calls = []
    real = radial.painn_message_exact
    monkeypatch.setattr(radial, "painn_message_exact", lambda *args, **kwargs: (calls.append(1), real(*args, **kwargs))[1])

    def exact(edge_vector: Tensor) -> Any:
        return painn_message_radial(phi, vector, edge_vector, basis, linear, envelope, graph, pairs=pairs, method="exact")

    def stored(edge_vector: Tensor) -> Any:
        length = edge_vector.norm(dim=1)
        direction = edge_vector / length.unsqueeze(1)
        return _stored(basis, envelope, graph, pairs, smooth)(phi, vector, length, direction, weight, bias)

    assert edge_vector is not None
    ours, want = (three_orders(f, [edge_vector], torch.float64) for f in (exact, stored))
    assert calls
    _assert_alike(ours, want)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.slow
@both_units
def test_same_bits_on_one_thread_and_two(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # slow because each kernel is compiled once more, threaded
    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    inputs, graph, pairs = _inputs(Shape(30, 900, 70), paired=paired, size=20, dtype=torch.float32)
    message = _ours(BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF), graph, pairs, "numba")
    runs = []
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        runs.append(three_orders(message, [t for t in inputs if t is not None], torch.float32))
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_not_a_number_stays_one() -> None:
    inputs, graph, pairs = _inputs(Shape(4, 10, 3), paired=True, reach=0.5)
    phi, vector, length, direction, weight, bias = (None if t is None else t.detach() for t in inputs)
    assert length is not None
    length[2] = float("nan")
    touched = graph.edge_dst[pairs.pair_edges[2]]
    for kind in BASES:
        message = _ours(BasisSpec(kind, 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF), graph, pairs, None)
        scalar, _ = message(phi, vector, length, direction, weight, bias)
        assert bool(scalar[touched].isnan().all())


def test_arguments_that_do_not_fit_are_refused() -> None:
    inputs, graph, pairs = _inputs(Shape(5, 12, 3), paired=True)
    phi, vector, length, direction, weight, bias = inputs
    assert phi is not None
    assert length is not None
    basis, envelope = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    message = _ours(basis, envelope, graph, pairs, "reference")
    with pytest.raises(ValueError, match="float32"):
        message(phi.float(), vector, length, direction, weight, bias)
    with pytest.raises(ValueError, match=r"edge_length \[6\]"):
        message(phi, vector, length[:2], direction, weight, bias)
    with pytest.raises(ValueError, match=r"weight \[3F, 7\]"):
        _ours(BasisSpec("gaussian", 7, CUTOFF), envelope, graph, pairs, "reference")(*inputs)
    other = CSRGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 5)
    with pytest.raises(ValueError, match=r"12.* 1 edges"):
        _ours(basis, envelope, other, pairs, "reference")(*inputs)
