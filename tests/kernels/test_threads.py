"""The number of threads changes no bit of the numba backend, also where BLAS is inside and sizes are ragged.

BLAS itself does not keep this promise: products of 7 rows have other bits on two threads than on one.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fastkd_kernels import (
    BasisSpec,
    CSRGraph,
    EnvelopeSpec,
    FilterMLP,
    blas,
    cfconv_exact,
    edge_to_node_loss,
    global_structure_loss,
    linear_cka,
    projected_loss,
    vector_geometric_loss,
    vector_loss,
)
from fastkd_kernels.sums import total
from torch import Tensor

Shape = tuple[int, int, int]
#: Rows, channels, width: several tiles and a ragged last one, rows that fill no vector, and a matrix that is one row.
RAGGED: tuple[Shape, ...] = ((7, 64, 33), (1, 31, 65), (333, 31, 65), (1025, 33, 129), (1025, 5, 257), (2500, 3, 31))


def random(*sizes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for size in sizes]


def ring(nodes: int) -> CSRGraph:
    src = torch.arange(nodes).repeat(2)
    return CSRGraph.from_edges(src, (src * 3 + torch.arange(2 * nodes) // max(nodes, 1)) % max(nodes, 1), nodes)


def projected(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    inputs = random((n, c), (d, c), (d,), (n, d), (n,), dtype=dtype)
    return projected_loss(*inputs[:4], "huber", inputs[4], backend="numba"), inputs


def vectors(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    inputs = random((n, 3, c), (d, c), (n, 3, d), dtype=dtype)
    return vector_loss(*inputs, backend="numba"), inputs


def geometric(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    inputs = random((n, 3, c), (d, c), (n, 3, d), dtype=dtype)
    return vector_geometric_loss(*inputs, backend="numba"), inputs


def edges(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    *inputs, teacher = random((n, c), (d, c), (d,), (2 * n, d), dtype=dtype)
    x, weight, bias = inputs
    return edge_to_node_loss(x, weight, bias, teacher.detach(), ring(n), backend="numba"), inputs


def cka(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    inputs = random((n, c), (n, d), dtype=dtype)
    return linear_cka(*inputs, backend="numba"), inputs


def exact(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    n, c, d = shape
    x, length, *network = inputs = random((n, d), (2 * n,), (c, 9), (c,), (d, c), (d,), dtype=dtype)
    basis, envelope = BasisSpec("gaussian", 9, 4.0), EnvelopeSpec("cosine", 4.0)
    y = cfconv_exact(x, length.square() + 0.5, basis, FilterMLP(*network), envelope, ring(n), backend="numba")
    return total(y.square().flatten()), inputs


@pytest.fixture
def run_on() -> Iterator[Callable[..., list[Tensor]]]:
    """Value, gradients and their gradients on a number of threads."""
    before = torch.get_num_threads()

    def run(threads: int, function: Callable[..., Any], *arguments: Any) -> list[Tensor]:
        torch.set_num_threads(threads)
        value, inputs = function(*arguments)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        # a plain sum of squares would depend on threads itself
        torch.set_num_threads(1)
        scalar = torch.stack([gradient.square().sum() for gradient in first]).sum()
        torch.set_num_threads(threads)
        return [value, *first, *torch.autograd.grad(scalar, inputs, allow_unused=True, materialize_grads=True)]

    yield run
    torch.set_num_threads(before)


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(a, b), f"result {number} differs by {(a - b).abs().max().item():.1e}"


@pytest.mark.parametrize("function", [projected, vectors, geometric, edges, cka, exact])
@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_on_ragged_shapes(
    run_on: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], shape: Shape, dtype: torch.dtype
) -> None:
    one = run_on(1, function, shape, dtype)
    assert_same_bits(one, run_on(2, function, shape, dtype))
    # every tile on a thread of its own, however small
    monkeypatch.setattr(blas, "THREADED_WORK", 0)
    assert_same_bits(one, run_on(3, function, shape, dtype))


@pytest.mark.parametrize("count", [1, 1000, 32_768, 32_769, 100_003])
def test_sums_of_many_numbers(run_on: Callable[..., list[Tensor]], count: int) -> None:
    def summed() -> tuple[Tensor, list[Tensor]]:
        (values,) = random((count,), dtype=torch.float32)
        return total(values.square()), [values]

    one, two, three = (run_on(threads, summed) for threads in (1, 2, 3))
    assert_same_bits(one, two)
    assert_same_bits(one, three)
    (values,) = random((count,), dtype=torch.float32)
    torch.testing.assert_close(one[0].double(), values.double().square().sum(), rtol=1e-6, atol=0)


def test_losses_over_many_rows(run_on: Callable[..., list[Tensor]]) -> None:
    def structure() -> tuple[Tensor, list[Tensor]]:
        x, y = random((80_000, 1), (80_000, 2), dtype=torch.float32)
        return global_structure_loss(x, y.detach(), torch.arange(0, 80_001, 2), backend="numba"), [x]

    for function, arguments in (
        (projected, ((40_003, 3, 2), torch.float32)),
        (geometric, ((40_003, 1, 2), torch.float32)),
        (structure, ()),
    ):
        assert_same_bits(run_on(1, function, *arguments), run_on(2, function, *arguments))


@pytest.mark.parametrize("sizes", [(7, 64, 33), (130, 9, 5), (65, 33, 129), (0, 3, 2), (5, 0, 3)], ids=str)
@pytest.mark.parametrize("add", [False, True])
def test_products_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, sizes: Shape, add: bool) -> None:
    monkeypatch.setattr(blas, "THREADED_WORK", 0)
    monkeypatch.setattr(blas, "BLOCK_WORK", 2000)
    n, k, m = sizes
    a, b, start = (tensor.detach() for tensor in random((k, n), (k, m), (n, m), dtype=torch.float32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(start.clone())
            blas.mm(a.T, b, found[-1], add=add)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found[:1], found[1:2])
    assert_same_bits(found[:1], found[2:])
    torch.testing.assert_close(found[0], a.T @ b + (start if add else 0))


def test_tiles_come_back_in_order_and_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "THREADED_WORK", 0)
    before, names, found = torch.get_num_threads(), set(), []

    def run(part: int) -> tuple[int, int, bool, bool]:
        names.add(threading.current_thread().name)
        return part, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    try:
        torch.set_num_threads(3)
        blas.each_tile(range(20), run, found.append, work=1)
        assert found == [(part, 1, False, False) for part in range(20)]
        assert all(name.startswith("fastkd") for name in names)
        found.clear()
        with torch.inference_mode():
            blas.each_tile(range(4), run, found.append, work=1)
        assert [inference for *_, inference in found] == [True] * 4
        assert torch.get_num_threads() == 3
        # a thread that is new to torch gets what the program asked for
        other: list[int] = []
        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [3]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_tile_is_raised_when_all_tiles_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "THREADED_WORK", 0)
    before, running = torch.get_num_threads(), []

    def run(part: int) -> None:
        running.append(part)
        if part == 1:
            raise ArithmeticError("tile 1")
        running.remove(part)

    try:
        torch.set_num_threads(2)
        with pytest.raises(ArithmeticError, match="tile 1"):
            blas.each_tile(range(8), run, work=1)
        assert running == [1]
    finally:
        torch.set_num_threads(before)


def test_the_first_kernel_leaves_the_number_of_threads_alone() -> None:
    """In a process of its own, because numba starts its threads once."""
    program = """
import torch
torch.set_num_threads(1)
from fastkd_kernels import radial_basis
length = torch.rand(50, requires_grad=True)
radial_basis(length, "gaussian", 5.0, 8, backend="numba").sum().backward()
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
