"""Launches of the Triton kernels; names as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .tiles import edge_tile, node_tile

Pair = tuple[Tensor, Tensor]


def _onto_nodes(m: Tensor, r: Tensor, ptr: Tensor, order: Tensor, scalar: Tensor | None) -> Tensor:
    m, r, nodes, width = m.contiguous(), r.contiguous(), ptr.shape[0] - 1, m.shape[1]
    vector = torch.empty((nodes, 3, width), dtype=m.dtype, device=m.device)
    if vector.numel():
        tile = node_tile(width)
        grid = (nodes, triton.cdiv(width, tile["BLOCK_F"]))
        # without the scalars their pointer is not read
        out = vector if scalar is None else scalar
        flags = {"SCALAR": scalar is not None}
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
    by_m = vector if r is None else vector.new_empty(edges, width)
    # an empty sum over no columns is 0, and no kernel runs for it
    by_r = vector if m is None else vector.new_empty(edges, 3) if width else vector.new_zeros(edges, 3)
    if edges and width:
        tile = edge_tile(width)
        # what a flag turns off is not read
        inputs = [vector if tensor is None else tensor.contiguous() for tensor in (m, r, vector, scalar)]
        flags = {"SCALAR": scalar is not None, "BY_M": r is not None, "BY_R": m is not None}
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


def edge_gradients(m: Tensor, r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    """[E, D], [E, 3], [N, 3, D], [N, D] or None → [E, D], [E, 3]."""
    return _onto_edges(m, r, vector, scalar, dst, order)
