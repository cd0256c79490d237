"""Launches of the Triton kernels; names as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_kernels as kernels

Pair = tuple[Tensor, Tensor]


def node_tile(width: int) -> dict[str, int]:
    """Tile of a program that sums the edges of one node; narrow rows put the lanes across edges."""
    block_f = min(128, triton.next_power_of_2(width))
    return {"BLOCK_E": min(32, 2048 // block_f), "BLOCK_F": block_f, "num_warps": 1 if block_f <= 8 else 4}


def edge_tile(width: int) -> dict[str, int]:
    """Tile of a program that treats edges one by one, three node rows each."""
    block_f = min(64, triton.next_power_of_2(width))
    return {"BLOCK_E": min(128, 1024 // block_f), "BLOCK_F": block_f, "num_warps": 4}


def _accumulator(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _onto_nodes(m: Tensor, r: Tensor, ptr: Tensor, order: Tensor, scalar: Tensor | None) -> Tensor:
    m, r, nodes, width = m.contiguous(), r.contiguous(), ptr.shape[0] - 1, m.shape[1]
    vector = torch.empty((nodes, 3, width), dtype=m.dtype, device=m.device)
    if vector.numel():
        tile = node_tile(width)
        grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
        # without the scalars their pointer is not read
        out = vector if scalar is None else scalar
        flags = {"SCALAR": scalar is not None, "ACC": _accumulator(m.dtype)}
        kernels.edge_to_node_kernel[grid](m, r, ptr.contiguous(), order.contiguous(), out, vector, width, **flags, **tile)
    return vector


def sum_vector(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, D], [E, 3] → [N, 3, D]."""
    return _onto_nodes(m, r, ptr, order, None)


def sum_both(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    """[E, D], [E, 3] → [N, D], [N, 3, D]."""
    scalar = torch.empty((ptr.shape[0] - 1, m.shape[1]), dtype=m.dtype, device=m.device)
    return scalar, _onto_nodes(m, r, ptr, order, scalar)


def _onto_edges(
    m: Tensor | None, r: Tensor | None, vector: Tensor, scalar: Tensor | None, dst: Tensor, order: Tensor
) -> tuple[Tensor, Tensor]:
    """By m where r is given, by r where m is given; the other result is a stand-in."""
    vector, edges, width = vector.contiguous(), dst.shape[0], vector.shape[2]
    kind = {"dtype": vector.dtype, "device": vector.device}
    by_m = vector if r is None else torch.empty((edges, width), **kind)
    # an empty sum over no columns is 0, and no kernel runs for it
    by_r = vector if m is None else (torch.empty if width else torch.zeros)((edges, 3), **kind)
    if edges and width:
        tile = edge_tile(width)
        # what a flag turns off is not read
        inputs = [vector if tensor is None else tensor.contiguous() for tensor in (m, r, vector, scalar)]
        flags = {"SCALAR": scalar is not None, "BY_M": r is not None, "BY_R": m is not None, "ACC": _accumulator(vector.dtype)}
        kernels.node_to_edge_kernel[(triton.cdiv(edges, tile["BLOCK_E"]),)](
            *inputs, dst.contiguous(), order.contiguous(), by_m, by_r, edges, width, **flags, **tile
        )
    return by_m, by_r


def node_to_edge(r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, 3], [N, 3, D], [N, D] or None → [E, D]."""
    return _onto_edges(None, r, vector, scalar, dst, order)[0]


def node_dot_edge(m: Tensor, vector: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, D], [N, 3, D] → [E, 3]."""
    return _onto_edges(m, None, vector, None, dst, order)[1]


def edge_gradients(
    m: Tensor, r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor
) -> Pair:
    """[E, D], [E, 3], [N, 3, D], [N, D] or None → [E, D], [E, 3]."""
    return _onto_edges(m, r, vector, scalar, dst, order)
