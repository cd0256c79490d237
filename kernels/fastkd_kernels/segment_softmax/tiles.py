"""Sizes of the Triton kernels' tiles: functions of width alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two

#: Elements of a tile: the double backward holds five of them in registers.
SEGMENT_TILE, PIECE_TILE, WIDTH_TILE = 1024, 1024, 64


def segment_tile(width: int) -> dict[str, int]:
    """Tile of a program that owns one segment of typically some tens of rows; narrow rows put a warp's lanes across rows."""
    block_f = min(WIDTH_TILE, next_power_of_two(width))
    return {"BLOCK_E": min(32, SEGMENT_TILE // block_f), "BLOCK_F": block_f, "num_warps": 1 if block_f <= 8 else 4}


def piece_tile(width: int) -> dict[str, int]:
    """Tile of a program that owns a piece of at least 256 rows."""
    block_f = min(WIDTH_TILE, next_power_of_two(width))
    return {"BLOCK_E": min(256, PIECE_TILE // block_f), "BLOCK_F": block_f, "num_warps": 4}
