"""The drop-in for pytorch_scatter: every function against a loop over entries, its conventions, its derivatives, and the shim.

Upstream's own tests run against it too, by ``scripts/pytorch_scatter_suite.py``. One file, because all functions share one loop over entries and one table of shapes.
"""

import importlib.util
import inspect
import io
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastkd_kernels import backends
from fastkd_kernels.compat import torch_scatter as ts
from fastkd_kernels.compat.torch_scatter import script
from fastkd_kernels.compat.torch_scatter.groups import Groups
from fastkd_kernels.compat.torch_scatter.product import product_by_doubling, products_of_the_others
from fastkd_kernels.compat.torch_scatter.utils import broadcast

INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.int64, torch.int32]
REDUCTIONS = ["sum", "mul", "mean", "min", "max"]

# shape of src, shape of index, dim: one-dimensional, leading, full, with ones to expand
LAYOUTS = [
    ((7,), (7,), 0),
    ((7,), (7,), -1),
    ((9, 3), (9,), 0),
    ((9, 3), (9, 1), 0),
    ((9, 3), (9, 3), 0),
    ((3, 9), (9,), -1),
    ((3, 9), (3, 9), 1),
    ((3, 9), (1, 9), 1),
    ((2, 8, 3), (8,), 1),
    ((2, 8, 3), (8,), -2),
    ((2, 8, 3), (2, 8), 1),
    ((2, 8, 3), (2, 8, 3), 1),
    ((2, 8, 3), (1, 8, 3), 1),
    ((2, 3, 8), (2, 1, 8), 2),
    ((2, 2, 5, 3), (2, 1, 5, 1), 2),
    ((4, 2, 3), (1, 1, 1), 0),
]


@pytest.fixture(params=["numba", "reference", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])])
def backend(request, monkeypatch):
    monkeypatch.setenv("FASTKD_BACKEND", request.param)
    return request.param


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The routes of a device without an ordered scatter, where values are not looked at."""
    monkeypatch.setattr(Groups, "_torch_scatters", lambda self, values: False)
    monkeypatch.setattr("fastkd_kernels.compat.torch_scatter.groups._seen", lambda index: False)
    monkeypatch.setattr("fastkd_kernels.compat.torch_scatter.product._forward", product_by_doubling)
    monkeypatch.setattr("fastkd_kernels.compat.torch_scatter.product._steps", lambda before: (before.shape[0] - 1).bit_length())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Small numbers with ties, exact in every dtype and under every order of a sum."""
    return torch.randint(-3, 4, size, generator=generator(seed)).to(dtype)


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=generator(seed))


def indices(*size: int, number: int = 4, seed: int = 1) -> torch.Tensor:
    # group 2 stays empty
    drawn = torch.randint(number - 1, size, generator=generator(seed))
    return drawn + (drawn >= 2)


def groups_of(index, shape, dim, number):
    """(place in the output, list of places in the input) for every output entry, by the definition."""
    full = broadcast(index, torch.empty(shape), dim)
    dim = dim % len(shape)
    found = {}
    for place in itertools.product(*map(range, [*shape[:dim], number, *shape[dim + 1 :]])):
        found[place] = []
    for place in itertools.product(*map(range, shape)):
        found[(*place[:dim], int(full[place]), *place[dim + 1 :])].append(place)
    return found, [*shape[:dim], number, *shape[dim + 1 :]], dim


def looped(src, index, dim, number, reduce, rounding=math.floor):
    """Values and arguments by a loop in Python."""
    found, shape, dim = groups_of(index, src.shape, dim, number)
    out, arg = torch.zeros(shape, dtype=torch.float64), torch.full(shape, src.shape[dim])
    for place, members in found.items():
        entries = [float(src[member]) for member in members]
        if reduce in ("min", "max") and entries:
            best = min(entries) if reduce == "min" else max(entries)
            out[place], arg[place] = best, members[entries.index(best)][dim]
        elif reduce == "mul":
            out[place] = math.prod(entries)
        elif reduce == "mean":
            mean = sum(entries) / max(len(entries), 1)
            out[place] = mean if src.is_floating_point() else rounding(mean)
        elif reduce == "sum":
            out[place] = sum(entries)
    return out.to(src.dtype), arg


def check_scatter(layout, dtype):
    shape, index_shape, dim = layout
    src, index = values(*shape, dtype=dtype), indices(*index_shape)
    for reduce in REDUCTIONS:
        want, want_arg = looped(src, index, dim, 5, reduce)
        got = getattr(ts, f"scatter_{reduce}")(src, index, dim, dim_size=5)
        if reduce in ("min", "max"):
            got, arg = got
            assert torch.equal(arg, want_arg)
        # a product or mean in half precision is rounded once
        torch.testing.assert_close(got, want, rtol=0 if reduce != "mean" else 1e-6 if dtype == torch.float32 else 1e-15, atol=0)
        assert torch.equal(ts.scatter(src, index, dim, None, 5, reduce), got)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_scatter_is_the_loop(layout, dtype):
    check_scatter(layout, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 5, 10, 11)], ids=str)
