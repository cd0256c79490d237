"""Radial bases, Legendre polynomials, and the basis of two angles.

Example:
    >>> legendre(torch.tensor([0.5]), 3).shape
    torch.Size([1, 3])
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from fastkd_kernels import TripletIndex, radial_basis, triplet_reduce
from torch import Tensor, nn

from .layers import he_orthogonal
from .memory import recomputed
from .options import AngularKind, EnvelopeName, RadialKind

#: Under roots of squared sines of angles, which are of the order of one: 1e-9 of an angle, as in the reference.
TINY_ANGLE = 1e-18
#: How many edges receive from triplets and quadruplets at a time in a prediction on a CPU: what is summed for them stays in a cache.
EDGES_AT_ONCE = 128


class RadialBasis(nn.Module):
    """``size`` functions of a distance times an envelope: Gaussians, or spherical Bessel functions whose frequencies are trained.

    ``frequencies`` are kπ, of the distance in units of the cutoff, as in the reference.
    """

    frequencies: Tensor | None

    def __init__(self, kind: RadialKind, size: int, cutoff: float, envelope: EnvelopeName, exponent: int) -> None:
        super().__init__()
        self.kind, self.size, self.cutoff = kind, size, float(cutoff)
        self.envelope, self.exponent = envelope, exponent
        frequencies = math.pi * torch.arange(1, size + 1, dtype=torch.get_default_dtype())
        self.register_parameter("frequencies", nn.Parameter(frequencies) if kind == "bessel" else None)

    def extra_repr(self) -> str:
        return f"{self.kind}, size={self.size}, cutoff={self.cutoff}, envelope={self.envelope}"

    def forward(self, length: Tensor) -> Tensor:
        """[n] Å → [n, size]."""
        frequencies = None if self.frequencies is None else self.frequencies / self.cutoff
        return radial_basis(
            length,
            self.kind,
            self.cutoff,
            self.size,
            envelope=self.envelope,
            envelope_exponent=self.exponent,
            frequencies=frequencies,
        )


class AngularWeights(nn.Module):
    """Linear maps of a radial basis that depend on the degree of the angular basis beside it (GemNet, section 4)."""

    def __init__(self, radial: int, spherical: int, outputs: int) -> None:
        super().__init__()
        self.spherical, self.outputs = spherical, outputs
        self.weight = nn.Parameter(he_orthogonal(torch.empty(radial, spherical, outputs)))

    def forward(self, radial: Tensor) -> Tensor:
        """[n, radial] → [n, outputs, spherical]."""
        # rows of the product are read as [outputs, spherical], as the reference does
        return (radial @ self.weight.flatten(1)).unflatten(1, (self.outputs, self.spherical))


def legendre(cosine: Tensor, degrees: int) -> Tensor:
    """√((2l + 1) / 4π) P_l, the spherical harmonics of order zero, for l < ``degrees``: [n] → [n, degrees]."""
    terms = [torch.ones_like(cosine), cosine]
    for degree in range(2, degrees):
        terms.append(((2 * degree - 1) * cosine * terms[-1] - (degree - 1) * terms[-2]) / degree)
    norms = torch.tensor([math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(degrees)], dtype=cosine.dtype)
    return torch.stack(terms[:degrees], 1) * norms.to(cosine.device)


def angular_basis(first: Tensor, second: Tensor, index: TripletIndex, degrees: int) -> Tensor:
    """`legendre` of the angle between the output edge's direction and the input edge's: [n_out, 3], [n_in, 3] → [n_triplets, degrees]."""

    def body(first: Tensor, second: Tensor) -> Tensor:
        return legendre(cosine(first[index.edge_out], second[index.edge_in]), degrees)

    return recomputed(body, first, second)


def weighted_sums(weights: Tensor, message: Tensor, angular: Tensor, triplets: TripletIndex) -> Tensor:
    """``weights`` [n_out, c, degrees] times the `triplet_reduce` of the rest: [n_out, c, D]; triplets sorted by output edge."""
    if _at_once(weights):
        return weights @ triplet_reduce(message, angular, triplets)
    total = weights.new_empty(weights.shape[0], weights.shape[1], message.shape[1])
    for first in range(0, weights.shape[0], EDGES_AT_ONCE):
        last = min(first + EDGES_AT_ONCE, weights.shape[0])
        part, these = _into(triplets, first, last)
        torch.bmm(weights[first:last], triplet_reduce(message, angular[part], these), out=total[first:last])
    return total


def _at_once(weights: Tensor) -> bool:
    """Whether all edges are to be summed in one go: where autograd records, where that needs no cutting up, and where each cut would wait."""
    return torch.is_grad_enabled() or weights.device.type != "cpu" or weights.shape[0] <= EDGES_AT_ONCE


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of the angle between unit vectors, [n, 3] → [n]."""
    return (first * second).sum(-1)


