"""The operators on a CPU: tiles of rows small enough for the cache, each projected by BLAS and finished by one numba kernel.

Nothing of size [N, D] is made, except a gradient of the target if one is asked for. Sums over rows run in the input's precision
inside a tile and in float64 from tile to tile, in order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..cpu import arrays
from .kinds import KINDS
from .numba_kernels import pull_back_kernel, pull_back_twice_kernel, row_loss_kernel

#: Numbers of the projection in one tile: 512 kB of float32 stays in a core's second-level cache.
TILE_ELEMENTS = 131_072
#: BLAS sums the rows of a tile one after the other: shorter tiles keep float32 sums to 1e-7 (16,384 rows: 1e-6).
TILE_ROWS = 1024


def rows(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: str) -> Tensor:
    """ℓ [N], see `reference.row_losses`."""
    losses = x.new_empty(x.shape[0])
    code, (target_array, loss_array) = KINDS.index(kind), arrays(target, losses)
    for part, projected in _projections(x, weight, bias):
        row_loss_kernel(projected.numpy(), target_array[part], code, loss_array[part], work=projected.numel())
    return losses


def rows_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i, see `reference.row_gradients`; what is not needed is empty."""
    need_x, need_weight, need_bias, need_target = needs
    grad_x, grad_target = x.new_empty(x.shape if need_x else (0,)), x.new_empty(target.shape if need_target else (0,))
    weight_sum, bias_sum = _TileSum(), _TileSum()
    code, (target_array, upstream_array) = KINDS.index(kind), arrays(target, upstream)
    for part, pull in _projections(x, weight, bias):
        pull_back_kernel(pull.numpy(), target_array[part], upstream_array[part], code, work=pull.numel())
        if need_x:
            torch.mm(pull, weight, out=grad_x[part])
        if need_weight:
            weight_sum.add(pull.T @ x[part])
        if need_bias:
            bias_sum.add(pull.sum(0))
        if need_target:
            torch.neg(pull, out=grad_target[part])
    return (
        grad_x,
        weight_sum.result(weight, weight.shape) if need_weight else x.new_empty(0),
        bias_sum.result(weight, weight.shape[:1]) if need_bias else x.new_empty(0),
        grad_target,
    )


def rows_second(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    upstream: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dtarget: Tensor | None,
    kind: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gradients, see `reference.row_second_gradients`; what is not needed is empty."""
    need_x, need_weight, need_bias, need_target, need_upstream = needs
    grad_x, grad_target = x.new_empty(x.shape if need_x else (0,)), x.new_empty(target.shape if need_target else (0,))
    weight_sum, bias_sum, slopes = _TileSum(), _TileSum(), x.new_empty(x.shape[0])
    code, (target_array, upstream_array, slope_array) = KINDS.index(kind), arrays(target, upstream, slopes)
    buffer = x.new_empty(_tile_rows(x, weight), weight.shape[0])
    for part, pull in _projections(x, weight, bias):
        curved = buffer[: pull.shape[0]]
        _tangent(curved, part, x, weight, dx, dweight, dbias, dtarget)
        arguments = (pull.numpy(), curved.numpy(), target_array[part], upstream_array[part], code, slope_array[part])
        pull_back_twice_kernel(*arguments, work=2 * pull.numel())
        if need_x:
            torch.mm(curved, weight, out=grad_x[part])
            if dweight is not None:
                grad_x[part].addmm_(pull, dweight)
        if need_weight:
            tile = curved.T @ x[part]
            weight_sum.add(tile if dx is None else tile.addmm_(pull.T, dx[part]))
        if need_bias:
            bias_sum.add(curved.sum(0))
        if need_target:
            torch.neg(curved, out=grad_target[part])
    return (
        grad_x,
        weight_sum.result(weight, weight.shape) if need_weight else x.new_empty(0),
        bias_sum.result(weight, weight.shape[:1]) if need_bias else x.new_empty(0),
        grad_target,
        slopes if need_upstream else x.new_empty(0),
    )


def _tangent(
    out: Tensor,
    part: slice,
    x: Tensor,
    weight: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dtarget: Tensor | None,
) -> None:
    """Overwrite ``out`` with dx[part] · weightᵀ + x[part] · dweightᵀ + dbias − dtarget[part], as far as they exist."""
    if dbias is None:
        out.zero_()
    else:
        out.copy_(dbias.expand_as(out))
    if dx is not None:
        out.addmm_(dx[part], weight.T)
    if dweight is not None:
        out.addmm_(x[part], dweight.T)
    if dtarget is not None:
        out.sub_(dtarget[part])


def _projections(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows and x[rows] · weightᵀ + bias, in a buffer that the next tile overwrites."""
    count, tile = x.shape[0], _tile_rows(x, weight)
    buffer, transposed = x.new_empty(tile, weight.shape[0]), weight.T
    for first in range(0, count, tile):
        part = slice(first, min(first + tile, count))
        projected = buffer[: part.stop - first]
        if bias is None:
            torch.mm(x[part], transposed, out=projected)
        else:
            torch.addmm(bias, x[part], transposed, out=projected)
        yield part, projected


def _tile_rows(x: Tensor, weight: Tensor) -> int:
    return max(1, min(x.shape[0], TILE_ROWS, TILE_ELEMENTS // max(weight.shape[0], 1)))


class _TileSum:
    """A sum over tiles: the first tile as it is, further ones on top of it in float64."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, tile: Tensor) -> None:
        self._total = tile if self._total is None else self._total.double().add_(tile)

    def result(self, like: Tensor, shape: torch.Size) -> Tensor:
        return like.new_zeros(shape) if self._total is None else self._total.to(like.dtype)
