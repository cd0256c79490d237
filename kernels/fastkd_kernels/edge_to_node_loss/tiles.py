"""Sizes of the Triton kernels' tiles. Needs no Triton."""

from __future__ import annotations


def tiles(*, double: bool) -> dict[str, int]:
    """Rows, projected channels and input channels of a tile, and edges in flight: they fit in registers without spills."""
    if double:
        return {"BLOCK_N": 16, "BLOCK_D": 32, "BLOCK_C": 16, "UNROLL": 2, "num_warps": 4}
    return {"BLOCK_N": 32, "BLOCK_D": 32, "BLOCK_C": 16, "UNROLL": 4, "num_warps": 8}
