"""What the tests over all operators do not look at: loops by hand, invariance, odd images, NaN, tiny losses, memory, third order."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from fastkd_kernels.global_structure_loss import reference
from fastkd_kernels.global_structure_loss.op import global_structure_loss, pair_pull, pair_rows
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
each_backend = pytest.mark.parametrize("backend", BACKENDS)
#: Images of one atom, of none, of fewer and of more than a tile; a tile of atoms sees several images.
SIZES = (3, 1, 0, 19, 1, 2, 8)


def make(sizes: tuple[int, ...] = SIZES, width: int = 4, wide: int = 6, axes: tuple[int, ...] = (), seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(sum(sizes), *axes, size, dtype=torch.float64, generator=generator) for size in (width, wide))
    return x.requires_grad_(), 1.3 * y, torch.tensor([0, *sizes]).cumsum(0)


def by_hand(x: Tensor, y: Tensor, ptr: Tensor) -> float:
    """The definition, one pair after the other, on Python's numbers."""
    student, teacher = x.detach().flatten(1).tolist(), y.flatten(1).tolist()

    def distance(rows: list[list[float]], i: int, j: int) -> float:
        return math.dist(rows[i], rows[j]) ** 2 / len(rows[i])

    losses = []
    for start, stop in pairwise(ptr.tolist()):
        atoms = range(start, stop)
        squares = [(distance(student, i, j) - distance(teacher, i, j)) ** 2 for i in atoms for j in atoms]
        losses.append(sum(squares) / len(squares) if squares else 0.0)
    return sum(losses) / len(losses)


