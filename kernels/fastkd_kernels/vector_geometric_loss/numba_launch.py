"""The operators on a CPU: tiles of nodes small enough for the cache, each projected by BLAS and finished by one numba kernel.

Nothing of size [N, 3, D] is made, except a gradient of the target if one is asked for. Tiles follow from the shapes, and a tile's
products run on one thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cpu import arrays
from ..edge_to_node_loss.numba_launch import ProjectionGradients, each_projection
from .numba_kernels import geometric_loss_kernel, geometric_pull_kernel

#: Multiply-adds of one channel of one node, about, with its roots and quotients.
WORK = 30


def nodes(v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float) -> Tensor:
    """ℓ [N], see `reference.node_losses`."""
    losses = v.new_empty(v.shape[0])
    target_array, loss_array = arrays(target, losses)

    def run(first: int, last: int, projected: Tensor) -> None:
        vectors = projected.numpy().reshape(last - first, 3, projected.shape[1])
        work = WORK * (last - first) * projected.shape[1]
        geometric_loss_kernel(vectors, target_array[first:last], mix, eps, loss_array[first:last], work=work)

    each_projection(v.reshape(-1, v.shape[2]), weight, None, 3, run, products=1)
    return losses


def nodes_backward(
    v: Tensor, weight: Tensor, target: Tensor, upstream: Tensor, mix: float, eps: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i by v, weight and target; what is not needed is empty."""
    x = v.reshape(-1, v.shape[2])
    sums = ProjectionGradients(x, weight, [needs[0], needs[1], False])
    grad_target = torch.empty(target.shape if needs[2] else (0, 3, 0), dtype=v.dtype)
    target_array, upstream_array, grad_array = arrays(target, upstream, grad_target)

    def run(first: int, last: int, projected: Tensor) -> tuple[Tensor | None, Tensor | None]:
        vectors = projected.numpy().reshape(last - first, 3, projected.shape[1])
        inputs = (vectors, target_array[first:last], upstream_array[first:last], mix, eps)
        geometric_pull_kernel(*inputs, needs[2], grad_array[first:last], work=WORK * (last - first) * projected.shape[1])
        return sums.tile(slice(3 * first, 3 * last), projected)

    each_projection(x, weight, None, 3, run, sums.add, products=3)
    grad_x, grad_weight, _ = sums.result()
    return grad_x.reshape(v.shape) if needs[0] else grad_x, grad_weight, grad_target if needs[2] else v.new_empty(0)
