"""The operators on a CPU: tiles of units small enough for the cache; numba for what is elementwise, BLAS for filters and their gradient.

Nothing edge-sized is made but scalars and directions. Tiles run in order, and within a tile every sum has a fixed order. The gradient of
the weight is summed in the input's precision over a few tiles, and in float64 beyond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cfconv_exact.codes import slopes_of, units_of
from ..cfconv_exact.numba_basis import basis_tile_kernel
from ..cpu import arrays
from ..radial_specs import BASES, ENVELOPES, decode
from . import numba_kernels as kernels
from .reference import Spec

#: Numbers in one order of a tile's filters: 128 units of three blocks of 128 features.
TILE_ELEMENTS = 49_152
#: BLAS sums the rows of a tile one after the other: shorter sums keep more digits.
MOST_UNITS = 1024
#: Units whose gradients of the weight are added in the input's precision.
UNITS_PER_SUM = 1024
#: Features that one thread owns where kernels add onto nodes.
THREAD_FEATURES = 32

Array = np.ndarray[Any, Any]


def message(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor, units: tuple[Any, ...], spec: Spec
) -> tuple[Tensor, Tensor]:
    """See `reference.value`."""
    call = _Call(phi, vector, edge_length, direction, weight, units, spec)
    nodes, width = phi.shape[0], call.width
    scalar, out_vector = phi.new_zeros(nodes, width), phi.new_zeros(nodes, 3, width)
    results = arrays(scalar, out_vector)
    for part, tile in call.tiles(1):
        call.filters(tile, 0, 1)
        kernels.message(tile.weight[0], *call.ends(part), *call.nodes, *results, call.block, work=3 * tile.work)
    return scalar, out_vector


def backward(
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec, needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.gradients`; what is not needed is empty."""
    call = _Call(phi, vector, edge_length, direction, weight, units, spec)
    need_phi, need_vector, need_length, need_direction, need_weight = needs
    by_phi, by_vector = _zeros(phi, need_phi, 2), _zeros(vector, need_vector, 3, phi)
    by_length, by_direction = call.places(need_length, need_direction)
    sums = _WeightSums(call, need_weight)
    grads, results, places = arrays(grad_scalar, grad_vector), arrays(by_phi, by_vector), arrays(by_length, by_direction)
    need_products, need_filter = need_length or need_weight, need_phi or need_vector or need_direction
    for part, tile in call.tiles(2 if need_length else 1):
        call.filters(tile, 0 if need_filter else 1, 2 if need_length else 1)
        i, j, paired, turned = call.ends(part)
        q = tile.q if need_phi or need_products else tile.q[:, :0]
        p = tile.p[0] if need_products else tile.p[0, :0]
        here = places[0][part] if need_length else places[0], places[1][part] if need_direction else places[1]
        flags = need_length, need_direction
        kernels.pulls(tile.weight, i, j, paired, turned, *grads, *call.nodes, *flags, q, p, *here, work=3 * tile.work)
        if need_phi or need_vector:
            kernels.spread(tile.weight[0], i, j, paired, grads[1], q, *results, call.block, work=2 * tile.work)
        sums.add(tile, 1)
    if by_vector.shape[0]:
        # phi of the source is the same factor for all it sends
        kernels.scale(call.nodes[0], results[1], work=by_vector.numel())
    return by_phi, by_vector, call.out_of_order(by_length, edge_length), call.out_of_order(by_direction, direction), sums.result()


