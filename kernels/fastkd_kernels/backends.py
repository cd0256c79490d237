"""Which of the three implementations of an operator runs, and how an operator with three bodies is registered.

Every operator's schema ends in ``str backend``. A public function settles it once with `resolve`, from its ``backend=`` argument,
the environment variable ``FASTKD_BACKEND`` or the tensor's device, and derivatives hand it on: one choice holds for all orders.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

Backend = Literal["triton", "numba", "reference"]
BACKENDS: tuple[Backend, ...] = ("triton", "numba", "reference")
ENVIRONMENT_VARIABLE = "FASTKD_BACKEND"

_NUMBA_DTYPES = (torch.float32, torch.float64)


# looked up once (nothing is imported), in a table that torch.compile can trace through
_INSTALLED: dict[Backend, bool] = {backend: backend == "reference" or importlib.util.find_spec(backend) is not None for backend in BACKENDS}


def installed(backend: Backend) -> bool:
    """Whether the package behind a backend can be found."""
    return _INSTALLED[backend]


def resolve(backend: str | None, tensor: Tensor) -> Backend:
    """The backend for ``tensor``: the argument, else ``FASTKD_BACKEND``, else the fastest that fits its device and dtype.

    Raises:
        ValueError: if the backend is unknown, not installed, or cannot run on this device.
    """
    wanted = backend or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if wanted is None:
        return _fastest(tensor.device.type, tensor.dtype)
    if wanted not in BACKENDS:
        raise ValueError(f"unknown backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    chosen: Backend = wanted
    if not installed(chosen):
        raise ValueError(f"backend {chosen!r} was asked for, but the package {chosen!r} is not installed")
    if chosen == "numba" and (tensor.device.type != "cpu" or tensor.dtype not in _NUMBA_DTYPES):
        raise ValueError(f"backend 'numba' runs float32 and float64 on a CPU, got {tensor.dtype} on {tensor.device}")
    if chosen == "triton" and tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("backend 'triton' runs on a CPU only in Triton's interpreter: set TRITON_INTERPRET=1 before the start")
    return chosen


def _fastest(device_type: str, dtype: torch.dtype) -> Backend:
    if device_type == "cuda" and installed("triton"):
        return "triton"
    if device_type == "cpu" and dtype in _NUMBA_DTYPES and installed("numba"):
        return "numba"
    return "reference"


Body = Callable[..., Any]


def define_op(name: str, schema: str, *, fake: Body, reference: Body, numba: Body, triton: Body, namespace: str = "fastkd") -> CustomOpDef:
    """Register ``namespace::name`` with one body per backend.

    Args:
        name: operator name.
        schema: ``"(Tensor x, …) -> Tensor"`` without the backend, which is added as the last argument ``str backend``.
        fake: shapes and dtypes of the outputs; called without the backend.
        reference: plain torch, any device. Must not return (a view of) an input.
        numba: launches CPU kernels.
        triton: launches GPU kernels, or the interpreter's on a CPU.
        namespace: of the operator.

    Returns:
        The operator. Autograd is registered by the caller, at every order.
    """
    bodies = {"reference": reference, "numba": numba, "triton": triton}
    arguments, returns = schema.rsplit(") ->", 1)

    def body(*args: Any) -> Any:
        return bodies[args[-1]](*args[:-1])

    def fake_body(*args: Any) -> Any:
        return fake(*args[:-1])

    body.__name__ = fake_body.__name__ = name
    op = torch.library.custom_op(f"{namespace}::{name}", body, mutates_args=(), schema=f"{arguments}, str backend) ->{returns}")
    op.register_fake(fake_body)
    return op


def save_inputs(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    """A `setup_context` that keeps every tensor input, and the rest in ``ctx.rest``, in order."""
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.rest = tuple(value for value in inputs if not isinstance(value, Tensor))
