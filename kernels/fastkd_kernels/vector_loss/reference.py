"""The vector loss in plain torch: the specification, on any device, differentiable to any order."""

from __future__ import annotations

from torch import Tensor

from ..projected_loss import reference


def vector_loss(v: Tensor, weight: Tensor, target: Tensor, kind: str = "mse", node_weight: Tensor | None = None) -> Tensor:
    """The projected loss on 3·N rows, without bias; the three rows of a node share its weight."""
    nodes, _, channels = v.shape
    row_weight = None if node_weight is None else node_weight.repeat_interleave(3)
    return reference.projected_loss(v.reshape(3 * nodes, channels), weight, None, target.reshape(3 * nodes, len(weight)), kind, row_weight)
