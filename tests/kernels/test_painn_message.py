"""What only painn_message promises: the first layer, the third order, equivariance."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from fastkd_kernels import CSRGraph, painn_message
from fastkd_kernels.painn_message.cases import CASES
from fastkd_kernels.registry import Shape
from fastkd_kernels.testing import sample, three_orders
from torch import Tensor

CASE = CASES[0]
backends = pytest.mark.parametrize("backend", ["numba", "reference"])


def _sample() -> tuple[tuple[Tensor, ...], CSRGraph]:
    made = sample(CASE, Shape(5, 16, 3), torch.float64)
    return made.inputs, made.extra[0]


@backends
def test_no_vector_is_a_vector_of_zeros_at_three_orders(backend: str) -> None:
    (phi, vector, weight, direction), graph = _sample()
    zeros = torch.zeros_like(vector)
    inputs = (phi, weight, direction)
    without = three_orders(lambda p, w, r: painn_message(p, None, w, r, graph, backend=backend), inputs, torch.float64)
    with_zeros = three_orders(lambda p, w, r: painn_message(p, zeros, w, r, graph, backend=backend), inputs, torch.float64)
    for ours, theirs in zip(chain(*without), chain(*with_zeros), strict=True):
        torch.testing.assert_close(ours, theirs)


@backends
@pytest.mark.parametrize("first_layer", [False, True])
def test_third_and_fourth_order_are_exact(backend: str, first_layer: bool) -> None:
    """Autograd of the reference, which is plain torch, is the truth."""
    (phi, vector, weight, direction), graph = _sample()
    inputs = (phi, weight, direction) if first_layer else (phi, weight, direction, vector)

    def orders(function: object) -> list[Tensor]:
        scalar, out = function(phi, None if first_layer else vector, weight, direction, graph)  # type: ignore[operator]
        value, found, generator = scalar.sin().sum() + (out.cos().sum(1) * scalar).sum(), [], torch.Generator().manual_seed(1)
        for order in range(4):
            gradients = torch.autograd.grad(value, inputs, create_graph=order < 3)
            found += gradients
            value = sum((torch.randn(g.shape, dtype=g.dtype, generator=generator) * g).sum() for g in gradients)
        return found

    got, want = orders(lambda *x: painn_message(*x, backend=backend)), orders(CASE.reference)
    for number, (ours, exact) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-8, msg=lambda text, n=number: f"order {n // len(inputs) + 1}: {text}")


@backends
def test_one_tensor_in_two_places_at_third_order(backend: str) -> None:
    (phi, vector, weight, direction), graph = _sample()

    def third(function: object) -> Tensor:
        scalar, out = function(phi, vector, weight, direction, graph)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad((scalar, out), phi, (scalar.detach(), out.detach().requires_grad_()), create_graph=True)
        # phi is here both an input and the tangent of its own gradient
        (second,) = torch.autograd.grad(gradient, weight, phi, create_graph=True)
        return torch.autograd.grad(second.pow(2).sum(), phi)[0]

    torch.testing.assert_close(third(lambda *x: painn_message(*x, backend=backend)), third(CASE.reference))


@backends
def test_rotates_with_its_input(backend: str) -> None:
    (phi, vector, weight, direction), graph = _sample()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    scalar, out = painn_message(phi, vector, weight, direction, graph, backend=backend)
    turned = painn_message(phi, torch.einsum("kl,nlf->nkf", rotation, vector), weight, direction @ rotation.T, graph, backend=backend)
    torch.testing.assert_close(turned[0], scalar)
    torch.testing.assert_close(turned[1], torch.einsum("kl,nlf->nkf", rotation, out))


def test_each_wrong_shape_is_named() -> None:
    (phi, vector, weight, direction), graph = _sample()
    for wrong in (
        (phi[:, :-1], vector, weight, direction),
        (phi, vector[:, :2], weight, direction),
        (phi, vector[:, :, :2], weight, direction),
        (phi, vector, weight[:, :3], direction),
        (phi, vector, weight, direction[:, :2]),
        (phi[0], None, weight, direction),
    ):
        with pytest.raises(ValueError, match=r"needs phi \[5, 3F\].*got phi \["):
            painn_message(*wrong, graph)
