"""What linear CKA promises beyond the tests of all ops: it is the N × N form, with its invariances, and 0 where it is undefined."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels.linear_cka import numba_launch, reference
from fastkd_kernels.linear_cka.op import linear_cka
from torch import Tensor

NAMED = [
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
#: None chooses, and takes plain torch for as few nodes as here.
each_backend = pytest.mark.parametrize("backend", [pytest.param(None, id="chosen"), *NAMED])


def make(count: int, channels: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, size, dtype=torch.float64, generator=generator) for size in (channels, width))
    # shifted columns, which centring takes away, and a common part, so that the similarity is in the middle
    y = y + 2 + (x[:, :1] if channels else 0)
    return (x - 1).to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def by_node_matrices(x: Tensor, y: Tensor) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with N × N Gram matrices, as published."""
    n = x.shape[0]
    centring = torch.eye(n, dtype=x.dtype) - 1 / n
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / (n - 1) ** 2

    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


@each_backend
def test_equals_the_form_with_node_matrices(backend: str | None) -> None:
    for count, channels, width in ((23, 4, 6), (7, 11, 3), (40, 1, 1), (9, 8, 8), (300, 40, 70)):
        inputs = make(count, channels, width)
        want, got = by_node_matrices(*inputs), linear_cka(*inputs, backend=backend)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))
        assert 0 < got.item() < 1


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_invariances(backend: str | None, dtype: torch.dtype) -> None:
    x, y = (tensor.detach() for tensor in make(50, 5, 7, dtype))
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).Q.to(dtype)
    one = torch.ones((), dtype=dtype)
    tolerances = {"rtol": 1e-5, "atol": 0.0} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 0.0}
    torch.testing.assert_close(linear_cka(x, x, backend=backend), one, **tolerances)
    torch.testing.assert_close(linear_cka(x, 3 * x @ turn + 0.5, backend=backend), one, **tolerances)
    plain = linear_cka(x, y, backend=backend)
    torch.testing.assert_close(linear_cka(y, x, backend=backend), plain, **tolerances)
    torch.testing.assert_close(linear_cka(-x @ turn - 4, y, backend=backend), plain, **tolerances)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(linear_cka(x[shuffled], y[shuffled], backend=backend), plain, **tolerances)


@each_backend
def test_gradient_is_the_formula(backend: str | None) -> None:
    x, y = inputs = make(31, 4, 6)
    value = linear_cka(*inputs, backend=backend)
    xc, yc = (tensor.detach() - tensor.detach().mean(0) for tensor in inputs)
    p, q, k = xc.T @ xc, yc.T @ yc, xc.T @ yc
    a, b = p.norm(), q.norm()
    by_x = 2 / (a * b) * yc @ k.T - 2 * value.detach() / a**2 * xc @ p
    by_y = 2 / (a * b) * xc @ k - 2 * value.detach() / b**2 * yc @ q
    torch.testing.assert_close(torch.autograd.grad(value, (x, y)), (by_x, by_y))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("constant", ["x", "y", "both", "one node", "no node", "no channels"])
def test_undefined_is_zero(backend: str | None, dtype: torch.dtype, constant: str) -> None:
    """A side that is the same for all nodes, in numbers that no float holds exactly, leaves exactly nothing after centring."""
    count = {"one node": 1, "no node": 0}.get(constant, 37)
    x, y = (tensor.detach() for tensor in make(count, 0 if constant == "no channels" else 5, 3, dtype))
    if constant in ("x", "both"):
        x[:] = torch.linspace(0.1, 7e5, 5, dtype=dtype)
    if constant in ("y", "both"):
        y[:] = torch.tensor([1 / 3, -7.7e-9, 0.1], dtype=dtype)
    inputs = (x.requires_grad_(), y.requires_grad_())
    value = linear_cka(*inputs, backend=backend)
    assert value.item() == 0
    gradients = torch.autograd.grad(value, inputs, create_graph=True)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in inputs]
    assert not any(gradient.any() for gradient in gradients)
    seconds = torch.autograd.grad(sum(gradient.sum() for gradient in gradients), inputs, materialize_grads=True)  # type: ignore[arg-type]
    assert not any(second.any() for second in seconds)


