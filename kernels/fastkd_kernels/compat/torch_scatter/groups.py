"""Which entries of a tensor belong together: any index or pointer, brought to rows that our kernels reduce.

A tensor is seen as [B, E, K]: B is what lies before the reduced dimension, E its length, K what lies behind it. It is flattened, without a
copy, to rows [B · E, K], and the groups of the b-th block are numbered from b · N. Three forms of index remain:

* ``shared``: one index [E] for all blocks. It is sorted once, and the order is repeated by arithmetic.
* ``rows``: one index [B · E], for instance where each graph of a batch has its own. Sorted as a whole.
* ``cells``: one index for every entry, [B · E, K]; columns differ. On a CPU torch's own scatter is used, which has a fixed order there; on
  a GPU, where it has none, entries are sorted as rows of width 1.

Expanded dimensions (stride 0) are recognised, so that ``index.view(-1, 1).expand_as(src)`` is ``shared``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ... import backends
from ...segment_reduce import op
from .product import group_product
from .utils import broadcast

Form = Literal["shared", "rows", "cells"]
_NUMBA_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)

Grouping = tuple[Tensor, Tensor | None, Tensor | None]


class Groups:
    """The grouping of one call. Sorting happens at the first use that needs it, once.

    Args:
        shape: of the grouped values, [B…, E, K…].
        dim: which of these is E.
        number: N, groups per block.
        form: see the module.
        index: [E], [B · E] or [B · E, K] int64, without the offset of the block.
        rising: the index of each block is known to be sorted.
        ptr: instead of an index: pointers over all blocks, with one more group at either end of a block if ``margin``.
        margin: 1 if rows may lie outside of all groups.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dim: int,
        number: int,
        *,
        form: Form = "rows",
        index: Tensor | None = None,
        rising: bool = False,
        ptr: Tensor | None = None,
        margin: int = 0,
    ) -> None:
        self.shape, self.dim, self.number = tuple(shape), dim, number
        self.blocks, self.length, self.width = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
        self.rows, self.stride = self.blocks * self.length, number + 2 * margin
        self.form, self.margin = form, margin
        self._index, self._rising = index, rising
        self._grouping: Grouping | None = None if ptr is None else (ptr, None, None)

    # Shapes.

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the reduced values, [B…, N, K…]."""
        return (*self.shape[: self.dim], self.number, *self.shape[self.dim + 1 :])

    def _flat(self, values: Tensor) -> Tensor:
        return values.reshape(self.rows, self.width)

    def _reduced(self, groups: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """[B · stride, …] → [B…, N, K…], without the margins."""
        if self.margin:
            groups = groups.reshape(self.blocks, self.stride, -1)[:, 1:-1]
        return groups.reshape(self.out_shape if shape is None else tuple(shape))

    def _spread(self, reduced: Tensor) -> Tensor:
        """[B…, N, K…] → [B · stride, K], the adjoint of `_reduced`."""
        groups = reduced.reshape(self.blocks, self.number, self.width)
        if self.margin:
            groups = torch.nn.functional.pad(groups, (0, 0, 1, 1))
        return groups.reshape(self.blocks * self.stride, self.width)

    def _nothing(self, values: Tensor) -> Tensor:
        # an empty sum, so that autograd finds its way back to the values
        return values.new_zeros(self.out_shape) + values.sum().to(values.dtype)

    # Indices.

    def _blocks_from(self, stride: int, like: Tensor) -> Tensor:
        return torch.arange(self.blocks, device=like.device) * stride

    def row_index(self) -> Tensor:
        """Group of each row, [B · E], or of each entry, [B · E, K]."""
        if self._index is None:
            ptr = self.grouping()[0]
            return torch.repeat_interleave(torch.arange(ptr.shape[0] - 1, device=ptr.device), ptr.diff(), output_size=self.rows)
        if self.blocks == 1:
            return self._index
        offset = self._blocks_from(self.number, self._index)
        if self.form == "shared":
            return (self._index + offset[:, None]).reshape(self.rows)
        per_block = self._index.reshape(self.blocks, self.length, -1) + offset[:, None, None]
        return per_block.reshape(self._index.shape)

    def entry_index(self) -> Tensor:
        """Group of each entry, [B · E, K], expanded where it can be."""
        return self._column_index().expand(self.rows, self.width)

    def _column_index(self) -> Tensor:
        index = self.row_index()
        return index if index.dim() == 2 else index[:, None]

    def grouping(self) -> Grouping:
        """(ptr, order, index) as the operators take them; entries are rows of width 1 if the form is ``cells``."""
        if self._grouping is None:
            self._grouping = self._sort()
        return self._grouping

    def _sort(self) -> Grouping:
        assert self._index is not None
        if self.form == "cells":
            column = torch.arange(self.width, device=self._index.device)
            key = (self.row_index() * self.width + column).reshape(-1)
            return *_pointers(key, self.blocks * self.number * self.width, rising=False), key
        index = self.row_index()
        key, number = (self._index, self.number) if self.form == "shared" else (index, self.blocks * self.number)
        ptr, order = _pointers(key, number, rising=self._rising)
        if self.form == "shared" and self.blocks > 1:
            offset = self._blocks_from(self.length, key)[:, None]
            ptr = torch.cat([(ptr[:-1] + offset).reshape(-1), ptr.new_full((1,), self.rows)])
            order = None if order is None else (order + offset).reshape(-1)
        return ptr, order, index

    def _torch_scatters(self, values: Tensor) -> bool:
        return self.form == "cells" and values.device.type == "cpu"

    # Reductions, and the way back.

    def sum(self, values: Tensor) -> Tensor:
        """Σ over each group, in float32 or wider, rounded once: [B…, E, K…] → [B…, N, K…]."""
        if values.numel() == 0:
            return self._nothing(values)
        if values.is_complex():
            parts = [self.sum(part) for part in torch.view_as_real(values).unbind(-1)]
            return torch.view_as_complex(torch.stack(parts, -1))
        total: Tensor
        if not values.is_floating_point():
            # sums of integers do not depend on the order
            total = values.new_zeros(self.blocks * self.stride, self.width).scatter_add(0, self.entry_index(), self._flat(values))
        elif self._torch_scatters(values):
            wide = self._flat(values).to(torch.promote_types(values.dtype, torch.float32))
            total = wide.new_zeros(self.blocks * self.stride, self.width).scatter_add(0, self.entry_index(), wide).to(values.dtype)
        else:
            rows = values.reshape(-1) if self.form == "cells" else self._flat(values)
            total = op.segment_sum(rows, *self.grouping(), False, backends.resolve(None, values))
        return self._reduced(total)

    def mean(self, values: Tensor) -> Tensor:
        """`sum` over the number of entries, 0 in an empty group. Floating dtypes only."""
        if values.numel() and self.form != "cells" and not values.is_complex():
            rows = self._flat(values)
            total: Tensor = op.segment_sum(rows, *self.grouping(), True, backends.resolve(None, values))
            return self._reduced(total)
        return self.sum(values) / self.count().clamp(min=1).to(values.dtype)

    def count(self) -> Tensor:
        """Entries of each group, int64, of a shape that broadcasts to [B…, N, K…]."""
        if self.rows * self.width == 0:
            known = self._index if self._grouping is None else self._grouping[0]
            return torch.zeros(self.out_shape, dtype=torch.int64, device=None if known is None else known.device)
        if self.form == "cells":
            index = self.row_index()
            ones = torch.ones_like(index)
            return self._reduced(ones.new_zeros(self.blocks * self.number, self.width).scatter_add(0, index, ones))
        shape = (*self.shape[: self.dim], self.number, *[1] * (len(self.shape) - self.dim - 1))
        if self._grouping is None:
            index = self.row_index()
            return self._reduced(index.new_zeros(self.blocks * self.number).scatter_add(0, index, torch.ones_like(index)), shape)
        return self._reduced(self._grouping[0].diff(), shape)

    def product(self, values: Tensor) -> Tensor:
        """Π over each group, 1 in an empty one."""
        if values.numel() == 0:
            return self._nothing(values) + 1
        rows, number = self._flat(values), self.blocks * self.number
        if values.is_floating_point() or values.is_complex():

            def gather(groups: Tensor) -> Tensor:
                return self._flat(self.gather(groups.reshape(self.out_shape)))

            return self._reduced(group_product(rows, self._column_index(), number, gather))
        return self._reduced(values.new_ones(number, self.width).scatter_reduce(0, self.entry_index(), rows, "prod"))

    def extremum(self, values: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
        """The largest or smallest entry of each group and its place along ``dim``; 0 and E in an empty group. The first of equals wins."""
        if values.numel() == 0:
            return self._nothing(values), torch.full(self.out_shape, self.length, device=values.device)
        rows = self._flat(values)
        best: Tensor
        if self.form != "cells" and values.is_floating_point():
            best, arg = op.segment_extremum(rows, *self.grouping(), largest, backends.resolve(None, values))
        else:
            best, arg = _cell_extremum(rows.detach(), self.entry_index(), self.blocks * self.stride, largest=largest)
            if values.is_floating_point():
                best = op.arg_gather(rows, arg, backends.resolve(None, values))
        place = self._reduced(arg)
        if self.blocks > 1:
            first_row = self._blocks_from(self.length, arg).view(*self.shape[: self.dim], *[1] * (len(self.shape) - self.dim))
            return self._reduced(best), torch.where(place < 0, self.length, place - first_row)
        return self._reduced(best), torch.where(place < 0, self.length, place)

    def gather(self, reduced: Tensor) -> Tensor:
        """The value of each entry's group, 0 outside of all groups: [B…, N, K…] → [B…, E, K…], the adjoint of `sum`."""
        if self.rows * self.width == 0:
            return reduced.new_zeros(self.shape) + reduced.sum().to(reduced.dtype)
        if reduced.is_complex():
            parts = [self.gather(part) for part in torch.view_as_real(reduced).unbind(-1)]
            return torch.view_as_complex(torch.stack(parts, -1))
        groups = self._spread(reduced)
        if not reduced.is_floating_point() or self._torch_scatters(reduced):
            return groups.gather(0, self.entry_index()).reshape(self.shape)
        rows, number = (groups.reshape(-1), self.rows * self.width) if self.form == "cells" else (groups, self.rows)
        taken: Tensor = op.segment_gather(rows, *self.grouping(), number, False, backends.resolve(None, reduced))
        return taken.reshape(self.shape)


