"""One way to compare any operator with its float64 reference at three orders, for the tests and for ``python -m fastkd_kernels.check``.

With random cotangents g and h, the three orders of ``y = f(x)`` are y, the gradient ⟨g, y⟩ → ∂x, and the gradient of
⟨h, ∂x⟩ by x and by g. The reference sees the same rounded numbers in float64, so what is measured is the operator alone.

Example:
    >>> case = next(case for case in all_cases() if case.name == "cfconv")
    >>> errors(case, Shape(7, 23, 5), torch.float32, "numba").ok
    True
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .backends import BACKENDS, Backend, installed
from .registry import OpCase, Sample, Shape
from .tolerances import OVER_EAGER, TOLERANCES, relative_error

#: No edges; one node, with self loops only; a node that all edges enter and leave; two hubs; odd and even widths; a full tile and one more.
SHAPES: tuple[Shape, ...] = (
    Shape(5, 0, 3),
    Shape(1, 3, 1),
    Shape(3, 150, 5),
    Shape(4, 301, 31),
    Shape(20, 160, 64),
    Shape(12, 61, 129),
)


@dataclass(frozen=True)
class Errors:
    """Largest relative error of any tensor at each order, and the limits they must keep to.

    A random input may happen to cancel: then plain torch in the same dtype is just as far from float64, and the limit follows it.
    """

    case: str
    shape: Shape
    dtype: torch.dtype
    backend: str
    by_order: tuple[float, float, float]
    eager: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: of plain torch in the same dtype; only found where ours is over its tolerance

    @property
    def limits(self) -> tuple[float, float, float]:
        first, second, third = (
            max(limit, OVER_EAGER * error) for limit, error in zip(TOLERANCES[self.dtype].by_order, self.eager, strict=True)
        )
        return first, second, third

    @property
    def ok(self) -> bool:
        return all(math.isfinite(error) and error <= limit for error, limit in zip(self.by_order, self.limits, strict=True))

    def __str__(self) -> str:
        got = ", ".join(f"{error:.1e} (≤ {limit:.0e})" for error, limit in zip(self.by_order, self.limits, strict=True))
        return f"{self.case} {self.backend} {dtype_name(self.dtype)} {self.shape}: value, gradient, its gradient: {got}"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` rather than ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def available_backends(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Backend, ...]:
    """Backends that can run on this device in this process; triton runs on a CPU only in its interpreter."""
    numba = device.type == "cpu" and dtype in (torch.float32, torch.float64)
    triton = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    able = {"reference": True, "numba": numba, "triton": triton}
    return tuple(backend for backend in BACKENDS if able[backend] and installed(backend))


def sample(case: OpCase, shape: Shape, dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cpu") -> Sample:
    """Random input of a case: inputs are leaves that require grad."""
    made = case.make(shape, dtype, torch.Generator().manual_seed(seed))
    inputs = tuple(tensor.to(device).detach().requires_grad_() for tensor in made.inputs)
    return Sample(inputs, tuple(item.to(device) if hasattr(item, "to") else item for item in made.extra))


def call(case: OpCase, made: Sample, backend: str | None) -> tuple[Tensor, ...]:
    """The public function on one backend, always as a tuple."""
    return _tuple(case.function(*made.inputs, *made.extra, backend=backend))


def errors(
    case: OpCase,
    shape: Shape,
    dtype: torch.dtype,
    backend: str | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    wrt: Sequence[int] | None = None,
) -> Errors:
    """Compare one case with its reference in float64, at three orders, on random input and with random cotangents.

    Args:
        case: what to call.
        shape: of the random input.
        dtype: in which the operator runs.
        backend: which runs; chosen by device and dtype if None.
        seed: of inputs and cotangents.
        device: on which both run.
        wrt: positions of the inputs that require grad; all if None.
    """
    made = sample(case, shape, dtype, seed, device)
    if wrt is not None:
        made = Sample(tuple(tensor.requires_grad_(number in wrt) for number, tensor in enumerate(made.inputs)), made.extra)
    exact = Sample(tuple(tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in made.inputs), made.extra)
    want = three_orders(lambda *x: case.reference(*x, *exact.extra), exact.inputs, dtype, seed)

    def worst(function: Callable[..., Any]) -> tuple[float, float, float]:
        got = three_orders(function, made.inputs, dtype, seed)
        scales = 0.0, 0.0, math.hypot(*(gradient.detach().double().norm().item() for gradient in want[1]))
        first, second, third = (
            max((_error(a, b, dtype, scale) for a, b in zip(ours, theirs, strict=True)), default=0.0)
            for ours, theirs, scale in zip(got, want, scales, strict=True)
        )
        return first, second, third

    found = Errors(case.name, shape, dtype, backend or "default", worst(lambda *x: case.function(*x, *made.extra, backend=backend)))
    if found.ok or dtype == torch.float64:
        return found
    return replace(found, eager=worst(lambda *x: case.reference(*x, *made.extra)))


def three_orders(
    function: Callable[..., Any], inputs: Sequence[Tensor], rounded_to: torch.dtype, seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, gradients, and gradients of the gradients by every input that requires grad and by the cotangents of the outputs.

    Gradients that autograd leaves out because nothing depends on them come back as zeros. Cotangents are standard normal numbers
    rounded to ``rounded_to``, the same for every dtype in which the function is evaluated.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    outputs, inputs = _tuple(function(*inputs)), [tensor for tensor in inputs if tensor.requires_grad]
    cotangents = [_cotangent(output, rounded_to, generator).requires_grad_() for output in outputs]
    gradients = _gradients(outputs, inputs, cotangents)
    seconds = _gradients(gradients, (*inputs, *cotangents), [_cotangent(gradient, rounded_to, generator) for gradient in gradients])
    return list(outputs), gradients, seconds


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    used = [(output, cotangent) for output, cotangent in zip(outputs, cotangents, strict=True) if output.requires_grad]
    if not used:
        return [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad([o for o, _ in used], inputs, [c for _, c in used], create_graph=True, allow_unused=True)
    return [torch.zeros_like(tensor) if gradient is None else gradient for gradient, tensor in zip(found, inputs, strict=True)]


def _cotangent(like: Tensor, rounded_to: torch.dtype, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(like.shape, dtype=torch.float64, generator=generator)
    return numbers.to(rounded_to).to(dtype=like.dtype, device=like.device)


def _error(got: Tensor, want: Tensor, dtype: torch.dtype, scale: float) -> float:
    # a result that should vanish may be left at the rounding of what cancelled
    if want.numel() and not bool(want.detach().any()):
        size = got.detach().double().abs().max().item()
        return 0.0 if size <= torch.finfo(dtype).eps else float("inf")
    error = relative_error(got, want)
    if want.dim() == 0 and scale:
        # the gradient by a loss's cotangent is ⟨tangent, gradient⟩: as large as the gradient, unless random signs cancel
        size = abs(want.item())
        error *= size / max(size, scale)
    return error


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
