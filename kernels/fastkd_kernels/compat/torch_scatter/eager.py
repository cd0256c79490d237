"""What each function of the interface does, in terms of `Groups`; the functions that users see stand in the modules named as upstream's.

``out`` is updated in place and returned. What it means differs, as it does upstream: `scatter` and `segment_coo` reduce into it,
`segment_csr` and the gathers overwrite it. Autograd follows ``out`` like any tensor that is changed in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .groups import Groups, from_index, from_ptr


def _groups(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Groups:
    """Of `scatter`: any index."""
    if not -src.dim() <= dim < src.dim():
        raise ValueError(f"dim must lie in [{-src.dim()}, {src.dim() - 1}] for src {list(src.shape)}, got {dim}")
    dim = dim % src.dim()
    _check_out(src, out, dim)
    _check_device(src, index)
    return from_index(index, src.shape, dim, _number(index, dim, out, dim_size))


def _coo_groups(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> Groups:
    """Of `segment_coo`: an index sorted along its last dimension."""
    dim = _last_dim(src, index)
    _check_out(src, out, dim)
    if out is None and dim_size is None and index.numel():
        dim_size = int(index.select(dim, -1).max()) + 1
    return from_index(_leading(index, src), src.shape, dim, _number(index, dim, out, dim_size), rising=True)


def _leading(index: Tensor, src: Tensor) -> Tensor:
    # dimensions of a sorted index are the first ones of src, while those of scatter's one-dimensional index are not
    return index if index.dim() == 1 else index.view(*index.shape, *[1] * (src.dim() - index.dim()))


def _number(index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if out is not None:
        return out.shape[dim]
    if dim_size is not None:
        return dim_size
    return int(index.max()) + 1 if index.numel() else 0


def _last_dim(src: Tensor, index: Tensor) -> int:
    if not 1 <= index.dim() <= src.dim():
        raise ValueError(f"an index of 1 to {src.dim()} dimensions is needed for src {list(src.shape)}, got {list(index.shape)}")
    _check_device(src, index)
    return index.dim() - 1


def _check_device(src: Tensor, index: Tensor) -> None:
    if src.device != index.device:
        raise ValueError(f"src is on {src.device}, the index on {index.device}")


def _check_out(src: Tensor, out: Tensor | None, dim: int) -> None:
    if out is None:
        return
    if out.dtype != src.dtype or out.device != src.device:
        raise ValueError(f"out is {out.dtype} on {out.device}, src is {src.dtype} on {src.device}")
    if out.shape[:dim] != src.shape[:dim] or out.shape[dim + 1 :] != src.shape[dim + 1 :] or out.dim() != src.dim():
        raise ValueError(f"out {list(out.shape)} must have the shape of src {list(src.shape)} but in dimension {dim}")


# Reductions into out, of any grouping.


def _sum(groups: Groups, src: Tensor, out: Tensor | None) -> Tensor:
    total = groups.sum(src)
    return total if out is None else out.add_(total)


def _mean(groups: Groups, src: Tensor, out: Tensor | None, rounding: str) -> Tensor:
    """Integers are divided and rounded, as upstream does."""
    exact = src.is_floating_point() or src.is_complex()
    if out is None and exact:
        return groups.mean(src)
    total = _sum(groups, src, out)
    count = groups.count().clamp(min=1).to(total.dtype)
    return total.div_(count) if exact else total.div_(count, rounding_mode=rounding)


def _product(groups: Groups, src: Tensor, out: Tensor | None) -> Tensor:
    product = groups.product(src)
    return product if out is None else out.mul_(product)


def _extremum(groups: Groups, src: Tensor, out: Tensor | None, *, largest: bool) -> tuple[Tensor, Tensor]:
    best, arg = groups.extremum(src, largest=largest)
    if out is None:
        return best, arg
    # what is in out wins a tie, being there first
    beats = (arg < groups.length) & ((best > out if largest else best < out) | (best.isnan() & ~out.isnan()))
    out.copy_(torch.where(beats, best, out))
    return out, torch.where(beats, arg, groups.length)


# scatter


def scatter_sum(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Tensor:
    return _sum(_groups(src, index, dim, out, dim_size), src, out)


def scatter_mul(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Tensor:
    return _product(_groups(src, index, dim, out, dim_size), src, out)


def scatter_mean(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Tensor:
    return _mean(_groups(src, index, dim, out, dim_size), src, out, "floor")


def scatter_min(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> tuple[Tensor, Tensor]:
    return _extremum(_groups(src, index, dim, out, dim_size), src, out, largest=False)


def scatter_max(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> tuple[Tensor, Tensor]:
    return _extremum(_groups(src, index, dim, out, dim_size), src, out, largest=True)


# segment_coo


def segment_sum_coo(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> Tensor:
    return _sum(_coo_groups(src, index, out, dim_size), src, out)


def segment_mean_coo(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> Tensor:
    return _mean(_coo_groups(src, index, out, dim_size), src, out, "trunc")


def segment_min_coo(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> tuple[Tensor, Tensor]:
    return _extremum(_coo_groups(src, index, out, dim_size), src, out, largest=False)


def segment_max_coo(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> tuple[Tensor, Tensor]:
    return _extremum(_coo_groups(src, index, out, dim_size), src, out, largest=True)


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    dim = _last_dim(src, index)
    _check_out(src, out, dim)
    shape = (*src.shape[:dim], index.shape[dim], *src.shape[dim + 1 :])
    if out is not None and out.shape[dim] != index.shape[dim]:
        raise ValueError(f"out {list(out.shape)} must have the {index.shape[dim]} entries of index {list(index.shape)} in dimension {dim}")
    entries = from_index(_leading(index, src), shape, dim, src.shape[dim], rising=True).gather(src)
    return entries if out is None else out.copy_(entries)


# segment_csr


def _csr_groups(src: Tensor, indptr: Tensor, out: Tensor | None) -> Groups:
    dim = _last_dim(src, indptr)
    _check_out(src, out, dim)
    number = max(indptr.shape[dim] - 1, 0)
    if out is not None and src.numel() and out.shape[dim] != number:
        raise ValueError(f"out {list(out.shape)} must have the {number} groups of indptr {list(indptr.shape)} in dimension {dim}")
    return from_ptr(indptr, src.shape, number)


def _overwrite(out: Tensor | None, fresh: Tensor, src: Tensor) -> Tensor:
    # nothing is written where there is nothing to reduce
    return fresh if out is None else out.copy_(fresh) if src.numel() else out


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None) -> Tensor:
    return _overwrite(out, _sum(_csr_groups(src, indptr, out), src, None), src)


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None) -> Tensor:
    return _overwrite(out, _mean(_csr_groups(src, indptr, out), src, None, "trunc"), src)


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    best, arg = _extremum(_csr_groups(src, indptr, out), src, None, largest=False)
    return _overwrite(out, best, src), arg


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    best, arg = _extremum(_csr_groups(src, indptr, out), src, None, largest=True)
    return _overwrite(out, best, src), arg


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None) -> Tensor:
    dim = _last_dim(src, indptr)
    _check_out(src, out, dim)
    if src.shape[dim] not in (0, indptr.shape[dim] - 1):
        raise ValueError(f"src {list(src.shape)} must have one entry less in dimension {dim} than indptr {list(indptr.shape)}")
    last = int(indptr.reshape(-1)[-1]) if out is None and src.numel() else 0
    length = last if out is None else out.shape[dim]
    groups = from_ptr(indptr, (*src.shape[:dim], length, *src.shape[dim + 1 :]), src.shape[dim])
    entries = groups.gather(src)
    if out is None or src.numel() == 0:
        return entries if out is None else out
    if groups.margin:
        # rows outside of all groups keep what they hold
        inside = groups.gather(torch.ones_like(src, dtype=torch.int64))
        entries = torch.where(inside == 1, entries, out)
    return out.copy_(entries)


# Composites. Half precision is computed in float32 and rounded once.


def _working(src: Tensor) -> Tensor:
    return src.to(torch.promote_types(src.dtype, torch.float32))


def _finite(best: Tensor) -> Tensor:
    """A shift that keeps exponentials in range, from the largest value. ∞ − ∞ would be NaN, so infinite ones are not shifted."""
    return best.masked_fill(best.isinf(), 0)


def _shift(groups: Groups, values: Tensor) -> Tensor:
    # it cancels, so it is a constant to autograd
    return _finite(groups.extremum(values.detach(), largest=True)[0])


def _check_floating(name: str, src: Tensor) -> None:
    if not src.is_floating_point():
        raise ValueError(f"{name} needs src of a floating dtype, got {src.dtype}")


def scatter_std(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, unbiased: bool) -> Tensor:
    groups = _groups(src, index, dim, out, dim_size)
    values = _working(src)
    count = groups.count().clamp(min=1)
    deviation = values - groups.gather(groups.mean(values))
    total = groups.sum(deviation * deviation)
    if out is not None:
        total = out.add_(total.to(out.dtype))
    variance = total / ((count - 1).clamp(min=1) if unbiased else count).to(values.dtype).add(1e-6)
    # the slope of the root is infinite at 0, which equal entries and single ones give; theirs is taken as 0
    flat = variance == 0
    deviations = variance.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)
    return deviations.to(src.dtype) if src.is_floating_point() else deviations


def scatter_logsumexp(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, eps: float) -> Tensor:
    _check_floating("scatter_logsumexp", src)
    groups = _groups(src, index, dim, out, dim_size)
    values, before = _working(src), None if out is None else _working(out)
    best, arg = groups.extremum(values.detach(), largest=True)
    best = best.masked_fill(arg == groups.length, -torch.inf)
    if before is not None:
        best = torch.maximum(best, before.detach())
    shift = _finite(best)
    total = groups.sum((values - groups.gather(shift)).exp())
    if before is not None:
        total = total + (before - shift).exp()
    # a group without entries, or with none but −∞, is 0, or what out holds
    nothing = torch.zeros_like(best) if before is None else before
    result = torch.where(best == -torch.inf, nothing, (total + eps).log() + shift).to(src.dtype)
    return result if out is None else out.copy_(result)


def scatter_softmax(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> Tensor:
    _check_floating("scatter_softmax", src)
    groups = _groups(src, index, dim, None, dim_size)
    values = _working(src)
    weight = (values - groups.gather(_shift(groups, values))).exp()
    return (weight / groups.gather(groups.sum(weight))).to(src.dtype)


def scatter_log_softmax(src: Tensor, index: Tensor, dim: int, eps: float, dim_size: int | None) -> Tensor:
    _check_floating("scatter_log_softmax", src)
    groups = _groups(src, index, dim, None, dim_size)
    values = _working(src)
    centred = values - groups.gather(_shift(groups, values))
    return (centred - groups.gather((groups.sum(centred.exp()) + eps).log())).to(src.dtype)