def _cell_extremum(rows: Tensor, index: Tensor, number: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Extremum and its row (−1 if none) where columns differ in their index: rows and index [n, F] → [number, F]."""
    if _seen(rows) and backends.installed("numba") and index.is_contiguous() and rows.dtype in _NUMBA_DTYPES:
        from .numba_kernels import cell_extremum

        best, arg = rows.new_empty(number, rows.shape[1]), index.new_empty(number, rows.shape[1])
        cell_extremum(rows.contiguous().numpy(), index.numpy(), largest, best.numpy(), arg.numpy())
        return best, arg
    n, width = rows.shape
    # atomics on a GPU, but their order does not matter to a maximum
    best = rows.new_zeros(number, width).scatter_reduce(0, index, rows, "amax" if largest else "amin", include_self=False)
    taken = best.gather(0, index)
    wins = (rows == taken) | (rows.isnan() & taken.isnan())
    row = torch.where(wins, torch.arange(n, device=rows.device)[:, None], n)
    arg = torch.full_like(best, n, dtype=torch.int64).scatter_reduce(0, index, row, "amin")
    return best, torch.where(arg == n, -1, arg)


# Makers.


def from_index(index: Tensor, shape: Sequence[int], dim: int, number: int, *, rising: bool = False) -> Groups:
    """Groups of entries with equal index; ``index`` has the shape of the values or broadcasts to it (`utils.broadcast`).

    Args:
        index: int64, each in [0, number).
        shape: of the values.
        dim: along which the index counts, not negative.
        number: of groups.
        rising: the index is promised to be sorted along ``dim``; looked at on a CPU.

    Raises:
        ValueError: if the index does not fit; on a CPU also if one is out of range or not sorted as promised.
    """
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64, got {list(index.shape)} {index.dtype}")
    if math.prod(shape) == 0:
        return Groups(shape, dim, number, index=index)
    form, chosen = _reduced_form(index, shape, dim)
    if _seen(chosen):
        # numpy has less to do before it starts, and batches of molecules are small
        array = chosen.numpy()
        if array.min() < 0 or array.max() >= number:
            raise ValueError(f"index must lie in [0, {number}), got values from {array.min()} to {array.max()}")
        lines = array.reshape(-1, shape[dim])
        if rising and (lines[:, 1:] < lines[:, :-1]).any():
            raise ValueError(f"index must be sorted along dimension {dim}; for any order use scatter")
    return Groups(shape, dim, number, form=form, index=chosen, rising=rising)


def _reduced_form(index: Tensor, shape: Sequence[int], dim: int) -> tuple[Form, Tensor]:
    """The least index that says the same, and its form."""
    if index.dim() == 1 and index.shape[0] == shape[dim]:
        return "shared", index.contiguous()
    try:
        # a shape to compare with, without memory
        chosen = broadcast(index, index.new_empty(()).expand(tuple(shape)), dim)
    except RuntimeError:
        raise ValueError(f"index {list(index.shape)} does not fit values {list(shape)} along dimension {dim}") from None
    if any(_varies(chosen, d) for d in range(dim + 1, len(shape))):
        return "cells", chosen.reshape(math.prod(shape[: dim + 1]), -1)
    for _ in range(dim + 1, len(shape)):
        chosen = chosen.select(-1, 0)
    if any(_varies(chosen, d) for d in range(dim)):
        return "rows", chosen.reshape(-1)
    for _ in range(dim):
        chosen = chosen.select(0, 0)
    return "shared", chosen.contiguous()


def _varies(index: Tensor, dim: int) -> bool:
    return index.shape[dim] > 1 and index.stride(dim) != 0


def _seen(index: Tensor) -> bool:
    """Whether values may be looked at: on a CPU, where nothing traces."""
    return index.device.type == "cpu" and backends.runs_directly((index,))


def _pointers(key: Tensor, number: int, *, rising: bool) -> tuple[Tensor, Tensor | None]:
    """Pointers, and the order unless the key rises: most indices of batches and sorted edges do, and on a CPU that is seen."""
    if not (_seen(key) and backends.installed("numba")):
        # as graph.segments, which would look at the values once more
        ordered, order = (key, None) if rising else torch.sort(key, stable=True)
        return torch.searchsorted(ordered, torch.arange(number + 1, device=key.device)), order
    from .numba_kernels import group_index

    ptr, order = torch.empty(number + 1, dtype=torch.int64), torch.empty_like(key)
    rises = group_index(key.numpy(), ptr.numpy(), order.numpy())
    return ptr, None if rises else order


def from_ptr(indptr: Tensor, shape: Sequence[int], number: int) -> Groups:
    """Groups of adjacent rows, ``indptr[…, s] … indptr[…, s + 1] − 1``, along the last dimension of ``indptr``; rows may stay outside.

    Raises:
        ValueError: if the pointers do not fit; on a CPU also if they do not rise or leave the rows.
    """
    dim = indptr.dim() - 1
    if indptr.dtype != torch.int64:
        raise ValueError(f"indptr must be int64, got {list(indptr.shape)} {indptr.dtype}")
    if math.prod(shape) == 0:
        return Groups(shape, dim, number, ptr=indptr)
    blocks, length = math.prod(shape[:dim]), shape[dim]
    if number + 1 != indptr.shape[-1]:
        # a pointer of no entries has no groups
        indptr = indptr.new_zeros((*indptr.shape[:-1], 1))
    try:
        ptr = indptr.expand(*shape[:dim], number + 1).reshape(blocks, number + 1)
    except RuntimeError:
        raise ValueError(f"indptr {list(indptr.shape)} does not fit values {list(shape)}") from None
    if _seen(ptr):
        array = ptr.numpy()
        low, high = array[:, 0].min(), array[:, -1].max()
        if low < 0 or high > length or (array[:, 1:] < array[:, :-1]).any():
            raise ValueError(f"indptr must rise within [0, {length}], got {ptr.tolist() if ptr.numel() < 20 else f'{low} … {high}'}")
        if blocks == 1 and low == 0 and high == length:
            return Groups(shape, dim, number, ptr=ptr[0])
    # rows before the first group and behind the last get groups of their own, which are dropped: a GPU is not asked whether there are any
    offset = torch.arange(blocks, device=ptr.device)[:, None] * length
    padded = torch.nn.functional.pad(ptr, (1, 0)) + offset
    return Groups(shape, dim, number, ptr=torch.cat([padded.reshape(-1), ptr.new_full((1,), blocks * length)]), margin=1)
