"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles


def _segment_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    ptr = random_graph(shape, generator).edge_ptr
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (ptr,))


def _scatter_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    index = random_graph(shape, generator).edge_dst
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (index, shape.nodes))


_SOFT = ("segment_softmax", "segment_softmax_backward", "segment_softmax_double_backward")
_LOG = ("segment_softmax", "segment_softmax_backward", "segment_sum", "segment_gather")

CASES = (
    OpCase("segment_softmax", op.segment_softmax, reference.segment_softmax, _segment_sample, _SOFT),
    OpCase("segment_log_softmax", op.segment_log_softmax, reference.segment_log_softmax, _segment_sample, _LOG),
    OpCase("scatter_softmax", op.scatter_softmax, reference.scatter_softmax, _scatter_sample, _SOFT),
    OpCase("scatter_log_softmax", op.scatter_log_softmax, reference.scatter_log_softmax, _scatter_sample, _LOG),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(mode: int, width: int, real: str, *, ordered: bool = False) -> Iterator[AotKernel]:
    sums = "*fp64" if real == "fp64" else "*fp32"
    inputs = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), f"*{real}") | dict.fromkeys(("ptr_ptr", "order_ptr"), "*i64")
    inputs |= {"p_ptr": sums, "q_ptr": sums}
    outputs = dict.fromkeys(("y_ptr", "z_ptr"), f"*{real}")
    # a width of 64 is a multiple of 16, which lets loads be wide
    size = {"F": "i32:16" if width % 16 == 0 else "i32", "PIECE": "i32:16"}
    search = {"segments": "i32", "steps": "i32"}

    def kernel(name: str, signature: dict[str, str], tile: dict[str, int], **flags: Any) -> AotKernel:
        constants: dict[str, Any] = {"MODE": mode, "ORDERED": ordered} | flags
        constants |= {key: value for key, value in tile.items() if key != "num_warps"}
        title = f"segment_softmax_{name}[mode {mode}, {'order, ' if ordered else ''}F{width}, {real}]"
        return AotKernel(title, _load(f"{name}_kernel"), signature, constants, tile["num_warps"])

    piece = tiles.piece_tile(width)
    yield kernel("piece_sums", inputs | search | size, piece)
    yield kernel("segment", inputs | outputs | size, tiles.segment_tile(width), SPLIT=True)
    yield kernel("piece_rows", inputs | outputs | search | size, piece)


def _kernels() -> Iterator[AotKernel]:
    for mode in range(5):
        yield from _specialisations(mode, 8, "fp32", ordered=True)
    for width, real in ((1, "fp32"), (64, "fp32"), (64, "fp64"), (64, "bf16")):
        for mode in (0, 2, 4):
            yield from _specialisations(mode, width, real)


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
