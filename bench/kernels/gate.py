"""No speed without correctness: an op's three orders against float64, in the same process that times it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from fastkd_kernels.registry import OpCase, Shape
from fastkd_kernels.testing import errors
from torch import Tensor

from bench.kernels.peers import reason_of

SHAPES = (Shape(20, 160, 64), Shape(7, 40, 33))
#: On a GPU also a usual batch, where many programs meet.
LARGE = Shape(300, 5_000, 128)

#: Relative error by which a provider may differ from the reference in the same dtype, at the size that is timed. Both round, and sum
#: up to a million numbers in another order; a missing term is an error of the order of 1.
WRONG = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Verdict:
    """Whether speeds of an op may be printed, and why not."""

    ok: bool
    text: str


def check(case: OpCase, dtype: torch.dtype, device: torch.device, seed: int) -> Verdict:
    """Value, gradient and its gradient of the public function, on the backend that this device chooses."""
    worst = ""
    for shape in (*SHAPES, LARGE) if device.type != "cpu" else SHAPES:
        try:
            found = errors(case, shape, dtype, None, seed=seed, device=device)
        except Exception as error:
            # whatever it raises, it is not correct
            return Verdict(False, reason_of(error))
        if not found.ok:
            return Verdict(False, str(found))
        worst = str(found)
    return Verdict(True, worst)


def difference(got: tuple[Tensor | None, ...], want: tuple[Tensor | None, ...]) -> float:
    """Largest relative error of any tensor; a gradient that is missing counts as zeros.

    A number that is not the first result is the gradient by a loss's cotangent, ⟨tangent, gradient⟩: as large as the gradients before it
    unless random signs cancel, so that it is measured by them.
    """
    largest = scale = 0.0
    for ours, theirs in zip(got, want, strict=True):
        if theirs is None:
            size = difference = 0.0 if ours is None else float(ours.detach().double().norm())
        else:
            size = float(torch.linalg.vector_norm(theirs.detach(), dtype=torch.float64))
            rest = theirs.detach() if ours is None else ours.detach().to(theirs.dtype) - theirs.detach()
            difference = float(torch.linalg.vector_norm(rest, dtype=torch.float64))
        if theirs is not None and theirs.dim():
            scale = max(scale, size)
        else:
            size = max(size, scale)
        error = difference / size if size else difference
        largest = float("inf") if math.isnan(error) else max(largest, error)
    return largest
