"""The message and its first two derivatives in plain torch: the specification, on any device. Names are those of the README.

Everything is that of ``painn_message`` (whose reference is called) with filters made from distances: a pair stands for its first edge and,
with the direction reversed, for the second one. Filters, [n_units, 3F], are made here, and autograd differentiates everything again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..painn_message import reference as message
from ..radial_specs import BasisSpec, EnvelopeSpec, FilterLinear, basis_jets, decode, envelope_jets, filter_jets

#: Codes of basis and envelope, and whether the envelope multiplies the bias.
Spec = tuple[str, str, bool]


def painn_message_exact(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor,
    basis: BasisSpec, linear: FilterLinear, envelope: EnvelopeSpec, graph: CSRGraph, pair_edges: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The public function by definition; autograd differentiates it to any order."""
    wide = FilterLinear(_wide(linear.weight), _wide(linear.bias), linear.smooth_bias)
    weight = filter_jets(basis, wide, envelope, _place(edge_length, phi), 0)[0].to(wide.weight.dtype)
    ends = _Ends.of((*graph.tensors, pair_edges))
    scalar, out_vector = message.painn_message(_wide(phi), _wide(vector), ends.both(weight), ends.turned(direction), *ends.directed())
    return scalar.to(phi.dtype), out_vector.to(phi.dtype)


def value(
    phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor, units: tuple[Any, ...], spec: Spec
) -> tuple[Tensor, Tensor]:
    """Scalar [N, F] and vector [N, 3, F], as the operator has it: ``weight`` [3F, K + 1] ends in the bias."""
    ends, (row,) = _Ends.of(units), rows(edge_length, spec, 0, phi)
    filters = ends.both(row @ _wide(weight).T)
    scalar, out_vector = message.painn_message(_wide(phi), _wide(vector), filters, ends.turned(direction), *ends.directed())
    return scalar.to(phi.dtype), out_vector.to(phi.dtype)


def gradients(
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by phi, vector (None if it is None), edge_length, direction and weight."""
    ends, (row, slope) = _Ends.of(units), rows(edge_length, spec, 1, phi)
    mixing = _wide(weight).T
    primals = (*map(_wide, (grad_scalar, grad_vector, phi, vector)), ends.both(row @ mixing), ends.turned(direction), *ends.directed())
    by_phi, by_vector, by_filter, by_direction = message.painn_message_backward(*primals)
    products = ends.fold(by_filter)
    return (
        by_phi.to(phi.dtype),
        None if vector is None or by_vector is None else by_vector.to(phi.dtype),
        ((slope @ mixing) * products).sum(1).to(edge_length.dtype),
        ends.fold_turned(by_direction).to(phi.dtype),
        (products.T @ row).to(phi.dtype),
    )


def second_gradients(
    tangent_phi: Tensor | None, tangent_vector: Tensor | None, rate: Tensor | None, tangent_direction: Tensor | None,
    grad_scalar: Tensor, grad_vector: Tensor, phi: Tensor, vector: Tensor | None, edge_length: Tensor, direction: Tensor, weight: Tensor,
    units: tuple[Any, ...], spec: Spec,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ⟨tangents, `gradients` but the last⟩ by grad_scalar, grad_vector, phi, vector, edge_length, direction and weight.

    ``rate`` is the tangent of the gradient by the length.
    """
    ends, (row, slope, curve) = _Ends.of(units), rows(edge_length, spec, 2, phi)
    mixing = _wide(weight).T
    primals = (*map(_wide, (grad_scalar, grad_vector, phi, vector)), ends.both(row @ mixing), ends.turned(direction), *ends.directed())
    speed = None if rate is None else rate.to(row.dtype).unsqueeze(1)
    moved = None if speed is None else ends.both(speed * (slope @ mixing))
    turned = None if tangent_direction is None else ends.turned(tangent_direction)
    found = message.painn_message_double_backward(_wide(tangent_phi), _wide(tangent_vector), moved, turned, *primals)
    by_scalar, by_grad_vector, by_phi, by_vector, by_filter, by_direction = found
    moved_products = ends.fold(by_filter)
    by_length, by_weight = ((slope @ mixing) * moved_products).sum(1), moved_products.T @ row
    if speed is not None:
        products = speed * ends.fold(message.painn_message_backward(*primals)[2])
        by_length, by_weight = by_length + ((curve @ mixing) * products).sum(1), by_weight + products.T @ slope
    return (
        by_scalar.to(phi.dtype),
        by_grad_vector.to(phi.dtype),
        by_phi.to(phi.dtype),
        None if vector is None or by_vector is None else by_vector.to(phi.dtype),
        by_length.to(edge_length.dtype),
        ends.fold_turned(by_direction).to(phi.dtype),
        by_weight.to(phi.dtype),
    )


def rows(edge_length: Tensor, spec: Spec, order: int, like: Tensor) -> list[Tensor]:
    """ψ = (C φ, C) or, if the bias stands outside of the envelope, (C φ, 1), and its derivatives in the distance, [n_units, K + 1] each."""
    basis, envelope = decode(*spec[:2])
    d, dtype = _place(edge_length, like), _wide(like).dtype
    phi, cut = basis_jets(basis, d, order), [jet.unsqueeze(1) for jet in envelope_jets(envelope, d, order)]
    found = []
    for n in range(order + 1):
        # Leibniz' rule
        inside = sum(math.comb(n, k) * cut[n - k] * phi[k] for k in range(n + 1))
        last = cut[n] if spec[2] else torch.full_like(cut[n], 1.0 if n == 0 else 0.0)
        found.append(torch.cat([torch.as_tensor(inside), last], 1).to(dtype))
    return found


class _Ends(NamedTuple):
    """Where each unit begins and ends: an edge, or the first edge of a pair."""

    dst: Tensor
    src: Tensor
    paired: bool

    @classmethod
    def of(cls, units: tuple[Any, ...]) -> _Ends:
        src, dst, *_, pair_edges = units
        if pair_edges is None:
            return cls(dst, src, False)
        first = pair_edges[:, 0]
        return cls(dst[first], src[first], True)

    def directed(self) -> tuple[Tensor, Tensor]:
        """Source and destination of each directed edge."""
        return (torch.cat([self.src, self.dst]), torch.cat([self.dst, self.src])) if self.paired else (self.src, self.dst)

    def both(self, per_unit: Tensor) -> Tensor:
        """Per directed edge from per unit."""
        return torch.cat([per_unit, per_unit]) if self.paired else per_unit

    def turned(self, direction: Tensor) -> Tensor:
        """`both` of directions, which the way back reverses; 0 between a node and itself, where both ways cancel."""
        one: Tensor = _wide(direction)
        if not self.paired:
            return one
        one = one * self._apart()
        return torch.cat([one, -one])

    def fold(self, per_edge: Tensor) -> Tensor:
        """The transpose of `both`."""
        units = self.dst.shape[0]
        return per_edge[:units] + per_edge[units:] if self.paired else per_edge

    def fold_turned(self, per_edge: Tensor) -> Tensor:
        """The transpose of `turned`."""
        units = self.dst.shape[0]
        return (per_edge[:units] - per_edge[units:]) * self._apart() if self.paired else per_edge

    def _apart(self) -> Tensor:
        return (self.dst != self.src).unsqueeze(1)


def _place(edge_length: Tensor, like: Tensor) -> Tensor:
    """Distances in the more precise of their own dtype and that of sums."""
    return edge_length.to(torch.promote_types(_wide(edge_length).dtype, _wide(like).dtype))


def _wide(tensor: Any) -> Any:
    return tensor.float() if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16) else tensor
