"""What the tests over all operators do not look at: the definitions of others, the cutoff, d → 0, parameters, third order."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from fastkd_kernels.radial_basis import jets, reference
from fastkd_kernels.radial_basis.kinds import BASES, ENVELOPES, Constants
from fastkd_kernels.radial_basis.op import radial_basis, radial_envelope, radial_parameters
from torch import Tensor

from fastkd.models.layers.radial import Envelope, RadialBasis

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
each_kind = pytest.mark.parametrize("kind", BASES)
each_envelope = pytest.mark.parametrize("factor", ENVELOPES[1:])
CUTOFF = 5.0


def lengths(count: int, dtype: torch.dtype = torch.float64, *, low: float = 0.3, high: float = 5.6) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64).to(dtype)


def derivatives(function: Any, d: Tensor, orders: int) -> list[Tensor]:
    """The function [E, …] and its derivatives in d, summed over the trailing axis with fixed weights."""
    d = d.clone().requires_grad_()
    value = function(d)
    if value.dim() == 2:
        value = value @ torch.linspace(0.5, 1.5, value.shape[1], dtype=value.dtype)
    found = [value]
    for _ in range(orders):
        found.append(torch.autograd.grad(found[-1].sum(), d, create_graph=True)[0])
    return [tensor.detach() for tensor in found]


@each_backend
@pytest.mark.parametrize("ours", BASES)
@pytest.mark.parametrize("size", [2, 7, 20])
def test_is_the_basis_of_our_models(backend: str, ours: Any, size: int) -> None:
    kind: Any = {"exp_normal": "exp_normal"}.get(ours, ours)
    module, d = RadialBasis(kind, size, CUTOFF), lengths(50)
    got = derivatives(lambda x: radial_basis(x, ours, CUTOFF, size, backend=backend), d, 2)
    for value, want in zip(got, derivatives(module, d, 2), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-11)
    single = radial_basis(d, ours, CUTOFF, size, backend=backend)
    torch.testing.assert_close(single, module.value_and_derivative(d)[0], rtol=1e-12, atol=1e-13)


@each_backend
@pytest.mark.parametrize("kind", ["polynomial", "cosine"])
@pytest.mark.parametrize("exponent", [2, 3, 5, 6, 9])
def test_is_the_envelope_of_our_models(backend: str, kind: Any, exponent: int) -> None:
    module, d = Envelope(kind, CUTOFF, exponent), lengths(50)
    got = derivatives(lambda x: radial_envelope(x, kind, CUTOFF, exponent, backend=backend), d, 2)
    for value, want in zip(got, derivatives(module, d, 2), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-11)


@each_backend
def test_is_torch_geometrics_gaussian_smearing(backend: str) -> None:
    models = pytest.importorskip("torch_geometric.nn.models.schnet", exc_type=ImportError)
    d = lengths(40, torch.float32)
    for start, stop, size in ((0.0, 5.0, 50), (0.7, 10.0, 31)):
        want = models.GaussianSmearing(start, stop, size)(d)
        torch.testing.assert_close(radial_basis(d, "gaussian", stop, size, start=start, backend=backend), want, rtol=2e-5, atol=1e-6)


@each_backend
@pytest.mark.parametrize("exponent", [4, 5])
def test_is_torch_geometrics_bessel_layer(backend: str, exponent: int) -> None:
    """That layer's envelope has 1/x in it and counts its exponent from one less; its norm is not there."""
    models = pytest.importorskip("torch_geometric.nn.models.dimenet", exc_type=ImportError)
    layer = models.BesselBasisLayer(6, CUTOFF, exponent).double()
    with torch.no_grad():
        layer.freq.mul_(1.07)
    d = lengths(40).requires_grad_()
    frequencies = (layer.freq.detach() / CUTOFF).requires_grad_()
    scale = math.sqrt(2 / CUTOFF) / CUTOFF
    got = radial_basis(
        d, "bessel", CUTOFF, 6, envelope="polynomial", envelope_exponent=exponent + 1, frequencies=frequencies, backend=backend
    )
    want = layer(d) * scale
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    weight = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(got, (d, frequencies), weight)
    theirs = torch.autograd.grad(want, (d, layer.freq), weight)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours[1] / CUTOFF, theirs[1], rtol=1e-9, atol=1e-12)