class TwoAngles:
    """Basis of a quadruplet's angles: φ between c → a and b → a, and the dihedral θ of c, a, b, d (GemNet-OC, section 3).

    It is a sum of products of a function of θ with one of φ, so that messages are summed in two steps: onto triplets b → a ← c with the
    functions of θ, then onto edges c → a with those of φ. No tensor [n_quadruplets, degrees²] is made.

    - ``legendre_outer``: P_l(cos φ) P_m(cos θ), entry l · degrees + m. The dihedral does not exist where three of the atoms lie on one
      line, and this basis jumps there.
    - ``spherical_harmonics``: real Y_lm(φ, |θ|), entries of each l in the order m = 0 … l, −l … −1. It jumps where d, b and a lie on one
      line, and has a kink where all four atoms lie in one plane, because of |θ|.
    - ``smooth_harmonics``: Y_lm(φ, θ) sinᵐψ, m = 0 … l, with ψ the angle between d → b and b → a. A polynomial of the directions. Ours.
    """

    def __init__(self, kind: AngularKind, degrees: int, cos_phi: Tensor, outer: Tensor, inner: Tensor) -> None:
        """Take ``cos_phi`` [n_outer] and the normals ``outer``, ``inner`` [n_paths, 3] of the planes (c, a, b) and (d, b, a)."""
        self.kind, self.degrees = kind, degrees
        # as many numbers as quadruplets at every step: only the normals are kept
        self.path_basis = recomputed(partial(_path_basis, kind, degrees), outer, inner)
        if kind == "legendre_outer":
            self.edge_basis = legendre(cos_phi, degrees)
            return
        negative = kind == "spherical_harmonics"
        self.orders = [(l, m) for l in range(degrees) for m in [*range(l + 1), *(range(-l, 0) if negative else ())]]
        self.edge_basis = _associated(cos_phi, degrees, self.orders)

    def project(
        self, weights: Tensor, message: Tensor, paths: TripletIndex, onto_edges: TripletIndex, bases: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``weights`` [n_edges, c, entries] times `reduce`: [n_edges, c, D]."""
        if _at_once(weights):
            return weights @ self.reduce(message, paths, onto_edges, bases)
        # sums onto triplets are the most that a prediction holds, so a few edges are done at a time; their triplets lie side by side
        total = weights.new_empty(weights.shape[0], weights.shape[1], message.shape[1])
        for first in range(0, weights.shape[0], EDGES_AT_ONCE):
            last = min(first + EDGES_AT_ONCE, weights.shape[0])
            outer, these = _into(onto_edges, first, last)
            inner, those = _into(paths, outer.start, outer.stop)
            these = replace(these, edge_in=these.edge_in - outer.start, in_ptr=these.in_ptr[outer.start : outer.stop + 1] - outer.start)
            summed = self.reduce(message, those, these, (bases[0][inner], bases[1][outer]))
            torch.bmm(weights[first:last], summed, out=total[first:last])
        return total

    def reduce(self, message: Tensor, paths: TripletIndex, onto_edges: TripletIndex, bases: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Σ over quadruplets into each edge of basis ⊗ message: [n_inner, D] → [n_edges, entries, D].

        ``bases`` stand for ``path_basis`` and ``edge_basis``, where these are arguments of a function that is differentiated by them.
        """
        path_basis, edge_basis = bases or (self.path_basis, self.edge_basis)
        summed = triplet_reduce(message, path_basis, paths)  # [n_outer, k, D]
        if self.kind == "legendre_outer":
            edges = triplet_reduce(summed.flatten(1), edge_basis, onto_edges)  # [n_edges, l, m · D]
            return edges.unflatten(2, (self.degrees, -1)).flatten(1, 2)
        # functions of θ are m = 0 … L − 1, −1 … −(L − 1); each is part of some entries
        columns = [
            [i for i, (_, order) in enumerate(self.orders) if order == m] for m in [*range(self.degrees), *range(-1, -self.degrees, -1)]
        ]
        parts = [
            triplet_reduce(summed[:, k].contiguous(), edge_basis[:, mine].contiguous(), onto_edges)
            for k, mine in enumerate(columns)
            if mine
        ]
        flat = torch.tensor([column for mine in columns for column in mine], device=message.device)
        return torch.cat(parts, 1)[:, torch.argsort(flat)]


def _into(index: TripletIndex, first: int, last: int) -> tuple[slice, TripletIndex]:
    """The triplets into some output edges, which are numbered anew: where they are, and an index good for `triplet_reduce` without gradient.

    The triplets must be sorted by output edge.
    """
    start, stop = int(index.out_ptr[first]), int(index.out_ptr[last])
    part = slice(start, stop)
    pointers = index.out_ptr[first : last + 1] - start
    return part, replace(
        index, edge_in=index.edge_in[part], edge_out=index.edge_out[part] - first, out_ptr=pointers, out_order=index.out_order[part] - start
    )


def _path_basis(kind: AngularKind, degrees: int, outer: Tensor, inner: Tensor) -> Tensor:
    """Functions of the angle between the planes, from their normals: [n_paths, 3], [n_paths, 3] → [n_paths, k]."""
    along = cosine(outer, inner)
    if kind == "legendre_outer":
        return legendre(along / torch.sqrt(outer.square().sum(-1) * inner.square().sum(-1) + TINY_ANGLE), degrees)
    if kind == "smooth_harmonics":
        return _even_circular(along, outer.square().sum(-1) * inner.square().sum(-1), degrees)
    across = torch.sqrt(torch.linalg.cross(outer, inner).square().sum(-1) + TINY_ANGLE)
    # a division: the derivatives of a reciprocal root take powers of 1e9 that float32 does not hold
    length = torch.sqrt(inner.square().sum(-1) + TINY_ANGLE)
    return _circular(along / length, across / length, degrees)


def _circular(x: Tensor, y: Tensor, degrees: int) -> Tensor:
    """Real parts of (x + iy)ᵐ for m < ``degrees``, and imaginary ones for 0 < m < ``degrees``: [n], [n] → [n, 2 degrees − 1]."""
    real, imaginary = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(1, degrees):
        real, imaginary = [*real, x * real[-1] - y * imaginary[-1]], [*imaginary, x * imaginary[-1] + y * real[-1]]
    return torch.stack([*real, *imaginary[1:]], 1)


def _even_circular(x: Tensor, square: Tensor, degrees: int) -> Tensor:
    """Real parts of (x + iy)ᵐ for m < ``degrees``, from x and x² + y²: [n], [n] → [n, degrees]."""
    real = [torch.ones_like(x), x]
    for _ in range(2, degrees):
        real.append(2 * x * real[-1] - square * real[-2])
    return torch.stack(real[:degrees], 1)


def _associated(z: Tensor, degrees: int, orders: list[tuple[int, int]]) -> Tensor:
    """Normalised associated Legendre functions without their factor sinᵐφ, one column for each (l, m): [n] → [n, entries]."""
    ones = torch.ones_like(z)
    found: dict[tuple[int, int], Tensor] = {}
    for m in range(degrees):
        # (−1)ᵐ of the Condon–Shortley phase is taken back by the real harmonics
        found[m, m] = math.prod(range(1, 2 * m, 2)) * ones
        if m + 1 < degrees:
            found[m + 1, m] = (2 * m + 1) * z * found[m, m]
        for l in range(m + 2, degrees):
            found[l, m] = ((2 * l - 1) * z * found[l - 1, m] - (l + m - 1) * found[l - 2, m]) / (l - m)
    columns = []
    for l, order in orders:
        m = abs(order)
        norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m))
        columns.append(norm * (math.sqrt(2) if m else 1.0) * found[l, m])
    return torch.stack(columns, 1)
