"""How to call the vector loss on random input. Its kernels are those of the projected loss."""

from __future__ import annotations

import torch

from ..projected_loss.cases import OPERATORS
from ..projected_loss.kinds import KINDS, Kind
from ..registry import AotKernel, OpCase, Sample, Shape, random_tensor
from . import reference
from .op import vector_loss


def _case(kind: Kind) -> OpCase:
    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        count, channels, width = shape.nodes, shape.width, shape.width + 2
        v = random_tensor(count, 3, channels, dtype=dtype, generator=generator)
        weight = random_tensor(width, channels, dtype=torch.float64, generator=generator).mul(channels**-0.5).to(dtype)
        target = random_tensor(count, 3, width, dtype=dtype, generator=generator)
        return Sample((v, weight, target), (kind,))

    return OpCase(f"vector_loss[{kind}]", vector_loss, reference.vector_loss, make, OPERATORS, smooth=kind == "mse")


CASES: tuple[OpCase, ...] = tuple(_case(kind) for kind in KINDS)
KERNELS: tuple[AotKernel, ...] = ()
