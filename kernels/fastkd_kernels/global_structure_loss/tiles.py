"""Sizes of the Triton kernels' tiles: functions of dtype and of the larger of the two widths. Needs no Triton."""

from __future__ import annotations

from ..segment_reduce.tiles import next_power_of_two


def rows_tile(width: int) -> dict[str, int]:
    """Tile of rows i, of rows j, and of features: differences are three-dimensional on the chip, so all three are small."""
    return _tile(min(32, next_power_of_two(width)), 4)


def pull_tile(width: int, double: bool) -> dict[str, int]:
    """As `rows_tile`, with wider features: each tile of them computes the distances again."""
    return _tile(min(32 if double else 64, next_power_of_two(width)), 8 if double else 4)


def _tile(block_f: int, num_warps: int) -> dict[str, int]:
    return {"BLOCK_I": 8, "BLOCK_J": 8 if block_f > 8 else 16, "BLOCK_F": block_f, "num_warps": num_warps}
