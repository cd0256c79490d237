"""Spherical Bessel functions, their zeros and norms, Legendre polynomials: against closed forms, integrals and finite differences."""

import math

import numpy as np
import pytest
import torch

from fastkd.models.layers import SphericalRadial, bessel_norms, bessel_zeros, legendre, legendre_and_slopes, spherical_bessel

CLOSED = {
    0: lambda x: math.sin(x) / x,
    1: lambda x: math.sin(x) / x**2 - math.cos(x) / x,
    2: lambda x: (3 / x**2 - 1) * math.sin(x) / x - 3 * math.cos(x) / x**2,
    3: lambda x: (15 / x**3 - 6 / x) * math.sin(x) / x - (15 / x**2 - 1) * math.cos(x) / x,
}


def bessel(degree, x):
    return spherical_bessel(torch.as_tensor(x, dtype=torch.float64)[None], (degree,))[0]


@pytest.mark.parametrize("degree", CLOSED)
def test_closed_forms_where_they_do_not_cancel(degree):
    x = torch.linspace(degree + 0.3, 40, 300, dtype=torch.float64)
    want = torch.tensor([CLOSED[degree](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(bessel(degree, x), want, rtol=0, atol=3e-15)


@pytest.mark.parametrize("degree", [0, 1, 4, 7, 12])
def test_leading_term_at_small_arguments(degree):
    x = torch.tensor([0.0, 1e-6, 1e-3], dtype=torch.float64)
    lead = x**degree / math.prod(range(1, 2 * degree + 2, 2))
    correction = 1 - x.square() / (2 * (2 * degree + 3))
    torch.testing.assert_close(bessel(degree, x), lead * correction, rtol=1e-11, atol=0)


def test_recurrence_across_the_change_of_method():
    for degree in range(1, 12):
        x = torch.linspace(0.2, degree + 3, 400, dtype=torch.float64)
        left = bessel(degree - 1, x) + bessel(degree + 1, x)
        torch.testing.assert_close(left, (2 * degree + 1) / x * bessel(degree, x), rtol=1e-12, atol=3e-16)


def test_degrees_side_by_side_are_those_alone():
    x = 20 * torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = spherical_bessel(x, (0, 0, 2, 5))
    for i, degree in enumerate((0, 0, 2, 5)):
        assert torch.equal(together[:, i], spherical_bessel(x[:, i : i + 1], (degree,))[:, 0])


def test_derivatives():
    x = (12 * torch.rand(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()

    def slope(x):
        (g,) = torch.autograd.grad(spherical_bessel(x, (0, 1, 2, 6)).sum(), x, create_graph=True)
        return g

    assert torch.autograd.gradcheck(lambda x: spherical_bessel(x, (0, 1, 2, 6)), (x,))
    assert torch.autograd.gradcheck(slope, (x,))
    assert torch.autograd.gradgradcheck(slope, (x,))


def test_zeros():
    zeros = bessel_zeros(8, 6)
    # Abramowitz and Stegun, table 10.6
    known = {
        (0, 2): 3 * math.pi,
        (1, 0): 4.493409457909064,
        (1, 1): 7.725251836937707,
        (2, 0): 5.763459196894550,
        (3, 2): 13.698023153249249,
    }
    for (degree, k), value in known.items():
        assert zeros[degree, k] == pytest.approx(value, abs=4e-15)
    assert (np.diff(zeros, axis=0) > 0).all()
    assert (np.diff(zeros, axis=1) > 2).all()
    assert max(abs(bessel(degree, row)).max() for degree, row in enumerate(zeros)) < 1e-15


@pytest.mark.parametrize(("rounded", "tolerance"), [(False, 1e-12), (True, 1e-6)])
def test_radial_functions_are_orthonormal(rounded, tolerance):
    cutoff, basis = 2.5, SphericalRadial(5, 4, 2.5, rounded=rounded)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x, weight = torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
    # without envelope, without the harmonics' constants
    constants = torch.tensor([math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(5)], dtype=torch.float64)
    rows = basis(cutoff * x, x) / constants[:, None]
    overlap = torch.einsum("i,ila,ilb->lab", weight * x.square(), rows, rows)
    torch.testing.assert_close(overlap, torch.eye(4, dtype=torch.float64).expand(5, 4, 4), rtol=0, atol=tolerance)


def test_rounded_constants_are_those_of_float32():
    zeros = bessel_zeros(7, 6)
    norms = bessel_norms(zeros.astype(np.float32))
    assert norms.dtype == np.float32
    np.testing.assert_allclose(norms, bessel_norms(zeros), rtol=1e-6)


def test_no_overlap_makes_infinities():
    basis = SphericalRadial(3, 2, 5.0)
    length = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = basis(length, torch.ones(1, dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), length)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_legendre(count):
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    want = torch.from_numpy(np.polynomial.legendre.legvander(x.numpy(), count - 1))
    torch.testing.assert_close(legendre(x, count), want, rtol=0, atol=1e-15)
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: legendre(x, count), (x,))
    assert torch.autograd.gradgradcheck(lambda x: legendre(x, count), (x,))


def test_slopes_that_come_with_the_values():
    basis = SphericalRadial(7, 6, 5.0)
    # from far below the change of method up to the cutoff, and where the argument stands still
    length = torch.tensor([1e-5, 1e-3, 0.02, 0.4, 1.1, 2.7, 4.9, 5.0], dtype=torch.float64, requires_grad=True)
    envelope = (1 - length / 5).pow(3) * torch.exp(length)
    (change,) = torch.autograd.grad(envelope.sum(), length, retain_graph=True)
    value, slope = basis.value_and_slope(length.detach(), envelope.detach(), change)
    want = basis(length, envelope)
    torch.testing.assert_close(value, want.detach(), rtol=1e-13, atol=0)
    for degree in range(7):
        for index in range(6):
            (exact,) = torch.autograd.grad(want[:, degree, index].sum(), length, retain_graph=True)
            torch.testing.assert_close(slope[:, degree, index], exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_legendre_slopes_that_come_with_the_values(count):
    x = torch.linspace(-1, 1, 21, dtype=torch.float64, requires_grad=True)
    want = legendre(x, count)
    values, slopes = legendre_and_slopes(x.detach(), count)
    assert torch.equal(values, want.detach())
    for degree in range(count):
        (exact,) = torch.autograd.grad(want[:, degree].sum(), x, retain_graph=True)
        torch.testing.assert_close(slopes[:, degree], exact, rtol=0, atol=1e-12)


def test_legendre_of_nothing():
    assert legendre(torch.zeros(0), 4).shape == (0, 4)
