"""The neighbour graph that OCP's models were trained on: at most so many neighbours, the nearest first.

Two things differ from our own graphs. Each atom keeps only its nearest neighbours; and PaiNN (like GemNet) then throws away every
edge whose source number is larger than its target's and mirrors the rest, which makes the graph undirected again.
"""

from __future__ import annotations

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import NeighborGraph


class GivenGraph(NeighborGraph):
    """Edges that a model takes as they are: no limit of its own cuts them again. The teacher's, for one, handed to a student."""


def ocp_graph(positions: Tensor, cell: Tensor, natoms: Tensor, cutoff: float, max_neighbors: int, *, symmetric: bool) -> NeighborGraph:
    """Neighbour graph of structures laid end to end, periodic in three directions.

    Args:
        positions: [n_atoms, 3] Å, on the CPU.
        cell: [n_graphs, 3, 3] Å, rows are lattice vectors.
        natoms: [n_graphs] int64.
        cutoff: Å.
        max_neighbors: nearest neighbours that each atom keeps; 0 or less for all. Equal distances: the first in the order of source
            number and image wins.
        symmetric: keep edges from lower to higher atoms (and to earlier images of the same atom), and mirror them.

    Returns:
        The graph, sorted by destination. Without ``symmetric`` and with neighbours cut off, edges need not have a reverse; each is then
        a pair of its own.
    """
    parts, first = [], 0
    for graph, atoms in enumerate(natoms.tolist()):
        source, target, shift = _neighbors(positions[first : first + atoms], cell[graph], cutoff, max_neighbors)
        parts.append((source + first, target + first, shift))
        first += atoms
    source, target, shift = (torch.cat(part) for part in zip(*parts, strict=True))
    if symmetric:
        lower = _is_lower(source, target, shift)
        source, target, shift = source[lower], target[lower], shift[lower]
        pair = torch.arange(source.shape[0]).repeat(2)
        source, target, shift = torch.cat([source, target]), torch.cat([target, source]), torch.cat([shift, -shift])
    else:
        pair = _pairs(source, target, shift)
    order = torch.sort(target, stable=True).indices
    source, target, shift, pair = source[order], target[order], shift[order], pair[order]
    return NeighborGraph(CSRGraph.from_edges(source, target, positions.shape[0]), cutoff, shift, pair, _first_edges(pair))


def limited_graph(graph: NeighborGraph, edge_vector: Tensor, max_neighbors: int, *, symmetric: bool) -> tuple[NeighborGraph, Tensor | None]:
    """What OCP's models keep of a graph of all neighbours; the rules are those of `ocp_graph`.

    Args:
        graph: all neighbours, each pair in both directions, sorted by destination, then source, then image.
        edge_vector: [n_edges, 3] Å, of that graph.
        max_neighbors: nearest neighbours that each atom keeps; 0 or less for all.
        symmetric: as in `ocp_graph`.

    Returns:
        The graph, and the numbers of its edges in the whole graph, ascending; None if no atom has more neighbours than it may keep, or
        the graph is a `GivenGraph`.

    Raises:
        ValueError: if ``symmetric`` is asked of a graph some of whose edges have no reverse.
    """
    csr = graph.csr
    counts = csr.edge_ptr.diff()
    if isinstance(graph, GivenGraph) or max_neighbors <= 0 or graph.num_edges == 0 or int(counts.max()) <= max_neighbors:
        return graph, None
    kept = _nearest(edge_vector.detach().square().sum(1), csr.edge_dst, counts, max_neighbors)
    if symmetric:
        if graph.pairs is None:
            raise ValueError("a graph some of whose edges have no reverse cannot be made symmetric; give the graph of all neighbours")
        lower = kept[_is_lower(csr.edge_src[kept], csr.edge_dst[kept], graph.edge_shift[kept])]
        wanted = torch.zeros_like(graph.pair_edge, dtype=torch.bool)
        wanted[graph.pair[lower]] = True
        kept = wanted[graph.pair].nonzero().flatten()
    _, pair, counts = torch.unique(graph.pair[kept], return_inverse=True, return_counts=True)
    if not bool((counts == 2).all()):
        pair = torch.arange(kept.shape[0], device=kept.device)
    part = CSRGraph.from_edges(csr.edge_src[kept], csr.edge_dst[kept], csr.num_nodes)
    return NeighborGraph(part, graph.cutoff, graph.edge_shift[kept], pair, _first_edges(pair)), kept


def _first_edges(pair: Tensor) -> Tensor:
    """The first edge of each pair."""
    first = pair.new_full((int(pair.max()) + 1 if pair.numel() else 0,), pair.shape[0])
    return first.scatter_reduce(0, pair, torch.arange(pair.shape[0], device=pair.device), "amin")


def _neighbors(positions: Tensor, cell: Tensor, cutoff: float, max_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directed edges of one structure: source, target, image of the source; by target, then source, then image."""
    from vesin import NeighborList

    neighbors = NeighborList(cutoff=cutoff, full_list=True)
    i, j, images = neighbors.compute(positions.numpy(), cell.numpy(), periodic=True, quantities="ijS")
    target, source, shift = (torch.from_numpy(index.astype("int64")) for index in (i, j, images))
    order = torch.arange(source.shape[0])
    for key in (shift[:, 2], shift[:, 1], shift[:, 0], source, target):  # least significant first
        order = order[torch.sort(key[order], stable=True).indices]
    source, target, shift = source[order], target[order], shift[order]
    counts = torch.bincount(target, minlength=positions.shape[0])
    if 0 < max_neighbors < int(counts.max()):
        image = positions[source] + shift.to(positions.dtype) @ cell
        kept = _nearest((positions[target] - image).square().sum(1), target, counts, max_neighbors)
        source, target, shift = source[kept], target[kept], shift[kept]
    return source, target, shift


def _nearest(squared_length: Tensor, target: Tensor, counts: Tensor, max_neighbors: int) -> Tensor:
    """Numbers of the edges that are kept, ascending; ``target`` is sorted, ``counts`` edges end in each atom.

    An atom's images lie at equal distances in pairs, and which of them is cut off hangs on the sort: it is called as OCP calls it, on
    one padded row per atom.
    """
    first = counts.cumsum(0) - counts
    column = torch.arange(target.shape[0], device=target.device) - first[target]
    padded = squared_length.new_full((counts.shape[0], int(counts.max())), torch.inf)
    padded[target, column] = squared_length
    nearest = torch.sort(padded, dim=1)
    wanted = torch.isfinite(nearest.values[:, :max_neighbors])
    return (nearest.indices[:, :max_neighbors] + first[:, None])[wanted].sort().values


def _is_lower(source: Tensor, target: Tensor, shift: Tensor) -> Tensor:
    x, y, z = shift.unbind(1)
    earlier = (x < 0) | ((x == 0) & (y < 0)) | ((x == 0) & (y == 0) & (z < 0))
    return (source < target) | ((source == target) & earlier)


def _pairs(source: Tensor, target: Tensor, shift: Tensor) -> Tensor:
    """Number of the undirected pair of each edge; every edge its own if one of them has no reverse."""
    edges = torch.cat([source[:, None], target[:, None], shift], 1)
    mirrored = torch.cat([target[:, None], source[:, None], -shift], 1)
    canonical = torch.where(_is_lower(source, target, shift)[:, None], edges, mirrored)
    _, pair, counts = torch.unique(canonical, dim=0, return_inverse=True, return_counts=True)
    return pair if bool((counts == 2).all()) else torch.arange(source.shape[0])
