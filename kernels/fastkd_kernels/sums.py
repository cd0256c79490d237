"""The sum of a long vector, the same to the bit for any number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers that torch sums on one thread, whatever their number (`at::internal::GRAIN_SIZE`).
ONE_THREAD = 32_768
#: Length of a row where there are more.
ROW = 1024


def total(values: Tensor) -> Tensor:
    """Σ values, [n]. On a CPU torch cuts a long sum into one part a thread; rows of a fixed length are summed first instead.

    Differentiable to every order, and made of ordinary operators.
    """
    if values.device.type != "cpu":
        return values.sum()
    while values.shape[0] > ONE_THREAD:
        values = torch.nn.functional.pad(values, (0, -values.shape[0] % ROW)).view(-1, ROW).sum(1)
    return values.sum()
