"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import op, reference, tiles


def _context_sample(columns: int) -> Callable[[Shape, torch.dtype, torch.Generator], Sample]:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        scalar = random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator)
        return Sample((scalar, random_tensor(shape.nodes, 3, columns * shape.width, dtype=dtype, generator=generator)))

    return make


def _update_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    gates = random_tensor(shape.nodes, 3 * shape.width, dtype=dtype, generator=generator)
    return Sample((gates, random_tensor(shape.nodes, 3, 2 * shape.width, dtype=dtype, generator=generator)))


# scales stand here as numbers: torch.compile takes a module's own variables for input and traces twice


def _context(scalar: Tensor, mixed: Tensor, *, backend: str | None = None) -> Tensor:
    return op.painn_context(scalar, mixed, epsilon=1e-2, backend=backend)


def _context_reference(scalar: Tensor, mixed: Tensor) -> Tensor:
    return reference.painn_context(scalar, mixed, 1e-2)


def _update(gates: Tensor, mixed: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return op.painn_update(gates, mixed, dot_scale=0.25, scalar_scale=0.7, backend=backend)


def _update_reference(gates: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    return reference.painn_update(gates, mixed, 0.25, 0.7)


_CONTEXT = ("painn_context", "painn_context_backward", "painn_context_double_backward")
_UPDATE = ("painn_update", "painn_update_backward", "painn_update_double_backward")

CASES: tuple[OpCase, ...] = (
    OpCase("painn_context", _context, _context_reference, _context_sample(2), _CONTEXT),
    OpCase("painn_context[V v alone]", _context, _context_reference, _context_sample(1), _CONTEXT),
    OpCase("painn_update", _update, _update_reference, _update_sample, _UPDATE),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    # a width of 64 is a multiple of 16, which lets loads be wide
    columns = "i32:16" if width % 16 == 0 else "i32"
    tile = tiles.tile(width, double=real == "fp64")
    blocks = {key: value for key, value in tile.items() if key != "num_warps"}

    def kernel(name: str, label: str, pointers: str, **constants: Any) -> AotKernel:
        signature = {f"{pointer}_ptr": f"*{real}" for pointer in pointers.split()} | {"N": "i32", "F": columns}
        if "EPSILON" in constants:
            signature["C"] = columns
        title = f"painn_{name}[{label}F{width}, {real}]"
        return AotKernel(title, _load(f"{name}_kernel"), signature, constants | blocks, tile["num_warps"])

    def flags(**groups: str) -> dict[str, bool]:
        return {f"{group}_{name}": True for group, names in groups.items() for name in names.split()}

    scales = {"DOT_FACTOR": 0.0625, "SCALAR_SCALE": 0.7}
    yield kernel("context", "", "scalar mixed out", EPSILON=1e-8)
    yield kernel("context_backward", "", "grad mixed by_scalar by_mixed", EPSILON=1e-8, **flags(NEEDS="SCALAR MIXED"))
    second = "t_scalar t_mixed grad mixed by_grad by_mixed"
    yield kernel("context_double_backward", "", second, EPSILON=1e-8, **flags(HAS="T_SCALAR T_MIXED", NEEDS="GRAD MIXED"))
    yield kernel("update", "", "gates mixed out_scalar out_vector", **scales)
    first = "grad_scalar grad_vector gates mixed by_gates by_mixed"
    yield kernel("update_backward", "", first, **flags(HAS="SCALAR VECTOR", NEEDS="GATES MIXED"), **scales)
    last = flags(HAS="SCALAR", NEEDS="GATES MIXED") | {"HAS_VECTOR": False}
    yield kernel("update_backward", "last block, ", first, **last, **scales)
    second = "t_gates t_mixed grad_scalar grad_vector gates mixed by_scalar by_vector by_gates by_mixed"
    every = flags(HAS="T_GATES T_MIXED SCALAR VECTOR", NEEDS="SCALAR VECTOR GATES MIXED")
    yield kernel("update_double_backward", "", second, **every, **scales)


def _kernels() -> Iterator[AotKernel]:
    for width, real in ((128, "fp32"), (20, "fp32"), (128, "bf16"), (128, "fp64")):
        yield from _specialisations(width, real)


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
