"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference


def _segment_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    ptr = random_graph(shape, generator).edge_ptr
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (ptr,))


def _scatter_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    index = random_graph(shape, generator).edge_dst
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (index, shape.nodes))


def _case(
    function: Callable[..., Tensor], reference_: Callable[..., Tensor], make: Callable[..., Any], reduce: op.Reduce
) -> OpCase:
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


def _kernels() -> Iterator[AotKernel]:
    pointers = {"x_ptr": "*fp32", "ptr_ptr": "*i64", "order_ptr": "*i64", "piece_ptr": "*fp32"}
    search = {"segments": "i32", "steps": "i32"}
    sizes = {"F": "i32", "PIECE": "i32:16"}
    for width, real in ((1, "fp32"), (3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")):
        label = f"F{width}_{real}"
        accumulator = "fp64" if real == "fp64" else "fp32"
        x = pointers | {"x_ptr": f"*{real}", "piece_ptr": f"*{accumulator}"}
        # a width of 128 is a multiple of 16, which lets loads be wide
        size = sizes | {"F": "i32:16" if width % 16 == 0 else "i32"}
        acc = {"ACC": accumulator}
        segment, piece, row = (dict(tile(width)) for tile in _tiles())
        warps = [tile.pop("num_warps") for tile in (segment, piece, row)]
        args = {"piece_arg_ptr": "*i64"}
        out = {"out_ptr": f"*{real}"}
        yield AotKernel(
            f"segment_sum_{label}",
            _load("segment_sum_kernel"),
            x | out | size,
            acc | segment | {"ORDERED": True, "MEAN": True, "SPLIT": True},
            warps[0],
        )
        yield AotKernel(
            f"segment_sum_pieces_{label}", _load("segment_sum_pieces_kernel"), x | search | size, acc | piece | {"ORDERED": True}, warps[1]
        )
        extremum = {"SIGN": 1, "ORDERED": True}
        yield AotKernel(
            f"segment_extremum_{label}",
            _load("segment_extremum_kernel"),
            x | args | out | {"arg_ptr": "*i64"} | size,
            acc | segment | extremum | {"SPLIT": True},
            warps[0],
        )
        yield AotKernel(
            f"segment_extremum_pieces_{label}",
            _load("segment_extremum_pieces_kernel"),
            x | args | search | size,
            acc | piece | extremum,
            warps[1],
        )
        gather = {"rows_ptr": f"*{real}", "ptr_ptr": "*i64", "index_ptr": "*i64", "n": "i32"} | out | search | {"F": size["F"]}
        for indexed in (False, True):
            yield AotKernel(
                f"segment_gather_{'index' if indexed else 'ptr'}_{label}",
                _load("segment_gather_kernel"),
                gather,
                acc | row | {"INDEXED": indexed, "MEAN": True},
                warps[2],
            )
    flat = {"arg_ptr": "*i64", "out_ptr": "*fp32", "size": "i32", "F": "i32"}
    yield AotKernel("arg_gather_fp32", _load("arg_gather_kernel"), flat | {"values_ptr": "*fp32"}, {"BLOCK": 1024})
    yield AotKernel("arg_scatter_fp32", _load("arg_scatter_kernel"), flat | {"grad_ptr": "*fp32"}, {"BLOCK": 1024})


def _tiles() -> tuple[Callable[[int], dict[str, int]], ...]:
    from . import tiles

    return tiles.segment_tile, tiles.piece_tile, tiles.row_tile


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