def derivatives(function: Callable[..., Tensor], x: Tensor, *extra: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient, and the gradient of |gradient|²."""
    value = function(x, *extra, **options)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return value, first, second


@each_backend
@pytest.mark.parametrize("axes", [(), (3,)])
def test_the_definition_by_hand(backend: str, axes: tuple[int, ...]) -> None:
    x, y, ptr = make(axes=axes)
    got = derivatives(global_structure_loss, x, y, ptr, backend=backend)
    assert got[0].item() == pytest.approx(by_hand(x, y, ptr), rel=1e-12)
    torch.testing.assert_close(got, derivatives(reference.global_structure_loss, x, y, ptr))


@each_backend
def test_moving_and_turning_the_features_changes_nothing(backend: str) -> None:
    x, y, ptr = make()
    generator = torch.Generator().manual_seed(1)
    plain = derivatives(global_structure_loss, x, y, ptr, backend=backend)
    # each image may be moved by itself
    index = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    shift, other = (torch.randn(len(SIZES), size, dtype=torch.float64, generator=generator)[index] for size in (4, 6))
    moved = derivatives(global_structure_loss, (x.detach() + shift).requires_grad_(), y + other, ptr, backend=backend)
    torch.testing.assert_close(moved, plain)
    turn, mirror = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q for size in (4, 6))
    value, first, second = derivatives(global_structure_loss, (x.detach() @ turn).requires_grad_(), y @ mirror, ptr, backend=backend)
    torch.testing.assert_close((value, first @ turn.T, second @ turn.T), plain)
    torch.testing.assert_close(plain[1].sum(0), torch.zeros(4, dtype=torch.float64))


@each_backend
def test_rotating_space_changes_nothing(backend: str) -> None:
    x, y, ptr = make(axes=(3,))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    turned = global_structure_loss(rotation @ x, rotation @ y, ptr, backend=backend)
    torch.testing.assert_close(turned, global_structure_loss(x, y, ptr, backend=backend))


@each_backend
def test_atoms_and_images_may_change_places(backend: str) -> None:
    x, y, ptr = make((4, 6))
    within = torch.tensor([2, 0, 3, 1, 9, 4, 8, 7, 5, 6])
    swapped = torch.cat([torch.arange(4, 10), torch.arange(4)])
    plain = global_structure_loss(x, y, ptr, backend=backend)
    torch.testing.assert_close(global_structure_loss(x[within], y[within], ptr, backend=backend), plain)
    torch.testing.assert_close(global_structure_loss(x[swapped], y[swapped], torch.tensor([0, 6, 10]), backend=backend), plain)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_equal_to_the_teacher_is_at_the_minimum(backend: str, dtype: torch.dtype) -> None:
    x, _, ptr = make()
    x = x.detach().to(dtype).requires_grad_()
    loss = global_structure_loss(x, x.detach().clone(), ptr, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert not gradient.any()


@each_backend
def test_features_far_from_the_origin_in_float32(backend: str) -> None:
    """Norms less products would lose everything: the squares of the features are 1e6 times those of their differences."""
    x, y, ptr = make()
    rounded = (x.detach() + 1000).float().requires_grad_()
    want = derivatives(reference.global_structure_loss, rounded.detach().double().requires_grad_(), y.float().double(), ptr)
    got = derivatives(global_structure_loss, rounded, y.float(), ptr, backend=backend)
    for ours, exact in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


@each_backend
def test_no_images_no_atoms_and_no_width(backend: str) -> None:
    for sizes, width in (((), 3), ((0, 0), 3), ((1,), 2), ((1, 1, 0, 1), 2)):
        x, y, ptr = make(sizes, width)
        value, first, second = derivatives(global_structure_loss, x, y, ptr, backend=backend)
        assert value.item() == 0
        assert first.shape == second.shape == x.shape
        assert not first.any()
        assert not second.any()
    for width, wide in ((0, 3), (3, 0), (0, 0)):
        x, y, ptr = make((3, 2), width, wide)
        got = derivatives(global_structure_loss, x, y, ptr, backend=backend)
        torch.testing.assert_close(got, derivatives(reference.global_structure_loss, x, y, ptr))
        assert got[0].item() == pytest.approx(
            global_structure_loss(*(t if t.shape[1] else t.new_zeros(5, 1) for t in (x, y)), ptr, backend=backend).item()
        )


@each_backend
def test_very_different_widths(backend: str) -> None:
    for width, wide in ((1, 70), (67, 2)):
        x, y, ptr = make((5, 9), width, wide)
        got = derivatives(global_structure_loss, x, y, ptr, backend=backend)
        torch.testing.assert_close(got, derivatives(reference.global_structure_loss, x, y, ptr))


@each_backend
def test_nan_stays_in_its_image(backend: str) -> None:
    x, y, ptr = make((3, 1, 4))
    with torch.no_grad():
        x[1, 2] = float("nan")
    loss = global_structure_loss(x, y, ptr, backend=backend)
    first, second = derivatives(global_structure_loss, x, y, ptr, backend=backend)[1:]
    assert loss.isnan()
    for gradient in (first, second):
        assert gradient[:3].isnan().any(1).all()
        assert gradient[3:].isfinite().all()
    x, y, ptr = make((1,))
    assert global_structure_loss(x * float("nan"), y, ptr, backend=backend).isnan()


@each_backend
def test_scaling_and_a_retained_graph(backend: str) -> None:
    """Two upstream scales and passes over one graph give gradients in exactly that proportion, and the first is not touched."""
    x, y, ptr = make()
    loss = global_structure_loss(x, y, ptr, backend=backend)
    (first,) = torch.autograd.grad(loss, x, torch.tensor(1.0, dtype=torch.float64), retain_graph=True)
    kept = first.clone()
    (eighth,) = torch.autograd.grad(loss, x, torch.tensor(0.125, dtype=torch.float64), retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, kept)
    assert torch.equal(again, kept)
    assert torch.equal(eighth * 8, kept)


@each_backend
def test_third_and_fourth_order(backend: str) -> None:
    def fourth(function: Any, **options: Any) -> list[Tensor]:
        x, y, ptr = make((3, 1, 2), 2, 3)
        scalar, found = function(x, y, ptr, **options), []
        for _ in range(3):
            (gradient,) = torch.autograd.grad(scalar, x, create_graph=True)
            scalar = gradient.square().sum() + x.pow(3).sum()
            found.append(gradient)
        return [*found, torch.autograd.grad(scalar, x)[0]]

    torch.testing.assert_close(fourth(global_structure_loss, backend=backend), fourth(reference.global_structure_loss))


@each_backend
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_closed_pair(backend: str, with_teacher: bool) -> None:
    """Each derivative of the pair, in every argument but the teacher, is what differences say."""
    _, y, ptr = make((3, 0, 2), 2, 3)
    generator = torch.Generator().manual_seed(5)
    a, b, c, d = (torch.randn(5, 2, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(4))
    h = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher, fast = y if with_teacher else None, backend == "triton"
    rows = (lambda a, b, c, d: pair_rows(a, b, c, d, teacher, ptr, backend), (a, b, c, d))
    pull = (lambda a, b, c, h: pair_pull(a, b, c, h, teacher, ptr, backend), (a, b, c, h))
    for function, inputs in (rows, pull):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


def test_nothing_of_the_size_of_the_pairs_is_made() -> None:
    """The largest allocation of three orders is that of the features."""
    x, y, ptr = make((120, 80), 5, 9)
    derivatives(global_structure_loss, x, y, ptr, backend="numba")
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        warnings.simplefilter("ignore")
        derivatives(global_structure_loss, x, y, ptr, backend="numba")
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert 0 < largest <= 8 * x.numel()


def test_wrong_arguments_are_named() -> None:
    x, y, ptr = make((3, 2))
    with pytest.raises(ValueError, match=r"y \[5, 6\] requires a gradient"):
        global_structure_loss(x, y.clone().requires_grad_(), ptr)
    with pytest.raises(ValueError, match=r"y \[4, 6\]"):
        global_structure_loss(x, y[:4], ptr)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        global_structure_loss(x, y.float(), ptr)
    with pytest.raises(ValueError, match=r"y \[5, 3, 2\]"):
        global_structure_loss(x, y.view(5, 3, 2), ptr)
    with pytest.raises(ValueError, match=r"x \[5, 2, 2\]"):
        global_structure_loss(x.view(5, 2, 2), y.view(5, 2, 3), ptr)
    with pytest.raises(ValueError, match=r"ptr \[3\] torch\.int32"):
        global_structure_loss(x, y, ptr.int())
    with pytest.raises(ValueError, match=r"ptr \[0\]"):
        global_structure_loss(x, y, ptr[:0])


@each_backend
def test_a_wrong_ptr_is_refused(backend: str) -> None:
    x, y, _ = make((3, 2))
    for bounds in ([0, 3, 4], [1, 3, 5], [0, 4, 3, 5], [0, 3, 6]):
        with pytest.raises(ValueError, match="ptr must rise from 0 to the number of rows, 5"):
            global_structure_loss(x, y, torch.tensor(bounds), backend=backend)
