"""The graphs of GemNet-OC and the triplets and quadruplets between their edges, all cut from the batch's one graph.

An atom's neighbours are limited per interaction, the nearest first. The main graph, whose edges have embeddings, is then made undirected:
edges from lower to higher atoms stay and are mirrored. Every graph is sorted by destination, so that the edges into an atom are a range.

Letters follow the paper: the edge c → a receives; b → a is another edge into a; d → b goes into the source of b → a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from fastkd_kernels import CSRGraph, TripletIndex
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.data.format import DEFAULT_TAG

from .options import GemNetOCOptions

#: Å. Without strict limits, neighbours this much farther than the first one that is cut off stay.
DEGENERACY = 0.01


@dataclass(frozen=True, eq=False)
class EdgeSet:
    """Some edges of the batch's graph, sorted by destination."""

    csr: CSRGraph
    shift: Tensor  #: [n_edges, 3] int64, periodic image of the source
    row: Tensor  #: [n_edges] int64, edge of the batch's graph that it is, or the reverse of which it is
    sign: Tensor | None = None  #: [n_edges, 1] ±1 int64, −1 where it is the reverse; None: nowhere

    @property
    def num_edges(self) -> int:
        return self.csr.num_edges

    def vectors(self, edge_vector: Tensor) -> Tensor:
        """[n_edges, 3] from those of the batch's graph."""
        own = edge_vector[self.row]
        return own if self.sign is None else own * self.sign.to(own.dtype)

    def lengths(self, edge_length: Tensor) -> Tensor:
        """[n_edges] from those of the batch's graph."""
        return edge_length[self.row]


@dataclass(frozen=True, eq=False)
class Quadruplets:
    """Paths d → b → a ← c, in two steps: each path belongs to a triplet b → a ← c, which belongs to the edge c → a."""

    inner_in: Tensor  #: [n_inner] int64, main edge d → b of a triplet d → b → a
    inner_middle: Tensor  #: [n_inner] int64, middle edge b → a
    outer_out: Tensor  #: [n_outer] int64, main edge c → a of a triplet b → a ← c
    outer_middle: Tensor  #: [n_outer] int64, middle edge b → a
    paths: TripletIndex  #: inner triplet → outer triplet, one entry for each quadruplet
    onto_edges: TripletIndex  #: outer triplet → main edge


@dataclass(frozen=True, eq=False)
class Graphs:
    """What the interactions run over; None where an interaction is off."""

    main: EdgeSet
    swap: Tensor  #: [n_main] int64, the reverse of each edge
    triplets: TripletIndex  #: b → a to c → a, both of the main graph
    atoms: EdgeSet | None  #: of atom-to-atom interactions
    mixed: EdgeSet | None  #: between atoms and edges
    atom_to_edge: TripletIndex | None  #: mixed b → a to main c → a
    edge_to_atom: TripletIndex | None  #: main b → a to mixed c → a
    middle: EdgeSet | None  #: of quadruplets
    quadruplets: Quadruplets | None


def make_graphs(batch: Batch, graph: NeighborGraph, edge_vector: Tensor, options: GemNetOCOptions) -> Graphs:
    """All graphs of a batch.

    Args:
        batch: the structures, for tags.
        graph: all neighbours closer than ``options.reach``.
        edge_vector: [n_edges, 3] Å, in the order of ``graph``; decides which neighbours are nearest, and gets no gradient.
        options: of the model.
    """
    # the plain norm: images of an atom are equally far away to the last bit, and ties must fall as in the reference
    cut = _Cutter(graph, edge_vector.detach().norm(dim=1), strict=options.strict_neighbors)
    everything = torch.arange(graph.num_edges, device=edge_vector.device)
    if options.has_atom_graph:
        atom_limit = options.atom_neighbors if options.atom_atom else _largest(options)
        largest = cut(everything, math.inf, atom_limit)
        parent, reach, limit = largest, options.reach, atom_limit
        main = cut(parent, *_stricter(options.cutoff, options.neighbors, reach, limit))
    else:
        largest = main = parent = cut(everything, math.inf, options.neighbors)
        reach, limit = options.cutoff, options.neighbors
    mixed = middle = None
    if options.has_mixed_graph:
        mixed = cut.edges(cut(parent, *_stricter(options.atom_edge_reach, options.atom_edge_neighbors, reach, limit)))
    if options.quadruplets:
        rows = cut(parent, *_stricter(options.quad_reach, options.quad_neighbors, reach, limit))
        middle = cut.edges(rows[_tagged(batch, graph, rows, options.quad_tags)])
    symmetric, swap = _mirrored(graph, main)
    return Graphs(
        main=symmetric,
        swap=swap,
        triplets=_triplets(symmetric, symmetric),
        atoms=cut.edges(largest) if options.atom_atom else None,
        mixed=mixed,
        atom_to_edge=_triplets(mixed, symmetric) if mixed is not None and options.atom_edge else None,
        edge_to_atom=_triplets(symmetric, mixed) if mixed is not None and options.edge_atom else None,
        middle=middle,
        quadruplets=None if middle is None else _quadruplets(symmetric, middle),
    )


