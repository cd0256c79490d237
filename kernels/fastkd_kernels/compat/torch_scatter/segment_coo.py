"""Reductions of entries whose index is sorted: `segment_coo`, one function for each reduction, and the gather back.

TorchScript can compile these functions: it calls the operators of `script`, everything else calls `eager` directly.
"""

import torch
from torch import Tensor

from . import eager
from .script import is_scripting


def segment_sum_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Sum of each segment, added to ``out`` if given; see `segment_coo`."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.segment_sum_coo(src, index, out, dim_size)
    else:
        result = eager.segment_sum_coo(src, index, out, dim_size)
    return result


def segment_add_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """The same as `segment_sum_coo`."""
    return segment_sum_coo(src, index, out, dim_size)


def segment_mean_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Mean of each segment; (``out`` + sum) / number if ``out`` is given. Integers are divided and rounded toward 0."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.segment_mean_coo(src, index, out, dim_size)
    else:
        result = eager.segment_mean_coo(src, index, out, dim_size)
    return result


def segment_min_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest entry of each segment and its place, the first of equals; 0 and ``src.size(dim)`` where it is empty."""
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.segment_min_coo(src, index, out, dim_size)
    else:
        result = eager.segment_min_coo(src, index, out, dim_size)
    return result


def segment_max_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Largest entry of each segment and its place; as `segment_min_coo`."""
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.segment_max_coo(src, index, out, dim_size)
    else:
        result = eager.segment_max_coo(src, index, out, dim_size)
    return result


def segment_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    """Reduce the entries of ``src`` that share an index along the last dimension of ``index``, which is sorted there.

    As `scatter` but without a sort. A GPU is not asked whether the index is sorted; on a CPU it is looked at.

    Args:
        src: values, [B..., E, ...].
        index: [B..., E] int64, each row rising; leading dimensions of size 1 are expanded.
        out: [B..., N, ...], reduced into in place and returned.
        dim_size: N if there is no ``out``; else the largest index + 1, which waits for a GPU.
        reduce: ``sum`` (or ``add``), ``mean``, ``min`` or ``max``.

    Returns:
        [B..., N, ...].

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or ``reduce`` is unknown; on a CPU also if an index is out of range or
            not sorted.
    """
    # TorchScript knows no sets
    if reduce == "sum" or reduce == "add":  # noqa: PLR1714
        return segment_sum_coo(src, index, out, dim_size)
    if reduce == "mean":
        return segment_mean_coo(src, index, out, dim_size)
    if reduce == "min":
        return segment_min_coo(src, index, out, dim_size)[0]
    if reduce == "max":
        return segment_max_coo(src, index, out, dim_size)[0]
    raise ValueError("segment_coo knows the reductions sum, add, mean, min and max, got " + reduce)


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """The value of each entry's segment: [B..., N, ...] and a sorted index [B..., E] give [B..., E, ...], written to ``out`` if given."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.gather_coo(src, index, out)
    else:
        result = eager.gather_coo(src, index, out)
    return result
