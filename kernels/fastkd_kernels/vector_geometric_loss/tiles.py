"""Sizes of the Triton kernels' tiles. Needs no Triton."""

from __future__ import annotations


def tiles(*, double: bool) -> dict[str, int]:
    """Nodes, projected channels and input channels of a tile; each node has three rows, which fit in registers without spills."""
    return {"BLOCK_N": 16, "BLOCK_D": 16 if double else 32, "BLOCK_C": 16, "num_warps": 4}
