"""How to call this folder's functions on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference, tiles
from .op import radial_conv
from .places import RadialIndex
from .spline import SplineGrid

#: Few knots, so that units meet in the same rows of the table; a few lengths lie beyond the cutoff.
GRID = SplineGrid(cutoff=2.0, knots=19)


def random_lengths(number: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Lengths from 0.05 to a little more than the cutoff of `GRID`."""
    return (0.05 + 2.1 * torch.rand(number, dtype=torch.float64, generator=generator)).to(dtype)


def _make(paired: bool) -> Any:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        x = random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator)
        length = random_lengths(graph.num_edges if pairs is None else pairs.num_pairs, dtype, generator)
        table = random_tensor(GRID.rows, shape.width, dtype=dtype, generator=generator)
        return Sample((x, length, table), (graph, pairs))

    return make


def _call(x: Tensor, length: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None) -> Tensor:
    return radial_conv(x, length, table, RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend))


def _reference(x: Tensor, length: Tensor, table: Tensor, graph: Any, pairs: Any) -> Tensor:
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="reference")
    weight = reference.filters(length, table, index.knot, index.fraction, GRID.step, 0)
    return reference.conv(None, x.to(weight.dtype), weight, index.unit_dst, index.unit_src, index.paired).to(x.dtype)


_OPERATORS = ("radial_groups", "radial_conv", "radial_conv_backward", "radial_dot", "radial_knots")

CASES: tuple[OpCase, ...] = (
    OpCase("radial_conv", _call, _reference, _make(paired=False), _OPERATORS),
    OpCase("radial_conv[pairs]", _call, _reference, _make(paired=True), _OPERATORS),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


# Triton's types of the arguments that are not floats of the input's dtype
_INTEGERS = dict.fromkeys(("ptr_ptr", "unit_ptr", "other_ptr", "dst_ptr", "src_ptr", "bucket_ptr", "order_ptr"), "*i64") | {
    "knot_ptr": "*i32"
}
_SIZES = dict.fromkeys(("U", "pieces", "intervals"), "i32") | {"stride": "i32:16"}
_TYPICAL_ROWS = SplineGrid(cutoff=5.0).rows


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    bytes_each = {"fp32": 4, "bf16": 2, "fp64": 8}[real]
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = {"F": "i32:16" if width % 16 == 0 else "i32"}
    wide = f"*{'fp64' if real == 'fp64' else 'fp32'}"
    sums = dict.fromkeys(("weight_ptr", "partial_ptr", "fraction_ptr", "polynomial_ptr"), wide)
    node, bucket = tiles.node_tile(width, _TYPICAL_ROWS, bytes_each), tiles.bucket_tile(width)

    def kernel(name: str, label: str, arguments: str, blocks: dict[str, int], warps: int, **flags: bool) -> AotKernel:
        types = _INTEGERS | _SIZES | size | sums
        signature = {argument: types.get(argument, f"*{real}") for argument in arguments.split()}
        title = ", ".join(part for part in (label, f"F{width}", real) if part)
        return AotKernel(f"radial_{name}[{title}]", _load(f"{name}_kernel"), signature, flags | blocks, warps)

    edges = "ptr_ptr unit_ptr other_ptr"
    conv = f"c_ptr x_ptr table_ptr {edges} knot_ptr weight_ptr out_ptr F stride"
    dot = "x_ptr g_ptr table_ptr dst_ptr src_ptr knot_ptr weight_ptr out_ptr U F stride"
    backward = f"x_ptr g_ptr table_ptr {edges} dst_ptr knot_ptr weight_ptr grad_x_ptr partial_ptr U F"
    double = f"x_ptr g_ptr v_ptr rate_ptr table_ptr {edges} knot_ptr weight_ptr grad_x_ptr grad_g_ptr F"
    knots = "c_ptr x_ptr g_ptr v_ptr dst_ptr src_ptr weight_ptr bucket_ptr order_ptr partial_ptr F stride pieces"
    for scaled in (False, True):
        yield kernel("conv", "scaled" if scaled else "", conv, node, tiles.NODE_WARPS, SCALED=scaled)
    for paired in (False, True):
        label = "pairs" if paired else "edges"
        yield kernel("dot", label, dot, node, tiles.NODE_WARPS, PAIRED=paired)
        yield kernel("backward", label, backward, node, tiles.NODE_WARPS, PAIRED=paired)
        yield kernel("double_backward", label, double, node, tiles.NODE_WARPS, BOTH=paired)
        for which, flags in (("", (False, False)), ("scaled", (True, False)), ("both", (True, True))):
            named = dict(zip(("SCALED", "BOTH"), flags, strict=True)) | {"PAIRED": paired}
            yield kernel("knots", f"{which} {label}".strip(), knots, bucket, tiles.BUCKET_WARPS, **named)
    yield kernel("rows", "", "partial_ptr out_ptr intervals pieces F", {"BLOCK_F": bucket["BLOCK_F"]}, 1)
    if real != "bf16":
        yield kernel("weights", "", "knot_ptr fraction_ptr polynomial_ptr out_ptr U", {"BLOCK_E": tiles.WEIGHTS_BLOCK}, 4)


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel for width, real in ((3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")) for kernel in _specialisations(width, real)
)
