"""Every public op of fastkd_kernels, on every backend: three orders, layouts, registration, determinism, errors.

What is tested comes from ``cases.py`` of each op folder, so an op that is added there is tested here. Each op's own file holds what
only that op promises.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from fastkd_kernels import blas, cpu
from fastkd_kernels.namespace import NAMESPACE
from fastkd_kernels.registry import OpCase, Shape, all_cases
from fastkd_kernels.testing import SHAPES, call, dtype_name, errors, sample, three_orders
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CASES = list(all_cases())
NAMES = [case.name for case in CASES]
# Triton in float64 is under gradcheck: the interpreter is too slow to do everything twice
DTYPES = {"numba": (torch.float64, torch.float32), "triton": (torch.float32,), "reference": (torch.float64, torch.bfloat16)}
TINY = Shape(4, 6, 2)
INTERPRETED = (Shape(3, 0, 3), Shape(5, 37, 5), Shape(1, 3, 1), Shape(4, 9, 129))

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)
each_backend = pytest.mark.parametrize(
    "backend",
    [
        "numba",
        "reference",
        pytest.param(
            "triton",
            marks=[
                pytest.mark.triton,
                pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs here only with TRITON_INTERPRET=1"),
            ],
        ),
    ],
)


def _first_of_its_operators(case: OpCase) -> bool:
    return next(other for other in CASES if other.operators == case.operators) is case


def _on(backend: str, *, quick: bool) -> list[Any]:
    """Marks; what takes long in Triton's interpreter is slow."""
    if backend != "triton":
        return []
    marks = [
        pytest.mark.triton,
        pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs here only with TRITON_INTERPRET=1"),
    ]
    return marks if quick else [*marks, pytest.mark.slow]


def _params(backends: Sequence[str], quick: Callable[[OpCase], bool]) -> list[Any]:
    pairs = itertools.product(CASES, backends)
    return [pytest.param(c, b, id=f"{c.name}-{b}", marks=_on(b, quick=quick(c))) for c, b in pairs]


