"""PaiNN's message and its first two derivatives in plain torch: the specification, on any device. Formulas are those of the README.

Half-precision input is computed in float32, as in the kernels. Everything here is differentiable by autograd to any order.
The three blocks of phi [N, 3F] and weight [E, 3F] stand in the order (scalar, direction, vector).
"""

from __future__ import annotations

import torch
from torch import Tensor


def painn_message(
    phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, edge_src: Tensor, edge_dst: Tensor
) -> tuple[Tensor, Tensor]:
    """Scalar [N, F] and vector [N, 3, F] from phi [N, 3F], vector [N, 3, F] or None, weight [E, 3F] and direction [E, 3]."""
    dtype, phi, weight, direction = phi.dtype, _wide(phi), _wide(weight), _wide(direction)
    message, along, carried = (weight * phi[edge_src]).chunk(3, dim=1)
    step = direction[:, :, None] * along[:, None]
    if vector is not None:
        step = step + carried[:, None] * _wide(vector)[edge_src]
    return _sum(message, edge_dst, phi.shape[0]).to(dtype), _sum(step, edge_dst, phi.shape[0]).to(dtype)


def painn_message_backward(
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    weight: Tensor,
    direction: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients by phi, vector (None if it is None), weight and direction."""
    dtype, nodes = phi.dtype, phi.shape[0]
    phi_src, weight, direction, grad_dst = _wide(phi)[edge_src], _wide(weight), _wide(direction), _wide(grad_vector)[edge_dst]
    _, along, carried = (weight * phi_src).chunk(3, dim=1)
    pull = _pull(_wide(grad_scalar)[edge_dst], grad_dst, direction, None if vector is None else _wide(vector)[edge_src])
    by_phi = _sum(weight * pull, edge_src, nodes).to(dtype)
    by_vector = None if vector is None else _sum(carried[:, None] * grad_dst, edge_src, nodes).to(dtype)
    return by_phi, by_vector, (phi_src * pull).to(dtype), (along[:, None] * grad_dst).sum(2).to(dtype)


def painn_message_double_backward(
    tangent_phi: Tensor | None,
    tangent_vector: Tensor | None,
    tangent_weight: Tensor | None,
    tangent_direction: Tensor | None,
    grad_scalar: Tensor,
    grad_vector: Tensor,
    phi: Tensor,
    vector: Tensor | None,
    weight: Tensor,
    direction: Tensor,
    edge_src: Tensor,
    edge_dst: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of ⟨tangents, `painn_message_backward`⟩ by grad_scalar, grad_vector, phi, vector, weight and direction."""
    dtype, nodes = phi.dtype, phi.shape[0]
    d_phi, d_weight, d_direction = (
        _or_zero(tangent_phi, phi)[edge_src],
        _or_zero(tangent_weight, weight),
        _or_zero(tangent_direction, direction),
    )
    phi_src, weight, direction = _wide(phi)[edge_src], _wide(weight), _wide(direction)
    grad_dst = _wide(grad_vector)[edge_dst]
    carrier = None if vector is None else _wide(vector)[edge_src]
    d_carrier = None if vector is None else _or_zero(tangent_vector, vector)[edge_src]
    _, along, carried = (weight * phi_src).chunk(3, dim=1)
    d_message, d_along, d_carried = (d_weight * phi_src + weight * d_phi).chunk(3, dim=1)
    d_step = direction[:, :, None] * d_along[:, None] + d_direction[:, :, None] * along[:, None]
    if carrier is not None and d_carrier is not None:
        d_step = d_step + d_carried[:, None] * carrier + carried[:, None] * d_carrier
    pull = _pull(_wide(grad_scalar)[edge_dst], grad_dst, direction, carrier)
    d_pull = _pull(None, grad_dst, d_direction, d_carrier)
    return (
        _sum(d_message, edge_dst, nodes).to(dtype),
        _sum(d_step, edge_dst, nodes).to(dtype),
        _sum(d_weight * pull + weight * d_pull, edge_src, nodes).to(dtype),
        None if vector is None else _sum(d_carried[:, None] * grad_dst, edge_src, nodes).to(dtype),
        (d_phi * pull + phi_src * d_pull).to(dtype),
        (d_along[:, None] * grad_dst).sum(2).to(dtype),
    )


def _pull(grad_scalar: Tensor | None, grad_vector: Tensor, direction: Tensor, carrier: Tensor | None) -> Tensor:
    """What the three blocks of weight ∘ phi receive on each edge, [E, 3F]; all arguments are per edge."""
    along = (direction[:, :, None] * grad_vector).sum(1)
    carried = torch.zeros_like(along) if carrier is None else (carrier * grad_vector).sum(1)
    return torch.cat([torch.zeros_like(along) if grad_scalar is None else grad_scalar, along, carried], dim=1)


def _sum(values: Tensor, index: Tensor, nodes: int) -> Tensor:
    return values.new_zeros(nodes, *values.shape[1:]).index_add(0, index, values)


def _or_zero(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(_wide(like)) if tangent is None else _wide(tangent)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
