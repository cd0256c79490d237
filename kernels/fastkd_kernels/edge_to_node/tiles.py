"""Sizes of the Triton kernels' tiles: functions of width alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two


def node_tile(width: int) -> dict[str, int]:
    """Tile of a program that sums the edges of one node; narrow rows put the lanes across edges."""
    block_f = min(128, next_power_of_two(width))
    return {"BLOCK_E": min(32, 2048 // block_f), "BLOCK_F": block_f, "num_warps": 1 if block_f <= 8 else 4}


def edge_tile(width: int) -> dict[str, int]:
    """Tile of a program that treats edges one by one, three node rows each."""
    block_f = min(64, next_power_of_two(width))
    return {"BLOCK_E": min(128, 1024 // block_f), "BLOCK_F": block_f, "num_warps": 4}
