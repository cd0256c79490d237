"""Sizes of the Triton kernels' tiles: functions of the number of functions alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two

#: Elements of a tile of edges and functions, and of a flat tile of edges.
TILE, FLAT_TILE = 1024, 1024
#: Edges in a part of the sums over edges, and the most parts there are, which bounds the scratch whatever E is.
PER_PART, MAX_PARTS = 512, 1024


def tile(size: int, *, double: bool) -> dict[str, int]:
    """Tile for ``size`` functions; float64 takes twice the registers and its functions more of them, so it gets a quarter of the elements."""
    block_r = min(128, next_power_of_two(size))
    return {"BLOCK_E": min(64, TILE // (4 if double else 1) // block_r), "BLOCK_R": block_r, "num_warps": 4}
