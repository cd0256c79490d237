"""The geometric loss of vectors in plain torch: the specification, on any device. Names and formulas are those of the README.

Half-precision input is computed in float32, as in the kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..projected_loss.kinds import accumulator

DEFAULT_EPS = 1e-6


def vector_geometric_loss(
    v: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    mix: float = 0.5,
    eps: float = DEFAULT_EPS,
    graph_ptr: Tensor | None = None,
    node_weight: Tensor | None = None,
) -> Tensor:
    """The public function by definition; autograd differentiates it to any order."""
    nodes = node_losses(v, weight, target, mix, eps) / max(target.shape[2], 1)
    importance = torch.ones_like(nodes) if node_weight is None else node_weight.to(nodes.dtype)
    if graph_ptr is None:
        total = importance.sum()
        return (importance * nodes).sum() / torch.where(total == 0, 1.0, total)
    image = torch.repeat_interleave(torch.arange(graph_ptr.shape[0] - 1, device=v.device), graph_ptr.diff())
    sums = nodes.new_zeros(2, graph_ptr.shape[0] - 1).index_add(1, image, torch.stack([importance * nodes, importance]))
    means = sums[0] / torch.where(sums[1] == 0, 1.0, sums[1])
    return means.sum() / (sums[1] != 0).sum().clamp(min=1)


def node_losses(v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float) -> Tensor:
    """Σ_c of each node, [N] in the accumulator's dtype."""
    u, t = _pair(v, weight, target)
    first, second = _polar(u, eps), _polar(t, eps)
    opening = _opening(first, second)[1]
    return ((1 - mix) * (first.length - second.length).abs() + mix * opening).sum((1, 2))


def node_gradients(v: Tensor, weight: Tensor, target: Tensor, upstream: Tensor, mix: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i by v, weight and target, given h = ``upstream`` [N]."""
    u, t = _pair(v, weight, target)
    h = upstream.to(u.dtype)[:, None, None]
    pull, pull_target = (h * slope for slope in _slopes(_polar(u, eps), _polar(t, eps), mix))
    grad_weight = pull.flatten(0, 1).T @ v.flatten(0, 1).to(pull.dtype)
    return (pull @ weight.to(pull.dtype)).to(v.dtype), grad_weight.to(v.dtype), pull_target.to(v.dtype)


def node_second_gradients(
    v: Tensor,
    weight: Tensor,
    target: Tensor,
    upstream: Tensor,
    mix: float,
    eps: float,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ⟨tangents, `node_gradients`⟩ by v, weight, target and upstream; differentiable again."""
    u, t = _pair(v, weight, target)
    v, weight, h = v.to(u.dtype), weight.to(u.dtype), upstream.to(u.dtype)[:, None, None]
    dv, dweight, dtarget = (None if tangent is None else tangent.to(u.dtype) for tangent in tangents)
    du, dt = torch.zeros_like(u), torch.zeros_like(t) if dtarget is None else dtarget
    du = du if dv is None else du + dv @ weight.T
    du = du if dweight is None else du + v @ dweight.T
    first, second = _polar(u, eps), _polar(t, eps)
    slope, slope_target = _slopes(first, second, mix)
    curved, curved_target = (h * change for change in _slope_changes(first, second, du, dt, mix))
    pull = h * slope
    grad_v = curved @ weight if dweight is None else curved @ weight + pull @ dweight
    grad_weight = curved.flatten(0, 1).T @ v.flatten(0, 1)
    grad_weight = grad_weight if dv is None else grad_weight + pull.flatten(0, 1).T @ dv.flatten(0, 1)
    return grad_v, grad_weight, curved_target, (slope * du + slope_target * dt).sum((1, 2))


class _Polar(NamedTuple):
    """Length and direction of vectors [N, 3, D]; a short one has no direction, and a length that does not move."""

    length: Tensor  #: [N, 1, D]
    inverse: Tensor  #: 1 / length, 0 where short
    direction: Tensor  #: [N, 3, D]
    short: Tensor  #: [N, 1, D]


def _polar(vector: Tensor, eps: float) -> _Polar:
    square = vector.square().sum(1, keepdim=True)
    still = square.detach().sqrt()
    # NaN is not short, and goes on to the result
    short = still < eps
    length = torch.where(short, 1.0, square).sqrt()
    inverse = torch.where(short, 0.0, 1 / length)
    return _Polar(torch.where(short, still, length), inverse, vector * inverse, short)


def _opening(first: _Polar, second: _Polar) -> tuple[Tensor, Tensor, Tensor]:
    """û − t̂; 1 − cos as half its square, which keeps the digits of small angles, or 1 without two directions; and where there are two."""
    apart = first.direction - second.direction
    both = ~(first.short | second.short)
    return apart, torch.where(both, apart.square().sum(1, keepdim=True) / 2, 1.0), both


def _slopes(first: _Polar, second: _Polar, mix: float) -> tuple[Tensor, Tensor]:
    """Derivatives of a node's loss in one channel by u and by t."""
    apart, opening, both = _opening(first, second)
    longer = (1 - mix) * (first.length - second.length).sign()
    turn = mix * both.to(apart.dtype)
    by_u = longer * first.direction + turn * first.inverse * (apart - opening * first.direction)
    by_t = -longer * second.direction - turn * second.inverse * (apart + opening * second.direction)
    return by_u, by_t


def _slope_changes(first: _Polar, second: _Polar, du: Tensor, dt: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    """How `_slopes` changes along du and dt."""
    apart, opening, both = _opening(first, second)
    longer = (1 - mix) * (first.length - second.length).sign()
    turn = mix * both.to(apart.dtype)
    (turned, shrunk), (turned_target, shrunk_target) = _turn(first, du), _turn(second, dt)
    parting = turned - turned_target
    opened = (apart * parting).sum(1, keepdim=True)
    by_u = longer * turned + turn * (
        shrunk * (apart - opening * first.direction) + first.inverse * (parting - opened * first.direction - opening * turned)
    )
    by_t = -longer * turned_target - turn * (
        shrunk_target * (apart + opening * second.direction)
        + second.inverse * (parting + opened * second.direction + opening * turned_target)
    )
    return by_u, by_t


def _turn(polar: _Polar, change: Tensor) -> tuple[Tensor, Tensor]:
    """How direction and inverse length change along ``change``."""
    along = (polar.direction * change).sum(1, keepdim=True)
    return polar.inverse * (change - along * polar.direction), -polar.inverse.square() * along


def _pair(v: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulator(v)
    return v.to(dtype) @ weight.to(dtype).T, target.to(dtype)
