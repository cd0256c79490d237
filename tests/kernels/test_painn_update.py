"""What only PaiNN's update block promises: the plain formulas of the model, missing gradients, equivariance, v = 0, third order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels.painn_update import reference
from fastkd_kernels.painn_update.op import painn_context, painn_update
from fastkd_kernels.tolerances import TOLERANCES, relative_error
from torch import Tensor

from fastkd.models.painn import PaiNNOptions, PaiNNUpdate

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
each_scaling = pytest.mark.parametrize(("dot_scale", "scalar_scale"), [(1.0, 1.0), (0.2, 1 / math.sqrt(2))], ids=["paper", "ocp"])
EPSILON = 1e-8
Block = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def normal(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(dot_scale: float = 1.0, scalar_scale: float = 1.0) -> Block:
    """The formulas as models write them; the gates follow from the context, which closes the block."""

    def block(scalar: Tensor, mixed: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        u, v = mixed.chunk(2, -1)
        context = torch.cat([scalar, torch.sqrt(v.square().sum(-2) + EPSILON)], -1)
        a, b, c = torch.tanh(context @ weight).chunk(3, -1)
        return (a + b * ((u * v).sum(1) * dot_scale)) * scalar_scale, c.unsqueeze(1) * u

    return block


def ours(backend: str | None, dot_scale: float = 1.0, scalar_scale: float = 1.0) -> Block:
    def block(scalar: Tensor, mixed: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        gates = torch.tanh(painn_context(scalar, mixed, epsilon=EPSILON, backend=backend) @ weight)
        return painn_update(gates, mixed, dot_scale=dot_scale, scalar_scale=scalar_scale, backend=backend)

    return block


def inputs(nodes: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    scalar, mixed = normal(nodes, width, dtype=dtype), normal(nodes, 3, 2 * width, dtype=dtype, seed=1)
    return scalar.requires_grad_(), mixed.requires_grad_(), (normal(2 * width, 3 * width, dtype=dtype, seed=2) / width).requires_grad_()


def orders(block: Block, given: tuple[Tensor, ...], count: int, *, used: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    """Values, and the gradients of order 1 … count, each of a sum with random weights of those before."""
    outputs = [out for number, out in enumerate(block(*given)) if number in used]
    found, current, seed = list(outputs), outputs, 10
    for _ in range(count):
        total = sum((normal(*t.shape, seed=seed + n).to(t.dtype) * t).sum() for n, t in enumerate(current))
        current = list(torch.autograd.grad(total, given, create_graph=True, allow_unused=True, materialize_grads=True))
        found += current
        seed += 10
    return found


@each_backend
@each_scaling
@pytest.mark.parametrize(("nodes", "width"), [(1, 1), (5, 3), (7, 31), (3, 129)], ids=str)
def test_is_the_plain_block_at_three_orders(backend: str, dot_scale: float, scalar_scale: float, nodes: int, width: int) -> None:
    given = inputs(nodes, width)
    got, want = orders(ours(backend, dot_scale, scalar_scale), given, 3), orders(plain(dot_scale, scalar_scale), given, 3)
    for value, exact in zip(got, want, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-11)


@each_backend
@pytest.mark.parametrize("residual_scaling", [False, True])
def test_is_the_update_of_our_model(backend: str, residual_scaling: bool) -> None:
    torch.manual_seed(0)
    block = PaiNNUpdate(PaiNNOptions(width=6, residual_scaling=residual_scaling)).double()
    scalar, vector = normal(4, 6).requires_grad_(), normal(4, 3, 6, seed=1).requires_grad_()

    def fused(scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        mixed = block.vector_mix(vector)
        gates = block.context(painn_context(scalar, mixed, backend=backend))
        return painn_update(gates, mixed, dot_scale=block.dot_scale, scalar_scale=block.scalar_scale, backend=backend)

    for value, exact in zip(orders(fused, (scalar, vector), 2), orders(block, (scalar, vector), 2), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-12)


@each_backend
@pytest.mark.parametrize("used", [(0,), (1,)], ids=["scalar alone", "vector alone"])
def test_an_output_that_nothing_depends_on(backend: str, used: tuple[int, ...]) -> None:
    """As in the last block of a model without a head for vectors: no gradient arrives, and none is made up."""
    given = inputs(4, 5)
    for value, exact in zip(orders(ours(backend), given, 3, used=used), orders(plain(), given, 3, used=used), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-11)


@each_backend
def test_strided_inputs_and_gradients(backend: str) -> None:
    """Chunks of larger tensors going in, slices of what comes out, expanded and transposed gradients coming back."""
    wide, gates = normal(4, 3, 20).requires_grad_(), normal(4, 2, 15, seed=1).requires_grad_()

    def run(function: Any) -> list[Tensor]:
        scalar, vector = function(gates[:, 1], wide[..., 5:15])
        total = scalar[1:, ::2].sum() + vector.transpose(0, 2).square().sum() + (vector[:, 0] * vector[:, 1].flip(0)).sum()
        first = torch.autograd.grad(total, (wide, gates), create_graph=True)
        return [total, *first, *torch.autograd.grad(first[0].square().sum() + first[1].sum(), (wide, gates))]

    got = run(lambda g, m: painn_update(g, m, backend=backend))
    for value, exact in zip(got, run(lambda g, m: reference.painn_update(g, m, 1.0, 1.0)), strict=True):
        torch.testing.assert_close(value, exact)


@each_backend
def test_norms_of_v_alone_are_those_of_the_second_half(backend: str) -> None:
    scalar, mixed = normal(4, 5).requires_grad_(), normal(4, 3, 10, seed=1).requires_grad_()
    whole = orders(lambda s, m: (painn_context(s, m, backend=backend),), (scalar, mixed), 2)
    half = orders(lambda s, m: (painn_context(s, m[..., 5:], backend=backend),), (scalar, mixed), 2)
    for value, exact in zip(whole, half, strict=True):
        torch.testing.assert_close(value, exact)
    assert not whole[2][..., :5].any()  # U v takes no part


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_of_nothing_has_finite_derivatives(backend: str, dtype: torch.dtype) -> None:
    """As for an atom without neighbours: √ε, slope 0, curvature 1/√ε."""
    scalar, mixed = torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, 6, dtype=dtype, requires_grad=True)
    context = painn_context(scalar, mixed, epsilon=EPSILON, backend=backend)
    torch.testing.assert_close(context[:, 3:], torch.full((2, 3), math.sqrt(EPSILON), dtype=dtype))
    (slope,) = torch.autograd.grad(context.sum(), mixed, create_graph=True)
    assert not slope.any()
    (curvature,) = torch.autograd.grad(slope[..., 3:].sum(), mixed, create_graph=True)
    torch.testing.assert_close(curvature[..., 3:], torch.full((2, 3, 3), 1 / math.sqrt(EPSILON), dtype=dtype))
    (third,) = torch.autograd.grad(curvature.sum(), mixed)
    assert not third.any()


@each_backend
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1e4], ids=str)
def test_short_and_long_vectors_in_float32(backend: str, size: float) -> None:
    """Second derivatives are made of unit vectors, not of 1/n³."""
    scalar, mixed = torch.zeros(3, 5), (size * normal(3, 3, 5)).float()

    def found(function: Any, dtype: torch.dtype) -> list[Tensor]:
        point = mixed.to(dtype).requires_grad_()
        slope = torch.autograd.grad(function(scalar.to(dtype), point)[:, 5:].sum(), point, create_graph=True)[0]
        return [slope, torch.autograd.grad((slope * normal(3, 3, 5, seed=3).to(dtype)).sum(), point)[0]]

    exact = found(lambda s, m: reference.painn_context(s, m, EPSILON), torch.float64)
    for order, (got, want) in enumerate(zip(found(lambda s, m: painn_context(s, m, backend=backend), torch.float32), exact, strict=True)):
        assert relative_error(got, want) < TOLERANCES[torch.float32].by_order[order + 1]


@each_backend
def test_rotates_with_its_input(backend: str) -> None:
    rotation = torch.linalg.qr(normal(3, 3, seed=4)).Q
    scalar, mixed, weight = inputs(4, 5)
    change, vector = ours(backend)(scalar, mixed, weight)
    turned = ours(backend)(scalar, torch.einsum("kl,nlf->nkf", rotation, mixed), weight)
    torch.testing.assert_close(turned[0], change)
    torch.testing.assert_close(turned[1], torch.einsum("kl,nlf->nkf", rotation, vector))


@each_backend
@pytest.mark.parametrize(("nodes", "width"), [(0, 4), (3, 0)], ids=["no nodes", "no width"])
def test_nothing_in_is_nothing_out(backend: str, nodes: int, width: int) -> None:
    gates = torch.zeros(nodes, 3 * width, requires_grad=True)
    scalar, mixed = torch.zeros(nodes, width, requires_grad=True), torch.zeros(nodes, 3, 2 * width, requires_grad=True)
    outputs = (painn_context(scalar, mixed, backend=backend), *painn_update(gates, mixed, backend=backend))
    assert [out.shape for out in outputs] == [(nodes, 2 * width), (nodes, width), (nodes, 3, width)]
    first = torch.autograd.grad([out.sum() for out in outputs], (scalar, mixed, gates), create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), (mixed, gates))
    assert [t.shape for t in (*first, *second)] == [scalar.shape, mixed.shape, gates.shape, mixed.shape, gates.shape]


@each_backend
def test_nan_stays_in_its_row_and_channel(backend: str) -> None:
    for where in range(2):
        scalar, mixed, _ = inputs(3, 4)
        gates = normal(3, 12, seed=5)
        with torch.no_grad():
            (gates if where else mixed)[1, ..., 6] = float("nan")
        gates.requires_grad_()
        context, (change, vector) = painn_context(scalar, mixed, backend=backend), painn_update(gates, mixed, backend=backend)
        assert context.isnan().sum() == (0 if where else 1)
        assert change.isnan().nonzero().tolist() == [[1, 2]]
        assert not vector.isnan().any()
        total = context.square().sum() + change.square().sum() + vector.square().sum()
        first = torch.autograd.grad(total, (scalar, mixed, gates), create_graph=True)
        assert first[1][1, :, 2].isnan().all()
        assert not any(t[[0, 2]].isnan().any() for t in first)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), (mixed, gates))
        assert second[0][1, :, 2].isnan().all()
        assert not any(t[[0, 2]].isnan().any() for t in second)


@each_backend
def test_what_is_not_wanted_is_not_computed(backend: str) -> None:
    scalar, mixed, _ = inputs(3, 4)
    gates = normal(3, 12, seed=5).requires_grad_()
    cases = [
        (lambda: painn_context(scalar.detach(), mixed, backend=backend), mixed),
        (lambda: painn_context(scalar, mixed.detach(), backend=backend), scalar),
        (lambda: painn_update(gates.detach(), mixed, backend=backend)[0], mixed),
        (lambda: painn_update(gates, mixed.detach(), backend=backend)[1], gates),
    ]
    for call, leaf in cases:
        (slope,) = torch.autograd.grad(call().sum(), leaf)
        assert slope.shape == leaf.shape
        assert slope.isfinite().all()


def test_one_tensor_in_two_places_at_third_order() -> None:
    gates, mixed = normal(3, 12).requires_grad_(), normal(3, 3, 8, seed=1).requires_grad_()

    def third(function: Any) -> Tensor:
        # mixed is here both an input and the tangent of its own gradient
        (slope,) = torch.autograd.grad(function(gates, mixed)[0].square().sum(), mixed, create_graph=True)
        (second,) = torch.autograd.grad(slope, gates, mixed, create_graph=True)
        return torch.autograd.grad(second.square().sum(), mixed)[0]

    torch.testing.assert_close(third(painn_update), third(lambda g, m: reference.painn_update(g, m, 1.0, 1.0)))


def test_each_wrong_argument_is_named() -> None:
    scalar, mixed = torch.zeros(4, 5), torch.zeros(4, 3, 10)
    with pytest.raises(ValueError, match=r"mixed \[4, 3, 10\] or \[4, 3, 5\].*got \[4, 3, 7\]"):
        painn_context(scalar, mixed[..., :7])
    with pytest.raises(ValueError, match=r"of torch.float32.*torch.float64"):
        painn_context(scalar, mixed.double())
    with pytest.raises(ValueError, match="positive epsilon, got 0"):
        painn_context(scalar, mixed, epsilon=0)
    with pytest.raises(ValueError, match=r"scalar \[N, F\] of a floating dtype, got \[4, 5\] torch.int64"):
        painn_context(scalar.long(), mixed)
    with pytest.raises(ValueError, match=r"gates \[N, 3F\] of a floating dtype, got \[4, 14\]"):
        painn_update(torch.zeros(4, 14), mixed)
    with pytest.raises(ValueError, match=r"mixed \[4, 3, 10\].*got \[4, 10, 3\]"):
        painn_update(torch.zeros(4, 15), mixed.transpose(1, 2))
