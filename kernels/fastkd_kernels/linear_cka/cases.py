"""How to call linear CKA on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch

from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import reference, tiles
from .op import linear_cka

OPERATORS = ("centred_grams", "centred_grams_backward")


def _make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    # more rows than nodes: with very few the two sides are equal up to a rotation, and the gradient is only rounding
    count, channels = shape.nodes + shape.edges, shape.width
    x = random_tensor(count, channels, dtype=dtype, generator=generator)
    return Sample((x, random_tensor(count, channels + 2, dtype=dtype, generator=generator)))


CASES: tuple[OpCase, ...] = (OpCase("linear_cka", linear_cka, reference.linear_cka, _make, OPERATORS),)


def _kernel(name: str, width: int, dtype: str) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"{name}_kernel")

    double, summed = dtype == "fp64", "*fp64" if dtype == "fp64" else "*fp32"
    sizes = dict.fromkeys(("C", "D"), "i32:16" if width % 16 == 0 else "i32")
    if name == "centred_grams":
        tile = tiles.gram_tile(width, double=double)
        pointers = {"x_ptr": f"*{dtype}", "x_mean_ptr": summed, "y_ptr": f"*{dtype}", "y_mean_ptr": summed}
        signature = pointers | dict.fromkeys(("p_ptr", "q_ptr", "k_ptr"), summed) | {"N": "i32"} | sizes | {"rows_each": "i32"}
    else:
        tile = tiles.map_tile(double=double)
        signature = dict.fromkeys(("x_ptr", "y_ptr", "grad_ptr"), f"*{dtype}")
        signature |= dict.fromkeys(("x_mean_ptr", "by_x_ptr", "y_mean_ptr", "by_y_ptr"), summed) | {"N": "i32"} | sizes
    constants = {key: value for key, value in tile.items() if key != "num_warps"}
    return AotKernel(f"{name}[{dtype}, {width}]", load, signature, constants, num_warps=tile["num_warps"])


KERNELS: tuple[AotKernel, ...] = tuple(
    _kernel(name, width, dtype)
    for name in ("centred_grams", "centred_map")
    for width, dtype in ((128, "fp32"), (33, "fp32"), (128, "bf16"), (128, "fp64"))
)
