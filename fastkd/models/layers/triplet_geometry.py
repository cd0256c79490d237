"""Length, spherical basis and angles of DimeNet as one node of autograd that knows its derivative.

Forces take one derivative by edge vectors, and training on forces takes another one by weights only, which none of these quantities
depends on. So slopes are computed with the values, the gradient is a fixed linear map, and the gradient of that is its adjoint: no Bessel
function, polynomial or root is differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
from fastkd_kernels import CSRGraph, TripletIndex, edge_product, edge_to_node, radial_envelope
from fastkd_kernels.graph import transpose
from torch import Tensor

from .mlp import safe_length
from .spherical import SphericalRadial, legendre_and_slopes

#: What both maps are made of: directions [E, 3], 1 / length [E, 1], slopes [E, S, N] and [T, S] (None: angles are left out), kj and ji [T].
Constants = tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]


class _Geometry(torch.autograd.Function):
    """Edge vectors → length [E], radial rows [E, S, N], Legendre polynomials [T, S]."""

    @staticmethod
    def forward(
        ctx: Any, edge_vector: Tensor, length: Tensor, rows: Tensor, angular: Tensor, constants: Constants
    ) -> tuple[Tensor, Tensor, Tensor]:
        # see `fastkd_kernels.backends.wanted`
        ctx.leaf, ctx.constants = edge_vector, constants
        ctx.set_materialize_grads(False)
        if constants[3] is None:
            ctx.mark_non_differentiable(angular)
        return length, rows, angular

    @staticmethod
    def backward(ctx: Any, by_length: Tensor | None, by_rows: Tensor | None, by_angular: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.leaf.requires_grad:
            return None, None, None, None, None
        return _Gradient.apply(by_length, by_rows, by_angular, ctx.constants), None, None, None, None


class _Gradient(torch.autograd.Function):
    """Gradients by length, rows and polynomials → gradient by edge vectors: linear in all three, as is its adjoint in what it gets."""

    @staticmethod
    def forward(ctx: Any, by_length: Tensor | None, by_rows: Tensor | None, by_angular: Tensor | None, constants: Constants) -> Tensor:
        ctx.constants, ctx.given = constants, [part is not None for part in (by_length, by_rows, by_angular)]
        ctx.set_materialize_grads(False)
        return _pull(by_length, by_rows, by_angular, constants)

    @staticmethod
    def backward(ctx: Any, h: Tensor | None) -> tuple[Tensor | None, ...]:
        if h is None:
            return None, None, None, None
        changes = _Change.apply(h, ctx.constants)
        return (*(change if given else None for change, given in zip(changes, ctx.given, strict=True)), None)


class _Change(torch.autograd.Function):
    """Changes of edge vectors → changes of length, rows and polynomials; the derivative of `_Gradient`, and the other way round."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        return _push(h, constants)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor, None]:
        return _Gradient.apply(*cotangents, ctx.constants), None


def _pull(by_length: Tensor | None, by_rows: Tensor | None, by_angular: Tensor | None, constants: Constants) -> Tensor:
    direction, inverse, row_slopes, slopes, triplets = constants
    along = direction.new_zeros(direction.shape[0], 1) if by_length is None else by_length.unsqueeze(-1)
    if by_rows is not None:
        along = along + torch.linalg.vecdot(by_rows.flatten(1), row_slopes.flatten(1)).unsqueeze(-1)
    if by_angular is None or slopes is None:
        return direction * along
    by_cosine = torch.linalg.vecdot(by_angular, slopes).unsqueeze(-1)
    graph = CSRGraph(*triplets)
    source, target = direction[graph.edge_src], direction[graph.edge_dst]
    turned = edge_to_node(by_cosine * source, graph) + edge_to_node(by_cosine * target, CSRGraph(*transpose(*triplets)))
    turned *= inverse
    return turned + direction * (along - torch.linalg.vecdot(direction, turned).unsqueeze(-1))


def _push(h: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor | None]:
    direction, inverse, row_slopes, slopes, triplets = constants
    along = torch.linalg.vecdot(direction, h)
    rows = row_slopes * along[:, None, None]
    if slopes is None:
        return along, rows, None
    graph, turned = CSRGraph(*triplets), (h - direction * along.unsqueeze(-1)) * inverse
    change = (edge_product(turned, direction, graph) + edge_product(direction, turned, graph)).sum(-1)
    return along, rows, slopes * change.unsqueeze(-1)


def first_order_geometry(
    edge_vector: Tensor, radial: SphericalRadial, triplets: TripletIndex | None, envelope_exponent: int, *, angle_forces: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Lengths, radial rows and angular polynomials, for whoever differentiates by edge vectors once.

    Args:
        edge_vector: [n_edges, 3] Å, a leaf of autograd's graph. Once it has its gradient and asks for none any more (``requires_grad_(False)``),
            later backward passes stop before they reach it.
        radial: makes the rows.
        triplets: k → j → i, edges being nodes; None if only lengths are needed.
        envelope_exponent: of `radial_envelope`, multiplies the rows.
        angle_forces: whether angles take part in the derivative.

    Returns:
        length [n_edges] Å, rows [n_edges, degrees, radial] and polynomials [n_triplets, degrees]; the last two None without triplets.
    """
    if triplets is None:
        return safe_length(edge_vector), None, None
    with torch.no_grad():
        vector = edge_vector.detach()
        length = safe_length(vector)
        direction, inverse = vector / length.unsqueeze(-1), 1 / length.unsqueeze(-1)
        cosine = edge_product(direction, direction, CSRGraph(*triplets.tensors)).sum(-1)
        angular, slopes = legendre_and_slopes(cosine, radial.degrees)
    with torch.enable_grad():
        at = length.clone().requires_grad_()
        envelope = radial_envelope(at, "polynomial", radial.cutoff, envelope_exponent)
        (envelope_slope,) = torch.autograd.grad(envelope.sum(), at)
    with torch.no_grad():
        rows, row_slopes = radial.value_and_slope(length, envelope.detach(), envelope_slope)
    constants = direction, inverse, row_slopes, slopes if angle_forces else None, triplets.tensors
    found: tuple[Tensor, Tensor, Tensor] = _Geometry.apply(edge_vector, length, rows, angular, constants)
    return found
