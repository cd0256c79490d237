"""How far an operator may be from its float64 reference: one table, used by the tests and by ``python -m fastkd_kernels.check``.

Errors are relative: ‖got − want‖ / ‖want‖ over a whole tensor (0 when both are 0), so that cancellation in single entries does
not count, and a wrong term does. The limit is per order of derivative.

Where a random input happens to cancel (a derivative of a scalar that is nearly zero), no float32 computation can keep to a fixed
number: there the limit is `OVER_EAGER` times the error of plain torch in the same dtype on the same input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Largest relative error of the value, the gradient and the gradient of the gradient."""

    forward: float
    backward: float
    double_backward: float
    reason: str

    @property
    def by_order(self) -> tuple[float, float, float]:
        return self.forward, self.backward, self.double_backward


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-12, 1e-12, 1e-12, "sums of up to 1e4 products: 1e4 · 2e-16 at the very worst, in another order"),
    torch.float32: Tolerance(2e-6, 4e-6, 8e-6, "float32 accumulation: sqrt(1e3) · 6e-8 expected; doubled per order"),
    torch.bfloat16: Tolerance(8e-3, 1.6e-2, 3.2e-2, "inputs and outputs rounded to 8 bits (4e-3), sums in float32; doubled per order"),
}


#: Our error over that of plain torch in the same dtype, where that is the larger limit: sums in another order may be a little worse.
OVER_EAGER = 1.5


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64; infinite if anything is not finite where ``want`` is, 0 for empty tensors."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}")
    difference = (got.detach().double().cpu() - want.detach().double().cpu()).norm().item()
    size = want.detach().double().norm().item()
    if math.isnan(difference):
        return float("inf")
    return difference / size if size else (0.0 if difference == 0 else float("inf"))