def test_scatter_of_every_dtype(layout, dtype):
    check_scatter(layout, dtype)


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (0, 2, 4, 6, 8, 10, 11, 14)], ids=str)
def test_scatter_on_the_routes_of_a_gpu(layout, as_on_a_gpu):
    check_scatter(layout, torch.float64)
    check_scatter(layout, torch.bfloat16)


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (0, 2, 8, 10, 11)], ids=str)
def test_scatter_on_each_backend(layout, backend, as_on_a_gpu):
    check_scatter(layout, torch.float64)


def sorted_index(*size):
    return indices(*size).sort(-1).values


SEGMENTS = [
    ((7,), (7,)),
    ((9, 3), (9,)),
    ((3, 9), (3, 9)),
    ((3, 9), (1, 9)),
    ((2, 8, 3), (2, 8)),
    ((2, 2, 5, 3), (2, 1, 5)),
    ((2, 6, 1), (2, 6)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize(("shape", "index_shape"), SEGMENTS, ids=str)
def test_segment_coo_and_csr_are_the_loop(shape, index_shape, dtype, backend):
    if backend == "numba" and dtype == torch.bfloat16:
        pytest.skip("numba has no half precision")
    src, index, dim = values(*shape, dtype=dtype), sorted_index(*index_shape), len(index_shape) - 1
    full = index.view(*index_shape, *[1] * (len(shape) - len(index_shape)))
    ptr = torch.searchsorted(index, torch.arange(6).expand(*index_shape[:-1], 6).contiguous())
    for reduce in ("sum", "mean", "min", "max"):
        want, want_arg = looped(src, full, dim, 5, reduce, math.trunc)
        for got in (getattr(ts, f"segment_{reduce}_coo")(src, index, dim_size=5), getattr(ts, f"segment_{reduce}_csr")(src, ptr)):
            if reduce in ("min", "max"):
                assert torch.equal(got[1], want_arg)
                assert torch.equal(got[0], want)
            else:
                # Triton's interpreter cuts a mean off where a GPU rounds it
                torch.testing.assert_close(got, want, rtol=8e-3 if backend == "triton" and dtype == torch.bfloat16 else 1e-15, atol=0)
        assert torch.equal(ts.segment_coo(src, index, None, 5, reduce), ts.segment_csr(src, ptr, None, reduce))
    assert torch.equal(ts.segment_add_coo(src, index, dim_size=5), ts.segment_sum_csr(src, ptr))
    assert torch.equal(ts.segment_add_csr(src, ptr), ts.segment_sum_csr(src, ptr))
    # and back
    few = values(*shape[:dim], 5, *shape[dim + 1 :], seed=3, dtype=dtype)
    want = few.gather(dim, full.expand(shape))
    assert torch.equal(ts.gather_coo(few, index), want)
    assert torch.equal(ts.gather_csr(few, ptr), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_pointers_may_leave_entries_out(dtype):
    src, ptr = values(2, 9, 3, dtype=dtype), torch.tensor([[1, 4, 4, 6], [0, 2, 9, 9]])
    want = torch.stack([torch.stack([src[b, ptr[b, s] : ptr[b, s + 1]].sum(0) for s in range(3)]) for b in range(2)])
    assert torch.equal(ts.segment_sum_csr(src, ptr), want)
    best, arg = ts.segment_max_csr(src, ptr)
    assert arg[0, 1].tolist() == [9, 9, 9]
    assert torch.equal(best[0, 0], src[0, 1:4].amax(0))
    assert torch.equal(src[0].gather(0, arg[0, :1]), best[0, :1])
    one = torch.tensor([2, 5, 8])
    assert torch.equal(ts.segment_sum_csr(src[0], one), torch.stack([src[0, 2:5].sum(0), src[0, 5:8].sum(0)]))
    out = torch.full((9, 3), 7, dtype=dtype)
    few = values(2, 3, seed=4, dtype=dtype)
    assert ts.gather_csr(few, one, out) is out
    assert torch.equal(out, torch.cat([out.new_full((2, 3), 7), few[:1].expand(3, 3), few[1:].expand(3, 3), out.new_full((1, 3), 7)]))
    assert torch.equal(ts.gather_csr(few, one)[:2], out.new_zeros(2, 3))


def test_gradients_where_entries_are_left_out():
    src, ptr = normal(9, 3).requires_grad_(), torch.tensor([1, 4, 4, 6])
    for reduce in ("sum", "mean", "max", "min"):
        assert torch.autograd.gradcheck(lambda x, reduce=reduce: ts.segment_csr(x, ptr, reduce=reduce), src)
        assert torch.autograd.gradgradcheck(lambda x, reduce=reduce: ts.segment_csr(x, ptr, reduce=reduce).sin(), src)
    assert torch.autograd.gradgradcheck(lambda y: ts.gather_csr(y, ptr).sin(), normal(3, 2).requires_grad_())


# Conventions.


def test_the_size_follows_from_the_index():
    src, index = values(6, 2), torch.tensor([0, 5, 1, 1, 0, 3])
    assert ts.scatter(src, index, 0).shape == (6, 2)
    assert ts.segment_coo(src, index.sort().values).shape == (6, 2)
    rows = torch.tensor([[0, 0, 1], [0, 4, 4]])
    assert ts.segment_coo(values(2, 3), rows).shape == (2, 5)
    assert ts.scatter(src[:0], index[:0], 0).shape == (0, 2)


def test_ties_go_to_the_first_and_empty_groups_are_zero(backend, as_on_a_gpu):
    src, index = torch.tensor([3.0, 1.0, 3.0, 1.0, 3.0]), torch.tensor([1, 0, 1, 0, 1])
    for function, sign in ((ts.scatter_max, 1), (ts.scatter_min, -1)):
        for spread in (index, torch.stack([index, index], 1)):
            many = sign * (src if spread.dim() == 1 else torch.stack([src, src], 1))
            best, arg = function(many, spread, 0, dim_size=4)
            assert best.reshape(4, -1)[:, 0].tolist() == [sign, 3 * sign, 0, 0]
            assert arg.reshape(4, -1)[:, -1].tolist() == [1, 0, 5, 5]


def test_nan_and_infinities(backend, as_on_a_gpu):
    src, index = torch.tensor([1.0, NAN, 9.0, -INF, -INF, INF, 2.0]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    best, arg = ts.scatter_max(src, index)
    assert best[0].isnan()
    assert best[1:].tolist() == [-INF, INF]
    assert arg.tolist() == [1, 3, 5]
    assert ts.scatter_sum(src, index).tolist()[1:] == [-INF, INF]
    two = ts.scatter_max(torch.stack([src, src], 1), torch.stack([index, index], 1), 0)
    assert torch.equal(two[1][:, 1], arg)
    assert two[0][0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_scatter_reduces_into_out(dtype):
    src, index = values(9, 3, dtype=dtype), indices(9)
    start = values(5, 3, seed=7, dtype=dtype)
    count = torch.bincount(index, minlength=5).clamp(min=1)[:, None].to(dtype)
    total, product = (looped(src, index, 0, 5, reduce)[0] for reduce in ("sum", "mul"))
    mean = (start + total) / count if dtype.is_floating_point else (start + total).div(count, rounding_mode="floor")
    coo_mean = mean if dtype.is_floating_point else (start + total).div(count, rounding_mode="trunc")
    order = index.argsort(stable=True)
    for function, want in (
        (ts.scatter_sum, start + total),
        (ts.scatter_add, start + total),
        (ts.scatter_mean, mean),
        (ts.scatter_mul, start * product),
        (lambda x, i, d, out: ts.segment_sum_coo(x[order], i[order], out), start + total),
        (lambda x, i, d, out: ts.segment_mean_coo(x[order], i[order], out), coo_mean),
    ):
        out = start.clone()
        assert function(src, index, 0, out) is out
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("function", ["scatter", "segment_coo"])
def test_extrema_compete_with_out(dtype, function):
    index = sorted_index(9)
    src, start = values(9, 3, dtype=dtype), values(5, 3, seed=7, dtype=dtype)
    for reduce, pick in (("max", torch.maximum), ("min", torch.minimum)):
        best, arg = looped(src, index, 0, 5, reduce)
        held, out = arg == 9, start.clone()
        arguments = (src, index, 0, out) if function == "scatter" else (src, index, out)
        name = f"scatter_{reduce}" if function == "scatter" else f"segment_{reduce}_coo"
        got, place = getattr(ts, name)(*arguments)
        assert got is out
        want = torch.where(held, start, pick(start, best))
        assert torch.equal(out, want)
        # what is there first wins a tie
        assert torch.equal(place, torch.where(held | (want == start), 9, arg))


def test_segment_csr_overwrites_out():
    src, ptr = values(9, 3), torch.tensor([0, 4, 4, 9])
    for reduce in ("sum", "mean", "max", "min"):
        out = torch.full((3, 3), -5.0, dtype=torch.float64)
        assert ts.segment_csr(src, ptr, out, reduce) is out
        assert torch.equal(out, ts.segment_csr(src, ptr, reduce=reduce))
    few, out = values(3, 3), torch.full((9, 3), -5.0, dtype=torch.float64)
    assert ts.gather_coo(few, torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2]), out) is out
    assert torch.equal(out, few[[0, 0, 1, 1, 1, 2, 2, 2, 2]])


def test_out_may_be_strided_and_takes_gradients():
    src, index = normal(6, 2).requires_grad_(), torch.tensor([0, 2, 2, 0, 1, 1])
    base, weight = normal(3, 4, seed=1).requires_grad_(), normal(3, 2, seed=2)
    for reduce in REDUCTIONS:
        out = base.clone()[:, ::2]
        ts.scatter(src, index, 0, out, reduce=reduce)
        grads = torch.autograd.grad((out * weight).sum(), (src, base))
        fresh = ts.scatter(src, index, 0, reduce=reduce)
        start = base[:, ::2]
        if reduce in ("sum", "mean"):
            want = fresh + (start if reduce == "sum" else start / torch.bincount(index)[:, None])
        else:
            want = {"mul": torch.mul, "max": torch.maximum, "min": torch.minimum}[reduce](start, fresh)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(grads, torch.autograd.grad((want * weight).sum(), (src, base)))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 4, 2), (2, 4, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_nothing_to_reduce(shape, dtype):
    dim = 1 if len(shape) == 3 else 0
    src = torch.zeros(shape, dtype=dtype)
    index = torch.zeros(shape[dim], dtype=torch.int64)
    out_shape = (*shape[:dim], 4, *shape[dim + 1 :])
    for reduce in REDUCTIONS:
        got = ts.scatter(src, index, dim, dim_size=4, reduce=reduce)
        assert torch.equal(got, torch.full(out_shape, int(reduce == "mul"), dtype=dtype))
    assert torch.equal(ts.scatter_max(src, index, dim, dim_size=4)[1], torch.full(out_shape, shape[dim]))
    if dim == 0:
        ptr = torch.tensor([0, 0, shape[0], shape[0]])
        assert torch.equal(ts.segment_csr(src, ptr), torch.zeros(3, *shape[1:], dtype=dtype))
        assert torch.equal(ts.segment_coo(src, index, dim_size=4), torch.zeros(out_shape, dtype=dtype))
        assert ts.gather_coo(torch.zeros(4, *shape[1:], dtype=dtype), index).shape == shape
    if dtype == torch.float32:
        src.requires_grad_()
        for function in (ts.scatter_std, ts.scatter_softmax, ts.scatter_log_softmax, ts.scatter_logsumexp):
            got = function(src, index, dim, dim_size=4)
            assert got.shape == (shape if "softmax" in function.__name__ else out_shape)
            assert torch.autograd.grad(got.sum(), src)[0].shape == shape


def test_expanded_indices_are_recognised():
    src, index = values(2, 9, 3), indices(9)
    want = ts.scatter(src, index, 1, dim_size=5)
    from fastkd_kernels.compat.torch_scatter.groups import from_index

    for spread in (index, index.view(1, 9, 1), index.view(1, 9, 1).expand(2, 9, 3), index.view(9, 1).expand(2, 9, 3)):
        assert from_index(spread, src.shape, 1, 5).form == "shared"
        assert torch.equal(ts.scatter(src, spread, 1, dim_size=5), want)
    assert from_index(index.expand(2, 9).contiguous(), src.shape, 1, 5).form == "rows"
    assert from_index(index.view(1, 9, 1).repeat(2, 1, 3), src.shape, 1, 5).form == "cells"


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 4, 8, 10, 11)], ids=str)
def test_strided_input(layout):
    shape, index_shape, dim = layout
    src, index = values(*shape), indices(*index_shape)
    strided = src.transpose(0, -1).contiguous().transpose(0, -1)
    turned = index.transpose(0, -1).contiguous().transpose(0, -1)
    for reduce in REDUCTIONS:
        assert torch.equal(ts.scatter(strided, turned, dim, reduce=reduce), ts.scatter(src, index, dim, reduce=reduce))


