"""`cfconv_radial`: SchNet's convolution from distances, with basis, filter network and cutoff inside.

Example:
    >>> basis, envelope = BasisSpec("gaussian", 50, 5.0), EnvelopeSpec("cosine", 5.0)
    >>> mlp = FilterMLP(first.weight, first.bias, second.weight, second.bias, "shifted_softplus")
    >>> y = cfconv_radial(x, edge_length, basis, mlp, envelope, graph)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..cfconv.op import cfconv
from ..cfconv.paired import paired_cfconv
from ..cfconv.pairs import PairIndex
from ..cfconv_exact.op import cfconv_exact
from ..graph import CSRGraph
from ..radial_specs import BasisSpec, EnvelopeSpec, FilterLinear, FilterMLP, filter_jets
from .op import radial_conv
from .places import RadialIndex
from .spline import SplineGrid
from .tables import TableBuilder, tabulate

Method = Literal["auto", "table", "exact"]


def cfconv_radial(
    x: Tensor,
    edge_length: Tensor,
    basis: BasisSpec,
    mlp: FilterMLP | FilterLinear,
    cutoff: EnvelopeSpec | float,
    graph: CSRGraph,
    *,
    pairs: PairIndex | None = None,
    method: Method = "auto",
    grid: SplineGrid | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sum over the edges into each node of C(d) M(φ(d)) ∘ x_src; no tensor [n_edges, F] is made on the way to forces and their loss.

    Args:
        x: node features, [n_nodes, F].
        edge_length: d, [n_edges] Å, or [n_pairs] Å with ``pairs``.
        basis: φ, the radial basis.
        mlp: M, the filter network or one linear layer; its tensors receive gradients.
        cutoff: C, the envelope; a number means a cosine up to there.
        graph: edges src → dst.
        pairs: which edges share a length, if all do: the filter is then found once for both.
        method: ``table`` interpolates M between knots (`radial_conv`), ``exact`` recomputes it in tiles (`cfconv_exact`; the filters of a
            single linear layer are stored instead); ``auto`` takes the
            table if there are more distances than knots and the measured error is at rounding level, and else the exact operator. Its
            decision reads a number back from a GPU; a model that calls often keeps a `TableBuilder` instead.
        grid: knots of the table; found by measurement if None.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n_nodes, F], differentiable in x, edge_length and the tensors of ``mlp``. The table is differentiated by its knots' values: the
        weights' own gradients can be differentiated once more in everything but the weights.

    Raises:
        ValueError: if shapes, dtypes, devices or cutoffs do not fit together, or ``table`` is asked for where no table is good enough.

    Source: SchNet, Schütt et al. 2017, eq. 2 and fig. 2.
    """
    envelope = cutoff if isinstance(cutoff, EnvelopeSpec) else EnvelopeSpec("cosine", float(cutoff))
    chosen = choose_grid(method, grid, basis, mlp, envelope, edge_length.shape[0], x.dtype)
    if chosen is None and isinstance(mlp, FilterLinear):
        weight = filter_jets(basis, mlp, envelope, edge_length, 0)[0]
        return cfconv(x, weight, graph, backend=backend) if pairs is None else paired_cfconv(x, weight, pairs, graph, backend=backend)
    if chosen is None:
        assert isinstance(mlp, FilterMLP)
        return cfconv_exact(x, edge_length, basis, mlp, envelope, graph, pairs=pairs, backend=backend)
    table = tabulate(basis, mlp, envelope, chosen, x.dtype)
    return radial_conv(x, edge_length, table, RadialIndex.from_lengths(edge_length.detach(), chosen, graph, pairs, backend=backend))


#: Distances beyond which a table is cheaper than the network at every distance.
TABLE_PAYS = 256


def choose_grid(
    method: Method,
    grid: SplineGrid | None,
    basis: BasisSpec,
    network: FilterMLP | FilterLinear,
    envelope: EnvelopeSpec,
    distances: int,
    dtype: torch.dtype,
) -> SplineGrid | None:
    """The knots on which to tabulate; None where the network itself is to be used.

    Raises:
        ValueError: if ``method`` is unknown, or is ``table`` and no table is good enough.
    """
    if method not in ("auto", "table", "exact"):
        raise ValueError(f"unknown method {method!r}; choose auto, table or exact")
    if method == "exact" or (grid is None and method == "auto" and distances <= TABLE_PAYS):
        return None
    chosen = grid or TableBuilder(basis, envelope).grid([network], dtype)
    if chosen is None and method == "table":
        raise ValueError(f"no table represents this filter to {dtype}; use method='exact', or give a grid of your own")
    return chosen


__all__ = ["Method", "cfconv_radial", "choose_grid"]
