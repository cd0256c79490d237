"""Tiles of the Triton kernels: functions of sizes alone, never of the device, so that the same numbers give the same bits everywhere."""

from __future__ import annotations

#: Elements of a tile of [edges, features], by kernel: the more sums a program holds, the fewer of each. Few edges, because nodes have few.
ELEMENTS = {"message": 256, "backward": 128, "double_backward": 128}
#: The same in float64, which takes two registers a number.
DOUBLE_ELEMENTS = {"message": 128, "backward": 128, "double_backward": 64}
#: Features of a tile. A row of ψ is made once a tile of features, so that they should be many; sums must stay in registers.
MOST_FEATURES = 32
#: What the product of matrices in the weight's gradient takes: edges, and functions.
PRODUCT_EDGES, PRODUCT_FUNCTIONS = 16, 16
WARPS = {"message": 2, "backward": 2, "double_backward": 2, "weight": 4}
#: The weight's gradient is made in parts of so many edges or more: a part sums its edges in order, and torch the parts in order.
EDGES_PER_PART = 512
#: Ceiling on programs, a few per multiprocessor, which bounds the scratch whatever the number of edges is.
MAX_PROGRAMS = 1024


def tile(kernel: str, width: int, double: bool) -> dict[str, int]:
    """Edges and features (and functions) of one step of a kernel."""
    most = MOST_FEATURES // 2 if double else MOST_FEATURES
    if kernel == "weight":
        # products want 16 of everything
        return {"BLOCK_E": PRODUCT_EDGES, "BLOCK_F": max(16, _power(width, most)), "BLOCK_K": PRODUCT_FUNCTIONS}
    features, elements = _power(width, most), (DOUBLE_ELEMENTS if double else ELEMENTS)[kernel]
    return {"BLOCK_E": min(16, elements // features), "BLOCK_F": features}


def parts(edges: int, tiles: int) -> tuple[int, int]:
    """How many parts the edges of a weight's gradient fall into, and how many edges each has."""
    least = max(EDGES_PER_PART, -(-edges // max(1, MAX_PROGRAMS // max(tiles, 1))))
    each = -(-min(least, edges) // PRODUCT_EDGES) * PRODUCT_EDGES
    return -(-edges // max(each, 1)), each


def _power(width: int, most: int) -> int:
    features = 1
    while features < min(width, most):
        features *= 2
    return features
