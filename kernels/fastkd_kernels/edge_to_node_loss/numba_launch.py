"""The operators on a CPU: tiles of nodes small enough for the cache, each projected by BLAS and finished by one numba kernel.

Nothing of size [N, D] is made. Sums over rows run in the input's precision inside a tile and in float64 from tile to tile, in order.
Tiles follow from the shapes, and a tile's products run on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from ..blas import Spare, each_tile
from ..cpu import arrays
from ..projected_loss.kinds import KINDS
from ..projected_loss.numba_launch import ParameterSums, projection
from .numba_kernels import node_loss_kernel, node_pull_kernel

#: Numbers of the projection in one tile: 512 kB of float32 stays in a core's second-level cache.
TILE_ELEMENTS = 131_072
#: BLAS sums the rows of a tile one after the other: shorter tiles keep float32 sums to 1e-7.
TILE_ROWS = 1024

Result = TypeVar("Result")


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

    def run(first: int, last: int, projected: Tensor) -> None:
        rows_of_tile = projected.numpy().reshape(last - first, axes, projected.shape[1])
        tile = (rows_of_tile, *numbers[:2], numbers[2][first : last + 1], numbers[3], mean, KINDS.index(kind), by_node[first:last])
        node_loss_kernel(*tile, work=work)

    each_projection(x, weight, bias, axes, run, products=1)
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

    def run(first: int, last: int, projected: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows_of_tile = projected.numpy().reshape(last - first, axes, projected.shape[1])
        tile = (rows_of_tile, *numbers[:2], numbers[2][first : last + 1], numbers[3], mean, KINDS.index(kind), by_node[first:last])
        node_pull_kernel(*tile, work=work)
        return sums.tile(slice(axes * first, axes * last), projected)

    each_projection(x, weight, bias, axes, run, sums.add, products=3)
    return sums.result()


def _work(x: Tensor, weight: Tensor, edge: Tensor, axes: int) -> int:
    """Multiply-adds of a full tile outside of BLAS."""
    nodes = max(1, x.shape[0] // axes)
    return min(nodes * axes, _tile(x, weight)) * weight.shape[0] * (1 + edge.shape[0] // nodes)


def _tile(x: Tensor, weight: Tensor) -> int:
    return max(3, min(TILE_ROWS, TILE_ELEMENTS // max(weight.shape[0], 1)))


def each_projection(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    axes: int,
    run: Callable[[int, int, Tensor], Result],
    collect: Callable[[Result], None] | None = None,
    *,
    products: int,
) -> None:
    """``run`` on tiles of nodes: the first and the last one, and their rows of x · weightᵀ + bias, which ``run`` may overwrite.

    ``run`` and ``collect`` are those of `blas.each_tile`; ``products`` is the number of products of this size in a tile, this one included.
    """
    nodes, tile = x.shape[0] // axes, _tile(x, weight) // axes
    spare = Spare(x, axes * min(tile, nodes), weight.shape[0])

    def project(part: tuple[int, int]) -> Result:
        (first, last), buffer = part, spare.take()
        result = run(first, last, projection(x[axes * first : axes * last], weight, bias, buffer))
        spare.give(buffer)
        return result

    each_tile(list(pairwise([*range(0, nodes, tile), nodes])), project, collect, work=products * x.shape[0] * weight.numel())


class ProjectionGradients:
    """Gradients of x, weight and bias, given the gradient of x · weightᵀ + bias tile by tile."""

    def __init__(self, x: Tensor, weight: Tensor, needs: list[bool]) -> None:
        self._x, self._weight, self._needs = x, weight, needs
        self._grad_x = x.new_empty(x.shape if needs[0] else (0,))
        self._sums = ParameterSums(weight)

    def tile(self, part: slice, pull: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Write the rows ``part`` of the gradient of x; returns the tile's share of the others. Tiles may run at the same time."""
        need_x, need_weight, need_bias = self._needs
        if need_x:
            torch.mm(pull, self._weight, out=self._grad_x[part])
        return self._sums.product(pull, self._x[part]) if need_weight else None, pull.sum(0) if need_bias else None

    def add(self, tile: tuple[Tensor | None, Tensor | None]) -> None:
        """Add what `tile` returned, in the order of the tiles."""
        self._sums.add(tile)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias; what is not needed is empty."""
        return self._grad_x, *self._sums.results(self._needs[1], self._needs[2])
