"""Functions made of several reductions: standard deviation, logarithm of a sum of exponentials, softmax and its logarithm.

TorchScript can compile these functions: it calls the operators of `script`, everything else calls `eager` directly.
"""

import torch
from torch import Tensor

from . import eager
from .script import is_scripting


def scatter_std(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None, unbiased: bool = True
) -> Tensor:
    """Standard deviation of the entries with equal index.

    The divisor is the number of entries, less one if ``unbiased``, plus 1e-6. Where the deviation is 0, so is its gradient. ``out`` gets the sum of
    squared deviations added, as upstream does; the result is another tensor.
    """
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_std(src, index, dim, out, dim_size, unbiased)
    else:
        result = eager.scatter_std(src, index, dim, out, dim_size, unbiased)
    return result


def scatter_logsumexp(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None, eps: float = 1e-12
) -> Tensor:
    """log(sum of exp + eps), without overflow; 0 where there are no entries, or none but -inf.

    With ``out``, exp(``out``) is one of the summands, and ``out`` is overwritten with the result.
    """
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_logsumexp(src, index, dim, out, dim_size, eps)
    else:
        result = eager.scatter_logsumexp(src, index, dim, out, dim_size, eps)
    return result


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Softmax over the entries with equal index, of the shape of ``src``."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_softmax(src, index, dim, dim_size)
    else:
        result = eager.scatter_softmax(src, index, dim, dim_size)
    return result


def scatter_log_softmax(src: Tensor, index: Tensor, dim: int = -1, eps: float = 1e-12, dim_size: int | None = None) -> Tensor:
    """Logarithm of `scatter_softmax`, with ``eps`` added to each sum."""
    if is_scripting():
        result: Tensor = torch.ops.fastkd_scatter.scatter_log_softmax(src, index, dim, eps, dim_size)
    else:
        result = eager.scatter_log_softmax(src, index, dim, eps, dim_size)
    return result
