"""Sizes of the Triton kernels' tiles: functions of the widths and the dtype alone. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two


def tile(width: int, rank: int, *, double: bool) -> dict[str, int]:
    """Tile of edges, of features and of the basis, at least the 16 that ``tl.dot`` wants of each.

    A float32 product in `ieee` precision runs on the ordinary units, whose operands fill registers; these tiles fit in them.
    """
    return {
        "BLOCK_E": 16 if double else 32,
        "BLOCK_D": max(16, min(16 if double else 32, next_power_of_two(width))),
        "BLOCK_R": max(16, min(16 if double else 32, next_power_of_two(rank))),
        "num_warps": 4 if double else 8,
    }
