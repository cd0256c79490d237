"""Reductions of adjacent entries between pointers: `segment_csr`, one function for each reduction, and the gather back.

TorchScript can compile these functions: it calls the operators of `script`, everything else calls `eager` directly.
"""

import torch
from torch import Tensor

from . import eager
from .script import is_scripting


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum of each segment, written to ``out`` if given; see `segment_csr`."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.segment_sum_csr(src, indptr, out)
    else:
        result = eager.segment_sum_csr(src, indptr, out)
    return result


def segment_add_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """The same as `segment_sum_csr`."""
    return segment_sum_csr(src, indptr, out)


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Mean of each segment. Integers are divided and rounded toward 0."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.segment_mean_csr(src, indptr, out)
    else:
        result = eager.segment_mean_csr(src, indptr, out)
    return result


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Smallest entry of each segment and its place, the first of equals; 0 and ``src.size(dim)`` where it is empty."""
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.segment_min_csr(src, indptr, out)
    else:
        result = eager.segment_min_csr(src, indptr, out)
    return result


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Largest entry of each segment and its place; as `segment_min_csr`."""
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.segment_max_csr(src, indptr, out)
    else:
        result = eager.segment_max_csr(src, indptr, out)
    return result


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduce the entries ``indptr[..., s]`` to ``indptr[..., s + 1] - 1`` of ``src``, along the last dimension of ``indptr``.

    Entries before the first pointer and behind the last belong to no segment.

    Args:
        src: values, [B..., E, ...].
        indptr: [B..., N + 1] int64, each row rising within 0 and E; leading dimensions of size 1 are expanded.
        out: [B..., N, ...], overwritten in place and returned.
        reduce: ``sum`` (or ``add``), ``mean``, ``min`` or ``max``.

    Returns:
        [B..., N, ...]; 0 for empty segments.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or ``reduce`` is unknown; on a CPU also if pointers fall or leave the
            entries.
    """
    # TorchScript knows no sets
    if reduce == "sum" or reduce == "add":  # noqa: PLR1714
        return segment_sum_csr(src, indptr, out)
    if reduce == "mean":
        return segment_mean_csr(src, indptr, out)
    if reduce == "min":
        return segment_min_csr(src, indptr, out)[0]
    if reduce == "max":
        return segment_max_csr(src, indptr, out)[0]
    raise ValueError("segment_csr knows the reductions sum, add, mean, min and max, got " + reduce)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """The value of each entry's segment: [B..., N, ...] and pointers [B..., N + 1] give [B..., E, ...].

    E is the last pointer, which waits for a GPU, or the length of ``out``, whose entries outside of all segments keep what they hold.
    Without ``out`` they are 0.
    """
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.gather_csr(src, indptr, out)
    else:
        result = eager.gather_csr(src, indptr, out)
    return result
