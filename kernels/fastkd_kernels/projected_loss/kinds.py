"""The three penalties ρ, and the precision in which they are summed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["mse", "mae", "huber"]

#: r², |r|, and r²/2 continued by |r| − 1/2 beyond |r| = 1 (Huber, δ = 1). The position in the tuple is the kernels' code.
KINDS: tuple[Kind, ...] = ("mse", "mae", "huber")


def accumulator(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
