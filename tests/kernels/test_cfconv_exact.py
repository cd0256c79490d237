"""What only cfconv_exact and its specs promise; everything that all operators share is in ``test_all_ops.py``."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from fastkd_kernels import CSRGraph, PairIndex, backends, cfconv, paired_cfconv
from fastkd_kernels.cfconv.cases import random_pairs
from fastkd_kernels.cfconv_exact import numba_launch
from fastkd_kernels.cfconv_exact.op import cfconv_exact
from fastkd_kernels.radial_specs import (
    ACTIVATIONS,
    BASES,
    ENVELOPES,
    BasisSpec,
    EnvelopeSpec,
    FilterLinear,
    FilterMLP,
    activation_jets,
    basis_jets,
    decode,
    envelope_jets,
    filter_jets,
)
from fastkd_kernels.registry import Shape
from fastkd_kernels.testing import three_orders
from fastkd_kernels.tolerances import relative_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CUTOFF = 4.0
EXACT = 1e-12

each_backend = pytest.mark.parametrize(
    "backend",
    [
        "numba",
        "reference",
        pytest.param(
            "triton",
            marks=[
                pytest.mark.triton,
                pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs here only with TRITON_INTERPRET=1"),
            ],
        ),
    ],
)


def random_network(size: int, hidden: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((hidden, size), (hidden,), (width, hidden), (width,))
    return [(torch.randn(shape, dtype=torch.float64, generator=generator) * shape[-1] ** -0.5).to(dtype) for shape in shapes]


def force_step(convolve: Any, x: Tensor, length: Tensor, network: list[Tensor]) -> list[Tensor]:
    """Energy, force and the gradient of a loss on both, through two layers: what training does. Lengths stand for positions."""
    length = length.detach().requires_grad_()
    x, network = x.detach().requires_grad_(), [tensor.detach().requires_grad_() for tensor in network]
    energy = convolve(torch.tanh(convolve(x, length, network)), length, network).square().sum()
    (force,) = torch.autograd.grad(energy, length, create_graph=True)
    loss = energy + force.square().sum()
    return [energy, force, *torch.autograd.grad(loss, [x, *network])]


def assert_alike(got: list[Tensor], want: list[Tensor], limit: float = EXACT) -> None:
    for number, (ours, exact) in enumerate(zip(got, want, strict=True)):
        assert relative_error(ours, exact) <= limit, f"tensor {number}: {relative_error(ours, exact):.1e}"


# Specs


def _slopes(jets: Any, d: Tensor, order: int) -> None:
    found = jets(d)
    for m in range(order):
        (slope,) = torch.autograd.grad(found[m].sum(), d, retain_graph=True, allow_unused=True, materialize_grads=True)
        want = found[m + 1].flatten(1).sum(1) if found[m + 1].dim() > 1 else found[m + 1]
        torch.testing.assert_close(slope, want, rtol=1e-11, atol=1e-11)


def _distances() -> Tensor:
    """From a little below 0 to a little beyond the cutoff, with the ends of the power series among them."""
    special = torch.tensor([0.0, 1e-9, 1e-4, 1 / torch.pi], dtype=torch.float64)
    return torch.cat([torch.linspace(-0.2, 1.1 * CUTOFF, 97, dtype=torch.float64), special]).requires_grad_()


@pytest.mark.parametrize("kind", BASES)
def test_each_derivative_of_a_basis_is_that_of_the_one_before(kind: Any) -> None:
    _slopes(lambda d: basis_jets(BasisSpec(kind, 8, CUTOFF), d, 3), _distances(), 3)


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("exponent", [2, 3, 6])
@pytest.mark.parametrize("kind", ["cosine", "polynomial", "exponential"])
def test_each_derivative_of_an_envelope_is_that_of_the_one_before(kind: Any, exponent: int, extend: bool) -> None:
    _slopes(lambda d: envelope_jets(EnvelopeSpec(kind, CUTOFF, exponent), d, 3, extend=extend), _distances(), 3)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_each_derivative_of_an_activation_is_that_of_the_one_before(kind: Any) -> None:
    _slopes(lambda z: activation_jets(kind, z, 3), torch.linspace(-30, 30, 101, dtype=torch.float64, requires_grad=True), 3)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("linear", [False, True])
def test_each_derivative_of_a_filter_is_that_of_the_one_before(kind: Any, linear: bool) -> None:
    w1, b1, w2, b2 = random_network(8, 5, 4)
    network = FilterLinear(w1, b1) if linear else FilterMLP(w1, b1, w2, b2, "silu")
    _slopes(lambda d: filter_jets(BasisSpec(kind, 8, CUTOFF), network, EnvelopeSpec("exponential", CUTOFF), d, 3), _distances(), 3)


def test_extended_envelopes_continue_beyond_the_cutoff() -> None:
    beyond = torch.tensor([1.01 * CUTOFF], dtype=torch.float64)
    for kind in ENVELOPES:
        cut, extended = (envelope_jets(EnvelopeSpec(kind, CUTOFF), beyond, 2, extend=extend) for extend in (False, True))
        if kind == "none":
            assert cut[0].item() == 1
            continue
        assert all(jet.item() == 0 for jet in cut)
        assert (extended[2].item() != 0) == (kind != "exponential")


def test_centres_and_gammas_can_be_trained() -> None:
    for kind in BASES:
        spec = BasisSpec(kind, 5, CUTOFF)
        d = torch.tensor([0.7, 2.1], dtype=torch.float64, requires_grad=True)
        centres, gammas = (t.requires_grad_() for t in (spec.centres(), spec.gammas()))
        assert torch.autograd.gradcheck(lambda d, c, g, spec=spec: basis_jets(spec, d, 2, centres=c, gammas=g), (d, centres, gammas))


def test_specs_are_values() -> None:
    basis, envelope = BasisSpec("gaussian", 50, 5.0), EnvelopeSpec("polynomial", 5.0, 7)
    assert basis == BasisSpec("gaussian", 50, 5.0)
    assert len({basis, BasisSpec("gaussian", 50, 5.0), BasisSpec("gaussian", 50, 5.0, gamma=3.0)}) == 2
    for one in (basis, BasisSpec("exp_normal", 3, 4.1, gamma=1 / 3)):
        assert decode(one.code, envelope.code) == (one, envelope)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasisSpec("gaussian", 1, 5.0), "1 functions"),
        (lambda: BasisSpec("sine", 8, 5.0), "sine"),  # type: ignore[arg-type]
        (lambda: BasisSpec("bessel", 8, 0.0), "cutoff"),
        (lambda: EnvelopeSpec("step", 5.0), "step"),  # type: ignore[arg-type]
        (lambda: EnvelopeSpec("polynomial", 5.0, 1), "exponent"),
        (lambda: EnvelopeSpec("cosine", -1.0), "cutoff"),
        (lambda: basis_jets(BasisSpec("bessel", 8, 5.0), torch.ones(1), 4), "order 4"),
        (lambda: activation_jets("relu", torch.ones(1), 1), "relu"),  # type: ignore[arg-type]
    ],
)
def test_impossible_specs_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# The operator


@pytest.mark.parametrize("kinds", list(itertools.product(BASES, ENVELOPES, ACTIVATIONS)), ids="-".join)
@each_backend
def test_every_combination_at_three_orders(kinds: Any, backend: str) -> None:
    """Against filters made by plain torch and the convolution that takes them."""
    if backend == "triton" and kinds[1] in ("polynomial", "none") and kinds[2] != "silu":
        pytest.skip("the interpreter is slow, and these kinds are seen together with silu")
    basis, envelope = BasisSpec(kinds[0], 6, CUTOFF), EnvelopeSpec(kinds[1], CUTOFF, 4)
    pairs, graph = random_pairs(Shape(6, 26, 5), torch.Generator().manual_seed(1))
    paired = sum(map(len, kinds)) % 2 == 0
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    length = 0.2 + CUTOFF * torch.rand(pairs.num_pairs if paired else graph.num_edges, dtype=torch.float64, generator=generator)

    def ours(x: Tensor, length: Tensor, *network: Tensor) -> Tensor:
        mlp = FilterMLP(*network, kinds[2])
        return cfconv_exact(x, length, basis, mlp, envelope, graph, pairs=pairs if paired else None, backend=backend)

    def theirs(x: Tensor, length: Tensor, *network: Tensor) -> Tensor:
        (weight,) = filter_jets(basis, FilterMLP(*network, kinds[2]), envelope, length, 0)
        if paired:
            return paired_cfconv(x, weight, pairs, graph, backend="reference")
        return cfconv(x, weight, graph, backend="reference")

    inputs = [tensor.requires_grad_() for tensor in (x, length, *random_network(6, 7, 5))]
    for got, want in zip(three_orders(ours, inputs, torch.float64), three_orders(theirs, inputs, torch.float64), strict=True):
        assert_alike(got, want)
    # the fused second gradient is another path than that of all tangents at once
    got, want = (force_step(lambda x, d, n, f=f: f(x, d, *n), inputs[0], length, inputs[2:]) for f in (ours, theirs))
    assert_alike(got, want)


@each_backend
def test_second_gradient_by_lengths_too(backend: str) -> None:
    """Force constants: u, v → everything, lengths included, and once more for the third order."""
    basis, envelope = BasisSpec("bessel", 5, CUTOFF), EnvelopeSpec("polynomial", CUTOFF)
    pairs, graph = random_pairs(Shape(5, 14, 3), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(3)
    x, v = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    length = 0.3 + 3 * torch.rand(pairs.num_pairs, dtype=torch.float64, generator=generator)
    u = torch.randn(length.shape, dtype=torch.float64, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (x, length, u, v, *random_network(5, 4, 3))]

    def orders(backend: str) -> list[Tensor]:
        x, length, u, v, *network = inputs
        mlp = FilterMLP(*network, "shifted_softplus")
        y = cfconv_exact(x, length, basis, mlp, envelope, graph, pairs=pairs, backend=backend).square().sum()
        first = torch.autograd.grad(y, (x, length), create_graph=True)
        second = torch.autograd.grad((first[0] * v).sum() + (first[1] * u).sum(), inputs, create_graph=True)
        third = torch.autograd.grad(sum(tensor.sin().sum() for tensor in second), inputs)
        return [y, *first, *second, *third]

    def plain() -> list[Tensor]:
        x, length, u, v, *network = inputs
        (weight,) = filter_jets(basis, FilterMLP(*network), envelope, length, 0)
        y = paired_cfconv(x, weight, pairs, graph, backend="reference").square().sum()
        first = torch.autograd.grad(y, (x, length), create_graph=True)
        second = torch.autograd.grad((first[0] * v).sum() + (first[1] * u).sum(), inputs, create_graph=True)
        third = torch.autograd.grad(sum(tensor.sin().sum() for tensor in second), inputs)
        return [y, *first, *second, *third]

    assert_alike(orders(backend), plain())


def test_many_tiles_and_wide_networks_in_float32() -> None:
    """More units than a tile, the usual widths; every order against float64."""
    basis, envelope = BasisSpec("gaussian", 50, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    pairs, graph = random_pairs(Shape(90, 3000, 128), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    x, length = torch.randn(90, 128, generator=generator), 0.5 + 3.4 * torch.rand(pairs.num_pairs, generator=generator)
    network = random_network(50, 128, 128, torch.float32)

    def step(dtype: torch.dtype, backend: str) -> list[Tensor]:
        def convolve(x: Tensor, d: Tensor, n: list[Tensor]) -> Tensor:
            return 0.05 * cfconv_exact(x, d, basis, FilterMLP(*n), envelope, graph, pairs=pairs, backend=backend)

        return force_step(convolve, x.to(dtype), length.to(dtype), [tensor.to(dtype) for tensor in network])

    exact = step(torch.float64, "reference")
    assert_alike(step(torch.float64, "numba"), exact)
    assert_alike(step(torch.float32, "numba"), exact, 4e-6)


def test_forces_are_finite_differences_of_the_energy() -> None:
    basis, mlp = BasisSpec("gaussian", 12, CUTOFF), FilterMLP(*random_network(12, 9, 6))
    positions = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5
    edge_src, edge_dst = (~torch.eye(7, dtype=torch.bool)).nonzero().T
    graph = CSRGraph.from_edges(edge_src, edge_dst, 7)
    x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def energy(positions: Tensor) -> Tensor:
        length = (positions[edge_dst] - positions[edge_src]).norm(dim=1)
        return cfconv_exact(x, length, basis, mlp, EnvelopeSpec("cosine", CUTOFF), graph).square().sum()

    positions.requires_grad_()
    (gradient,) = torch.autograd.grad(energy(positions), positions)
    assert gradient.sum(0).abs().max() < 1e-11 * gradient.abs().max(), "the net force must vanish"
    step = 1e-5
    for atom, axis in itertools.product(range(7), range(3)):
        shift = torch.zeros_like(positions)
        shift[atom, axis] = step
        slope = (energy(positions + shift) - energy(positions - shift)).item() / (2 * step)
        assert slope == pytest.approx(gradient[atom, axis].item(), rel=1e-7, abs=1e-7)


class _Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("paired", [False, True])
def test_nothing_of_edges_times_features_is_made(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a training step on forces: energy, force, and the gradient of a loss on both."""
    # a registered operator would hide what it makes inside
    monkeypatch.setattr(backends, "runs_directly", lambda args: True)
    width, edges = 16, 40_000
    pairs, graph = random_pairs(Shape(60, edges, width), torch.Generator().manual_seed(1))
    count = pairs.num_pairs if paired else edges
    x, length = torch.randn(60, width), 0.5 + 3 * torch.rand(count)
    basis, envelope = BasisSpec("bessel", 16, CUTOFF), EnvelopeSpec("polynomial", CUTOFF)

    def convolve(x: Tensor, d: Tensor, n: list[Tensor]) -> Tensor:
        return cfconv_exact(x, d, basis, FilterMLP(*n), envelope, graph, pairs=pairs if paired else None, backend="numba")

    with _Largest() as largest:
        force_step(convolve, x, length, random_network(16, 16, width, torch.float32))
    # buffers of a tile are made for three orders at most
    assert count <= largest.elements <= 3 * 49_152 < count * width