def test_complex_sums():
    src, index = torch.complex(values(9, 3), values(9, 3, seed=2)), indices(9)
    for spread in (index, indices(9, 3)):
        got = ts.scatter(src, spread, 0, dim_size=5)
        for part in (torch.real, torch.imag):
            torch.testing.assert_close(part(got), looped(part(src), spread, 0, 5, "sum")[0])
            torch.testing.assert_close(part(ts.scatter_mean(src, spread, 0)), looped(part(src), spread, 0, 4, "mean")[0])


def test_half_precision_sums_in_float32():
    ones, index = torch.ones(600, 2, dtype=torch.bfloat16), torch.zeros(600, dtype=torch.int64)
    assert ts.scatter(ones, index, 0).tolist() == [[600, 600]]
    assert ts.scatter(ones, index[:, None].repeat(1, 2), 0).tolist() == [[600, 600]]


# Derivatives.


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 5, 10, 11)], ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("route", ["cpu", "gpu"])
def test_two_derivatives_of_scatter(layout, reduce, route, request):
    if route == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    shape, index_shape, dim = layout
    src, index = normal(*shape).requires_grad_(), indices(*index_shape)
    assert torch.autograd.gradcheck(lambda x: ts.scatter(x, index, dim, reduce=reduce), src)
    assert torch.autograd.gradgradcheck(lambda x: ts.scatter(x, index, dim, reduce=reduce).sin(), src)


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_two_derivatives_of_segments(reduce):
    src, index = normal(2, 6, 2).requires_grad_(), torch.tensor([[0, 0, 1, 1, 1, 3], [1, 1, 2, 2, 2, 2]])
    ptr = torch.searchsorted(index, torch.arange(5).expand(2, 5).contiguous())
    for function in (lambda x: ts.segment_coo(x, index, reduce=reduce).sin(), lambda x: ts.segment_csr(x, ptr, reduce=reduce).sin()):
        assert torch.autograd.gradcheck(function, src)
        assert torch.autograd.gradgradcheck(function, src)
    if reduce == "sum":
        few = normal(2, 4, 2, seed=3).requires_grad_()
        for function in (lambda y: ts.gather_coo(y, index).sin(), lambda y: ts.gather_csr(y, ptr).sin()):
            assert torch.autograd.gradcheck(function, few)
            assert torch.autograd.gradgradcheck(function, few)


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (0, 2, 10, 11)], ids=str)
@pytest.mark.parametrize("name", ["scatter_std", "scatter_logsumexp", "scatter_softmax", "scatter_log_softmax"])
def test_two_derivatives_of_composites(layout, name):
    shape, index_shape, dim = layout
    # two groups that all have more than one entry, or the root of a deviation of 0 has no second derivative
    index = (torch.arange(math.prod(index_shape)).view(index_shape) // 3) % 2 if len(index_shape) == 1 else torch.zeros(index_shape).long()
    src = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: getattr(ts, name)(x, index, dim), src)
    assert torch.autograd.gradgradcheck(lambda x: getattr(ts, name)(x, index, dim).sin(), src)


