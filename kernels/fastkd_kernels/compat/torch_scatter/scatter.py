"""Reductions of entries with equal index, in any order: `scatter` and one function for each reduction.

TorchScript can compile these functions: it calls the operators of `script`, everything else calls `eager` directly.
"""

import torch
from torch import Tensor

from . import eager
from .script import is_scripting


def scatter_sum(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Sum of the entries of ``src`` with equal index, added to ``out`` if given; see `scatter`."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_sum(src, index, dim, out, dim_size)
    else:
        result = eager.scatter_sum(src, index, dim, out, dim_size)
    return result


def scatter_add(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """The same as `scatter_sum`."""
    return scatter_sum(src, index, dim, out, dim_size)


def scatter_mul(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Product of the entries with equal index, 1 where there are none, times ``out`` if given; see `scatter`."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_mul(src, index, dim, out, dim_size)
    else:
        result = eager.scatter_mul(src, index, dim, out, dim_size)
    return result


def scatter_mean(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Mean of the entries with equal index; (``out`` + sum) / number if ``out`` is given. Integers are divided and rounded down."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_mean(src, index, dim, out, dim_size)
    else:
        result = eager.scatter_mean(src, index, dim, out, dim_size)
    return result


def scatter_min(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest entry of equal index and its place along ``dim``, the first of equals; 0 and ``src.size(dim)`` where there are none.

    With ``out``, entries compete with what is in it, which wins ties; a place is ``src.size(dim)`` where it wins.
    """
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.scatter_min(src, index, dim, out, dim_size)
    else:
        result = eager.scatter_min(src, index, dim, out, dim_size)
    return result


def scatter_max(src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Largest entry of equal index and its place; as `scatter_min`."""
    if is_scripting():
        result: tuple[Tensor, Tensor] = torch.ops.fastkd_scatter.scatter_max(src, index, dim, out, dim_size)
    else:
        result = eager.scatter_max(src, index, dim, out, dim_size)
    return result


def scatter(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """Reduce the entries of ``src`` that share an index along ``dim``.

    Deterministic on every device, and differentiable to every order.

    Args:
        src: values, [..., E, ...]; any dtype for sum, mean and mul, any real one for min and max.
        index: int64, of the shape of ``src`` or broadcasting to it: a one-dimensional one runs along ``dim``, another starts at the first
            dimension; missing dimensions are added behind, those of size 1 are expanded.
        dim: the dimension that is reduced.
        out: [..., N, ...], reduced into in place and returned.
        dim_size: N if there is no ``out``; else the largest index + 1, which waits for a GPU.
        reduce: ``sum`` (or ``add``), ``mul``, ``mean``, ``min`` or ``max``.

    Returns:
        [..., N, ...].

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or ``reduce`` is unknown; on a CPU also if an index is out of range.
    """
    # TorchScript knows no sets
    if reduce == "sum" or reduce == "add":  # noqa: PLR1714
        return scatter_sum(src, index, dim, out, dim_size)
    if reduce == "mul":
        return scatter_mul(src, index, dim, out, dim_size)
    if reduce == "mean":
        return scatter_mean(src, index, dim, out, dim_size)
    if reduce == "min":
        return scatter_min(src, index, dim, out, dim_size)[0]
    if reduce == "max":
        return scatter_max(src, index, dim, out, dim_size)[0]
    raise ValueError("scatter knows the reductions sum, add, mul, mean, min and max, got " + reduce)
