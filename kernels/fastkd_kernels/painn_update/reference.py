"""PaiNN's update block in plain torch: the specification, on any device. Formulas are those of the README.

Half precision is computed in float32, as in the kernels. Everything here is differentiable by autograd to any order. ``mixed`` [N, 3, 2F]
holds U v and V v side by side; gates [N, 3F] are in the order (scalar, dot, vector).
"""

from __future__ import annotations

import torch
from torch import Tensor


def painn_context(scalar: Tensor, mixed: Tensor, epsilon: float) -> Tensor:
    """The scalars [N, F] and the norms of the last F columns of ``mixed`` side by side: [N, 2F]."""
    last = _last(mixed, scalar.shape[1])
    norm = (last.square().sum(1) + epsilon).sqrt()
    return torch.cat([scalar, norm.to(scalar.dtype)], 1)


def painn_context_backward(grad: Tensor, mixed: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Gradients by scalar and mixed."""
    width = grad.shape[1] // 2
    unit, _ = _unit(mixed, width, epsilon)
    by_last = _wide(grad)[:, None, width:] * unit
    return grad[:, :width].clone(), _padded(by_last, mixed)


def painn_context_double_backward(
    tangent_scalar: Tensor | None, tangent_mixed: Tensor | None, grad: Tensor, mixed: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of ⟨tangents, `painn_context_backward`⟩ by grad and mixed."""
    width = grad.shape[1] // 2
    first = torch.zeros_like(grad[:, :width]) if tangent_scalar is None else tangent_scalar
    if tangent_mixed is None:
        return torch.cat([first, torch.zeros_like(first)], 1), torch.zeros_like(mixed)
    unit, norm = _unit(mixed, width, epsilon)
    tangent = _last(tangent_mixed, width)
    along = (tangent * unit).sum(1)
    by_last = (_wide(grad)[:, width:] / norm)[:, None] * (tangent - along[:, None] * unit)
    return torch.cat([first, along.to(grad.dtype)], 1), _padded(by_last, mixed)


def painn_update(gates: Tensor, mixed: Tensor, dot_scale: float, scalar_scale: float) -> tuple[Tensor, Tensor]:
    """Changes of the scalars [N, F] and of the vectors [N, 3, F]."""
    (a, b, c), (u, v) = _wide(gates).chunk(3, 1), _wide(mixed).chunk(2, 2)
    change = scalar_scale * (a + b * (dot_scale * (u * v).sum(1)))
    return change.to(gates.dtype), (c[:, None] * u).to(gates.dtype)


def painn_update_backward(
    grad_scalar: Tensor | None, grad_vector: Tensor | None, gates: Tensor, mixed: Tensor, dot_scale: float, scalar_scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients by gates and mixed; a cotangent that is None is zero."""
    (a, b, c), (u, v) = _wide(gates).chunk(3, 1), _wide(mixed).chunk(2, 2)
    g = torch.zeros_like(a) if grad_scalar is None else _wide(grad_scalar)
    h = torch.zeros_like(u) if grad_vector is None else _wide(grad_vector)
    weight, scale = (scalar_scale * dot_scale) * g * b, scalar_scale * dot_scale
    by_gates = torch.cat([scalar_scale * g, scale * g * (u * v).sum(1), (h * u).sum(1)], 1)
    by_mixed = torch.cat([weight[:, None] * v + c[:, None] * h, weight[:, None] * u], 2)
    return by_gates.to(gates.dtype), by_mixed.to(gates.dtype)


def painn_update_double_backward(
    tangent_gates: Tensor | None,
    tangent_mixed: Tensor | None,
    grad_scalar: Tensor | None,
    grad_vector: Tensor | None,
    gates: Tensor,
    mixed: Tensor,
    dot_scale: float,
    scalar_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ⟨tangents, `painn_update_backward`⟩ by grad_scalar, grad_vector, gates and mixed."""
    (a, b, c), (u, v) = _wide(gates).chunk(3, 1), _wide(mixed).chunk(2, 2)
    g = torch.zeros_like(a) if grad_scalar is None else _wide(grad_scalar)
    h = torch.zeros_like(u) if grad_vector is None else _wide(grad_vector)
    da, db, dc = (torch.zeros_like(a),) * 3 if tangent_gates is None else _wide(tangent_gates).chunk(3, 1)
    du, dv = (torch.zeros_like(u),) * 2 if tangent_mixed is None else _wide(tangent_mixed).chunk(2, 2)
    scale = scalar_scale * dot_scale
    dot, d_dot = (u * v).sum(1), (du * v + u * dv).sum(1)
    by_scalar = scalar_scale * da + scale * (db * dot + b * d_dot)
    by_vector = dc[:, None] * u + c[:, None] * du
    by_gates = torch.cat([torch.zeros_like(a), scale * g * d_dot, (h * du).sum(1)], 1)
    weight, d_weight = (scale * g * b)[:, None], (scale * g * db)[:, None]
    by_mixed = torch.cat([d_weight * v + weight * dv + dc[:, None] * h, d_weight * u + weight * du], 2)
    return by_scalar.to(gates.dtype), by_vector.to(gates.dtype), by_gates.to(gates.dtype), by_mixed.to(gates.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _last(mixed: Tensor, width: int) -> Tensor:
    return _wide(mixed)[:, :, mixed.shape[2] - width :]


def _unit(mixed: Tensor, width: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """The last columns over their norms [N, 3, F], shorter than 1 because of epsilon, and the norms [N, F]."""
    last = _last(mixed, width)
    norm = (last.square().sum(1) + epsilon).sqrt()
    return last / norm[:, None], norm


def _padded(last: Tensor, mixed: Tensor) -> Tensor:
    """Zeros before the last columns, in shape and dtype of ``mixed``."""
    before = last.new_zeros(*last.shape[:2], mixed.shape[2] - last.shape[2])
    return torch.cat([before, last], 2).to(mixed.dtype)