def _largest(options: GemNetOCOptions) -> int:
    """Limit of the graph that all others are cut from, if atoms do not interact with each other; 0 if one of these has none."""
    limits = [options.neighbors, options.atom_edge_neighbors]
    if options.quadruplets:
        limits.append(options.quad_neighbors)
    return 0 if min(limits) <= 0 else max(limits)


def _stricter(cutoff: float, limit: int, parent_cutoff: float, parent_limit: int) -> tuple[float, int]:
    """Cutoff and limit as far as they ask for less than what was cut already."""
    return (math.inf if math.isclose(cutoff, parent_cutoff, rel_tol=1e-5) else cutoff, 0 if limit == parent_limit else limit)


@dataclass(frozen=True, eq=False)
class _Cutter:
    """Takes the nearest edges of a graph."""

    graph: NeighborGraph
    length: Tensor  #: [n_edges] Å
    strict: bool

    def __call__(self, rows: Tensor, cutoff: float, limit: int) -> Tensor:
        """Numbers of those among the edges ``rows`` (ascending) that are within ``cutoff`` and among the ``limit`` nearest of their atom."""
        if cutoff < math.inf:
            rows = rows[self.length[rows] <= cutoff]
        if limit <= 0 or not rows.numel():
            return rows
        target, atoms = self.graph.csr.edge_dst[rows], self.graph.csr.num_nodes
        counts = torch.bincount(target, minlength=atoms)
        most = int(counts.max())
        if most <= limit:
            return rows
        # one padded row per atom, sorted as the reference does it, so that ties among images fall alike
        first = counts.cumsum(0) - counts
        column = torch.arange(rows.shape[0], device=rows.device) - first[target]
        padded = self.length.new_full((atoms, most), math.inf)
        padded[target, column] = self.length[rows]
        nearest = torch.sort(padded, dim=1)
        if self.strict:
            wanted = torch.isfinite(nearest.values) & (torch.arange(most, device=rows.device) < limit)
        else:
            wanted = torch.isfinite(nearest.values) & (nearest.values <= nearest.values[:, limit : limit + 1] + DEGENERACY)
        return rows[(nearest.indices + first[:, None])[wanted].sort().values]

    def edges(self, rows: Tensor) -> EdgeSet:
        csr = self.graph.csr
        return EdgeSet(CSRGraph.from_edges(csr.edge_src[rows], csr.edge_dst[rows], csr.num_nodes), self.graph.edge_shift[rows], rows)


def _tagged(batch: Batch, graph: NeighborGraph, rows: Tensor, tags: tuple[int, ...]) -> Tensor:
    """[n] bool, whether one end of each edge has one of the tags."""
    atoms = batch.num_atoms
    if batch.tags is None:
        wanted = torch.full((atoms,), DEFAULT_TAG in tags, dtype=torch.bool, device=rows.device)
    else:
        wanted = torch.zeros(atoms, dtype=torch.bool, device=rows.device)
        for tag in tags:
            wanted |= batch.tags == tag
    return wanted[graph.csr.edge_src[rows]] | wanted[graph.csr.edge_dst[rows]]


