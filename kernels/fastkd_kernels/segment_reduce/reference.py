"""Segment reductions in plain torch: the specification, on any device, differentiable to any order by autograd.

``index`` is the segment of each row. Sums of half precision run in float32. Rows of a segment need not be adjacent.
"""

import torch
from torch import Tensor


def segment_reduce(values: Tensor, ptr: Tensor, reduce: str = "sum") -> Tensor:
    """Reduce contiguous rows: values [n, …], ptr [m + 1] → [m, …]."""
    return scatter_reduce(values, segment_index(ptr, values.shape[0]), ptr.shape[0] - 1, reduce)


def scatter_reduce(values: Tensor, index: Tensor, num_segments: int, reduce: str = "sum") -> Tensor:
    """Reduce rows of equal index: values [n, …], index [n] → [m, …]; empty segments are 0."""
    if reduce in ("sum", "mean"):
        return segment_sum(values, index, num_segments, reduce == "mean")
    arg = segment_extremum(values.detach(), index, num_segments, reduce == "max")[1]
    return arg_gather(values, arg)


def segment_index(ptr: Tensor, rows: int) -> Tensor:
    """The segment of each row, [rows], from ptr [m + 1]."""
    return torch.repeat_interleave(torch.arange(ptr.shape[0] - 1, device=ptr.device), ptr.diff(), output_size=rows)


def segment_sum(values: Tensor, index: Tensor, num_segments: int, mean: bool) -> Tensor:
    """Σ of the rows of each segment, divided by their number if ``mean``."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    total = wide.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, wide)
    return (total / _counts(index, num_segments, total) if mean else total).to(values.dtype)


def segment_gather(rows: Tensor, index: Tensor, mean: bool) -> Tensor:
    """The row of each entry's segment, divided by the segment's length if ``mean``: the adjoint of `segment_sum`."""
    return (rows / _counts(index, rows.shape[0], rows) if mean else rows)[index]


def segment_extremum(values: Tensor, index: Tensor, num_segments: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) entry of each segment and its row, −1 if empty. The first row wins a tie; NaN wins over numbers."""
    n, spread = values.shape[0], _broadcast(index, values)
    best = values.new_zeros(num_segments, *values.shape[1:])
    best = best.scatter_reduce(0, spread, values, "amax" if largest else "amin", include_self=False)
    wins = (values == best[index]) | (values.isnan() & best[index].isnan())
    row = torch.where(wins, _broadcast(torch.arange(n, device=values.device), values), n)
    arg = torch.full_like(best, n, dtype=torch.int64).scatter_reduce(0, spread, row, "amin")
    return best, torch.where(arg == n, -1, arg)


def arg_gather(values: Tensor, arg: Tensor) -> Tensor:
    """Take values[arg[s, f], f], and 0 where arg is −1: values [n, …], arg [m, …] → [m, …]."""
    if values.shape[0] == 0:
        return values.new_zeros(arg.shape) + values.sum()
    return torch.where(arg < 0, 0, values.gather(0, arg.clamp(min=0)))


def arg_scatter(grad: Tensor, arg: Tensor, rows: int) -> Tensor:
    """The adjoint of `arg_gather`: grad [m, …], arg [m, …] → [rows, …]. No two entries of a column share an arg but −1."""
    padded = grad.new_zeros(rows + 1, *grad.shape[1:])
    return padded.scatter(0, torch.where(arg < 0, rows, arg), grad)[:rows].clone()


def _counts(index: Tensor, num_segments: int, like: Tensor) -> Tensor:
    counts = torch.bincount(index, minlength=num_segments).clamp(min=1).to(like.dtype)
    return counts.view(-1, *[1] * (like.dim() - 1))


def _broadcast(index: Tensor, like: Tensor) -> Tensor:
    return index.view(-1, *[1] * (like.dim() - 1)).expand_as(like)
