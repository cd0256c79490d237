"""Bases, envelopes and filters: values at special points, and their hand-written derivatives."""

import math

import pytest
import torch

from fastkd.models.layers import (
    Envelope,
    GatedEquivariantBlock,
    RadialBasis,
    ScaledSiLU,
    ShiftedSoftplus,
    SiLU,
    attach_derivative,
    rows_of,
    safe_length,
    vector_norm,
)

BASES = ["gaussian", "bessel", "exp_normal"]
ENVELOPES = ["polynomial", "cosine", "none"]
LENGTHS = torch.tensor([0.3, 1.0, 2.2, 3.7, 4.99], dtype=torch.float64)


def autograd_slope(function, lengths):
    lengths = lengths.clone().requires_grad_()
    value = function(lengths)
    columns = value.unbind(-1) if value.dim() == 2 else [value]
    slopes = [torch.autograd.grad(column.sum(), lengths, retain_graph=True, allow_unused=True)[0] for column in columns]
    slopes = [torch.zeros_like(lengths) if slope is None else slope for slope in slopes]
    return torch.stack(slopes, -1).reshape(value.shape)


@pytest.mark.parametrize("kind", BASES)
def test_basis_derivative(kind):
    basis = RadialBasis(kind, 7, cutoff=5.0)
    value, slope = basis.value_and_derivative(LENGTHS)
    assert value.shape == (5, 7)
    torch.testing.assert_close(value, basis(LENGTHS))
    torch.testing.assert_close(slope, autograd_slope(basis, LENGTHS), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ENVELOPES)
def test_envelope_derivative(kind):
    envelope = Envelope(kind, 5.0)
    value, slope = envelope.value_and_derivative(LENGTHS)
    torch.testing.assert_close(value, envelope(LENGTHS))
    want = torch.zeros_like(slope) if kind == "none" else autograd_slope(envelope, LENGTHS)
    torch.testing.assert_close(slope, want, rtol=1e-10, atol=1e-12)


def test_values_of_the_formulas():
    r = torch.tensor([1.5], dtype=torch.float64)
    bessel = RadialBasis("bessel", 3, 5.0)(r)[0]
    assert bessel[1].item() == pytest.approx(math.sqrt(2 / 5) * math.sin(2 * math.pi * 1.5 / 5) / 1.5)
    gaussian = RadialBasis("gaussian", 6, 5.0)(r)[0]
    assert gaussian[3].item() == pytest.approx(math.exp(-0.5 * 1.5**2))
    x, p = 0.3, 5
    polynomial = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    assert Envelope("polynomial", 5.0, 5)(r).item() == pytest.approx(polynomial)
    assert Envelope("cosine", 5.0)(r).item() == pytest.approx(0.5 * (math.cos(math.pi * 0.3) + 1))
    assert ScaledSiLU()(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + math.exp(-1)) / 0.6)
    assert ShiftedSoftplus()(torch.tensor([0.0, 2.0])).tolist() == pytest.approx([0, math.log(0.5 * math.exp(2) + 0.5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("basis", BASES)
def test_two_derivatives_are_finite_at_zero_and_at_the_cutoff(basis, envelope, dtype):
    vectors = torch.tensor([[0.0, 0, 0], [1e-12, 0, 0], [1e-3, 0, 0], [5.0, 0, 0], [0, 5.0001, 0]], dtype=dtype, requires_grad=True)
    lengths = safe_length(vectors)
    value = rows_of(lengths, RadialBasis(basis, 8, 5.0), Envelope(envelope, 5.0), smooth_bias=True, slope=False)
    (first,) = torch.autograd.grad(value.square().sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), vectors)
    carried = rows_of(lengths.detach(), RadialBasis(basis, 8, 5.0), Envelope(envelope, 5.0), smooth_bias=True, slope=True)
    assert all(torch.isfinite(t).all() for t in (value, first, second, carried))


@pytest.mark.parametrize("kind", ["polynomial", "cosine"])
def test_envelopes_end_at_the_cutoff(kind):
    value, slope = Envelope(kind, 5.0).value_and_derivative(torch.tensor([5.0 - 1e-9, 5.0, 6.0], dtype=torch.float64))
    assert value.abs().max() < 1e-12
    assert slope.abs().max() < 1e-8
    assert value[1:].tolist() == [0, 0]


@pytest.mark.parametrize("smooth_bias", [True, False])
def test_rows_carry_the_derivative_of_the_filter(smooth_bias):
    basis, envelope = RadialBasis("bessel", 6, 5.0), Envelope("polynomial", 5.0)
    layer = torch.nn.Linear(6, 4, dtype=torch.float64)
    weight = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()

    def plain(r):
        return rows_of(r, basis, envelope, smooth_bias=smooth_bias, slope=False) @ weight.T

    value, slope = (rows_of(LENGTHS, basis, envelope, smooth_bias=smooth_bias, slope=True) @ weight.T).tensor_split(2)
    torch.testing.assert_close(value, plain(LENGTHS))
    torch.testing.assert_close(slope, autograd_slope(plain, LENGTHS), rtol=1e-10, atol=1e-12)
    direct = layer(basis(LENGTHS)) * envelope(LENGTHS)[:, None] if smooth_bias else layer(basis(LENGTHS) * envelope(LENGTHS)[:, None])
    torch.testing.assert_close(value, direct.detach())


def test_attached_derivative():
    r, value, slope = LENGTHS.clone().requires_grad_(), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    g = torch.randn(5, 3).double()
    attached = attach_derivative(r, torch.cat([value, slope.requires_grad_()]))
    assert torch.equal(attached, value)
    (g_r,) = torch.autograd.grad(attached, r, g.requires_grad_(), create_graph=True)
    torch.testing.assert_close(g_r, (g * slope).sum(1))
    g_g, g_slope = torch.autograd.grad(g_r.sum(), (g, slope))
    torch.testing.assert_close(g_g, slope)
    torch.testing.assert_close(g_slope, g)


def test_norm_and_gated_block_of_zero_vectors():
    vector = torch.zeros(3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(vector_norm(vector).sum(), vector)[0]).all()
    scalar, out = GatedEquivariantBlock(4, 2, "silu").double()(torch.ones(3, 4, dtype=torch.float64), vector)
    assert scalar.shape == (3, 2)
    assert torch.equal(out, torch.zeros(3, 3, 2, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "size"), [("gaussian", 1), ("bessel", 0)])
def test_impossible_bases(kind, size):
    with pytest.raises(ValueError, match="cannot have"):
        RadialBasis(kind, size, 5.0)


def test_silu_and_its_derivatives_are_torchs():
    x = torch.tensor([-40.0, -3.0, -0.5, 0.0, 1e-3, 2.0, 40.0], dtype=torch.float64, requires_grad=True)
    rows = []
    for act in (SiLU(), torch.nn.SiLU()):
        value, orders = act(x), []
        for _ in range(4):
            orders.append(value)
            (value,) = torch.autograd.grad((value * (1 + x)).sum(), x, create_graph=True)
        (last,) = torch.autograd.grad(value.sum(), x)
        rows.append(torch.stack([*orders, value, last]))
    torch.testing.assert_close(*rows, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradgradcheck(SiLU(), (x,))


def test_silu_where_no_gradient_is_wanted():
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(SiLU()(x), torch.nn.functional.silu(x))
    assert not SiLU()(x).requires_grad
