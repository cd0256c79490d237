"""What is special to convolutions with tables: splines, tables of networks, the choice between table and network, every order.

One file, because all of it is asked of the same few graphs, networks and grids.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from fastkd_kernels import (
    BasisSpec,
    CSRGraph,
    EnvelopeSpec,
    FilterLinear,
    FilterMLP,
    RadialIndex,
    SplineGrid,
    TableBuilder,
    cfconv_radial,
    radial_conv,
    tabulate,
)
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.radial_conv import op, reference, tables
from fastkd_kernels.radial_conv.cases import GRID, random_lengths
from fastkd_kernels.radial_conv.spline import pieces, prefilter, row_weights
from fastkd_kernels.radial_specs import filter_jets
from fastkd_kernels.registry import Shape
from fastkd_kernels.testing import available_backends
from fastkd_kernels.tolerances import relative_error
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

CUTOFF = 5.0
BACKENDS = available_backends(torch.device("cpu"), torch.float64)


def _network(
    kind: str = "mlp", size: int = 50, width: int = 16, dtype: torch.dtype = torch.float64, seed: int = 0
) -> FilterMLP | FilterLinear:
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * columns**-0.5).to(dtype).requires_grad_()

    def bias(rows: int) -> Tensor:
        return (0.1 * torch.randn(rows, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    if kind == "linear":
        return FilterLinear(weight(width, size), bias(width))
    return FilterMLP(weight(width, size), bias(width), weight(width, width), bias(width))


def _parameters(network: FilterMLP | FilterLinear) -> list[Tensor]:
    return [tensor for tensor in network if isinstance(tensor, Tensor)]


# Splines


def test_pieces_sum_to_one_and_join_smoothly() -> None:
    for order in range(7):
        left, right = (row_weights(torch.tensor([t], dtype=torch.float64), order)[0] for t in (0.0, 1.0))
        # at a knot, the weights of the interval before it are those of the interval after it, one row on
        assert torch.allclose(right[1:], left[:-1], atol=1e-12)
        assert right[0] == pytest.approx(0, abs=1e-12)
        assert float(left.sum()) == pytest.approx(1.0 if order == 0 else 0.0, abs=1e-12)
    assert all(value == 0 for row in pieces(8) for value in row)


def test_polynomials_up_to_degree_seven_are_exact_up_to_the_ends() -> None:
    grid = SplineGrid(3.0, 20)
    at = torch.linspace(0, 2.999, 301, dtype=torch.float64)
    coefficients = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def polynomial(d: Tensor) -> Tensor:
        return torch.stack([(d / 3) ** power for power in range(8)], -1) @ coefficients

    table = grid.coefficients(polynomial(grid.positions()))
    knot, fraction, _ = reference.place(at, grid.step, grid.knots)
    assert relative_error(reference.filters(at, table, knot, fraction, grid.step, 0), polynomial(at)) < 1e-11


def test_error_falls_with_the_eighth_power_of_the_step() -> None:
    def function(d: Tensor) -> Tensor:
        return torch.stack([torch.sin(3 * d), torch.exp(-((d - 2.5) ** 2))], -1)

    # far from the ends, whose conditions are felt a few knots deep
    at = torch.linspace(2, 3, 997, dtype=torch.float64)
    errors = []
    for knots in (33, 65):
        grid = SplineGrid(CUTOFF, knots)
        values = function(grid.positions())
        knot, fraction, _ = reference.place(at, grid.step, knots)
        got = reference.filters(at, grid.coefficients(values), knot, fraction, grid.step, 0)
        errors.append(float((got - function(at)).norm(dim=1).amax()))
    assert 150 < errors[0] / errors[1] < 400  # 2⁸ = 256


@pytest.mark.parametrize("knots", [3, 15])
def test_too_few_knots_are_refused(knots: int) -> None:
    with pytest.raises(ValueError, match="at least 16 knots"):
        SplineGrid(CUTOFF, knots)


def test_values_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match=r"\[19, F\], got \[18, 3\]"):
        GRID.coefficients(torch.zeros(18, 3))


# Tables of networks


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("basis", ["gaussian", "bessel", "exp_normal"])
@pytest.mark.parametrize("envelope", ["cosine", "polynomial", "exponential"])
def test_a_grid_found_by_measurement_keeps_its_promise(kind: str, basis: str, envelope: str) -> None:
    spec, cut = BasisSpec(basis, 20, CUTOFF), EnvelopeSpec(envelope, CUTOFF)  # type: ignore[arg-type]
    network = _network(kind, size=20)
    builder = TableBuilder(spec, cut)
    grid = builder.grid([network], torch.float32)
    assert grid is not None
    d = 0.7 + (CUTOFF - 0.7) * torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = tabulate(spec, network, cut, grid)
    knot, fraction, _ = reference.place(d, grid.step, grid.knots)
    want = filter_jets(spec, network, cut, d, 1)
    for order, limit in enumerate(tables.LIMITS[torch.float32]):
        # the promise is a root mean square over all distances; a sample may be a little worse
        assert relative_error(reference.filters(d, table, knot, fraction, grid.step, order), want[order]) < 2 * limit


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize(
    ("dtype", "value", "slope"),
    # half a unit in the last place of a coefficient is 2⁻⁹ or 2⁻¹² of it at most, about a third of that on average; a slope
    # is a difference of coefficients over a step, and has five times the error
    [(torch.bfloat16, 2e-3, 1e-2), (torch.float16, 3e-4, 1.3e-3)],
    ids=str,
)
def test_the_error_of_tables_of_reduced_precision(kind: str, dtype: torch.dtype, value: float, slope: float) -> None:
    spec, cut = BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    network = _network(kind, size=20)
    grid = TableBuilder(spec, cut).grid([network], dtype)
    assert grid is not None
    d = 0.7 + (CUTOFF - 0.7) * torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    knot, fraction, _ = reference.place(d, grid.step, grid.knots)
    table, want = tabulate(spec, network, cut, grid, dtype).double(), filter_jets(spec, network, cut, d, 1)
    for order, limit in enumerate((value, slope)):
        assert relative_error(reference.filters(d, table, knot, fraction, grid.step, order), want[order]) < limit


@pytest.mark.parametrize("kind", ["mlp", "linear", "linear, bias outside"])
def test_tables_of_several_networks_have_the_gradients_of_each(kind: str) -> None:
    spec, cut, grid = BasisSpec("gaussian", 30, CUTOFF), EnvelopeSpec("cosine", CUTOFF), SplineGrid(CUTOFF, 129)
    networks: list[FilterMLP | FilterLinear] = [_network(kind.split(",", maxsplit=1)[0], 30, seed=seed) for seed in range(3)]
    if kind.endswith("outside"):
        networks = [network._replace(smooth_bias=False) for network in networks if isinstance(network, FilterLinear)]
    built = TableBuilder(spec, cut).build(networks, grid, torch.float64)
    for network, table in zip(networks, built, strict=True):
        alone = tabulate(spec, network, cut, grid)
        assert relative_error(table, alone) < 1e-12
        g = torch.randn(table.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        got, want = (torch.autograd.grad((g * t).sum(), _parameters(network), retain_graph=True) for t in (table, alone))
        assert all(relative_error(a, b) < 1e-11 for a, b in zip(got, want, strict=True))


def test_a_filter_that_sharpens_gets_more_knots_and_one_that_is_too_sharp_none() -> None:
    spec, cut = BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    builder, network = TableBuilder(spec, cut), _network(size=20)

    def grid_after(builds: int) -> SplineGrid | None:
        found = builder.grid([network], torch.float32)
        for _ in range(builds):
            if found is not None:
                builder.build([network], found, torch.float32)
            found = builder.grid([network], torch.float32)
        return found

    soon = tables.ESTIMATE_EVERY + tables.READ_AFTER
    first = grid_after(1)
    assert first is not None
    assert grid_after(soon) == first
    with torch.no_grad():
        network[0].mul_(12)  # type: ignore[union-attr]
    assert grid_after(0) == first  # nothing was built since
    second = grid_after(soon)
    assert second is not None
    assert second.knots > first.knots
    with torch.no_grad():
        network[0].mul_(400)  # type: ignore[union-attr]
    assert grid_after(soon) is None
    builder.reset()
    with torch.no_grad():
        network[0].div_(4800)  # type: ignore[union-attr]
    assert grid_after(0) == first


def test_a_builder_can_be_copied_and_pickled() -> None:
    builder = TableBuilder(BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF))
    network = _network(size=20)
    grid = builder.grid([network], torch.float32)
    assert grid is not None
    builder.build([network], grid, torch.float32)
    for twin in (copy.deepcopy(builder), pickle.loads(pickle.dumps(builder))):
        assert twin.grid([network], torch.float32) == grid


def test_cutoffs_must_agree() -> None:
    with pytest.raises(ValueError, match="cutoffs differ"):
        tabulate(BasisSpec("gaussian", 20, 4.0), _network(size=20), EnvelopeSpec("cosine", 5.0), SplineGrid(5.0))


# The operators


def _problem(paired: bool, dtype: torch.dtype = torch.float64, width: int = 5) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    pairs, graph = random_pairs(Shape(7, 24, width), generator)
    chosen = pairs if paired else None
    x = torch.randn(7, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    length = random_lengths(pairs.num_pairs if paired else graph.num_edges, dtype, generator).requires_grad_()
    table = torch.randn(GRID.rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, length, table, graph, chosen


def _ours(x: Tensor, length: Tensor, table: Tensor, graph: CSRGraph, pairs: Any, backend: str | None) -> Tensor:
    return radial_conv(x, length, table, RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend))


def _plain(x: Tensor, length: Tensor, table: Tensor, graph: CSRGraph, pairs: Any) -> Tensor:
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="reference")
    weight = reference.filters(length, table, index.knot, index.fraction, GRID.step, 0)
    return reference.conv(None, x, weight, index.unit_dst, index.unit_src, index.paired)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_and_gradients_of_gradients(backend: str, paired: bool) -> None:
    x, length, table, graph, pairs = _problem(paired)
    # away from knots, where the seventh derivative jumps, finite differences are fine: the spline is six times smooth
    assert torch.autograd.gradcheck(lambda *t: _ours(*t, graph, pairs, backend), (x, length, table))
    assert torch.autograd.gradgradcheck(lambda *t: _ours(*t, graph, pairs, backend), (x, length, table))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fourth_order_in_everything(backend: str, paired: bool) -> None:
    x, length, table, graph, pairs = _problem(paired)
    results = []
    for function in (lambda *t: _ours(*t, graph, pairs, backend), lambda *t: _plain(*t, graph, pairs)):
        value = function(x, length, table).pow(3).sum()
        found = []
        for order in range(4):
            grads = torch.autograd.grad(value, (x, length, table), create_graph=order < 3)
            found.extend(grads)
            value = sum((g * torch.linspace(0.5, 1.5, g.numel(), dtype=g.dtype).view(g.shape)).sum() for g in grads)  # type: ignore[assignment]
        results.append(found)
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-11


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("once", [False, True])
def test_the_fused_passes_of_force_training(backend: str, paired: bool, once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, length, table, graph, pairs = _problem(paired)
    calls: list[str] = []
    fused = op._double_backward
    monkeypatch.setattr(op, "_double_backward", lambda *args: (calls.append("double"), fused(*args))[1])

    def loss(function: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # features depend on positions too, as in every layer but the first
        y = function(inputs[0] * torch.sin(length).mean(), *inputs[1:])
        energy = y.pow(3).sum()
        (force,) = torch.autograd.grad(energy, length, create_graph=True)
        return torch.autograd.grad(force.square().sum() + energy, (x, table))

    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend)
    got = loss(lambda *t: radial_conv(*t, index, length_once=once), (x, length, table))
    want = loss(lambda *t: _plain(*t, graph, pairs), (x, length, table))
    assert calls == ["double"]
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(got, want, strict=True))


def test_a_force_pass_makes_no_gradient_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    x, length, table, graph, pairs = _problem(True)
    wanted = []
    backward = op._backward
    monkeypatch.setattr(op, "_backward", lambda *args: (wanted.append(args[-3:-1]), backward(*args))[1])
    torch.autograd.grad(_ours(x * 1, length, table * 1, graph, pairs, None).sum(), (x, length))
    torch.autograd.grad(_ours(x * 1, length * 1, table, graph, pairs, None).sum(), (x, table))
    assert wanted == [(True, False), (False, True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_beyond_the_cutoff_there_is_nothing(backend: str) -> None:
    x, length, table, graph, pairs = _problem(True)
    far = torch.full_like(length, GRID.cutoff + 0.5).detach().requires_grad_()
    y = _ours(x, far, table, graph, pairs, backend)
    grads = torch.autograd.grad(y.sum(), (x, far, table))
    assert all(not t.detach().any() for t in (y, *grads))


def test_opcheck_of_the_fused_double_backward() -> None:
    x, length, table, graph, pairs = _problem(True)
    index = RadialIndex.from_lengths(length, GRID, graph, pairs)
    g, tangent, rate = torch.randn_like(x), torch.randn_like(x), torch.randn_like(length)
    arguments = tuple(t.detach() for t in (x, g, tangent, rate, length, table))
    torch.library.opcheck(torch.ops.fastkd.radial_conv_double_backward, (*arguments, *index.arguments, index.backend))


def test_opcheck_of_places() -> None:
    # not with a length that requires grad: no derivative passes through a place
    length = random_lengths(7, torch.float64, torch.Generator().manual_seed(0))
    for backend in BACKENDS:
        torch.library.opcheck(torch.ops.fastkd.radial_place, (length, GRID.step, GRID.knots, backend))


@pytest.mark.slow  # compiles threaded kernels
@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not there")
def test_groups_share_no_node_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd_kernels import cpu

    x, length, table, _, _ = _problem(True)
    graphs = [random_pairs(Shape(7, 24, 5), torch.Generator().manual_seed(seed)) for seed in range(6)]
    edges = [torch.cat([getattr(graph, name) + 7 * n for n, (_, graph) in enumerate(graphs)]) for name in ("edge_src", "edge_dst")]
    graph = CSRGraph.from_edges(edges[0], edges[1], 42)
    pair = torch.cat([pairs.pair + 12 * n for n, (pairs, _) in enumerate(graphs)])
    from fastkd_kernels import PairIndex

    pairs = PairIndex.from_pair(pair, graph)
    length = random_lengths(72, torch.float64, torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(42, 5, dtype=torch.float64, requires_grad=True)
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="numba")
    assert index.group_ptr[-1] == 72
    seen = [set(torch.cat([index.unit_dst[a:b], index.unit_src[a:b]]).tolist()) for a, b in itertools.pairwise(index.group_ptr.tolist())]
    assert len([one for one in seen if one]) > 1
    assert all(not (a & b) for a, b in itertools.combinations(seen, 2))

    def run(threads: int) -> tuple[Tensor, ...]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y = radial_conv(x, length, table, index)
            (force,) = torch.autograd.grad(y.pow(3).sum(), length, create_graph=True)
            return (y, force, *torch.autograd.grad(force.square().sum(), (x, table)))
        finally:
            torch.set_num_threads(before)

    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    assert all(torch.equal(a, b) for a, b in zip(run(1), run(2), strict=True))


def test_shapes_that_do_not_fit_are_named() -> None:
    x, length, table, graph, pairs = _problem(True)
    index = RadialIndex.from_lengths(length, GRID, graph, pairs)
    with pytest.raises(ValueError, match=rf"table \[{GRID.rows}, F\]"):
        radial_conv(x, length, table[1:], index)
    with pytest.raises(ValueError, match="one floating number per pair"):
        RadialIndex.from_lengths(length[1:], GRID, graph, pairs)


# cfconv_radial


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("dtype", "method", "limit"), [(torch.float64, "exact", 1e-12), (torch.float64, "table", 1e-8), (torch.float32, "table", 1e-5)]
)
def test_cfconv_radial_against_a_stored_filter(paired: bool, dtype: torch.dtype, method: Any, limit: float) -> None:
    generator = torch.Generator().manual_seed(5)
    pairs, graph = random_pairs(Shape(30, 400, 16), generator)
    units = pairs.num_pairs if paired else graph.num_edges
    basis, envelope, network = BasisSpec("gaussian", 20, CUTOFF), EnvelopeSpec("cosine", CUTOFF), _network(size=20, dtype=dtype)
    x = torch.randn(30, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    d = (0.7 + 4.2 * torch.rand(units, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    def step(function: Any, inputs: tuple[Tensor, ...], weights: list[Tensor]) -> list[Tensor]:
        y = function(*inputs)
        (force,) = torch.autograd.grad(y.pow(2).sum(), inputs[1], create_graph=True)
        return [y, force, *torch.autograd.grad(force.square().sum() + y.sum(), [inputs[0], *weights])]

    got = step(
        lambda x, d: cfconv_radial(x, d, basis, network, envelope, graph, pairs=pairs if paired else None, method=method),
        (x, d),
        _parameters(network),
    )
    wide = type(network)(*(t.detach().double().requires_grad_() if isinstance(t, Tensor) else t for t in network))  # type: ignore[arg-type]

    def stored(x: Tensor, d: Tensor) -> Tensor:
        weight = filter_jets(basis, wide, envelope, d, 0)[0]
        edge_weight = weight[pairs.pair] if paired else weight
        return x.new_zeros(x.shape).index_add(0, graph.edge_dst, edge_weight * x[graph.edge_src])

    want = step(stored, tuple(t.detach().double().requires_grad_() for t in (x, d)), _parameters(wide))
    assert all(relative_error(a, b) < limit for a, b in zip(got, want, strict=True))


def test_auto_takes_the_network_for_few_distances_and_the_table_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd_kernels.radial_conv import radial

    taken = []
    for name in ("radial_conv", "cfconv_exact"):
        function = getattr(radial, name)
        monkeypatch.setattr(radial, name, lambda *a, _n=name, _f=function, **k: (taken.append(_n), _f(*a, **k))[1])
    basis, network = BasisSpec("gaussian", 20, CUTOFF), _network(size=20, dtype=torch.float32)
    for edges in (50, 400):
        src, dst = torch.randint(9, (2, edges), generator=torch.Generator().manual_seed(0))
        cfconv_radial(torch.randn(9, 16), torch.full((edges,), 2.0), basis, network, CUTOFF, CSRGraph.from_edges(src, dst, 9))
    assert taken == ["cfconv_exact", "radial_conv"]


def test_a_table_that_would_be_wrong_is_refused() -> None:
    network = _network(size=20, dtype=torch.float32)
    sharp = network._replace(**{type(network)._fields[0]: network[0] * 500})  # type: ignore[arg-type, operator]
    graph = CSRGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 2)
    with pytest.raises(ValueError, match="no table represents this filter"):
        cfconv_radial(torch.randn(2, 16), torch.ones(1), BasisSpec("gaussian", 20, CUTOFF), sharp, CUTOFF, graph, method="table")
    with pytest.raises(ValueError, match="unknown method"):
        cfconv_radial(torch.randn(2, 16), torch.ones(1), BasisSpec("gaussian", 20, CUTOFF), network, CUTOFF, graph, method="best")  # type: ignore[arg-type]


def test_the_prefilter_is_made_once() -> None:
    assert prefilter(33, torch.float64, torch.device("cpu")) is prefilter(33, torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.triton if b == "triton" else ()) for b in BACKENDS])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30, CUTOFF])
def test_nan_is_not_hidden_and_what_is_far_is_zero(backend: str, bad: float) -> None:
    graph = CSRGraph.from_edges(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), 3)
    length = torch.tensor([1.0, bad, 2.0, 3.0], requires_grad=True)
    grid = SplineGrid(CUTOFF, 33)
    x, table = torch.ones(3, 4), torch.ones(grid.rows, 4)
    y = radial_conv(x, length, table, RadialIndex.from_lengths(length, grid, graph, backend=backend))
    (gradient,) = torch.autograd.grad(y.sum(), length)
    assert bool(torch.isfinite(y[1:]).all())
    assert bool(torch.isfinite(gradient[[0, 2, 3]]).all())
    if math.isnan(bad):
        assert bool(y[0].isnan().all())
    else:
        assert bool((y[0] == 0).all())
        assert float(gradient[1]) == 0


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("first", ["inference", "symbolic", "fake", "real"])
def test_a_table_does_not_remember_who_asked_first(kind: str, first: str) -> None:
    """What all tables of a process share is an ordinary tensor, even if the first of them was made in inference mode or by a tracer."""
    basis, envelope = BasisSpec("gaussian", 5, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    # a grid that nobody else has
    grid = SplineGrid(CUTOFF, 200 + 10 * ["inference", "symbolic", "fake", "real"].index(first) + (kind == "mlp"))
    shapes = [(4, 5), (4,), (3, 4), (3,)] if kind == "mlp" else [(3, 5), (3,)]
    weights = [torch.linspace(-1, 1, math.prod(shape)).reshape(shape).requires_grad_() for shape in shapes]

    def table(*tensors: Tensor) -> Tensor:
        return tabulate(basis, (FilterMLP if kind == "mlp" else FilterLinear)(*tensors), envelope, grid)

    if first == "inference":
        with torch.inference_mode():
            found = table(*weights)
    else:
        found = make_fx(table, tracing_mode=first)(*(w.detach() for w in weights))(*weights)
    again = table(*weights)
    again.sum().backward()
    assert torch.equal(again, found)
    assert all(weight.grad is not None for weight in weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_taken_for_a_distance_beyond_the_cutoff_and_infinity_is(backend: str) -> None:
    graph = CSRGraph.from_edges(torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2]), 3)
    length = torch.tensor([float("nan"), float("inf"), 1.0], dtype=torch.float64, requires_grad=True)
    x, table = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(GRID.rows, 2, dtype=torch.float64)
    index = RadialIndex.from_lengths(length, GRID, graph, backend=backend)
    assert index.knot.tolist()[:2] == [0, -1]
    y = radial_conv(x, length, table, index)
    assert y[0].isnan().all()
    assert y[1].eq(0).all()
    assert y[2].isfinite().all()
    by_x, by_length = torch.autograd.grad(y[1:].sum(), (x, length))
    assert by_length[1] == 0
    assert by_length[2].isfinite()
    assert by_x[2].eq(0).all()