@pytest.mark.parametrize("zeros", [(), (0,), (0, 2), (0, 2, 4)])
@pytest.mark.parametrize("route", ["cpu", "gpu"])
def test_derivatives_of_products_with_zeros(zeros, route, request):
    if route == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    src, index = normal(7, 2), torch.tensor([0, 1, 0, 1, 0, 2, 0])
    src[list(zeros), 0] = 0
    src = src.requires_grad_()

    def by_hand(x):
        return torch.stack([x[[0, 2, 4, 6]].prod(0), x[[1, 3]].prod(0), x[5]])

    weight = normal(3, 2, seed=5)
    grads = []
    for function in (lambda x: ts.scatter_mul(x, index, 0), by_hand):
        order = [(function(src) * weight).sum()]
        for k in range(3):
            (grad,) = torch.autograd.grad(order[-1], src, create_graph=True)
            grads.append(grad)
            order.append((grad * normal(7, 2, seed=6 + k)).sum())
    for got, want in zip(grads[:3], grads[3:], strict=True):
        torch.testing.assert_close(got, want)
    # the first derivative has a shorter way, where nothing follows
    (plain,) = torch.autograd.grad((ts.scatter_mul(src, index, 0) * weight).sum(), src)
    torch.testing.assert_close(plain, grads[0])


