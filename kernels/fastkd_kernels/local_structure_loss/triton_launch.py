"""Launches of the Triton kernels; names and arguments as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import triton
from torch import Tensor

from ..edge_to_node.tiles import edge_tile, node_tile
from . import triton_kernels as kernels
from .reference import accumulator
from .tiles import SEGMENT_TILE


def edge_distance(x: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """[N, C] → [E]."""
    return _dot(x, None, src, dst, order)


def edge_dot(a: Tensor, b: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """[N, C], [N, C] → [E]."""
    return _dot(a, b, src, dst, order)


def _dot(a: Tensor, b: Tensor | None, src: Tensor, dst: Tensor, order: Tensor) -> Tensor:
    """The product of a's and b's differences, or the norm of a's if there is no b."""
    a, (edges, width) = a.contiguous(), (src.shape[0], a.shape[1])
    out = a.new_empty(edges, dtype=accumulator(a))
    if edges:
        tile = edge_tile(width)
        flags = {"SAME": b is None, "ROOT": b is None}
        kernels.edge_dot_kernel[(triton.cdiv(edges, tile["BLOCK_E"]),)](
            a, a if b is None else b.contiguous(), src, dst, order, out, edges, width, **flags, **tile
        )
    return out


def edge_laplacian(
    w: Tensor, x: Tensor, src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor
) -> Tensor:
    """[E], [N, C] → [N, C]."""
    out = x.new_empty(x.shape)
    if out.numel():
        tile = node_tile(x.shape[1])
        grid = (x.shape[0], triton.cdiv(x.shape[1], tile["BLOCK_F"]))
        arguments = (w.contiguous(), x.contiguous(), src, dst, ptr, order, src_ptr, src_order, out, x.shape[1])
        kernels.edge_laplacian_kernel[grid](*arguments, **tile)
    return out


def divergence(student: Tensor, teacher: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E], [E] → [N]."""
    student, nodes = student.contiguous(), ptr.shape[0] - 1
    out = student.new_empty(nodes)
    if nodes:
        # the upstream's pointer is not read
        arguments = (student, teacher.contiguous(), student, ptr, order, out)
        kernels.divergence_kernel[(nodes,)](*arguments, GRADIENT=False, **SEGMENT_TILE)
    return out


def divergence_gradient(student: Tensor, teacher: Tensor, upstream: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E], [E], [N] → [E]."""
    out = student.new_empty(student.shape)
    if out.numel():
        arguments = (student.contiguous(), teacher.contiguous(), upstream.contiguous(), ptr, order, out)
        kernels.divergence_kernel[(ptr.shape[0] - 1,)](*arguments, GRADIENT=True, **SEGMENT_TILE)
    return out