@each_backend
def test_is_the_open_catalyst_projects(backend: str) -> None:
    """Written in d/c there, with the norm √(2/c³) of the Bessel functions and Gaussians on [0, 1]."""
    d = lengths(40)
    x = d / CUTOFF
    p = 5
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    polynomial = torch.where(x < 1, 1 + a * x**p + b * x ** (p + 1) + c * x ** (p + 2), 0.0)[:, None]
    exponential = torch.where(x < 1, torch.exp(-(x**2) / ((1 - x) * (1 + x))), 0.0)[:, None]
    bessel = math.sqrt(2 / CUTOFF**3) / x[:, None] * torch.sin(math.pi * torch.arange(1, 8, dtype=torch.float64) * x[:, None])
    centres = torch.linspace(0, 1, 16, dtype=torch.float64)
    gaussian = torch.exp(-0.5 * 15**2 * (x[:, None] - centres) ** 2)
    for kind, basis in (("bessel", bessel), ("gaussian", gaussian)):
        for name, factor in (("polynomial", polynomial), ("exponential", exponential)):
            got = radial_basis(d, kind, CUTOFF, basis.shape[1], envelope=name, backend=backend)  # type: ignore[arg-type]
            torch.testing.assert_close(got, factor * basis, rtol=1e-10, atol=1e-13)


