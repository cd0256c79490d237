"""The convolution and its first two gradients in plain torch: the specification, on any device. Names are those of the README.

Everything here makes the filters, [n_units, F], and is differentiable by autograd. Half-precision input is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..radial_specs import (
    ActivationKind,
    BasisSpec,
    EnvelopeSpec,
    FilterMLP,
    activation_jets,
    basis_jets,
    decode,
    envelope_jets,
    filter_jets,
)
from .codes import Units, units_of


def cfconv_exact(
    x: Tensor, edge_length: Tensor, basis: BasisSpec, mlp: FilterMLP, envelope: EnvelopeSpec, graph: CSRGraph, pair: Tensor | None = None
) -> Tensor:
    """The public function by definition; autograd differentiates it to any order. ``pair`` [n_edges] is the pair of each edge."""
    wide = FilterMLP(widened(mlp.weight1), widened(mlp.bias1), widened(mlp.weight2), widened(mlp.bias2), mlp.activation)
    (weight,) = filter_jets(basis, wide, envelope, widened(edge_length), 0)
    message = (weight if pair is None else weight[pair]) * widened(x)[graph.edge_src]
    return message.new_zeros(x.shape).index_add(0, graph.edge_dst, message).to(x.dtype)


def value(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, basis: str, envelope: str, activation: ActivationKind,
) -> Tensor:  # fmt: skip
    """y, as the operator computes it: by units."""
    units = units_of(src, dst, order, pair_edges)
    network = FilterMLP(widened(w1), widened(b1), widened(w2), widened(b2), activation)
    basis_spec, envelope_spec = decode(basis, envelope)
    (weight,) = filter_jets(basis_spec, network, envelope_spec, in_order(widened(length), units), 0)
    return spread(weight, widened(x), units).to(x.dtype)


def gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor, basis: str, envelope: str, activation: ActivationKind,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of ⟨grad, y⟩ with respect to x, length, w1, b1, w2 and b2."""
    units = units_of(src, dst, order, pair_edges)
    rows = _Rows(in_order(widened(length), units), (w1, b1, w2, b2), (basis, envelope, activation))
    wide_x, g = widened(x), widened(grad)
    q = product(g, wide_x, units)
    weight, slope = rows.filters()
    found = (spread_back(weight, g, units), out_of_order((slope * q).sum(1), units), *rows.pull_back(q, None))
    return tuple(tensor.to(x.dtype) for tensor in found)


def second_gradients(
    x: Tensor, length: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    src: Tensor, dst: Tensor, ptr: Tensor, order: Tensor, src_ptr: Tensor, src_order: Tensor, pair_edges: Tensor | None, grad: Tensor, tangent_x: Tensor | None, tangent_length: Tensor | None,
    basis: str, envelope: str, activation: ActivationKind,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of ⟨tangent_x, ∂x⟩ + ⟨tangent_length, ∂length⟩ of `gradients` with respect to x, length, w1, b1, w2, b2 and grad."""
    units = units_of(src, dst, order, pair_edges)
    rows = _Rows(in_order(widened(length), units), (w1, b1, w2, b2), (basis, envelope, activation), second=True)
    wide_x, g = widened(x), widened(grad)
    v = torch.zeros_like(g) if tangent_x is None else widened(tangent_x)
    u = torch.zeros_like(length) if tangent_length is None else tangent_length
    u = in_order(widened(u), units)[:, None]
    q, q_v = product(g, wide_x, units), product(g, v, units)
    weight, slope, curve = rows.filters()
    found = (
        spread_back(u * slope, g, units),
        out_of_order((slope * q_v + u * curve * q).sum(1), units),
        *rows.pull_back(q_v, u * q),
        spread(u * slope, wide_x, units) + spread(weight, v, units),
    )
    return tuple(tensor.to(x.dtype) for tensor in found)


def widened(tensor: Tensor) -> Tensor:
    """In the accumulator's dtype."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def in_order(length: Tensor, units: Units) -> Tensor:
    """Lengths, or what belongs to them, by unit."""
    return length if units.order is None else length[units.order]


def out_of_order(scalars: Tensor, units: Units) -> Tensor:
    """Back from units to the order of the lengths."""
    return scalars.clone() if units.order is None else torch.zeros_like(scalars).index_add(0, units.order, scalars)


def spread(weight: Tensor, x: Tensor, units: Units) -> Tensor:
    """Σ weight ∘ x_j onto i, and onto j of pairs weight ∘ x_i."""
    i, j, symmetric, _ = units
    out = x.new_zeros(x.shape).index_add(0, i, weight * x[j])
    return out.index_add(0, j, weight * x[i]) if symmetric else out


def spread_back(weight: Tensor, g: Tensor, units: Units) -> Tensor:
    """`spread` on the reversed graph."""
    return spread(weight, g, Units(units.j, units.i, units.symmetric, units.order))


def product(g: Tensor, x: Tensor, units: Units) -> Tensor:
    """The products q = g_i ∘ x_j, and for pairs + g_j ∘ x_i."""
    i, j, symmetric, _ = units
    return g[i] * x[j] + g[j] * x[i] if symmetric else g[i] * x[j]


class _Rows:
    """The hidden layer of all units, times the cutoff, with as many derivatives as asked for."""

    def __init__(self, length: Tensor, network: tuple[Tensor, ...], spec: tuple[str, str, ActivationKind], *, second: bool = False) -> None:
        basis, envelope = decode(*spec[:2])
        self.w1, self.b1, self.w2, self.b2 = (widened(tensor) for tensor in network)
        self.phi = basis_jets(basis, length, 1 + second)
        self.cut = [jet[:, None] for jet in envelope_jets(envelope, length, 1 + second)]
        z, self.dz, *ddz = (jet @ self.w1.T for jet in self.phi)
        a, self.a1, self.a2 = activation_jets(spec[2], z + self.b1, 2)
        c, dc, *ddc = self.cut
        self.rows = [a * c, self.a1 * self.dz * c + a * dc]
        if second:
            curved = self.a2 * self.dz.square() + self.a1 * ddz[0]
            self.rows.append(curved * c + 2 * self.a1 * self.dz * dc + a * ddc[0])

    def filters(self) -> list[Tensor]:
        """W, W′ and perhaps W″, each [n_units, F]."""
        return [row @ self.w2.T + cut * self.b2 for row, cut in zip(self.rows, self.cut, strict=True)]

    def pull_back(self, value: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of ⟨value, W⟩ + ⟨slope, W′⟩ with respect to w1, b1, w2 and b2."""
        c, dc = self.cut[:2]
        g = value @ self.w2
        grad_w2, grad_b2, grad_z = value.T @ self.rows[0], (value * c).sum(0), g * self.a1 * c
        if slope is None:
            return grad_z.T @ self.phi[0], grad_z.sum(0), grad_w2, grad_b2
        h = slope @ self.w2
        grad_z = grad_z + h * (self.a2 * self.dz * c + self.a1 * dc)
        grad_w1 = grad_z.T @ self.phi[0] + (h * self.a1 * c).T @ self.phi[1]
        return grad_w1, grad_z.sum(0), grad_w2 + slope.T @ self.rows[1], grad_b2 + (slope * dc).sum(0)