@pytest.mark.parametrize("columns", [1, 3])
def test_products_by_doubling(columns):
    src, index = normal(50, 3), indices(50, columns)
    want = torch.ones(5, 3).double().scatter_reduce(0, index.expand(50, 3), src, "prod")
    torch.testing.assert_close(product_by_doubling(src, index, 5), want)
    torch.testing.assert_close(products_of_the_others(src, index), want.gather(0, index.expand(50, 3)) / src)


def test_gradient_of_a_tie_goes_to_the_first():
    src, index = torch.tensor([2.0, 2.0, 1.0, 1.0], requires_grad=True), torch.tensor([0, 0, 1, 1])
    (grad,) = torch.autograd.grad(ts.scatter(src, index, reduce="max").sum(), src)
    assert grad.tolist() == [1, 0, 1, 0]


# Composites.


def test_composites_are_torch_on_each_group():
    src, index = normal(12, 3), torch.tensor([0, 3, 0, 1, 1, 3, 3, 0, 1, 3, 1, 0])
    groups = [src[index == s] for s in range(5)]
    std = torch.stack([g.std(0) if len(g) else torch.zeros(3) for g in groups])
    torch.testing.assert_close(ts.scatter_std(src, index, 0, dim_size=5), std, rtol=1e-6, atol=0)
    biased = torch.stack([g.std(0, unbiased=False) if len(g) else torch.zeros(3) for g in groups])
    torch.testing.assert_close(ts.scatter_std(src, index, 0, dim_size=5, unbiased=False), biased, rtol=1e-6, atol=0)
    lse = torch.stack([g.logsumexp(0) if len(g) else torch.zeros(3) for g in groups])
    torch.testing.assert_close(ts.scatter_logsumexp(src, index, 0, dim_size=5), lse)
    soft, log_soft = torch.empty_like(src), torch.empty_like(src)
    for s, group in enumerate(groups):
        soft[index == s], log_soft[index == s] = group.softmax(0), group.log_softmax(0)
    torch.testing.assert_close(ts.scatter_softmax(src, index, 0), soft)
    torch.testing.assert_close(ts.scatter_log_softmax(src, index, 0), log_soft)
    for spread in (index[:, None].repeat(1, 3), index[:, None].expand(12, 3)):
        torch.testing.assert_close(ts.scatter_softmax(src, spread, 0, dim_size=5), soft)
        torch.testing.assert_close(ts.scatter_std(src, spread, 0, dim_size=5), std, rtol=1e-6, atol=0)


def test_composites_stay_in_range():
    src, index = torch.tensor([1000.0, 1001.0, -2000.0, -INF, -INF, INF, 0.0]), torch.tensor([0, 0, 1, 1, 2, 3, 3])
    lse = ts.scatter_logsumexp(src, index, dim_size=5)
    torch.testing.assert_close(lse, torch.tensor([1001.3132617, -2000.0, 0.0, INF, 0.0]))
    soft = ts.scatter_softmax(src[:4], index[:4])
    torch.testing.assert_close(soft, torch.tensor([0.26894142, 0.73105858, 1.0, 0.0]))
    assert ts.scatter_log_softmax(src[:5], index[:5])[3:].tolist() == [-INF, -INF]
    assert ts.scatter_logsumexp(torch.tensor([NAN, 1.0]), torch.tensor([0, 0])).isnan().all()


