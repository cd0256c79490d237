"""What is particular to segment reductions: ties, NaN, empty and giant segments, any index order, any trailing shape."""

import os

import pytest
import torch
from fastkd_kernels import scatter_reduce, segment_reduce
from fastkd_kernels.graph import segments
from fastkd_kernels.segment_reduce import reference
from fastkd_kernels.segment_reduce.tiles import next_power_of_two, piece_length
from torch._dynamo.testing import CompileCounterWithBackend

INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
BACKENDS = ["reference", "numba", pytest.param("triton", marks=[pytest.mark.triton, INTERPRETED])]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
NAN, INF = float("nan"), float("inf")


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(values: torch.Tensor, ptr: torch.Tensor, reduce: str, backend: str) -> torch.Tensor:
    values = values.clone().requires_grad_()
    (grad,) = torch.autograd.grad(segment_reduce(values, ptr, reduce, backend=backend).nan_to_num().sum(), values)
    return grad


@each_backend
def test_a_tie_goes_to_the_first_row(backend):
    values, ptr = torch.tensor([1.0, 3.0, 3.0, -2.0, -2.0]), torch.tensor([0, 3, 5])
    assert segment_reduce(values, ptr, "max", backend=backend).tolist() == [3.0, -2.0]
    assert gradient(values, ptr, "max", backend).tolist() == [0, 1, 0, 1, 0]
    assert gradient(-values, ptr, "min", backend).tolist() == [0, 1, 0, 1, 0]


@each_backend
def test_a_tie_goes_to_the_first_row_of_an_unsorted_index(backend):
    values = torch.tensor([7.0, 2.0, 7.0, 2.0, 7.0], requires_grad=True)
    best = scatter_reduce(values, torch.tensor([1, 0, 1, 0, 1]), 2, "max", backend=backend)
    assert torch.autograd.grad(best.sum(), values)[0].tolist() == [1, 1, 0, 0, 0]


@each_backend
def test_nan_wins_and_stays_in_its_segment(backend):
    values, ptr = torch.tensor([1.0, NAN, 9.0, NAN, 4.0, -INF]), torch.tensor([0, 4, 6])
    for reduce, clean in (("max", 4.0), ("min", -INF), ("sum", -INF), ("mean", -INF)):
        got = segment_reduce(values, ptr, reduce, backend=backend)
        assert got[0].isnan()
        assert got[1] == clean
    # torch's own maximum propagates NaN as well
    assert values[:4].amax().isnan()
    values = values.requires_grad_()
    (grad,) = torch.autograd.grad(segment_reduce(values, ptr, "max", backend=backend), values, torch.tensor([2.0, 3.0]))
    assert grad.tolist() == [0, 2, 0, 0, 3, 0]


@each_backend
@pytest.mark.parametrize("sign", [1, -1])
def test_infinities_are_numbers(backend, sign):
    values, ptr = sign * torch.tensor([-INF, -INF, INF, 1.0]), torch.tensor([0, 2, 4])
    reduce = "max" if sign == 1 else "min"
    assert segment_reduce(values, ptr, reduce, backend=backend).tolist() == [sign * -INF, sign * INF]
    values = values.requires_grad_()
    (grad,) = torch.autograd.grad(segment_reduce(values, ptr, reduce, backend=backend), values, torch.ones(2))
    assert grad.tolist() == [1, 0, 1, 0]


@each_backend
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_empty_segments_are_zero(backend, reduce):
    values = torch.full((3, 2), -5.0)
    got = segment_reduce(values, torch.tensor([0, 0, 3, 3, 3]), reduce, backend=backend)
    assert torch.equal(got[[0, 2, 3]], torch.zeros(3, 2))
    assert (got[1] < 0).all()
    assert segment_reduce(values[:0], torch.tensor([0, 0]), reduce, backend=backend).tolist() == [[0, 0]]
    assert segment_reduce(values[:0], torch.tensor([0]), reduce, backend=backend).shape == (0, 2)
    assert scatter_reduce(values[:0], torch.empty(0, dtype=torch.int64), 2, reduce, backend=backend).tolist() == [[0, 0]] * 2
    assert gradient(values[:0], torch.tensor([0, 0]), reduce, backend).shape == (0, 2)


@each_backend
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("width", [1, 3])
def test_long_segments(backend, reduce, width):
    # pieces of 256 positions: one segment has many, one begins and ends on their borders, the rest have none
    assert piece_length(1600) == 256
    ptr = torch.tensor([0, 10, 10, 256, 768, 800, 1580, 1600])
    values = normal(1600, width, dtype=torch.float32)
    index = reference.segment_index(ptr, 1600)
    mixed = torch.randperm(1600, generator=torch.Generator().manual_seed(1))
    tolerance = {"rtol": 0, "atol": 0} if reduce in ("max", "min") else {"rtol": 1e-5, "atol": 1e-5}
    want = reference.segment_reduce(values.double(), ptr, reduce).float()
    torch.testing.assert_close(segment_reduce(values, ptr, reduce, backend=backend), want, **tolerance)
    got = scatter_reduce(values[mixed], index[mixed], 7, reduce, backend=backend)
    torch.testing.assert_close(got, want, **tolerance)
    torch.testing.assert_close(
        gradient(values, ptr, reduce, backend), gradient(values.double(), ptr, reduce, "reference").float(), rtol=1e-6, atol=0
    )


@each_backend
def test_a_tie_across_pieces_goes_to_the_first_row(backend):
    values = torch.zeros(1600)
    values[[700, 1100, 1500]] = 1.0
    (where,) = gradient(values, torch.tensor([0, 1600]), "max", backend).nonzero(as_tuple=True)
    assert where.tolist() == [700]


