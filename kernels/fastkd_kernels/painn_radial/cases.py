"""How to call the message on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..radial_conv import tiles as radial_tiles
from ..radial_conv.cases import GRID, random_lengths
from ..radial_conv.places import RadialIndex
from ..radial_conv.spline import SplineGrid
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference, tiles
from .op import painn_radial


def _make(paired: bool, first: bool) -> Any:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        units, nodes, width = graph.num_edges if pairs is None else pairs.num_pairs, shape.nodes, shape.width
        phi, vector, direction, table = (
            random_tensor(*size, dtype=dtype, generator=generator)
            for size in ((nodes, 3 * width), (nodes, 3, width), (units, 3), (GRID.rows, 3 * width))
        )
        length = random_lengths(units, dtype, generator)
        return Sample((phi, length, direction, table) if first else (phi, vector, length, direction, table), (graph, pairs))

    return make


def _call(
    phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return painn_radial(phi, vector, length, direction, table, RadialIndex.from_lengths(length, GRID, graph, pairs, backend=backend))


def _reference(
    phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any
) -> tuple[Tensor, Tensor]:
    index = RadialIndex.from_lengths(length, GRID, graph, pairs, backend="reference")
    return reference.painn_radial(phi, vector, length, direction, table, index.arguments)


def _first(
    phi: Tensor, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return _call(phi, None, length, direction, table, graph, pairs, backend)


def _first_reference(phi: Tensor, length: Tensor, direction: Tensor, table: Tensor, graph: Any, pairs: Any) -> tuple[Tensor, Tensor]:
    return _reference(phi, None, length, direction, table, graph, pairs)


_OPERATORS = ("painn_radial", "painn_radial_backward", "painn_radial_double_backward")

CASES: tuple[OpCase, ...] = (
    OpCase("painn_radial", _call, _reference, _make(paired=False, first=False), _OPERATORS),
    OpCase("painn_radial[pairs]", _call, _reference, _make(paired=True, first=False), _OPERATORS),
    OpCase("painn_radial[first]", _first, _first_reference, _make(paired=False, first=True), _OPERATORS),
    OpCase("painn_radial[first, pairs]", _first, _first_reference, _make(paired=True, first=True), _OPERATORS),
)


def _load(module: str, name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels, triton_knots

        return getattr({"triton_kernels": triton_kernels, "triton_knots": triton_knots}[module], name)

    return load


# Triton's types of the arguments that are not floats of the input's dtype
_INTEGERS = dict.fromkeys(("ptr_ptr", "unit_ptr", "other_ptr", "dst_ptr", "src_ptr", "bucket_ptr", "order_ptr"), "*i64") | {
    "knot_ptr": "*i32"
}
_SIZES = dict.fromkeys(("U", "pieces"), "i32")
_TANGENTS = ("HAS_T_PHI", "HAS_T_VECTOR", "HAS_RATE", "HAS_T_DIRECTION")
_TYPICAL_ROWS = SplineGrid(cutoff=5.0).rows


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    bytes_each = {"fp32": 4, "bf16": 2, "fp64": 8}[real]
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = {"F": "i32:16" if width % 16 == 0 else "i32"}
    sums = dict.fromkeys(("weight_ptr", "partial_ptr"), f"*{'fp64' if real == 'fp64' else 'fp32'}")
    node, gradient = (tiles.node_tile(width, _TYPICAL_ROWS, bytes_each, elements) for elements in (tiles.TILE, tiles.GRADIENT_TILE))
    bucket = radial_tiles.bucket_tile(width)

    def kernel(name: str, label: str, arguments: str, **flags: Any) -> AotKernel:
        types = _INTEGERS | _SIZES | size | sums
        signature = {argument: types.get(argument, f"*{real}") for argument in arguments.split()}
        module, blocks, warps = "triton_kernels", node if name == "message" else gradient, radial_tiles.NODE_WARPS
        if name == "knots":
            module, blocks, warps = ("triton_knots", bucket, radial_tiles.BUCKET_WARPS)
        return AotKernel(
            f"painn_radial_{name}[{label}, F{width}, {real}]", _load(module, f"{name}_kernel"), signature, flags | blocks, warps
        )

    primals = "phi_ptr vector_ptr direction_ptr"
    units = "ptr_ptr unit_ptr other_ptr dst_ptr knot_ptr weight_ptr"
    cotangents = "grad_scalar_ptr grad_vector_ptr"
    tangents = "t_phi_ptr t_vector_ptr rate_ptr t_direction_ptr"
    message = f"{primals} table_ptr {units} out_scalar_ptr out_vector_ptr F"
    backward = f"{cotangents} {primals} table_ptr {units} by_phi_ptr by_vector_ptr partial_ptr U F"
    double = f"{tangents} {cotangents} {primals} table_ptr {units} by_grad_scalar_ptr by_grad_vector_ptr by_phi_ptr by_vector_ptr F"
    knots = f"{tangents} {cotangents} {primals} dst_ptr src_ptr weight_ptr bucket_ptr order_ptr partial_ptr F pieces"
    all_needs = dict.fromkeys(("NEEDS_PHI", "NEEDS_VECTOR", "NEEDS_LENGTH", "NEEDS_DIRECTION"), True)
    for paired in (False, True):
        label = "pairs" if paired else "edges"
        for which, vector in ((label, True), (f"first {label}", False)):
            flags = {"HAS_VECTOR": vector, "PAIRED": paired}
            yield kernel("message", which, message, **flags)
            yield kernel("backward", which, backward, **flags, **all_needs | {"NEEDS_VECTOR": vector})
            given = dict.fromkeys(_TANGENTS, True) | {"HAS_T_VECTOR": vector}
            for walk, into, out_of in (("both ", True, True),) if paired else (("into ", True, False), ("out of ", False, True)):
                yield kernel("double_backward", walk + which, double, **flags, **given, INTO=into, OUT_OF=out_of)
        for block in range(3):
            for what, tangent in (("first", False), ("second", True)):
                given = dict.fromkeys(_TANGENTS, tangent)
                yield kernel("knots", f"{what} {label} {block}", knots, **given, WHICH=block, TANGENT=tangent, PAIRED=paired)


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel for width, real in ((3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")) for kernel in _specialisations(width, real)
)
