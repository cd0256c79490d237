"""Sizes of the Triton kernels' tiles: functions of width and dtype alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two


def gram_tile(width: int, *, double: bool) -> dict[str, int]:
    """A square tile of a Gram matrix, and the rows that are multiplied at a time."""
    block = max(16, min(32 if double else 64, next_power_of_two(width)))
    return {"BLOCK": block, "BLOCK_N": 16, "num_warps": 4 if block < 64 else 8}


def map_tile(*, double: bool) -> dict[str, int]:
    """A tile of a gradient, and the channels that are multiplied at a time."""
    return {"BLOCK_N": 32, "BLOCK_OUT": 32 if double else 64, "BLOCK_K": 16, "num_warps": 4}
