"""Tiles of the Triton kernels: functions of sizes alone, never of the device, so that the same numbers give the same bits everywhere."""

from __future__ import annotations

from ..radial_conv import tiles

#: Elements of a tile of the message, which holds four sums for each.
TILE = 256
#: Of its derivatives, which hold up to ten.
GRADIENT_TILE = 128


def node_tile(width: int, rows: int, itemsize: int, elements: int = TILE) -> dict[str, int]:
    """Edges and features of one step of a kernel that reads a table of ``rows``, in three blocks."""
    return tiles.node_tile(width, 3 * rows, itemsize, elements)
