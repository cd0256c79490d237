"""The operators on a CPU: tiles of units small enough for the cache; numba for what is elementwise, BLAS for the products.

Nothing edge-sized is made but scalars. Tiles run in order, and within a tile every sum has a fixed order. Parameter gradients are
summed in the input's precision over a few tiles, and in float64 beyond. The number of threads changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import blas
from ..cpu import arrays
from ..radial_specs import ACTIVATIONS, BASES, ENVELOPES, ActivationKind, decode
from . import numba_kernels as kernels
from .codes import slopes_of, units_of
from .numba_basis import basis_tile_kernel

#: Numbers in one order of a tile's rows: 384 units of 128 features. Smaller tiles fit the cache better and cost more calls.
TILE_ELEMENTS = 49_152
#: BLAS sums the rows of a tile one after the other: shorter sums keep more digits.
MOST_UNITS = 1024
#: Units whose parameter gradients are added in the input's precision.
UNITS_PER_SUM = 1024
#: Features that one thread owns where kernels add onto nodes.
THREAD_FEATURES = 32


def value(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, basis: str, envelope: str, activation: ActivationKind,
) -> Tensor:  # fmt: skip
    """See `reference.value`."""
    call = _Call(x, length, (w1, b1, w2, b2), (src, dst, order, pair_edges), (basis, envelope, activation))
    y = x.new_zeros(x.shape)
    source, target = arrays(x, y)
    for part, tile in call.tiles(1):
        call.filters(tile, 0, 1)
        kernels.spread_kernel(tile.weight[0], *call.ends(part), source, target, call.block, work=2 * tile.work)
    return y


def gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor,
    basis: str, envelope: str, activation: ActivationKind, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.gradients`; what is not needed is empty."""
    need_x, need_length, *need_network = needs
    call = _Call(x, length, (w1, b1, w2, b2), (src, dst, order, pair_edges), (basis, envelope, activation))
    grad_x, dots = x.new_zeros(x.shape if need_x else (0,)), x.new_empty(call.count if need_length else 0)
    sums = _NetworkSums(call, need_network)
    x_array, g_array, grad_array, dots_array = arrays(x, grad, grad_x, dots)
    for part, tile in call.tiles(2 if need_length else 1):
        i, j, symmetric = ends = call.ends(part)
        call.filters(tile, 0 if need_x else 1, 2 if need_length else 1)
        if need_x:
            # on the reversed graph
            kernels.spread_kernel(tile.weight[0], j, i, symmetric, g_array, grad_array, call.block, work=2 * tile.work)
        if need_length:
            kernels.slope_dots_kernel(tile.weight[1], *ends, g_array, x_array, dots_array[part], work=tile.work)
        if any(need_network):
            kernels.products_kernel(*ends, g_array, x_array, tile.pull[0], work=tile.work)
            sums.add(tile, 0, 1)
    return grad_x, call.out_of_order(dots), *sums.results()