def test_a_force_pass_makes_no_gradients_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    launch = numba_launch.gradients
    monkeypatch.setattr(numba_launch, "gradients", lambda *args: (asked.append(list(args[-1])), launch(*args))[1])
    pairs, graph = random_pairs(Shape(6, 26, 5), torch.Generator().manual_seed(1))
    basis, envelope = BasisSpec("gaussian", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF)
    x, length = torch.randn(6, 5, dtype=torch.float64), 1 + torch.rand(pairs.num_pairs, dtype=torch.float64)

    def conv(x: torch.Tensor, d: torch.Tensor, n: Any) -> torch.Tensor:
        return cfconv_exact(x, d, basis, FilterMLP(*n), envelope, graph, pairs=pairs, backend="numba")

    force_step(conv, x, length, random_network(6, 7, 5))
    # two layers: the force pass, which the first layer's features take no part in, and the loss
    assert asked[:2] == [[True, True, False, False, False, False], [False, True, False, False, False, False]]
    assert asked[2:] == [[True, False, True, True, True, True]] * 2


def test_not_a_number_stays_one() -> None:
    pairs, graph = random_pairs(Shape(4, 10, 3), torch.Generator().manual_seed(1))
    length = torch.ones(pairs.num_pairs)
    length[2] = float("nan")
    touched = graph.edge_dst[pairs.pair_edges[2]]
    for kind in BASES:
        mlp = FilterMLP(*random_network(6, 7, 3, torch.float32))
        y = cfconv_exact(torch.randn(4, 3), length, BasisSpec(kind, 6, CUTOFF), mlp, EnvelopeSpec("cosine", CUTOFF), graph, pairs=pairs)
        assert y[touched].isnan().all()