def test_logsumexp_into_out():
    src, index = normal(6), torch.tensor([0, 1, 1, 0, 3, 3])
    start = normal(4, seed=4)
    start[1], start[3] = 300.0, -INF
    want = torch.stack([torch.cat([src[index == s], start[s : s + 1]]).logsumexp(0) for s in range(4)])
    out = start.clone()
    assert ts.scatter_logsumexp(src, index, out=out) is out
    torch.testing.assert_close(out, want)


def test_std_into_out_holds_the_squares():
    src, index, out = values(6), torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(2).double()
    got = ts.scatter_std(src, index, out=out)
    squares = torch.stack([(g - g.mean()).square().sum() for g in (src[:3], src[3:])]) + 1
    torch.testing.assert_close(out, squares)
    torch.testing.assert_close(got, (squares / (2 + 1e-6)).sqrt())


def test_a_deviation_of_zero_has_a_gradient():
    src = torch.tensor([1.0, 3.0, 3.0], requires_grad=True)
    (grad,) = torch.autograd.grad(ts.scatter_std(src, torch.tensor([0, 1, 1]), dim_size=3).sum(), src)
    assert grad.tolist() == [0, 0, 0]


def test_half_precision_composites_are_rounded_once():
    src, index = normal(40).bfloat16(), indices(40)
    for name in ("scatter_std", "scatter_logsumexp", "scatter_softmax", "scatter_log_softmax"):
        got = getattr(ts, name)(src, index)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, getattr(ts, name)(src.double(), index).bfloat16(), rtol=8e-3, atol=0)
    assert ts.scatter_std(values(40, dtype=torch.int64), index).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_scatter_without_numba(layout, monkeypatch):
    monkeypatch.setitem(backends._INSTALLED, "numba", False)
    check_scatter(layout, torch.float64)
    src, index = values(9, 3), sorted_index(9)
    assert torch.equal(ts.segment_coo(src, index, dim_size=5), looped(src, index, 0, 5, "sum")[0])


# Same bits.


@pytest.mark.parametrize("spread", [False, True])
def test_same_bits_with_more_threads(spread):
    src, index = normal(3000, 16).float(), indices(3000, 16) if spread else indices(3000)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            x = src.clone().requires_grad_()
            got = [ts.scatter(x, index, 0, reduce=reduce) for reduce in REDUCTIONS] + [ts.scatter_softmax(x, index, 0)]
            runs.append([*got, *torch.autograd.grad(sum(y.square().sum() for y in got), x)])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (0, 2, 5, 8, 10, 11)], ids=str)
def test_a_gpu_agrees_and_repeats_its_bits(layout):
    shape, index_shape, dim = layout
    results = {}
    for device, repeats in (("cpu", 1), ("cuda", 3)):
        src, index = normal(*shape).to(device).requires_grad_(), indices(*index_shape).to(device)
        for _ in range(repeats):
            got = [ts.scatter(src, index, dim, dim_size=5, reduce=reduce) for reduce in REDUCTIONS]
            got.append(ts.scatter_max(src, index, dim, dim_size=5)[1])
            got += [getattr(ts, f"scatter_{name}")(src, index, dim, dim_size=5) for name in ("softmax", "logsumexp")]
            (grad,) = torch.autograd.grad(sum(y.sin().sum() for y in got if y.requires_grad), src, create_graph=True)
            got += [grad, *torch.autograd.grad(grad.square().sum(), src)]
            results.setdefault(device, []).append([y.detach().cpu() for y in got])
    for run in results["cuda"]:
        assert all(torch.equal(a, b) for a, b in zip(run, results["cuda"][0], strict=True))
        for a, b in zip(run, results["cpu"][0], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 10, 11)], ids=str)
def test_nothing_waits_for_a_gpu(layout):
    shape, index_shape, dim = layout
    src, index = normal(*shape).cuda(), indices(*index_shape).cuda()
    ptr = torch.tensor([0, 2, 3], device="cuda")

    def run():
        for reduce in REDUCTIONS:
            ts.scatter(src, index, dim, dim_size=5, reduce=reduce)
        ts.scatter_softmax(src, index, dim, dim_size=5)
        ts.segment_csr(src.reshape(-1, shape[-1]), ptr, reduce="max")

    run()  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode(before)


