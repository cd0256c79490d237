"""The operators on a CPU: tiles of nodes small enough for the cache, each projected by BLAS and finished by one numba kernel.

Nothing of size [N, D] is made. Sums over rows run in the input's precision inside a tile and in float64 from tile to tile, in order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..cpu import arrays
from ..projected_loss.kinds import KINDS
from .numba_kernels import node_loss_kernel, node_pull_kernel

#: Numbers of the projection in one tile: 512 kB of float32 stays in a core's second-level cache.
TILE_ELEMENTS = 131_072
#: BLAS sums the rows of a tile one after the other: shorter tiles keep float32 sums to 1e-7.
TILE_ROWS = 1024


def rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    mean: bool,
    kind: str,
) -> Tensor:
    """ℓ, [N] or [3 N]: see `projected_loss.reference.row_losses`."""
    axes = 1 if direction is None else 3
    losses = x.new_empty(x.shape[0])
    numbers = arrays(edge, edge.new_empty(0, 3) if direction is None else direction, ptr, order)
    by_node = losses.numpy().reshape(-1, axes)
    work = _work(x, weight, edge, axes)
    for first, last, projected in projections(x, weight, bias, axes):
        rows_of_tile = projected.numpy().reshape(last - first, axes, projected.shape[1])
        tile = (rows_of_tile, *numbers[:2], numbers[2][first : last + 1], numbers[3], mean, KINDS.index(kind), by_node[first:last])
        node_loss_kernel(*tile, work=work)
    return losses


def rows_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    upstream: Tensor,
    mean: bool,
    kind: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ h ℓ by x, weight and bias; what is not needed is empty."""
    axes = 1 if direction is None else 3
    sums = ProjectionGradients(x, weight, needs)
    *numbers, by_row = arrays(edge, edge.new_empty(0, 3) if direction is None else direction, ptr, order, upstream)
    by_node = by_row.reshape(-1, axes)
    work = _work(x, weight, edge, axes)
    for first, last, projected in projections(x, weight, bias, axes):
        rows_of_tile = projected.numpy().reshape(last - first, axes, projected.shape[1])
        tile = (rows_of_tile, *numbers[:2], numbers[2][first : last + 1], numbers[3], mean, KINDS.index(kind), by_node[first:last])
        node_pull_kernel(*tile, work=work)
        sums.add(slice(axes * first, axes * last), projected)
    return sums.result()


def _work(x: Tensor, weight: Tensor, edge: Tensor, axes: int) -> int:
    """Multiply-adds of a full tile outside of BLAS."""
    nodes = max(1, x.shape[0] // axes)
    return min(nodes * axes, _tile(x, weight)) * weight.shape[0] * (1 + edge.shape[0] // nodes)


def _tile(x: Tensor, weight: Tensor) -> int:
    return max(3, min(TILE_ROWS, TILE_ELEMENTS // max(weight.shape[0], 1)))


def projections(x: Tensor, weight: Tensor, bias: Tensor | None, axes: int) -> Iterator[tuple[int, int, Tensor]]:
    """First and last node of a tile and its rows of x · weightᵀ + bias, in a buffer that the next tile overwrites."""
    nodes, tile, transposed = x.shape[0] // axes, _tile(x, weight) // axes, weight.T
    buffer = x.new_empty(min(tile, nodes) * axes, weight.shape[0])
    for first in range(0, nodes, tile):
        last = min(first + tile, nodes)
        projected, part = buffer[: axes * (last - first)], x[axes * first : axes * last]
        if bias is None:
            torch.mm(part, transposed, out=projected)
        else:
            torch.addmm(bias, part, transposed, out=projected)
        yield first, last, projected


class ProjectionGradients:
    """Gradients of x, weight and bias, given the gradient of x · weightᵀ + bias tile by tile."""

    def __init__(self, x: Tensor, weight: Tensor, needs: list[bool]) -> None:
        self._x, self._weight, self._needs = x, weight, needs
        self._grad_x = x.new_empty(x.shape if needs[0] else (0,))
        self._weight_sum: Tensor | None = None
        self._bias_sum: Tensor | None = None

    def add(self, part: slice, pull: Tensor) -> None:
        """One tile: the rows ``part`` of x, and the gradient of their projection."""
        need_x, need_weight, need_bias = self._needs
        if need_x:
            torch.mm(pull, self._weight, out=self._grad_x[part])
        # the first tile as it is, further ones on top of it in float64
        if need_weight:
            tile = pull.T @ self._x[part]
            self._weight_sum = tile if self._weight_sum is None else self._weight_sum.double().add_(tile)
        if need_bias:
            tile = pull.sum(0)
            self._bias_sum = tile if self._bias_sum is None else self._bias_sum.double().add_(tile)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias; what is not needed is empty."""
        found = []
        for total, need, shape in zip(
            (self._weight_sum, self._bias_sum), self._needs[1:], (self._weight.shape, self._weight.shape[:1]), strict=True
        ):
            like = self._weight
            found.append(like.new_empty(0) if not need else like.new_zeros(shape) if total is None else total.to(like.dtype))
        return self._grad_x, found[0], found[1]