@each_backend
def test_large_offsets_and_extreme_scales(backend: str | None) -> None:
    """Means far from zero, and features whose fourth powers overflow float32 or vanish in it."""
    x, y = (tensor.detach() for tensor in make(200, 6, 4))
    want = linear_cka(x, y, backend="reference").item()
    for scale in (1e-9, 1e12):
        got = linear_cka((scale * x).float(), y.float(), backend=backend)
        assert abs(got.item() - want) < 1e-5 * want
    for offset in (1e3, 1e6):
        shifted = (x + offset).float().requires_grad_()
        twin = shifted.detach().double().requires_grad_()
        exact, got = linear_cka(twin, y, backend="reference"), linear_cka(shifted, y.float(), backend=backend)
        assert abs(got.item() - exact.item()) < 1e-6 * exact.item()
        want, gradient = torch.autograd.grad(exact, twin)[0], torch.autograd.grad(got, shifted)[0]
        assert float((gradient - want).norm() / want.norm()) < 1e-5


@each_backend
def test_parts_of_rows_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    inputs = make(150, 5, 20)
    want = linear_cka(*inputs, backend="reference")
    gradients = torch.autograd.grad(want, inputs)
    monkeypatch.setattr(numba_launch, "TILE_ROWS", 16)
    if backend == "triton":
        from fastkd_kernels.linear_cka import triton_launch

        monkeypatch.setattr(triton_launch, "ROWS_PER_PART", 32)
    got = linear_cka(*inputs, backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), gradients, rtol=1e-12, atol=1e-16)


def test_many_rows_stay_accurate() -> None:
    x, y = make(60_000, 6, 8, torch.float32)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in (x, y))
    value, want = linear_cka(x, y, backend="numba"), linear_cka(*exact, backend="reference")
    assert abs(value.item() - want.item()) < 1e-6 * want.item()
    for a, b in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(want, exact), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6


@pytest.mark.parametrize("backend", NAMED)
def test_only_small_matrices_are_saved(backend: str) -> None:
    x, y = make(1000, 4, 6)
    inputs = {tensor.data_ptr() for tensor in (x, y)}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = linear_cka(x, y, backend=backend)
    assert loss.requires_grad
    assert saved
    assert all(tensor.data_ptr() in inputs or tensor.numel() <= 36 for tensor in saved)


@each_backend
def test_scaling_and_a_retained_graph(backend: str | None) -> None:
    inputs = make(18, 3, 5)
    loss = 1 - linear_cka(*inputs, backend=backend)
    one = torch.tensor(1.0, dtype=torch.float64)
    first = torch.autograd.grad(loss, inputs, one, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    eighth = torch.autograd.grad(loss, inputs, one / 8, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for a, b, c, d in zip(first, kept, eighth, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, 8 * c)
        assert torch.equal(a, d)


@each_backend
def test_third_order(backend: str | None) -> None:
    def third(function: Callable[..., Tensor], **options: Any) -> tuple[Tensor, ...]:
        inputs = make(9, 2, 3)
        scalar = function(*inputs, **options)
        for _ in range(2):
            gradients = torch.autograd.grad(scalar, inputs, create_graph=True)
            scalar = sum(gradient.square().sum() for gradient in gradients)  # type: ignore[assignment]
        return torch.autograd.grad(scalar, inputs)

    torch.testing.assert_close(third(linear_cka, backend=backend), third(reference.linear_cka))


@each_backend
def test_the_same_tensor_on_both_sides(backend: str | None) -> None:
    """CKA(x, x) is 1 whatever x is: the two gradients cancel."""
    x, _ = make(20, 4, 3)
    value = linear_cka(x, x, backend=backend)
    assert torch.autograd.grad(value, x)[0].abs().max() < 1e-15


@each_backend
def test_nan_is_not_hidden(backend: str | None) -> None:
    x, y = make(8, 3, 2)
    with torch.no_grad():
        x[1, 2] = float("nan")
    value = linear_cka(x, y, backend=backend)
    assert value.isnan()
    assert torch.autograd.grad(value, y)[0].isnan().any()


def test_wrong_arguments_are_named() -> None:
    x, y = make(4, 2, 3)
    with pytest.raises(ValueError, match=r"y \[3, 3\]"):
        linear_cka(x, y[:3])
    with pytest.raises(ValueError, match=r"x \[4\]"):
        linear_cka(x[:, 0], y)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        linear_cka(x, y.float())
    with pytest.raises(ValueError, match=r"torch\.int64"):
        linear_cka(x.long(), y.long())
