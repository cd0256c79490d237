"""What an operator takes besides tensors of numbers: the schema of its arguments, and which nodes each row of filter joins."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ..graph import GRAPH_SCHEMA
from ..radial_specs import BasisSpec

#: Specs as the operators take them: the codes of basis and envelope, and the name of the activation.
SPEC_SCHEMA = "str basis, str envelope, str activation"

#: Graph and pairs as the operators take them. ``pair_edges`` is None where each edge has a length of its own.
UNIT_SCHEMA = f"{GRAPH_SCHEMA}, Tensor? pair_edges"

#: The tensors that a filter is made of, after the distance.
NETWORK_SCHEMA = "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2"


class Units(NamedTuple):
    """The rows of filter and the two nodes of each: an edge j → i, or a pair whose row is used in both directions."""

    i: Tensor  #: [n_units] int64, destination
    j: Tensor  #: [n_units] int64, source
    symmetric: bool  #: whether i → j has the same row
    order: Tensor | None  #: [n_units] int64, unit → row of the lengths; None if they are in order already


def units_of(edge_src: Tensor, edge_dst: Tensor, edge_order: Tensor, pair_edges: Tensor | None) -> Units:
    """Pairs in ascending number, or edges sorted by destination."""
    if pair_edges is None:
        return Units(edge_dst[edge_order], edge_src[edge_order], False, edge_order)
    first = pair_edges[:, 0]
    return Units(edge_dst[first], edge_src[first], True, None)


class Slopes(NamedTuple):
    """Numbers a kernel needs for φ: μₖ = μ₀ + kΔ in a variable v, φₖ = exp(−a ((v − μ₀)/Δ − k)²).

    v is the distance (``gaussian``) or e^(−αd) (``exp_normal``). ``bessel`` uses ``first`` as π/c and ``scale`` as its norm.
    """

    first: float  #: μ₀
    inverse: float  #: 1/Δ
    scale: float  #: a = γΔ²
    decay: float  #: α, 0 for ``gaussian``


def slopes_of(basis: BasisSpec) -> Slopes:
    """See `Slopes`."""
    if basis.kind == "bessel":
        return Slopes(math.pi / basis.cutoff, 1.0, basis.norm, 0.0)
    low, high = (basis.start, basis.cutoff) if basis.kind == "gaussian" else (math.exp(-5.0), 1.0)
    spacing = (high - low) / max(basis.size - 1, 1)
    return Slopes(low, 1 / spacing, basis.width_factor * spacing**2, basis.decay if basis.kind == "exp_normal" else 0.0)
