"""The operators on a CPU: tiles of rows small enough for the cache, each projected by BLAS and finished by one numba kernel.

Nothing of size [N, D] is made, except a gradient of the target if one is asked for. Sums over rows run in the input's precision
inside a tile and in float64 from tile to tile, in order. Tiles follow from the shapes, and a tile's products run on one thread.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..blas import Spare, each_tile
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
    spare = Spare(x, _tile_rows(x, weight), weight.shape[0])

    def run(part: slice) -> None:
        buffer = spare.take()
        projected = projection(x[part], weight, bias, buffer)
        row_loss_kernel(projected.numpy(), target_array[part], code, loss_array[part], work=projected.numel())
        spare.give(buffer)

    each_tile(_tiles(x, weight), run, work=x.shape[0] * weight.numel())
    return losses


def rows_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, upstream: Tensor, kind: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i, see `reference.row_gradients`; what is not needed is empty."""
    need_x, need_weight, need_bias, need_target = needs
    grad_x, grad_target = x.new_empty(x.shape if need_x else (0,)), x.new_empty(target.shape if need_target else (0,))
    sums, spare = ParameterSums(weight), Spare(x, _tile_rows(x, weight), weight.shape[0])
    code, (target_array, upstream_array) = KINDS.index(kind), arrays(target, upstream)

    def run(part: slice) -> tuple[Tensor | None, Tensor | None]:
        buffer = spare.take()
        pull = projection(x[part], weight, bias, buffer)
        pull_back_kernel(pull.numpy(), target_array[part], upstream_array[part], code, work=pull.numel())
        if need_x:
            torch.mm(pull, weight, out=grad_x[part])
        if need_target:
            torch.neg(pull, out=grad_target[part])
        by_weight, by_bias = sums.product(pull, x[part]) if need_weight else None, pull.sum(0) if need_bias else None
        spare.give(buffer)
        return by_weight, by_bias

    each_tile(_tiles(x, weight), run, sums.add, work=sum(needs) * x.shape[0] * weight.numel())
    return grad_x, *sums.results(need_weight, need_bias), grad_target


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
    sums, slopes, spare = ParameterSums(weight), x.new_empty(x.shape[0]), Spare(x, _tile_rows(x, weight), weight.shape[0])
    code, (target_array, upstream_array, slope_array) = KINDS.index(kind), arrays(target, upstream, slopes)

    def run(part: slice) -> tuple[Tensor | None, Tensor | None]:
        buffers = spare.take(), spare.take()
        pull, curved = projection(x[part], weight, bias, buffers[0]), buffers[1][: part.stop - part.start]
        _tangent(curved, part, x, weight, dx, dweight, dbias, dtarget)
        arguments = (pull.numpy(), curved.numpy(), target_array[part], upstream_array[part], code, slope_array[part])
        pull_back_twice_kernel(*arguments, work=2 * pull.numel())
        if need_x:
            torch.mm(curved, weight, out=grad_x[part])
            if dweight is not None:
                grad_x[part].addmm_(pull, dweight)
        if need_target:
            torch.neg(curved, out=grad_target[part])
        by_weight, by_bias = sums.product(curved, x[part]) if need_weight else None, curved.sum(0) if need_bias else None
        if by_weight is not None and dx is not None:
            by_weight.addmm_(pull.T, dx[part])
        for buffer in buffers:
            spare.give(buffer)
        return by_weight, by_bias

    each_tile(_tiles(x, weight), run, sums.add, work=4 * x.shape[0] * weight.numel())
    return grad_x, *sums.results(need_weight, need_bias), grad_target, slopes if need_upstream else x.new_empty(0)


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


def projection(x: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """Rows of one tile, in the first rows of ``buffer``: x · weightᵀ + bias."""
    out = buffer[: x.shape[0]]
    return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)


def _tiles(x: Tensor, weight: Tensor) -> list[slice]:
    count, tile = x.shape[0], _tile_rows(x, weight)
    return [slice(first, last) for first, last in pairwise([*range(0, count, tile), count])]


def _tile_rows(x: Tensor, weight: Tensor) -> int:
    return max(1, min(x.shape[0], TILE_ROWS, TILE_ELEMENTS // max(weight.shape[0], 1)))


class ParameterSums:
    """Gradients of weight and bias: the first tile as it is, further ones on top of it in float64."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._totals: list[Tensor | None] = [None, None]
        self._spare = Spare(weight, *weight.shape)

    def product(self, pull: Tensor, x: Tensor) -> Tensor:
        """One tile's part of the weight's gradient, pullᵀ · x; `add` takes it back."""
        return torch.mm(pull.T, x, out=self._spare.take())

    def add(self, tile: tuple[Tensor | None, Tensor | None]) -> None:
        """Add one tile's parts; tiles come in order."""
        for place, part in enumerate(tile):
            total = self._totals[place]
            if part is not None:
                self._totals[place] = part if total is None else total.double().add_(part)
                if place == 0 and total is not None:
                    self._spare.give(part)

    def results(self, need_weight: bool, need_bias: bool) -> tuple[Tensor, Tensor]:
        """What is not needed is empty."""
        found, like = [], self._weight
        for total, need, shape in zip(self._totals, (need_weight, need_bias), (like.shape, like.shape[:1]), strict=True):
            found.append(like.new_empty(0) if not need else like.new_zeros(shape) if total is None else total.to(like.dtype))
        return found[0], found[1]