def double_backward(
    tangent_phi: Tensor | None, tangent_vector: Tensor | None, rate: Tensor | None, tangent_direction: Tensor | None,
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec, needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `reference.second_gradients`; what is not needed is empty."""
    call = _Call(phi, vector, edge_length, direction, weight, units, spec)
    need_length, need_direction, need_weight = needs[4:]
    # both gradients by cotangents share all that is read; whichever was not asked for is dropped after
    grads_wanted = needs[0] or needs[1]
    by_scalar, by_grad = _zeros(grad_scalar, grads_wanted, 2), _zeros(grad_vector, grads_wanted, 3)
    by_phi, by_vector = _zeros(phi, needs[2], 2), _zeros(vector, needs[3], 3, phi)
    by_length, by_direction = call.places(need_length, need_direction)
    sums = _WeightSums(call, need_weight)
    speed = call.in_order(torch.zeros_like(edge_length) if rate is None else rate).to(phi.dtype)
    turning = phi.new_empty(0, 3) if tangent_direction is None else call.in_order(tangent_direction)
    speeds, turnings, *tangents = arrays(
        speed, turning, _or_absent(tangent_phi, phi, 2), _or_absent(None if vector is None else tangent_vector, phi, 3)
    )
    grads, places = arrays(grad_scalar, grad_vector), arrays(by_length, by_direction)
    results = arrays(by_scalar, by_grad, by_phi, by_vector)
    need_products = need_length or need_weight
    for part, tile in call.tiles(3 if need_length else 2):
        call.filters(tile, 0, 3 if need_length else 2)
        i, j, paired, turned = call.ends(part)
        q, dq = (tile.q, tile.dq) if needs[2] or need_products else (tile.q[:, :0], tile.dq[:, :0])
        p = tile.p if need_products else tile.p[:, :0]
        moving = *tangents, turnings[part] if tangent_direction is not None else turnings
        here = places[0][part] if need_length else places[0], places[1][part] if need_direction else places[1]
        shared = tile.weight, i, j, paired, speeds[part], turned, *moving
        if need_products or needs[2] or need_direction:
            flags = need_length, need_direction
            kernels.second_pulls(*shared, *grads, *call.nodes, *flags, q, dq, p, *here, work=6 * tile.work)
        if any(needs[:4]):
            kernels.second_spread(*shared, grads[1], *call.nodes, q, dq, *results, call.block, work=6 * tile.work)
        sums.add(tile, 2)
    out = (by_scalar if needs[0] else _zeros(grad_scalar, False, 2), by_grad if needs[1] else _zeros(grad_vector, False, 3))
    ordered = call.out_of_order(by_length, edge_length), call.out_of_order(by_direction, direction)
    return *out, by_phi, by_vector, *ordered, sums.result()


class _Scratch:
    """Buffers of a tile of ``size`` units, overwritten by the next tile: rows stacked by order of derivative, [m, t, ·].

    Stacked rows are contiguous, so that one product serves all orders. Each buffer is a matrix for torch and an array for numba.
    """

    def __init__(self, like: Tensor, size: int, orders: int, basis: int, width: int, used: int) -> None:
        def make(*shape: int) -> Tensor:
            return like.new_empty(shape)

        self.size, self.work = size, size * used
        self.psi_rows, self.weight_rows, self.p_rows = make(orders * size, basis + 1), make(orders * size, used), make(2 * size, used)
        self.phi, self.cut = make(orders, size, basis).numpy(), make(orders, size).numpy()
        self.psi, self.weight = self.psi_rows.numpy().reshape(orders, size, -1), self.weight_rows.numpy().reshape(orders, size, used)
        # φ ∘ q of values and of slopes; q and its tangent on either way of a pair
        self.p = self.p_rows.numpy().reshape(2, size, used)
        self.q, self.dq = make(2, size, used).numpy(), make(2, size, used - width).numpy()


class _Call:
    """What all tiles of one call share."""

    def __init__(
        self, phi: Tensor, vector: Tensor | None, length: Tensor, direction: Tensor, weight: Tensor, units: tuple[Any, ...], spec: Spec
    ) -> None:
        src, dst, _, order, _, _, pair_edges = units
        self.width = phi.shape[1] // 3
        self.used = (2 if vector is None else 3) * self.width
        self.weight = weight.detach()
        # products with the transposed weight are a little faster when it is contiguous
        self.mixing = self.weight[: self.used].T.contiguous()
        self.units = units_of(src, dst, order, pair_edges)
        self.i, self.j = arrays(self.units.i, self.units.j)
        self.length, self.direction = arrays(self.in_order(length), self.in_order(direction))
        self.count = int(self.length.shape[0])
        self.nodes = arrays(phi, _or_absent(vector, phi, 3))
        basis, envelope = decode(*spec[:2])
        # the kinds and numbers as `basis_tile` takes them
        self.kinds = BASES.index(basis.kind), ENVELOPES.index(envelope.kind), envelope.exponent
        self.numbers, self.smooth, self.functions = (*slopes_of(basis), envelope.cutoff), spec[2], basis.size
        self.block = THREAD_FEATURES if torch.get_num_threads() > 1 else max(self.width, 1)

    def in_order(self, per_length: Tensor) -> Tensor:
        return per_length if self.units.order is None else per_length[self.units.order]

    def out_of_order(self, per_unit: Tensor, like: Tensor) -> Tensor:
        if self.units.order is None or not per_unit.numel():
            return per_unit.to(like.dtype)
        out = torch.empty_like(per_unit, dtype=like.dtype)
        out[self.units.order] = per_unit.to(like.dtype)
        return out

    def places(self, need_length: bool, need_direction: bool) -> tuple[Tensor, Tensor]:
        """Gradients by length and direction, to be filled."""
        like = self.weight
        return like.new_empty(self.count if need_length else 0), like.new_empty(self.count if need_direction else 0, 3)

    def ends(self, part: slice) -> tuple[Array, Array, bool, Array]:
        return self.i[part], self.j[part], self.units.symmetric, self.direction[part]

    def tiles(self, orders: int) -> Iterator[tuple[slice, _Scratch]]:
        """Rows ψ of one tile after the other, with values and ``orders`` − 1 derivatives."""
        most = max(1, min(self.count, MOST_UNITS, TILE_ELEMENTS // max(self.used, self.functions, 1)))
        tile: _Scratch | None = None
        for first in range(0, self.count, most):
            part = slice(first, min(first + most, self.count))
            if tile is None or tile.size != part.stop - first:
                tile = _Scratch(self.weight, part.stop - first, orders, self.functions, self.width, self.used)
            basis_tile_kernel(self.length[part], self.kinds, self.numbers, tile.phi, tile.cut, work=8 * tile.phi.size)
            kernels.rows(tile.phi, tile.cut, self.smooth, tile.psi, work=2 * tile.phi.size)
            yield part, tile

    def filters(self, tile: _Scratch, low: int, high: int) -> None:
        """Fill ``tile.weight`` with W and its derivatives of the orders from ``low`` up to, not including, ``high``."""
        if low < high:
            part = slice(low * tile.size, high * tile.size)
            torch.mm(tile.psi_rows[part], self.mixing, out=tile.weight_rows[part])


class _WeightSums:
    """Gradient of the weight, bias last, tile by tile; empty if it is not needed."""

    def __init__(self, call: _Call, need: bool) -> None:
        self.weight, self.used, self.need, self.waiting = call.weight, call.used, need, 0
        self.part = torch.zeros_like(self.weight[: self.used]) if need else self.weight[:0]
        self.total = torch.zeros_like(self.weight, dtype=torch.float64) if need else self.weight[:0]

    def add(self, tile: _Scratch, orders: int) -> None:
        """Add a tile whose filters' first ``orders`` derivatives have the cotangents ``tile.p``."""
        if self.need:
            stacked = orders * tile.size
            torch.addmm(self.part, tile.p_rows[:stacked].T, tile.psi_rows[:stacked], out=self.part)
            self.waiting += tile.size
            if self.waiting >= UNITS_PER_SUM:
                self._flush()

    def result(self) -> Tensor:
        if not self.need:
            return self.weight.new_empty(0, 0)
        self._flush()
        return self.total.to(self.weight.dtype)

    def _flush(self) -> None:
        self.total[: self.used].add_(self.part)
        self.part.zero_()
        self.waiting = 0


def _or_absent(tensor: Tensor | None, like: Tensor, dimensions: int) -> Tensor:
    return like.new_empty((0,) * dimensions) if tensor is None else tensor


def _zeros(tensor: Tensor | None, need: bool, dimensions: int, like: Tensor | None = None) -> Tensor:
    """Zeros like a tensor; without rows if they are not needed or there is no tensor."""
    if tensor is None or not need:
        made = tensor if like is None else like
        assert made is not None
        return made.new_empty((0,) * dimensions)
    return torch.zeros_like(tensor, memory_format=torch.contiguous_format)