# Compilers.


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ts.FUNCTIONS)
def test_every_function_can_be_scripted_and_saved(name):
    function, src, index = getattr(ts, name), normal(6, 2), torch.tensor([0, 0, 1, 1, 1, 3])
    x = (src[:4] if "gather" in name else src).requires_grad_()
    arguments = (x, torch.tensor([0, 2, 5, 5, 6])) if name.endswith("csr") else (x, index) if name.endswith("coo") else (x, index, 0)
    # a saved function has lost its defaults
    bound = inspect.signature(function).bind(*arguments)
    bound.apply_defaults()
    script, buffer = torch.jit.script(function), io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    want = function(*arguments)
    first = want[0] if isinstance(want, tuple) else want
    (grad,) = torch.autograd.grad(first.sin().sum(), x)
    # the second and third run are optimised ones
    for run in (*[script] * 3, torch.jit.load(buffer)):
        got = run(*bound.args)
        pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
        assert all(torch.equal(a, b) for a, b in pairs)
        first = got[0] if isinstance(got, tuple) else got
        assert torch.equal(torch.autograd.grad(first.sin().sum(), x)[0], grad)


COMPILED = ("scatter_mean", "scatter_max", "scatter_softmax", "segment_max_coo", "segment_mean_csr", "gather_coo")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in COMPILED else pytest.mark.slow) for name in ts.FUNCTIONS if name != "gather_csr"],
)
def test_every_function_compiles_in_one_graph(name):
    src, index = normal(6, 2), torch.tensor([0, 0, 1, 1, 1, 3])
    ptr, function = torch.tensor([0, 2, 5, 5, 6]), getattr(ts, name)

    def run(x):
        if name.endswith("csr"):
            got = function(x, ptr)
        elif name == "gather_coo":
            got = function(x, index)
        else:
            got = function(x, index, dim_size=4) if name.endswith("coo") else function(x, index, 0, dim_size=4)
        return got[0] if isinstance(got, tuple) else got

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    src = (src[:4] if "gather" in name else src).requires_grad_()
    got, want = compiled(src), run(src)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sin().sum(), src), torch.autograd.grad(want.sin().sum(), src))


