"""Sizes of the Triton kernels' tiles and pieces: functions of width and number of rows alone. Needs no Triton."""

from __future__ import annotations

import math

#: Elements a program treats at a time: of one segment, of rows one by one, of a flat tensor.
SEGMENT_TILE, ROW_TILE, FLAT_TILE = 1024, 2048, 1024
#: Columns a program treats at a time, at most.
WIDTH_TILE = 128


def next_power_of_two(number: int) -> int:
    """The smallest power of two ≥ number, and 1 for 0."""
    return 1 << max(0, number - 1).bit_length()


def segment_tile(width: int) -> dict[str, int]:
    """Tile of a program that reduces one segment of typically some tens of rows.

    Narrow rows put a warp's lanes across rows instead of columns: [32, 1] for F = 1, [8, 128] for wide rows.
    """
    block_f = min(WIDTH_TILE, next_power_of_two(width))
    return {"BLOCK_E": min(32, SEGMENT_TILE // block_f), "BLOCK_F": block_f, "num_warps": 1 if block_f <= 8 else 4}


def piece_tile(width: int) -> dict[str, int]:
    """Tile of a program that reduces a piece of at least 256 rows."""
    block_f = min(WIDTH_TILE, next_power_of_two(width))
    return {"BLOCK_E": min(256, SEGMENT_TILE // block_f), "BLOCK_F": block_f, "num_warps": 4}


def row_tile(width: int) -> dict[str, int]:
    """Tile of a program that treats rows one by one."""
    block_f = min(WIDTH_TILE, next_power_of_two(width))
    return {"BLOCK_E": min(256, ROW_TILE // block_f), "BLOCK_F": block_f, "num_warps": 4}


def piece_length(rows: int) -> int:
    """Positions in a piece: about √rows, so that neither the pieces nor the pass over them is long; a power of two in [256, 4096]."""
    return min(4096, max(256, next_power_of_two(math.isqrt(rows))))
