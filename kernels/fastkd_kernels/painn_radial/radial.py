"""`painn_message_radial`: PaiNN's message from edge vectors, with basis, filter layer and cutoff inside.

Example:
    >>> basis, envelope = BasisSpec("gaussian", 20, 5.0), EnvelopeSpec("cosine", 5.0)
    >>> linear = FilterLinear(filter_net.weight, filter_net.bias)
    >>> d_scalar, d_vector = painn_message_radial(phi, vector, edge_vector, basis, linear, envelope, graph)
"""

from __future__ import annotations

from torch import Tensor

from ..cfconv.pairs import PairIndex
from ..graph import CSRGraph
from ..painn_exact.op import painn_message_exact
from ..radial_conv.places import RadialIndex
from ..radial_conv.radial import Method, choose_grid
from ..radial_conv.spline import SplineGrid
from ..radial_conv.tables import tabulate
from ..radial_specs import BasisSpec, EnvelopeSpec, FilterLinear
from .op import painn_radial


def painn_message_radial(
    phi: Tensor,
    vector: Tensor | None,
    edge_vector: Tensor,
    basis: BasisSpec,
    linear: FilterLinear,
    cutoff: EnvelopeSpec | float,
    graph: CSRGraph,
    *,
    pairs: PairIndex | None = None,
    method: Method = "auto",
    grid: SplineGrid | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`painn_message` with the filter W(d) = C(d) (φ(d) weightᵀ + bias) of each edge; nothing [n_edges, F] is made.

    Args:
        phi: node features after the message's perceptron, in blocks (scalar, direction, vector), [n_nodes, 3F].
        vector: vector features, [n_nodes, 3, F], or None for the first layer, where they are zero.
        edge_vector: from the source to the destination of each edge or the other way round, as the model has it, [n_edges, 3] Å; of the
            first edge of each pair, [n_pairs, 3], with ``pairs``. Zero vectors have no direction, and give NaN.
        basis: φ, the radial basis.
        linear: the filter layer, [3F, K] and [3F]; its tensors receive gradients.
        cutoff: C, the envelope; a number means a cosine up to there.
        graph: edges src → dst.
        pairs: which edges are each other's reverse, if all have one: filters are then found once for both.
        method: ``table`` interpolates the filter between knots (`painn_radial`), ``exact`` makes it again in tiles of edges in every pass
            (`painn_message_exact`); ``auto`` takes the table if there are more distances than knots and the measured error is at rounding level. Its decision reads
            a number back from a GPU; a model that calls often keeps a `TableBuilder` instead.
        grid: knots of the table; found by measurement if None.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        Δscalar [n_nodes, F] and Δvector [n_nodes, 3, F], differentiable in phi, vector, edge_vector and the tensors of ``linear``.

    Raises:
        ValueError: if shapes, dtypes, devices or cutoffs do not fit together, or ``table`` is asked for where no table is good enough.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 7 and 8.
    """
    envelope = cutoff if isinstance(cutoff, EnvelopeSpec) else EnvelopeSpec("cosine", float(cutoff))
    units = graph.num_edges if pairs is None else pairs.num_pairs
    if edge_vector.shape != (units, 3) or not edge_vector.is_floating_point():
        kind = "edges" if pairs is None else "pairs"
        raise ValueError(
            f"painn_message_radial needs floating edge_vector [{units}, 3] for {units} {kind}, got {list(edge_vector.shape)} {edge_vector.dtype}"
        )
    length = edge_vector.norm(dim=1)
    direction = (edge_vector / length.unsqueeze(1)).to(phi.dtype)
    chosen = choose_grid(method, grid, basis, linear, envelope, units, phi.dtype)
    if chosen is not None:
        table = tabulate(basis, linear, envelope, chosen, phi.dtype)
        index = RadialIndex.from_lengths(length.detach(), chosen, graph, pairs, backend=backend)
        return painn_radial(phi, vector, length, direction, table, index)
    exact = FilterLinear(linear.weight.to(phi.dtype), linear.bias.to(phi.dtype), linear.smooth_bias)
    return painn_message_exact(phi, vector, length, direction, basis, exact, envelope, graph, pairs=pairs, backend=backend)


__all__ = ["painn_message_radial"]
