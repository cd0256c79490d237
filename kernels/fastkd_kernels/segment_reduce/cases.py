"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles


def _segment_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    ptr = random_graph(shape, generator).edge_ptr
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (ptr,))


def _scatter_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    index = random_graph(shape, generator).edge_dst
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (index, shape.nodes))


def _case(function: Callable[..., Tensor], reference_: Callable[..., Tensor], make: Callable[..., Any], reduce: op.Reduce) -> OpCase:
    linear = reduce in ("sum", "mean")
    return OpCase(
        name=f"{function.__name__}[{reduce}]",
        function=partial(function, reduce=reduce),
        reference=partial(reference_, reduce=reduce),
        make=make,
        operators=("segment_sum", "segment_gather") if linear else ("segment_extremum", "arg_gather", "arg_scatter"),
        smooth=linear,
    )


CASES = tuple(
    _case(function, reference_, make, reduce)
    for function, reference_, make in (
        (op.segment_reduce, reference.segment_reduce, _segment_sample),
        (op.scatter_reduce, reference.scatter_reduce, _scatter_sample),
    )
    for reduce in op.REDUCTIONS
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    accumulator = "fp64" if real == "fp64" else "fp32"
    x = {"x_ptr": f"*{real}", "ptr_ptr": "*i64", "order_ptr": "*i64", "piece_ptr": f"*{accumulator}"}
    args, out, search = {"piece_arg_ptr": "*i64"}, {"out_ptr": f"*{real}"}, {"segments": "i32", "steps": "i32"}
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = {"F": "i32:16" if width % 16 == 0 else "i32", "PIECE": "i32:16"}
    segment, piece, row = tiles.segment_tile(width), tiles.piece_tile(width), tiles.row_tile(width)

    def kernel(name: str, signature: dict[str, str], tile: dict[str, int], label: str = "", **flags: Any) -> AotKernel:
        constants = flags | {key: value for key, value in tile.items() if key != "num_warps"}
        return AotKernel(f"{name}[{label}F{width}, {real}]", _load(f"{name}_kernel"), signature, constants, tile["num_warps"])

    for order in (False, True):
        label = "order, " if order else ""
        yield kernel("segment_sum", x | out | size, segment, label, ORDERED=order, MEAN=True, SPLIT=True)
    yield kernel("segment_sum_pieces", x | search | size, piece, ORDERED=True)
    signature = x | args | out | {"arg_ptr": "*i64"} | size
    yield kernel("segment_extremum", signature, segment, SIGN=-1, ORDERED=True, SPLIT=True)
    yield kernel("segment_extremum_pieces", x | args | search | size, piece, SIGN=-1, ORDERED=True)
    gather = {"rows_ptr": f"*{real}", "ptr_ptr": "*i64", "index_ptr": "*i64", "n": "i32", "F": size["F"]} | out | search
    for index in (False, True):
        yield kernel("segment_gather", gather, row, "index, " if index else "", INDEXED=index, MEAN=True)


def _kernels() -> Iterator[AotKernel]:
    for width, real in ((1, "fp32"), (1, "fp64"), (3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")):
        yield from _specialisations(width, real)
    flat = {"arg_ptr": "*i64", "out_ptr": "*fp32", "size": "i32", "F": "i32"}
    block = {"BLOCK": tiles.FLAT_TILE}
    yield AotKernel("arg_gather[fp32]", _load("arg_gather_kernel"), flat | {"values_ptr": "*fp32"}, block)
    yield AotKernel("arg_scatter[fp32]", _load("arg_scatter_kernel"), flat | {"grad_ptr": "*fp32"}, block)


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