def second_gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor, tangent_x: Tensor | None, tangent_length: Tensor | None,
    basis: str, envelope: str, activation: ActivationKind, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.second_gradients`; what is not needed is empty."""
    need_x, need_length, *need_network, need_grad = needs
    call = _Call(x, length, (w1, b1, w2, b2), (src, dst, order, pair_edges), (basis, envelope, activation))
    # without a tangent of nodes, as in the first layer of a network, values of filters have no part in it
    low, v = (1, x) if tangent_x is None else (0, tangent_x)
    u = call.in_order(torch.zeros_like(length) if tangent_length is None else tangent_length)
    # one kernel writes both, so both are made
    grad_x, grad_g, dots = x.new_zeros(x.shape), x.new_zeros(x.shape), x.new_zeros(call.count if need_length else 0)
    sums = _NetworkSums(call, need_network)
    x_array, g_array, v_array, u_array, grad_x_array, grad_g_array, dots_array = arrays(x, grad, v, u, grad_x, grad_g, dots)
    nodes = (g_array, x_array, v_array, grad_x_array, grad_g_array)
    for part, tile in call.tiles(3 if need_length else 2):
        ends, factor = call.ends(part), u_array[part]
        call.filters(tile, low, 3 if need_length else 2)
        if need_x or need_grad:
            kernels.spread_double_kernel(tile.weight, factor, low == 0, *ends, *nodes, call.block, work=4 * tile.work)
        if need_length or any(need_network):
            kernels.products_kernel(*ends, g_array, x_array, tile.pull[1], work=tile.work)
            kernels.scale_rows_kernel(tile.pull[1], factor, work=tile.work)
            if low == 0:
                kernels.products_kernel(*ends, g_array, v_array, tile.pull[0], work=tile.work)
            if need_length:
                for row in range(low, 2):
                    kernels.dots_kernel(tile.weight[row + 1], tile.pull[row], dots_array[part], work=tile.work)
            sums.add(tile, low, 2)
    found = (grad_x if need_x else x.new_empty(0), call.out_of_order(dots), *sums.results())
    return *found, grad_g if need_grad else x.new_empty(0)


class _Scratch:
    """Buffers of a tile of ``size`` units, overwritten by the next tile: rows stacked by order of derivative, [m, t, ·].

    Stacked rows are contiguous, so that one product serves all orders. Each buffer is a matrix for torch and an array for numba.
    """

    def __init__(self, like: Tensor, size: int, orders: int, basis: int, hidden: int, width: int) -> None:
        def make(count: int, *shape: int) -> Tensor:
            return like.new_empty(count * size, *shape)

        self.size, self.orders, self.work = size, orders, size * width
        self.phi_rows, self.z_rows, self.hidden_rows = make(orders, basis), make(orders, hidden), make(orders, hidden)
        self.weight_rows, self.pull_rows, self.back_rows = make(orders, width), make(2, width), make(2, hidden)
        self.cut = make(orders).numpy().reshape(orders, size)
        self.phi, self.z, self.hidden = (
            rows.numpy().reshape(orders, size, rows.shape[1]) for rows in (self.phi_rows, self.z_rows, self.hidden_rows)
        )
        self.weight = self.weight_rows.numpy().reshape(orders, size, width)
        self.pull, self.back = self.pull_rows.numpy().reshape(2, size, width), self.back_rows.numpy().reshape(2, size, hidden)

    def part(self, rows: Tensor, low: int, high: int) -> Tensor:
        """Orders ``low`` to ``high`` of a matrix of stacked rows."""
        return rows[low * self.size : high * self.size]


class _Call:
    """What all tiles of one call share."""

    def __init__(
        self,
        x: Tensor,
        length: Tensor,
        network: tuple[Tensor, Tensor, Tensor, Tensor],
        graph: tuple[Tensor, Tensor, Tensor, Tensor | None],
        spec: tuple[str, str, ActivationKind],
    ) -> None:
        self.w1, self.b1, self.w2, self.b2 = (tensor.detach().contiguous() for tensor in network)
        # products with the transposed weights are a little faster when these are contiguous
        self.w1_t, self.w2_t = self.w1.T.contiguous(), self.w2.T.contiguous()
        self.bias1, self.bias2 = arrays(self.b1, self.b2)
        self.units = units_of(*graph)
        self.i, self.j = arrays(self.units.i, self.units.j)
        self.length = self.in_order(length.detach())
        self.count = self.length.shape[0]
        basis, envelope = decode(*spec[:2])
        # the kinds and numbers as `basis_tile` takes them
        self.kinds = BASES.index(basis.kind), ENVELOPES.index(envelope.kind), envelope.exponent
        self.numbers, self.activation = (*slopes_of(basis), envelope.cutoff), ACTIVATIONS.index(spec[2])
        self.width, self.hidden = self.w2.shape
        self.block = THREAD_FEATURES if torch.get_num_threads() > 1 else max(self.width, self.hidden, 1)

    def in_order(self, length: Tensor) -> Tensor:
        return (length if self.units.order is None else length[self.units.order]).contiguous()

    def out_of_order(self, scalars: Tensor) -> Tensor:
        if self.units.order is None or not scalars.numel():
            return scalars
        out = torch.empty_like(scalars)
        out[self.units.order] = scalars
        return out

    def ends(self, part: slice) -> tuple[np.ndarray, np.ndarray, bool]:
        return self.i[part], self.j[part], self.units.symmetric

    def tiles(self, orders: int) -> Iterator[tuple[slice, _Scratch]]:
        """Basis, cutoff and hidden layer of one tile after the other, with values and ``orders`` − 1 derivatives."""
        most = max(1, min(self.count, MOST_UNITS, TILE_ELEMENTS // max(self.width, self.hidden, 1)))
        (length,) = arrays(self.length)
        tile: _Scratch | None = None
        for first in range(0, self.count, most):
            part = slice(first, min(first + most, self.count))
            if tile is None or tile.size != part.stop - first:
                tile = _Scratch(self.length, part.stop - first, orders, self.w1.shape[1], self.hidden, self.width)
            work = tile.z.size
            basis_tile_kernel(length[part], self.kinds, self.numbers, tile.phi, tile.cut, work=8 * tile.phi.size)
            blas.mm(tile.phi_rows, self.w1_t, tile.z_rows)
            kernels.hidden_kernel(tile.z, self.bias1, tile.cut, self.activation, tile.hidden, work=8 * work)
            yield part, tile

    def filters(self, tile: _Scratch, low: int, high: int) -> None:
        """Fill ``tile.weight`` with W and its derivatives of the orders from ``low`` up to, not including, ``high``."""
        if low < high:
            blas.mm(tile.part(tile.hidden_rows, low, high), self.w2_t, tile.part(tile.weight_rows, low, high))
            kernels.with_bias_kernel(tile.weight[low:high], tile.cut[low:high], self.bias2, work=(high - low) * tile.work)


class _NetworkSums:
    """Gradients of w1, b1, w2 and b2, tile by tile; what is not needed is empty."""

    def __init__(self, call: _Call, needs: Sequence[bool]) -> None:
        self.call, self.needs = call, tuple(needs)
        self.parts = [torch.zeros_like(tensor) for tensor in (call.w1, call.w2)]
        self.totals = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in (call.w1, call.b1, call.w2, call.b2)]
        self.waiting = 0

    def add(self, tile: _Scratch, low: int, high: int) -> None:
        """Add a tile whose filters' derivatives of order ``low`` up to ``high`` have the cotangents ``tile.pull``; the rest have none."""
        call, (need_w1, need_b1, need_w2, need_b2) = self.call, self.needs
        pull = tile.part(tile.pull_rows, low, high)
        if need_b2:
            total = self.totals[3].numpy()
            kernels.column_sums_kernel(tile.pull[low:high], tile.cut[low:high], total, call.block, work=pull.numel())
        if need_w2:
            blas.mm(pull.T, tile.part(tile.hidden_rows, low, high), self.parts[1], add=True)
        if need_w1 or need_b1:
            blas.mm(pull, call.w2, tile.part(tile.back_rows, low, high))
            tile.back[:low] = 0
            back = tile.back[:high]
            kernels.hidden_back_kernel(tile.z, call.bias1, tile.cut, call.activation, back, work=8 * back.size)
            if need_b1:
                ones = np.ones((1, tile.size), back.dtype)
                kernels.column_sums_kernel(back[:1], ones, self.totals[1].numpy(), call.block, work=back.size)
            if need_w1:
                blas.mm(tile.part(tile.back_rows, 0, high).T, tile.part(tile.phi_rows, 0, high), self.parts[0], add=True)
        self.waiting += tile.size
        if self.waiting >= UNITS_PER_SUM:
            self._flush()

    def results(self) -> list[Tensor]:
        self._flush()
        like = self.call.w1
        return [total.to(like.dtype) if need else like.new_empty(0) for total, need in zip(self.totals, self.needs, strict=True)]

    def _flush(self) -> None:
        if self.waiting:
            for total, part in zip((self.totals[0], self.totals[2]), self.parts, strict=True):
                total.add_(part)
                part.zero_()
        self.waiting = 0
