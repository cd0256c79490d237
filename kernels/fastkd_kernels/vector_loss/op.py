"""The projected loss on vector channels: the kernels are those of `fastkd_kernels.projected_loss`.

Example:
    >>> loss = vector_loss(student_vectors, weight, teacher_vectors, "mse")
"""

from __future__ import annotations

from torch import Tensor

from .. import backends
from ..projected_loss.kinds import Kind
from ..projected_loss.op import check, projected_rows, weighted_mean
from . import reference


def vector_loss(
    v: Tensor, weight: Tensor, target: Tensor, kind: Kind = "mse", node_weight: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Mean over nodes, axes and channels of ρ(v · weightᵀ − target); neither the projection nor the residual is stored.

    The projection mixes channels only, the same way on each axis and without a bias, so it commutes with rotations. The loss itself is
    invariant under a common rotation of ``v`` and ``target`` for ``mse``; ``mae`` and ``huber`` act on components.

    On a CPU, where 3 · N · D is less than 2²⁰ and no backend is named, plain torch is as fast, runs instead, and stores both.

    Args:
        v: vector features, [N, 3, C].
        weight: of the projection, [D, C].
        target: what the projection should be, [N, 3, D].
        kind: ρ: ``mse`` r², ``mae`` |r|, ``huber`` with δ = 1.
        node_weight: weight of each node, ≥ 0, [N]: Σ_i w_i Σ_ac ρ(r_iac) / (3 · D · Σ_i w_i). None for equal weights.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 if N = 0 or if the weights sum to 0. All floating inputs
        are differentiable to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or ``kind`` or ``backend`` is unknown.

    Source: vector-to-vector distillation in Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge
    distillation, NeurIPS 2023.
    """
    check("vector_loss", "N, 3", v, weight, None, target, kind, node_weight)
    if backends.plain_is_faster(backend, target, target.numel(), backends.PLAIN_LOSS_BELOW):
        return reference.vector_loss(v, weight, target, kind, node_weight)
    nodes, (width, channels) = v.shape[0], weight.shape
    chosen = backends.resolve(backend, v)
    rows = projected_rows(v.reshape(3 * nodes, channels), weight, None, target.reshape(3 * nodes, width), kind, chosen)
    if node_weight is None:
        return weighted_mean(rows, None, width)
    return weighted_mean(rows.view(nodes, 3).sum(1), node_weight, 3 * width)
