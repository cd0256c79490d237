"""Size of the tile of edges in which a program goes through one node's distribution. Needs no Triton."""

#: A warp with two lanes' work each: a node of a molecular graph has 10 to 60 neighbours.
SEGMENT_TILE = {"BLOCK_E": 64, "num_warps": 1}
