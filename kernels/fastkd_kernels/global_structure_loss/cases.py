"""How the checks call this folder's function, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import op, reference, tiles


def _sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator, axes: tuple[int, ...]) -> Sample:
    x = random_tensor(shape.nodes, *axes, shape.width, dtype=dtype, generator=generator)
    # a teacher is wider, and its distances are not the student's on average
    y = random_tensor(shape.nodes, *axes, shape.width + 2, dtype=torch.float64, generator=generator).mul(1.5).to(dtype)
    # one image in three parts of ten, one without atoms, and the rest
    ptr = torch.tensor([0, 3 * shape.nodes // 10, 3 * shape.nodes // 10, shape.nodes])
    return Sample((x,), (y, ptr))


def _scalars(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    return _sample(shape, dtype, generator, ())


def _vectors(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    return _sample(shape, dtype, generator, (3,))


_OPERATORS = ("structure_rows", "structure_pull", "pair_rows", "pair_pull")

CASES = tuple(
    OpCase(name, op.global_structure_loss, reference.global_structure_loss, make, _OPERATORS)
    for name, make in (("global_structure_loss", _scalars), ("global_structure_loss[vectors]", _vectors))
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    accumulator = "*fp64" if real == "fp64" else "*fp32"
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = dict.fromkeys(("C", "D"), "i32:16" if width % 16 == 0 else "i32")
    common = {"y_ptr": f"*{real}", "image_ptr": "*i64", "ptr_ptr": "*i64", "N": "i32"} | size

    def kernel(name: str, label: str, signature: dict[str, str], **flags: bool) -> AotKernel:
        tile = tiles.rows_tile(width) if name == "pair_rows" else tiles.pull_tile(width, real == "fp64")
        constants = flags | {key: value for key, value in tile.items() if key != "num_warps"}
        return AotKernel(f"{name}[{label}, C{width}, {real}]", _load(f"{name}_kernel"), signature, constants, tile["num_warps"])

    rows = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr", "d_ptr"), f"*{real}") | common | {"out_ptr": accumulator}
    yield kernel("pair_rows", "loss", rows, SQUARE=True, WITH_Y=True)
    yield kernel("pair_rows", "second", rows, SQUARE=False, WITH_Y=True)
    yield kernel("pair_rows", "beyond", rows, SQUARE=False, WITH_Y=False)
    pull = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), f"*{real}") | common | {"h_ptr": accumulator, "out_ptr": f"*{real}"}
    yield kernel("pair_pull", "gradient", pull, SAME=True, WITH_Y=True)
    yield kernel("pair_pull", "second", pull, SAME=False, WITH_Y=False)
    yield kernel("pair_pull", "beyond", pull, SAME=False, WITH_Y=True)


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel for width, real in ((3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")) for kernel in _specialisations(width, real)
)