def _mirrored(graph: NeighborGraph, rows: Tensor) -> tuple[EdgeSet, Tensor]:
    """The edges from lower to higher atoms, and from later to earlier images of an atom, with their reverses; and each one's reverse."""
    csr = graph.csr
    source, target, shift = csr.edge_src[rows], csr.edge_dst[rows], graph.edge_shift[rows]
    x, y, z = shift.unbind(1)
    later = (x > 0) | ((x == 0) & (y > 0)) | ((x == 0) & (y == 0) & (z > 0))
    kept = (source < target) | ((source == target) & later)
    source, target, shift, rows = source[kept], target[kept], shift[kept], rows[kept]
    half = rows.shape[0]
    order = torch.sort(torch.cat([target, source]), stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(2 * half, device=order.device)
    swap = place[torch.where(order < half, order + half, order - half)]
    both = CSRGraph.from_edges(torch.cat([source, target])[order], torch.cat([target, source])[order], csr.num_nodes)
    sign = torch.where(order < half, 1, -1)[:, None]
    return EdgeSet(both, torch.cat([shift, -shift])[order], rows.repeat(2)[order], sign), swap


def _meetings(atom: Tensor, ptr: Tensor) -> tuple[Tensor, Tensor]:
    """For each number e of ``atom`` [n], all edges into that atom, which are a range of ``ptr`` [n_atoms + 1]: (edge, e), sorted by e."""
    first, counts = ptr[atom], ptr[atom + 1] - ptr[atom]
    outer = torch.arange(atom.shape[0], device=atom.device).repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return torch.arange(outer.shape[0], device=atom.device) - begin[outer] + first[outer], outer


def _differ(atom: Tensor, other: Tensor, shift: Tensor) -> Tensor:
    """Whether two atoms are not one and the same: other numbers, or images ``shift`` [n, 3] apart."""
    return (atom != other) | shift.any(1)


def _pairs_into_atom(incoming: EdgeSet, outgoing: EdgeSet) -> tuple[Tensor, Tensor]:
    """All b → a and c → a with b ≠ c, by their numbers in the two graphs, sorted by the second."""
    inner, outer = _meetings(outgoing.csr.edge_dst, incoming.csr.edge_ptr)
    shift = outgoing.shift[outer] - incoming.shift[inner]
    kept = _differ(incoming.csr.edge_src[inner], outgoing.csr.edge_src[outer], shift)
    return inner[kept], outer[kept]


def _triplets(incoming: EdgeSet, outgoing: EdgeSet) -> TripletIndex:
    inner, outer = _pairs_into_atom(incoming, outgoing)
    return TripletIndex.from_triplets(inner, outer, outgoing.num_edges, num_in=incoming.num_edges)


def _quadruplets(main: EdgeSet, middle: EdgeSet) -> Quadruplets:
    """All d → b → a ← c whose atoms are four, with b → a of ``middle`` and the others of ``main``."""
    # d → b → a, sorted by the middle edge
    inner_in, inner_middle = _meetings(middle.csr.edge_src, main.csr.edge_ptr)
    kept = _differ(main.csr.edge_src[inner_in], middle.csr.edge_dst[inner_middle], main.shift[inner_in] + middle.shift[inner_middle])
    inner_in, inner_middle = inner_in[kept], inner_middle[kept]
    # b → a ← c
    outer_middle, outer_out = _pairs_into_atom(middle, main)
    edges = torch.arange(middle.num_edges + 1, device=inner_in.device)
    inner, outer = _meetings(outer_middle, torch.searchsorted(inner_middle, edges))
    d, c = inner_in[inner], outer_out[outer]
    shift = main.shift[d] + middle.shift[inner_middle[inner]] - main.shift[c]
    kept = _differ(main.csr.edge_src[d], main.csr.edge_src[c], shift)
    paths = TripletIndex.from_triplets(inner[kept], outer[kept], outer_out.shape[0], num_in=inner_in.shape[0])
    rows = torch.arange(outer_out.shape[0], device=outer_out.device)
    onto_edges = TripletIndex.from_triplets(rows, outer_out, main.num_edges, num_in=rows.shape[0])
    return Quadruplets(inner_in, inner_middle, outer_out, outer_middle, paths, onto_edges)