@pytest.mark.parametrize("width", [1, 2])
def test_rounding_does_not_grow_with_the_length(width):
    values = normal(300_000, width, dtype=torch.float32).abs()
    got = segment_reduce(values, torch.tensor([0, 300_000]), backend="numba")
    torch.testing.assert_close(got.double(), values.double().sum(0, keepdim=True), rtol=2e-6, atol=0)


@pytest.mark.parametrize("backend", ["reference", BACKENDS[2]])
def test_half_precision_sums_in_float32(backend):
    # a bfloat16 accumulator would stop at 256
    values = torch.ones(600, 2, dtype=torch.bfloat16)
    got = segment_reduce(values, torch.tensor([0, 600]), backend=backend)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[600, 600]]


@each_backend
@pytest.mark.parametrize("trailing", [(), (1,), (3,), (2, 3), (0,), (2, 1, 2)])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_any_trailing_shape(backend, trailing, reduce):
    values, ptr = normal(9, *trailing), torch.tensor([0, 4, 4, 9])
    want = torch.stack([rows.mean(0) if reduce == "mean" else rows.amax(0) for rows in (values[:4], values[4:])])
    got = segment_reduce(values, ptr, reduce, backend=backend)
    assert got.shape == (3, *trailing)
    torch.testing.assert_close(got[[0, 2]], want)
    assert gradient(values, ptr, reduce, backend).shape == values.shape


@each_backend
def test_strided_values_and_expanded_gradients(backend):
    values, ptr = normal(4, 9).T.requires_grad_(), torch.tensor([0, 4, 9])
    got = segment_reduce(values, ptr, backend=backend)
    torch.testing.assert_close(got, torch.stack([values[:4].sum(0), values[4:].sum(0)]))
    (grad,) = torch.autograd.grad(got, values, torch.ones(()).double().expand(2, 4))
    assert torch.equal(grad, torch.ones(9, 4).double())


@each_backend
def test_gradient_of_the_mean(backend):
    values, ptr = normal(5, 2), torch.tensor([0, 1, 1, 5])
    assert gradient(values, ptr, "mean", backend)[:, 0].tolist() == [1, 0.25, 0.25, 0.25, 0.25]


@each_backend
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_scattering_is_sorting_and_reducing(backend, reduce):
    index = torch.randint(6, (50,), generator=torch.Generator().manual_seed(3))
    values, csr = normal(50, 4, dtype=torch.float32), segments(index, 6)
    got = scatter_reduce(values, index, 6, reduce, backend=backend)
    assert torch.equal(got, segment_reduce(values[csr[1]], csr[0], reduce, backend=backend))
    assert torch.equal(got, scatter_reduce(values, index, 6, reduce, csr=csr, backend=backend))


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_new_sizes_do_not_compile_again(reduce):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda values, ptr: segment_reduce(values, ptr, reduce).square().sum(), backend=counter, dynamic=True)
    for rows, cuts in ((9, [4]), (13, [2, 5]), (31, [7, 9, 20])):
        # no two sizes agree in the first call, or dynamo would take them for one
        ptr, values = torch.tensor([0, *cuts, rows]), normal(rows, 7).requires_grad_()
        want = reference.segment_reduce(values, ptr, reduce).square().sum()
        got = compiled(values, ptr)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, values), torch.autograd.grad(want, values))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize(
    ("ptr", "match"), [([0, 2], "ends at 2"), ([1, 5], "starts at 1"), ([0, 4, 3, 5], "falls in between"), ([0, 6], "ends at 6")]
)
def test_a_wrong_ptr_is_named(backend, ptr, match):
    with pytest.raises(ValueError, match=match):
        segment_reduce(torch.zeros(5), torch.tensor(ptr), backend=backend)


def test_mistakes_are_named():
    values, ptr, index = torch.zeros(5, 2), torch.tensor([0, 5]), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sum, mean, max, min, got 'prod'"):
        segment_reduce(values, ptr, "prod")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ptr \[m \+ 1\] int64, got \[2\] torch.int32"):
        segment_reduce(values, ptr.int())
    with pytest.raises(ValueError, match=r"ptr \[m \+ 1\] int64, got \[0\]"):
        segment_reduce(values, ptr[:0])
    with pytest.raises(ValueError, match=r"floating dtype, got \[5, 2\] torch.int64"):
        segment_reduce(values.long(), ptr)
    with pytest.raises(ValueError, match=r"values \[n, …\]"):
        segment_reduce(torch.tensor(1.0), ptr)
    with pytest.raises(ValueError, match=r"index \[5\] int64, got \[4\]"):
        scatter_reduce(values, index[:4], 1)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 2\), got values from 0 to 3"):
        scatter_reduce(values, torch.tensor([0, 1, 3, 0, 0]), 2)
    with pytest.raises(ValueError, match=r"csr = \(ptr \[4\], order \[5\]\)"):
        scatter_reduce(values, index, 3, csr=segments(index, 2))
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        segment_reduce(values, ptr, backend="cuda")


@pytest.mark.parametrize("backend", [None, "numba"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_indices_out_of_range_are_named(backend, reduce):
    values = torch.zeros(5, 2)
    for wrong in ([0, 1, 3, 0, 0], [0, -1, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"index must lie in \[0, 2\)"):
            scatter_reduce(values, torch.tensor(wrong), 2, reduce, backend=backend)
    for wrong in ([0, 4], [1, 5], [1, 6], [0, 6], [0, 3, 2, 5]):
        with pytest.raises(ValueError, match="ptr must rise from 0 to the number of rows, 5"):
            segment_reduce(values, torch.tensor(wrong), reduce, backend=backend)


@pytest.mark.parametrize(("number", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (128, 128), (129, 256)])
def test_next_power_of_two(number, power):
    assert next_power_of_two(number) == power