# Mistakes.


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_second_copy_of_the_package_shares_the_operators_of_scripts():
    path = Path(script.__file__)
    spec = importlib.util.spec_from_file_location(f"{script.__package__}.second_script", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    scripted = torch.jit.script(summed)
    assert scripted(torch.ones(3), torch.tensor([0, 2, 2])).tolist() == [1, 0, 2]


def summed(src: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return ts.scatter_sum(src, index)


def test_mistakes_are_named():
    src, index, ptr = torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64), torch.tensor([0, 5])
    for function, match in (
        (lambda: ts.scatter(src, index, 0, reduce="prod"), "sum, add, mul, mean, min and max, got prod"),
        (lambda: ts.segment_coo(src, index, reduce="mul"), "got mul"),
        (lambda: ts.segment_csr(src, ptr, reduce="mul"), "got mul"),
        (lambda: ts.scatter(src, index.int(), 0), r"int64, got \[5\] torch.int32"),
        (lambda: ts.segment_csr(src, ptr.int()), r"int64, got \[2\] torch.int32"),
        (lambda: ts.scatter(src, index[:4], 0), r"index \[4\] does not fit values \[5, 2\] along dimension 0"),
        (lambda: ts.scatter(src, index, 2), r"dim must lie in \[-2, 1\]"),
        (lambda: ts.scatter(src, index + 3, 0, dim_size=3), r"\[0, 3\), got values from 3 to 3"),
        (lambda: ts.scatter(src, index - 1, 0), r"got values from -1 to -1"),
        (lambda: ts.scatter(src, index, 0, torch.zeros(3, 3)), r"out \[3, 3\] must have the shape"),
        (lambda: ts.scatter(src, index, 0, torch.zeros(3, 2).double()), "out is torch.float64"),
        (lambda: ts.segment_coo(src, torch.tensor([0, 1, 0, 1, 1])), "sorted along dimension 0; for any order use scatter"),
        (lambda: ts.segment_coo(src, torch.zeros(1, 1, 1).long()), "1 to 2 dimensions"),
        (lambda: ts.segment_csr(src, torch.tensor([0, 6])), r"rise within \[0, 5\], got \[\[0, 6\]\]"),
        (lambda: ts.segment_csr(src, torch.tensor([0, 4, 3])), r"rise within \[0, 5\]"),
        (lambda: ts.segment_csr(src, ptr, torch.zeros(2, 2)), "must have the 1 groups"),
        (lambda: ts.segment_csr(src, torch.zeros(3, 2).long()), r"indptr \[3, 2\] does not fit"),
        (lambda: ts.gather_csr(src, ptr), "one entry less"),
        (lambda: ts.gather_coo(src, index, torch.zeros(4, 2)), "must have the 5 entries"),
        (lambda: ts.scatter_softmax(src.long(), index, 0), "floating dtype, got torch.int64"),
        (lambda: ts.scatter_logsumexp(src.long(), index, 0), "floating dtype, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=match):
            function()


# The shim.


@pytest.fixture
def no_shim():
    ts.uninstall()
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torch_scatter"}
    yield
    ts.uninstall()
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_scatter"]:
        del sys.modules[name]
    sys.modules.update(held)


def test_install_serves_imports(no_shim):
    module = ts.install()
    assert ts.install() is module
    import torch_scatter
    from torch_scatter import scatter, scatter_softmax, segment_coo, segment_csr
    from torch_scatter.composite import scatter_log_softmax
    from torch_scatter.scatter import scatter_sum
    from torch_scatter.utils import broadcast as theirs

    assert torch_scatter is module
    assert (scatter, segment_coo, segment_csr, scatter_softmax) == (ts.scatter, ts.segment_coo, ts.segment_csr, ts.scatter_softmax)
    assert (scatter_sum, scatter_log_softmax, theirs) == (ts.scatter_sum, ts.scatter_log_softmax, broadcast)
    assert torch_scatter.__version__.split("+")[0] == "2.1.2"
    assert set(ts.FUNCTIONS) == set(torch_scatter.__all__)
    assert callable(torch_scatter.scatter)
    with pytest.raises(ModuleNotFoundError):
        import torch_scatter.groups
    ts.uninstall()
    assert not [name for name in sys.modules if name.split(".")[0] == "torch_scatter"]
    ts.uninstall()


def test_install_does_not_replace_another_unasked(no_shim, monkeypatch):
    another, part = type(sys)("torch_scatter"), type(sys)("torch_scatter.utils")
    monkeypatch.setitem(sys.modules, "torch_scatter", another)
    monkeypatch.setitem(sys.modules, "torch_scatter.utils", part)
    with pytest.raises(RuntimeError, match="another torch_scatter is imported already"):
        ts.install()
    assert sys.modules["torch_scatter"] is another
    ts.uninstall()
    assert sys.modules["torch_scatter"] is another
    module = ts.install(force=True)
    assert sys.modules["torch_scatter"] is module
    ts.uninstall()
    assert sys.modules["torch_scatter"] is another
    assert sys.modules["torch_scatter.utils"] is part
    with ts.installed(force=True):
        assert sys.modules["torch_scatter"] is not another
    assert sys.modules["torch_scatter"] is another


def test_the_context_leaves_what_was_there(no_shim):
    with ts.installed() as module:
        assert sys.modules["torch_scatter"] is module
        with ts.installed() as inner:
            assert inner is module
        assert sys.modules["torch_scatter"] is module
    assert "torch_scatter" not in sys.modules
    with pytest.raises(KeyError), ts.installed():
        raise KeyError
    assert "torch_scatter" not in sys.modules


@pytest.mark.peers
def test_pytorch_geometric_uses_it():
    pytest.importorskip("torch_geometric")
    code = """
import warnings; warnings.simplefilter("ignore")
import torch
from fastkd_kernels import backends
from fastkd_kernels.compat import torch_scatter
torch_scatter.install()
import torch_geometric.typing as typing
from torch_geometric.utils import scatter, segment, softmax
assert typing.WITH_TORCH_SCATTER and typing.torch_scatter.scatter is torch_scatter.scatter
src, index, ptr = torch.randn(6, 2, requires_grad=True), torch.tensor([0, 0, 1, 1, 1, 3]), torch.tensor([0, 2, 5, 5, 6])
for reduce in ("sum", "mean", "max", "min", "mul"):
    got = scatter(src, index, 0, 4, reduce)
    assert torch.equal(got, torch_scatter.scatter(src, index, 0, None, 4, reduce))
    got.sum().backward()
assert torch.equal(segment(src, ptr, "max"), torch_scatter.segment_csr(src, ptr, reduce="max"))
torch.testing.assert_close(softmax(src, index), torch_scatter.scatter_softmax(src, index, 0))
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def run_suite(checkout):
    script = Path(__file__).resolve().parents[2] / "scripts" / "pytorch_scatter_suite.py"
    return subprocess.run([sys.executable, str(script), str(checkout)], capture_output=True, text=True, check=False)


def test_the_suite_script_asks_for_a_checkout(tmp_path):
    done = run_suite(tmp_path)
    assert done.returncode == 2
    assert "is no checkout of pytorch_scatter" in done.stderr
    assert "git clone https://github.com/rusty1s/pytorch_scatter" in done.stderr


def test_the_suite_script_counts(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "torch_scatter").mkdir()
    (tmp_path / "torch_scatter" / "__init__.py").write_text("raise ImportError('the checkout itself must not be imported')")
    (tmp_path / "torch_scatter" / "testing.py").write_text("reductions = ['sum', 'mean']")
    (tmp_path / "test" / "test_some.py").write_text(
        """
import pytest, torch
from torch_scatter import __version__, scatter
from torch_scatter.testing import reductions

@pytest.mark.parametrize("reduce", reductions)
def test_one(reduce):
    assert scatter(torch.ones(3), torch.tensor([0, 1, 1]), reduce=reduce)[0] == 1
    assert "fastkd" in __version__

@pytest.mark.skip(reason="a reason")
def test_two(): ...
"""
    )
    done = run_suite(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all: 2 passed, 1 skipped" in done.stdout
    assert "1 skipped: Skipped: a reason" in done.stdout


def test_the_suite_script_fails_with_a_test(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "torch_scatter").mkdir()
    (tmp_path / "torch_scatter" / "testing.py").touch()
    (tmp_path / "test" / "test_some.py").write_text("def test_one(): assert False")
    done = run_suite(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "all: 1 failed" in done.stdout
