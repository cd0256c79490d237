"""What the tests over all operators do not look at: weights, missing bias, corners, tiny losses, memory, scaling, third order."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastkd_kernels import projected_loss, vector_loss
from fastkd_kernels.projected_loss import reference
from fastkd_kernels.projected_loss.kinds import KINDS, Kind
from fastkd_kernels.projected_loss.op import projected_rows_second
from fastkd_kernels.vector_loss import reference as vector_reference
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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


def make(count: int, channels: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias, target = (
        torch.randn(*size, dtype=torch.float64, generator=generator)
        for size in ((count, channels), (width, channels), (width,), (count, width))
    )
    tensors = (x, weight / channels**0.5, bias, target)
    x, weight, bias, target = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    return x, weight, bias, target


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_is_the_mean_over_elements(backend: str, kind: Kind) -> None:
    x, weight, bias, target = make(9, 4, 6)
    compare = {"mse": torch.nn.functional.mse_loss, "mae": torch.nn.functional.l1_loss, "huber": torch.nn.functional.huber_loss}[kind]
    want = compare(torch.nn.functional.linear(x, weight, bias), target)
    torch.testing.assert_close(projected_loss(x, weight, bias, target, kind, backend=backend), want)
    v, goal = x.reshape(3, 3, 4), target.reshape(3, 3, 6)
    torch.testing.assert_close(vector_loss(v, weight, goal, kind, backend=backend), compare(v @ weight.T, goal))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_enter_as_a_weighted_mean(backend: str, kind: Kind) -> None:
    x, weight, _, target = make(6, 3, 5)
    node_weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    # a row of weight 2 is the same row twice, and one of weight 0 is not there
    repeated = node_weight.long()
    want = projected_loss(x.repeat_interleave(repeated, 0), weight, None, target.repeat_interleave(repeated, 0), kind, backend=backend)
    for scale in (1.0, 17.0):
        torch.testing.assert_close(projected_loss(x, weight, None, target, kind, scale * node_weight, backend=backend), want)
    v, goal, repeated = x.reshape(2, 3, 3), target.reshape(2, 3, 5), torch.tensor([3, 1])
    want = vector_loss(v.repeat_interleave(repeated, 0), weight, goal.repeat_interleave(repeated, 0), kind, backend=backend)
    torch.testing.assert_close(vector_loss(v, weight, goal, kind, repeated.double(), backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_differentiable_to_second_order(backend: str, kind: Kind) -> None:
    x, weight, bias, target = make(4, 2, 3)
    node_weight = torch.tensor([0.5, 1.0, 0.25, 2.0], dtype=torch.float64, requires_grad=True)

    def function(*tensors: Tensor) -> Tensor:
        return projected_loss(*tensors[:4], kind, tensors[4], backend=backend)

    inputs = (x, weight, bias, target, node_weight)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    loss = function(*inputs)
    exact = reference.projected_loss(x, weight, bias, target, kind, node_weight)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(exact, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_zero_get_no_gradient(backend: str) -> None:
    x, weight, bias, target = make(5, 3, 4)
    node_weight = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    projected_loss(x, weight, bias, target, "mse", node_weight, backend=backend).backward()
    assert x.grad is not None
    assert not x.grad[node_weight == 0].any()
    assert x.grad[node_weight == 1].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_bias_is_with_a_bias_of_zero(backend: str) -> None:
    x, weight, _, target = make(7, 5, 3)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with_bias, without = (projected_loss(x, weight, bias, target, "huber", backend=backend) for bias in (zero, None))
    assert with_bias.item() == pytest.approx(without.item(), rel=1e-14)
    torch.testing.assert_close(torch.autograd.grad(without, (x, weight)), torch.autograd.grad(with_bias, (x, weight)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "slopes", "curvatures"),
    [("mae", [-1, -1, -1, 0, 1, 1, 1], [0] * 7), ("huber", [-1, -1, -0.5, 0, 0.5, 1, 1], [0, 1, 1, 1, 1, 1, 0])],
)
def test_corners(backend: str, kind: Kind, slopes: list[float], curvatures: list[float]) -> None:
    """At |r| = 1 and r = 0, exactly representable numbers: ψ and ψ′ are what the docstring promises."""
    residual = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    x = torch.ones(7, 1, dtype=torch.float64)
    weight = torch.zeros(1, 1, dtype=torch.float64)
    target = -residual[:, None].requires_grad_()
    loss = 7 * projected_loss(x, weight, None, target, kind, backend=backend)
    (slope,) = torch.autograd.grad(loss, target, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), target)
    assert (-slope).flatten().tolist() == pytest.approx(slopes, abs=1e-15)
    assert curvature.flatten().tolist() == pytest.approx(curvatures, abs=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_losses_keep_their_digits(backend: str, kind: Kind) -> None:
    """A converged student, with residuals a thousandth of the features and L ≈ 1e-6; the Gram expansion is wrong by per cents here."""
    size = 1e-3 if kind == "mae" else 1.0
    x, weight, bias, _ = (tensor.detach() for tensor in make(96, 32, 128, torch.float32))
    x, bias = size * x, size * bias
    noise = torch.randn(96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = (x.double() @ weight.double().T + bias.double() + 1e-3 * size * noise).float()
    want = reference.projected_loss(x.double(), weight.double(), bias.double(), target.double(), kind)
    assert 1e-7 < want.item() < 2e-6
    assert relative(projected_loss(x, weight, bias, target, kind, backend=backend), want) <= 1e-5


def test_many_rows_stay_accurate() -> None:
    """Sums in two levels: one run of float32 additions over all rows would be wrong by 1e-6 here."""
    x, weight, bias, target = make(60_000, 4, 8, torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    got = torch.autograd.grad(projected_loss(x, weight, bias, target, "mse", backend="numba"), (x, weight, bias))
    want = torch.autograd.grad(reference.projected_loss(*exact, target.double(), "mse"), exact)
    assert max(relative(a, b) for a, b in zip(got, want, strict=True)) < 2e-7


def test_tiles_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd_kernels.projected_loss import numba_launch

    tensors = make(23, 4, 6)
    whole = torch.autograd.grad(projected_loss(*tensors, "huber", backend="numba"), tensors)
    monkeypatch.setattr(numba_launch, "TILE_ELEMENTS", 6 * 5)
    tiled = torch.autograd.grad(projected_loss(*tensors, "huber", backend="numba"), tensors)
    torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_the_projections_size_is_saved(backend: str) -> None:
    x, weight, bias, target = make(37, 4, 11)
    inputs = {tensor.data_ptr() for tensor in (x, weight, bias, target)}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = projected_loss(x, weight, bias, target, "huber", backend=backend)
    assert loss.requires_grad
    assert saved
    assert all(tensor.data_ptr() in inputs or tensor.numel() <= 37 for tensor in saved)


def largest_allocation(function: Callable[[], object]) -> int:
    """Bytes of the largest tensor that is made."""
    function()
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        warnings.simplefilter("ignore")
        function()
    return int(max(event.self_cpu_memory_usage for event in recorded.events()))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_projections_size_is_made_at_second_order(kind: Kind) -> None:
    """The largest tensor of three orders is a tile; with a gradient of the target, that gradient."""
    from fastkd_kernels.projected_loss import numba_launch

    x, weight, bias, target = make(6000, 8, 128)
    tile, whole = 8 * numba_launch.TILE_ELEMENTS, 8 * target.numel()
    assert 4 * tile < whole

    def twice(*wrt: Tensor) -> None:
        loss = projected_loss(x, weight, bias, target, kind, backend="numba")
        first = torch.autograd.grad(loss, wrt, create_graph=True)
        scalar = sum((gradient.square().sum() for gradient in first), torch.zeros((), dtype=torch.float64))
        torch.autograd.grad(scalar, wrt)

    target.requires_grad_(False)
    assert 0 < largest_allocation(lambda: twice(x, weight, bias)) <= tile
    target.requires_grad_()
    assert largest_allocation(lambda: twice(x, target)) == whole


def test_the_reference_makes_its_second_order_in_parts() -> None:
    x, weight, bias, target = (tensor.detach() for tensor in make(6000, 8, 128))
    upstream, tangents = torch.ones(6000, dtype=torch.float64), (x, weight, bias, None)
    part, whole = 8 * reference.PART_ROWS * 128, 8 * target.numel()
    arguments = (x, weight, bias, target, upstream, *tangents, "huber", [True, True, True, False, True])
    parted = projected_rows_second(*arguments, "reference")
    at_once = reference.row_second_gradients(x, weight, bias, target, upstream, "huber", tangents)
    for ours, theirs in zip((*parted[:3], parted[4]), (*at_once[:3], at_once[4]), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert part <= largest_allocation(lambda: projected_rows_second(*arguments, "reference")) < whole / 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_second_order_operator_with_any_tangents_and_needs(backend: str, kind: Kind) -> None:
    """What is not needed comes back empty, and the rest does not depend on it."""
    x, weight, bias, target = (tensor.detach() for tensor in make(5, 2, 3))
    upstream = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    directions = tuple(tensor.detach() for tensor in make(5, 2, 3, seed=2))
    for given, needed in itertools.product(range(1, 16, 2 if backend == "triton" else 1), (1, 2, 4, 8, 16, 31)):
        tangents = tuple(tensor if given & 1 << place else None for place, tensor in enumerate(directions))
        needs = [bool(needed & 1 << place) for place in range(5)]
        got = projected_rows_second(x, weight, bias, target, upstream, *tangents, kind, needs, backend)
        want = reference.row_second_gradients(x, weight, bias, target, upstream, kind, tangents)  # type: ignore[arg-type]
        for need, ours, theirs in zip(needs, got, want, strict=True):
            torch.testing.assert_close(ours, theirs if need else theirs.new_empty(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaling_and_a_retained_graph(backend: str) -> None:
    """Two upstream scales and two passes over one graph give gradients in exactly that proportion, and the first is not touched."""
    inputs = make(8, 3, 5)
    loss = projected_loss(*inputs, "mse", backend=backend)
    first = torch.autograd.grad(loss, inputs, torch.tensor(1.0, dtype=torch.float64), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    eighth = torch.autograd.grad(loss, inputs, torch.tensor(0.125, dtype=torch.float64), retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for a, b, c, d in zip(first, kept, eighth, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, 8 * c)
        assert torch.equal(a, d)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("needed", [mask for mask in itertools.product((False, True), repeat=4) if any(mask)], ids=str)
def test_every_set_of_inputs_that_require_grad(backend: str, kind: Kind, needed: tuple[bool, ...]) -> None:
    """A teacher's target without grad is the usual one; each set has the same gradients and second gradients as the reference."""
    found: list[list[Tensor]] = []
    for function in (projected_loss, reference.projected_loss):
        tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(make(5, 3, 4), needed, strict=True)]
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        options: dict[str, Any] = {"backend": backend} if function is projected_loss else {}
        gradients = torch.autograd.grad(function(*tensors, kind, **options), leaves, create_graph=True)
        scalar = sum((gradient * torch.arange(1.0, gradient.numel() + 1).reshape(gradient.shape)).sum() for gradient in gradients)
        seconds = torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True) if scalar.requires_grad else []  # type: ignore[union-attr]
        found.append([*gradients, *seconds])
    ours, theirs = found
    torch.testing.assert_close(ours[: len(theirs)], theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_third_order(backend: str, kind: Kind) -> None:
    """The gradient of |gradient of |gradient|²|²: exact, and no input is silently left out."""

    def third(function: Any, **options: Any) -> tuple[Tensor, ...]:
        inputs = make(4, 2, 3)
        scalar = function(*inputs, kind, **options)
        for _ in range(2):
            gradients = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
            scalar = sum(gradient.square().sum() for gradient in gradients) + sum(tensor.pow(3).sum() for tensor in inputs)
        return torch.autograd.grad(scalar, inputs)

    torch.testing.assert_close(third(projected_loss, backend=backend), third(reference.projected_loss))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_no_channels_and_no_weight(backend: str, kind: Kind) -> None:
    x, weight, bias, target = make(0, 3, 4)
    loss = projected_loss(x, weight, bias, target, kind, backend=backend)
    gradients = torch.autograd.grad(loss, (x, weight, bias, target))
    assert loss.item() == 0
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in (x, weight, bias, target)]
    assert not any(gradient.any() for gradient in gradients)
    empty = torch.zeros(0, 3, 3, dtype=torch.float64)
    assert vector_loss(empty, weight, torch.zeros(0, 3, 4, dtype=torch.float64), kind, backend=backend).item() == 0
    x, weight, bias, target = make(3, 2, 4)
    masked = projected_loss(x, weight, bias, target, kind, torch.zeros(3, dtype=torch.float64), backend=backend)
    assert masked.item() == 0
    assert not torch.autograd.grad(masked, weight)[0].any()


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(backend: str | None, kind: Kind) -> None:
    x, weight, bias, target = make(3, 2, 4)
    with torch.no_grad():
        target[1, 2] = float("nan")
    loss = projected_loss(x, weight, bias, target, kind, backend=backend)
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotating_both_sides_leaves_the_vector_loss(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    v, target = (torch.randn(5, 3, width, dtype=torch.float64, generator=generator) for width in (4, 6))
    weight = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    turned = vector_loss(rotation @ v, weight, rotation @ target, "mse", backend=backend)
    torch.testing.assert_close(turned, vector_loss(v, weight, target, "mse", backend=backend))
    torch.testing.assert_close(turned, vector_reference.vector_loss(v, weight, target, "mse"))


def test_strided_input_and_bits() -> None:
    """Transposed and sliced inputs give the same numbers as contiguous ones, bit for bit twice in a row."""
    x, weight, bias, target = (tensor.detach() for tensor in make(50, 6, 8, torch.float32))
    strided = (x.T.contiguous().T, weight.repeat(1, 2)[:, :6], bias.repeat(2)[::1][:8], target.T.contiguous().T)
    plain = projected_loss(x, weight, bias, target, "mse", backend="numba")
    torch.testing.assert_close(projected_loss(*strided, "mse", backend="numba"), plain)
    assert torch.equal(projected_loss(x, weight, bias, target, "mse", backend="numba"), plain)


def test_wrong_arguments_are_named() -> None:
    x, weight, bias, target = make(4, 2, 3)
    with pytest.raises(ValueError, match=r"target \[4, 2\]"):
        projected_loss(x, weight, bias, target[:, :2])
    with pytest.raises(ValueError, match=r"bias \[2\]"):
        projected_loss(x, weight, bias[:2], target)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        projected_loss(x, weight.float(), bias, target)
    with pytest.raises(ValueError, match="mse, mae, huber, got 'l2'"):
        projected_loss(x, weight, bias, target, "l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"node_weight \[3\]"):
        projected_loss(x, weight, bias, target, "mse", torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x \[N, 3, C\]"):
        vector_loss(x[:, None], weight, target[:, None])