@each_backend
def test_is_torchmd_nets_smearing(backend: str) -> None:
    """Its means begin at exp(start − c) whatever α is; they are passed then. At c − start = 5 they are the usual ones."""
    for low, high, size in ((0.0, 5.0, 12), (0.5, 9.0, 8)):
        d, alpha, first = lengths(40, low=low), 5 / (high - low), math.exp(low - high)
        means = torch.linspace(first, 1, size, dtype=torch.float64)
        betas = torch.full((size,), (2 / size * (1 - first)) ** -2, dtype=torch.float64)
        want = (0.5 * (torch.cos(d * math.pi / high) + 1) * (d < high))[:, None] * torch.exp(
            -betas * (torch.exp(alpha * (low - d[:, None])) - means) ** 2
        )
        got = radial_basis(d, "exp_normal", high, size, envelope="cosine", centres=means, gamma=betas, start=low, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
        if high - low == 5.0:
            torch.testing.assert_close(radial_basis(d, "exp_normal", high, size, envelope="cosine", backend=backend), want)


@each_backend
@each_kind
@each_envelope
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_with_all_derivatives_at_and_beyond_the_cutoff(backend: str, kind: Any, factor: Any, dtype: torch.dtype) -> None:
    d = torch.tensor([CUTOFF, math.nextafter(CUTOFF, 6.0), 5.5, 1e4, 1e30, float("inf")], dtype=dtype).requires_grad_()
    parameters = [p.requires_grad_() for p in (torch.rand(3, dtype=dtype), torch.rand(3, dtype=dtype))]
    given = {"frequencies": parameters[0]} if kind == "bessel" else {"centres": parameters[0], "gamma": parameters[1]}
    rows = radial_basis(d, kind, CUTOFF, 3, envelope=factor, backend=backend, **given)
    g = torch.ones_like(rows).requires_grad_()
    first = torch.autograd.grad(rows, (d, *given.values()), g, create_graph=True)
    inputs = (d, g, *given.values())
    second = torch.autograd.grad([t.sum() for t in first], inputs, create_graph=True)
    third = torch.autograd.grad(sum(t.sum() for t in second), inputs)
    for tensor in (rows, *first, *second, *third):
        assert not tensor.any()
    for value in derivatives(lambda x: radial_envelope(x, factor, CUTOFF, backend=backend), d.detach(), 4):
        assert not value.any()


@each_backend
@each_envelope
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_envelopes_come_down_without_a_step(backend: str, factor: Any, dtype: torch.dtype) -> None:
    """Never negative just inside, where the expanded polynomial is ±1e-7; finite up to the last number before the cutoff."""
    below = torch.tensor(CUTOFF, dtype=dtype).nextafter(torch.tensor(0.0, dtype=dtype))
    d = torch.cat([CUTOFF * (1 - torch.logspace(-7, -1, 60, dtype=torch.float64)).to(dtype), below[None]])
    value, first, second = derivatives(lambda x: radial_envelope(x, factor, CUTOFF, 6, backend=backend), d, 2)
    assert (value >= 0).all()
    assert (first <= 0).all()
    assert second.isfinite().all()
    exact = derivatives(lambda x: reference.envelope(x, factor, CUTOFF, 6), d.double(), 1)
    keep = exact[0] > 1e-30
    # a distance that is wrong in its last digit changes the value by this much; it rises without limit towards the cutoff
    condition = 1 + (d.double() * exact[1] / exact[0])[keep].abs()
    error = (value.double() - exact[0])[keep].abs() / exact[0][keep]
    assert (error <= 8 * torch.finfo(dtype).eps * condition).all()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bessel_at_no_distance_is_its_limit(backend: str, dtype: torch.dtype) -> None:
    w = torch.tensor([0.6, 1.3, 2.9], dtype=dtype, requires_grad=True)
    d = torch.tensor([0.0, 1e-30, 1e-6], dtype=dtype, requires_grad=True)
    rows = radial_basis(d, "bessel", CUTOFF, 3, frequencies=w, backend=backend)
    norm = math.sqrt(2 / CUTOFF)
    torch.testing.assert_close(rows, (norm * w).expand(3, 3), rtol=1e-5, atol=0)
    first = torch.autograd.grad(rows.sum(), (d, w), create_graph=True)
    torch.testing.assert_close(first[0], -norm / 3 * (w**3).sum() * d, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(first[1], torch.full_like(w, 3 * norm), rtol=1e-5, atol=0)
    (second,) = torch.autograd.grad(first[0].sum(), d, create_graph=True)
    torch.testing.assert_close(second, (-norm / 3 * (w**3).sum()).expand(3), rtol=1e-5, atol=0)
    (third,) = torch.autograd.grad(second.sum(), d, create_graph=True)
    assert third.abs().max() < 1e-3
    (fourth,) = torch.autograd.grad(third.sum(), d)
    torch.testing.assert_close(fourth, (norm / 5 * (w**5).sum()).expand(3), rtol=1e-4, atol=0)


@each_backend
def test_bessel_across_the_seam_of_its_series(backend: str) -> None:
    """At x = w d = 1 the closed form takes over; in float32 neither side may be off."""
    d = torch.linspace(0.9, 1.1, 201, dtype=torch.float64)
    w = torch.ones(1)
    function = lambda x: radial_basis(x, "bessel", CUTOFF, 1, frequencies=w.to(x.dtype), backend=backend)  # noqa: E731
    for got, exact in zip(derivatives(function, d.float(), 2), derivatives(function, d.float().double(), 2), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=0)


@each_backend
@each_kind
@pytest.mark.parametrize("factor", [None, *ENVELOPES[1:]])
def test_third_and_fourth_order(backend: str, kind: Any, factor: Any) -> None:
    """In distances and parameters at once, against autograd of the specification."""
    start = 0.2
    constants = Constants(kind, CUTOFF, 5 / (CUTOFF - start), start, factor or "none", 5)

    def orders(call: Any) -> list[Tensor]:
        d = torch.tensor([0.0, 0.4, 2.1, 4.3, 5.2], dtype=torch.float64, requires_grad=True)
        p, q = (0.9 * t.clone() for t in radial_parameters(kind, CUTOFF, 3, start=start, dtype=torch.float64))
        inputs = (d, p.requires_grad_(), *(() if kind == "bessel" else (q.requires_grad_(),)))
        weight = torch.linspace(-0.5, 1.5, 15, dtype=torch.float64).reshape(5, 3)
        scalar, found = (weight * call(*inputs)).sum(), []
        for _ in range(4):
            gradients = torch.autograd.grad(scalar, inputs, create_graph=True)
            found += gradients
            scalar = sum((gradient * torch.linspace(0.3, 0.8, len(gradient), dtype=torch.float64)).sum() for gradient in gradients)
        return found

    names = ("frequencies",) if kind == "bessel" else ("centres", "gamma")

    def ours(d: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return radial_basis(d, kind, CUTOFF, 3, envelope=factor, envelope_exponent=5, start=start, backend=backend, **given)

    want = orders(lambda d, p, q=None: reference.radial_basis(d, p, p if q is None else q, constants))
    for got, exact in zip(orders(ours), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)


@each_backend
@each_envelope
def test_envelope_to_fourth_order(backend: str, factor: Any) -> None:
    d = torch.tensor([0.0, 0.4, 2.1, 4.3, 4.9, 5.2], dtype=torch.float64)
    got = derivatives(lambda x: radial_envelope(x, factor, CUTOFF, 6, backend=backend), d, 4)
    want = derivatives(lambda x: reference.envelope(x, factor, CUTOFF, 6), d, 4)
    for value, exact in zip(got, want, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-9)


@each_backend
@pytest.mark.parametrize("kind", ["gaussian", "exp_normal"])
def test_one_gamma_for_all(backend: str, kind: Any) -> None:
    """A scalar γ is shared; its gradient is the sum."""
    d = lengths(9).requires_grad_()
    one = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    many = torch.full((4,), 1.7, dtype=torch.float64, requires_grad=True)
    found = []
    for gamma in (one, many):
        rows = radial_basis(d, kind, CUTOFF, 4, gamma=gamma, backend=backend)
        slope = torch.autograd.grad(rows.square().sum(), gamma, create_graph=True)[0].sum()
        found.append((slope, torch.autograd.grad(slope, d)[0]))
    torch.testing.assert_close(found[0], found[1])


@each_backend
def test_many_edges_are_summed_in_parts(backend: str) -> None:
    """More edges than a part has, in the gradients by parameters."""
    d = lengths(1300)
    inputs = [t.clone().requires_grad_() for t in radial_parameters("gaussian", CUTOFF, 2, dtype=torch.float64)]
    constants = Constants("gaussian", CUTOFF, 1.0, 0.0, "cosine", 5)
    got = radial_basis(d, "gaussian", CUTOFF, 2, envelope="cosine", centres=inputs[0], gamma=inputs[1], backend=backend)
    want = reference.radial_basis(d, *inputs, constants)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs))


@each_backend
@each_kind
def test_far_from_every_centre_nothing_is_left(backend: str, kind: Any) -> None:
    """Exponentials below float32's range are 0, and so are their derivatives; nothing is NaN."""
    d = torch.tensor([0.0, 1.0, 12.0, 1000.0], dtype=torch.float32, requires_grad=True)
    g = torch.ones(4, 64, requires_grad=True)
    (first,) = torch.autograd.grad(radial_basis(d, kind, 12.0, 64, backend=backend), d, g, create_graph=True)
    second = torch.autograd.grad(first.sum(), (d, g))
    assert all(tensor.isfinite().all() for tensor in (first, *second))


@each_backend
@each_kind
@pytest.mark.parametrize("factor", [None, *ENVELOPES[1:]])
def test_nan_is_not_hidden(backend: str, kind: Any, factor: Any) -> None:
    d = torch.tensor([1.0, float("nan"), 6.0], dtype=torch.float32, requires_grad=True)
    rows = radial_basis(d, kind, CUTOFF, 4, envelope=factor, backend=backend)
    (slope,) = torch.autograd.grad(rows.sum(), d)
    for tensor in (rows, slope):
        assert tensor[1].isnan().all()
        assert tensor[[0, 2]].isfinite().all()
    if factor is not None:
        assert radial_envelope(d, factor, CUTOFF, backend=backend).isnan().tolist() == [False, True, False]


def test_jets_are_the_derivatives_of_the_specification() -> None:
    """At 12 derivatives a kind, with no kernel in between; the envelope's at three orders."""
    d = torch.tensor([0.3, 2.0, 4.4], dtype=torch.float64)
    p, q = torch.tensor([0.7, 1.9], dtype=torch.float64), torch.tensor([0.4, 1.1], dtype=torch.float64)
    for kind in BASES:
        constants = Constants(kind, CUTOFF, 0.9, 0.1, "none", 5)
        jet = jets.jet(d, p, q, constants)
        for e, r in ((0, 0), (1, 1), (2, 0)):
            point = (d[e], p[r], q[r])
            whole = lambda d_, p_, q_, c=constants: reference.radial_basis(d_[None], p_[None], q_[None], c)[0, 0]  # noqa: E731
            gradient = torch.autograd.functional.jacobian(whole, point)
            hessian = torch.autograd.functional.hessian(whole, point)
            for i, name in enumerate("dpq"):
                torch.testing.assert_close(jet[name][e, r], gradient[i])
                for j, other in enumerate("dpq"[i:], i):
                    torch.testing.assert_close(jet[name + other][e, r], hessian[i][j])


def test_wrong_arguments_are_named() -> None:
    d = lengths(4)
    with pytest.raises(ValueError, match="gaussian, bessel, exp_normal, got 'sinc'"):
        radial_basis(d, "sinc", CUTOFF, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="polynomial, cosine, exponential, got 'step'"):
        radial_basis(d, "bessel", CUTOFF, 4, envelope="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no centres; it has frequencies"):
        radial_basis(d, "bessel", CUTOFF, 4, centres=torch.ones(4))
    with pytest.raises(ValueError, match=r"centres \[4\] of torch.float64 on cpu.*got \[3\] torch.float64"):
        radial_basis(d, "gaussian", CUTOFF, 4, centres=torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"gamma \[4\].*torch.float32"):
        radial_basis(d, "gaussian", CUTOFF, 4, gamma=torch.ones(()))
    with pytest.raises(ValueError, match="cannot have 1 functions"):
        radial_basis(d, "gaussian", CUTOFF, 1)
    with pytest.raises(ValueError, match="at least 2"):
        radial_envelope(d, "polynomial", CUTOFF, 1)
    with pytest.raises(ValueError, match="positive cutoff"):
        radial_envelope(d, "cosine", 0.0)
    with pytest.raises(ValueError, match=r"edge_length \[E\].*\[4, 1\]"):
        radial_envelope(d[:, None], "cosine", CUTOFF)
    with pytest.raises(ValueError, match="start < cutoff"):
        radial_basis(d, "exp_normal", CUTOFF, 4, start=5.0)
