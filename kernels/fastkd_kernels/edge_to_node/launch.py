"""From tensors to kernels. Names as in ``op.py``; numba and Triton are imported where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _or_empty(scalar: Tensor | None, vector: Tensor) -> Tensor:
    return vector.new_empty(0, vector.shape[2]) if scalar is None else scalar


def vector_numba(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, D], [E, 3] → [N, 3, D]."""
    from ..cpu import arrays, shares, streams
    from . import numba_kernels

    out, work = torch.empty(ptr.shape[0] - 1, 3, m.shape[1], dtype=m.dtype), 3 * m.numel()
    rows, directions, into, first, sorted_edges, sums = arrays(m, r, dst, ptr, order, out)
    if streams(sorted_edges, rows, sums):
        numba_kernels.sum_vector_streamed(rows, directions, into, shares(first, work), sums, work=work)
    else:
        numba_kernels.sum_vector(rows, directions, first, sorted_edges, sums, work=work)
    return out


def both_numba(m: Tensor, r: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    """[E, D], [E, 3] → [N, D], [N, 3, D]."""
    from ..cpu import arrays, shares, streams
    from . import numba_kernels

    scalar = torch.empty(ptr.shape[0] - 1, m.shape[1], dtype=m.dtype)
    vector, work = torch.empty(ptr.shape[0] - 1, 3, m.shape[1], dtype=m.dtype), 4 * m.numel()
    rows, directions, into, first, sorted_edges, *sums = arrays(m, r, dst, ptr, order, scalar, vector)
    if streams(sorted_edges, rows, sums[1]):
        numba_kernels.sum_both_streamed(rows, directions, into, shares(first, work), *sums, work=work)
    else:
        numba_kernels.sum_both(rows, directions, first, sorted_edges, *sums, work=work)
    return scalar, vector


def to_edge_numba(r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, 3], [N, 3, D], [N, D] or None → [E, D]."""
    from ..cpu import arrays
    from . import numba_kernels

    out = torch.empty(r.shape[0], vector.shape[2], dtype=vector.dtype)
    numba_kernels.node_to_edge(*arrays(r, vector, _or_empty(scalar, vector), dst, out), work=4 * out.numel())
    return out


def dot_numba(m: Tensor, vector: Tensor, dst: Tensor, ptr: Tensor, order: Tensor) -> Tensor:
    """[E, D], [N, 3, D] → [E, 3]."""
    from ..cpu import arrays
    from . import numba_kernels

    out = torch.empty(m.shape[0], 3, dtype=m.dtype)
    numba_kernels.node_dot_edge(*arrays(m, vector, dst, out), work=3 * m.numel())
    return out


def edges_numba(m: Tensor, r: Tensor, vector: Tensor, scalar: Tensor | None, dst: Tensor, ptr: Tensor, order: Tensor) -> Pair:
    """[E, D], [E, 3], [N, 3, D], [N, D] or None → [E, D], [E, 3]."""
    from ..cpu import arrays
    from . import numba_kernels

    by_m = torch.empty(m.shape, dtype=m.dtype)
    by_r = torch.empty(m.shape[0], 3, dtype=m.dtype)
    inputs = arrays(m, r, vector, _or_empty(scalar, vector), dst, by_m, by_r)
    numba_kernels.edge_gradients(*inputs, work=7 * m.numel())
    return by_m, by_r


def vector_triton(*args: Any) -> Tensor:
    """As `vector_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.sum_vector(*args)


def both_triton(*args: Any) -> Pair:
    """As `both_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.sum_both(*args)


def to_edge_triton(*args: Any) -> Tensor:
    """As `to_edge_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.node_to_edge(*args)


def dot_triton(*args: Any) -> Tensor:
    """As `dot_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.node_dot_edge(*args)


def edges_triton(*args: Any) -> Pair:
    """As `edges_numba`, on a GPU."""
    from . import triton_launch

    return triton_launch.edge_gradients(*args)
