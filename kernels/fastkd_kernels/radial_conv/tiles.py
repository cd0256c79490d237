"""Tiles of the Triton kernels: functions of sizes alone, never of the device, so that the same numbers give the same bits everywhere."""

from __future__ import annotations

#: Elements of a tile.
TILE = 512
#: Two warps a program: a node has few edges, and many programs fit on a multiprocessor.
NODE_WARPS = 2
#: Eight sums are held per element of the tile, so that it is spread over more lanes.
BUCKET_WARPS = 4
#: All programs that run together read the same columns of the table; these take at most this many bytes, to stay in the first cache.
SLICE_BYTES = 48 * 1024
#: Units in a piece of a bucket, on average over the buckets.
PIECE_UNITS = 256
MAX_PIECES = 32
#: Units a program weighs.
WEIGHTS_BLOCK = 128


def node_tile(width: int, rows: int, itemsize: int, elements: int = TILE) -> dict[str, int]:
    """Edges and features of one step of a kernel that reads ``rows`` of a table in each column; ``elements`` for float32."""
    # twice the registers for float64, half the tile
    return _tile(
        width, min(128, max(32, _power_of_two_below(SLICE_BYTES // (rows * itemsize)))), elements // 2 if itemsize == 8 else elements
    )


def bucket_tile(width: int) -> dict[str, int]:
    """Units and features of one step of a kernel that sums over units between two knots."""
    return _tile(width, 64, TILE)


def pieces(units: int, intervals: int) -> int:
    """Into how many pieces each bucket is cut, for large batches: each has its own partial sums."""
    return max(1, min(MAX_PIECES, units // (PIECE_UNITS * intervals)))


def _tile(width: int, most: int, elements: int) -> dict[str, int]:
    block_f = min(most, 1 << max(0, width - 1).bit_length())
    return {"BLOCK_E": min(32, elements // block_f), "BLOCK_F": block_f}


def _power_of_two_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