BACKENDS = ("numba", "reference", "triton")
# variants share the kernels of their op, and painn_radial and painn_exact have most kernels
each_case_and_backend = pytest.mark.parametrize(
    ("case", "backend"), _params(BACKENDS, lambda case: "[" not in case.name and case.name != "painn_radial")
)
each_op_and_backend = pytest.mark.parametrize(("case", "backend"), _params(BACKENDS, _first_of_its_operators))
# what is about an operator and not about its numbers is asked of one case; of all in the long tests
each_op = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if _first_of_its_operators(c) else [pytest.mark.slow]) for c in CASES]
)
each_op_in_triton = pytest.mark.parametrize(("case", "backend"), _params(["triton"], _first_of_its_operators))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel forgets to write becomes NaN."""

    def poison(real: Any) -> Any:
        def make(*args: Any, **options: Any) -> Tensor:
            made = real(*args, **options)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return make

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.mark.usefixtures("poisoned")
@each_backend
@each_case
def test_three_orders_against_float64(case: OpCase, backend: str) -> None:
    # variants of an op share its kernels
    interpreted = INTERPRETED[:2] if "[" in case.name else INTERPRETED
    for dtype, shape in itertools.product(DTYPES[backend], interpreted if backend == "triton" else SHAPES):
        found = errors(case, shape, dtype, backend)
        assert found.ok, str(found)


@each_op_in_triton
def test_bfloat16_in_triton(case: OpCase, backend: str) -> None:
    found = errors(case, Shape(5, 19, 33), torch.bfloat16, backend)
    assert found.ok, str(found)


@pytest.mark.usefixtures("poisoned")
@each_case_and_backend
def test_gradcheck_on_strided_inputs(case: OpCase, backend: str) -> None:
    made = sample(case, TINY, torch.float64, seed=3)
    inputs = tuple(_strided(tensor).requires_grad_() for tensor in made.inputs)
    # in the interpreter one random direction stands for the whole Jacobian
    fast = backend == "triton"

    def function(*tensors: Tensor) -> Any:
        return case.function(*tensors, *made.extra, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


@each_backend
@each_case
def test_expanded_inputs_and_gradients(case: OpCase, backend: str) -> None:
    """Rows that share memory going in, and the expanded gradients that `sum` sends back."""
    made = sample(case, Shape(5, 12, 3), torch.float64)
    rows = tuple(tensor[:1].detach() for tensor in made.inputs)
    found = []
    for function, contiguous in ((lambda *x: case.function(*x, backend=backend), False), (case.reference, True)):
        leaves = [row.clone().requires_grad_() for row in rows]
        wide = [row.expand_as(tensor) for row, tensor in zip(leaves, made.inputs, strict=True)]
        outputs = function(*(t.contiguous() for t in wide) if contiguous else wide, *made.extra)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum(output.sum() for output in outputs)
        first = torch.autograd.grad(total, leaves, create_graph=True)
        curved = [gradient.sum() for gradient in first if gradient.requires_grad]
        second = torch.autograd.grad(curved, leaves, allow_unused=True, materialize_grads=True) if curved else ()
        found.append([*outputs, *first, *second])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)


@each_case_and_backend
def test_only_some_inputs_require_grad(case: OpCase, backend: str) -> None:
    count = len(sample(case, TINY, torch.float64).inputs)
    for size in range(1, count):
        for wrt in itertools.combinations(range(count), size):
            found = errors(case, TINY, torch.float64, backend, wrt=wrt)
            assert found.ok, f"with respect to inputs {wrt} alone: {found}"


@each_backend
@each_case
def test_backward_twice_through_a_retained_graph(case: OpCase, backend: str) -> None:
    made = sample(case, TINY, torch.float64)
    outputs = call(case, made, backend)
    cotangents = [torch.randn_like(output) for output in outputs]
    once = torch.autograd.grad(outputs, made.inputs, cotangents, retain_graph=True)
    twice = torch.autograd.grad(outputs, made.inputs, [2 * cotangent for cotangent in cotangents])
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


@each_op_and_backend
def test_same_bits_twice(case: OpCase, backend: str) -> None:
    # programs of the interpreter run one after the other anyway
    made = sample(case, Shape(4, 20, 9) if backend == "triton" else Shape(6, 80, 17), torch.float32)
    runs = [three_orders(lambda *x: case.function(*x, *made.extra, backend=backend), made.inputs, torch.float32) for _ in range(2)]
    _assert_same_bits(*runs)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.slow
@each_case
def test_same_bits_whatever_the_number_of_threads(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    # slow because each kernel is compiled once more, threaded
    monkeypatch.setattr(cpu, "THREADED_WORK", 1)
    monkeypatch.setattr(blas, "THREADED_WORK", 1)
    made = sample(case, Shape(30, 400, 37), torch.float32)
    runs = []
    for count in (1, 2):
        torch.set_num_threads(count)
        runs.append(three_orders(lambda *x: case.function(*x, *made.extra, backend="numba"), made.inputs, torch.float32))
    _assert_same_bits(*runs)


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of the first call of each of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            self.calls.setdefault(func._schema.name.removeprefix(f"{NAMESPACE}::"), args)
        return func(*args, **(kwargs or {}))


@each_op
def test_registration(case: OpCase) -> None:
    count = len(sample(case, TINY, torch.float64).inputs)
    with _Recorder() as recorder:
        # some operators are needed only where all but one input are constant
        for wrt in (range(count), *((number,) for number in range(count))):
            errors(case, Shape(5, 14, 3), torch.float64, "numba", wrt=wrt)
    assert set(case.operators) <= set(recorder.calls)
    for name in case.operators:
        arguments = tuple(
            item.detach().clone().requires_grad_() if isinstance(item, Tensor) and item.is_floating_point() else item
            for item in recorder.calls[name]
        )
        torch.library.opcheck(getattr(getattr(torch.ops, NAMESPACE), name).default, arguments)


@each_case
def test_wrong_shapes_are_named(case: OpCase) -> None:
    made = sample(case, Shape(5, 12, 3), torch.float64)
    for number, tensor in enumerate(made.inputs):
        wrong = torch.cat([tensor, tensor[:1]]).detach()
        inputs = [wrong if position == number else other for position, other in enumerate(made.inputs)]
        with pytest.raises(ValueError, match=rf"\b{wrong.shape[0]}\b"):
            case.function(*inputs, *made.extra)


@each_case
def test_mixed_dtypes_are_refused(case: OpCase) -> None:
    made = sample(case, TINY, torch.float64)
    if len(made.inputs) == 1:
        pytest.skip("one tensor has one dtype")
    with pytest.raises(ValueError, match="float32"):
        case.function(made.inputs[0].detach().float(), *made.inputs[1:], *made.extra)


@each_case
def test_unknown_backend_is_refused(case: OpCase) -> None:
    with pytest.raises(ValueError, match="triton, numba, reference"):
        call(case, sample(case, TINY, torch.float32), "cuda")


def test_every_op_folder_is_covered() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {"cfconv", "edge_product", "paired_cfconv", "pair_product", "painn_message", "edge_to_node"} <= set(NAMES)
    assert all(dtype_name(dtype) for dtypes in DTYPES.values() for dtype in dtypes)


def _strided(tensor: Tensor) -> Tensor:
    """The same numbers at every second place of a larger tensor."""
    wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
    wide[..., 0] = tensor.detach()
    return wide[..., 0]


def _assert_same_bits(one: Any, two: Any) -> None:
    for order, (first, second) in enumerate(zip(one, two, strict=True)):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b), f"order {order} differs by {(a - b).abs().max().item():.1e}"