def test_pairs_of_another_graph_are_refused() -> None:
    pairs, _ = random_pairs(Shape(4, 10, 3), torch.Generator().manual_seed(1))
    graph = CSRGraph.from_edges(torch.tensor([0]), torch.tensor([1]), 4)
    mlp = FilterMLP(*random_network(6, 7, 3))
    x, length = torch.randn(4, 3, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"10.* 1 edges"):
        cfconv_exact(x, length, BasisSpec("gaussian", 6, CUTOFF), mlp, EnvelopeSpec("cosine", CUTOFF), graph, pairs=pairs)


def test_pairs_give_what_edges_give() -> None:
    pairs, graph = random_pairs(Shape(7, 40, 5), torch.Generator().manual_seed(4))
    assert isinstance(pairs, PairIndex)
    x, length = torch.randn(7, 5, dtype=torch.float64), 0.5 + torch.rand(pairs.num_pairs, dtype=torch.float64)
    basis, envelope, network = BasisSpec("exp_normal", 6, CUTOFF), EnvelopeSpec("cosine", CUTOFF), random_network(6, 7, 5)
    once = force_step(
        lambda x, d, n: cfconv_exact(x, d, basis, FilterMLP(*n), envelope, graph, pairs=pairs, backend="numba"), x, length, network
    )
    twice = force_step(lambda x, d, n: cfconv_exact(x, d[pairs.pair], basis, FilterMLP(*n), envelope, graph), x, length, network)
    assert_alike(once, twice)
