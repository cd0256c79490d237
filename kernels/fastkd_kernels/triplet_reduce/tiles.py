"""Sizes of the Triton kernels' tiles: functions of the widths and the dtype alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two

#: Widest rows that one program reads whole, so that both gradients come from one pass.
ONE_TILE = 128


def reduce_tile(count: int, width: int, *, double: bool) -> dict[str, int]:
    """Tile of a program that sums outer products for one edge: at least the 16 that ``tl.dot`` wants of triplets, basis and width."""
    block_s = max(16, min(32 if double else 64, next_power_of_two(count)))
    return {"BLOCK_T": 16, "BLOCK_S": block_s, "BLOCK_F": max(16, min(32 if double else 64, next_power_of_two(width))), "num_warps": 4}


def pair_tile(width: int, *, double: bool) -> dict[str, int]:
    """Tile of a program that reads one row of the cotangent for each pair of a triplet and a basis function."""
    block_f = min(ONE_TILE, next_power_of_two(width))
    return {"BLOCK_P": min(64, (1024 if double else 2048) // block_f), "BLOCK_F": block_f, "num_warps": 4}
