"""Sizes of the Triton kernels' tiles: functions of width and of the bytes of a number alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two

#: Elements of a tile of nodes and features. The double backward holds some thirty such tiles at once.
TILE = 512


def tile(width: int, *, double: bool) -> dict[str, int]:
    """Tile of a program; float64 takes twice the registers and gets half the elements."""
    block_f = min(128, next_power_of_two(width))
    return {"BLOCK_N": max(1, TILE // (2 if double else 1) // block_f), "BLOCK_F": block_f, "num_warps": 4}
