"""Batches out of a batch: some of its structures, or copies of all of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from fastkd_kernels import CSRGraph, PairIndex
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph

#: Fields of a batch by what their rows are.
PER_ATOM = ("atomic_numbers", "positions", "forces", "tags", "fixed")
PER_STRUCTURE = ("cell", "pbc", "energy", "labelled", "force_labels", "structure_index", "weight")


def select_structures(batch: Batch, chosen: Tensor) -> Batch:
    """Some structures of a batch as a batch of their own, with the same neighbours.

    Args:
        batch: of n structures.
        chosen: [n] bool.
    """
    atom = chosen[batch.graph_index]
    number = atom.cumsum(0) - 1  # of each chosen atom in the new batch
    counts = batch.atom_ptr.diff()[chosen]
    changed: dict[str, Tensor] = {}
    for name in (*PER_ATOM, *PER_STRUCTURE):
        value = getattr(batch, name)
        if value is not None:
            changed[name] = value[atom if name in PER_ATOM else chosen]
    if batch.hessian_rows is not None:
        rows = batch.hessian_rows[:, chosen]
        moved = _pointer(counts)[:-1] - batch.atom_ptr[:-1][chosen]
        changed["hessian_rows"] = torch.where(rows >= 0, rows + 3 * moved, -1)
    bonds = batch.bonds
    graphs = {}
    for cutoff, graph in batch.graphs.items():
        csr, kept = graph.csr, atom[graph.csr.edge_dst]
        # numbers of pairs and edges that are left
        pairs, pair = torch.unique(graph.pair[kept], return_inverse=True)
        edge = kept.cumsum(0) - 1
        graphs[cutoff] = replace(
            graph,
            csr=type(csr).from_edges(number[csr.edge_src[kept]], number[csr.edge_dst[kept]], int(counts.sum())),
            edge_shift=graph.edge_shift[kept],
            pair=pair,
            pair_edge=edge[graph.pair_edge[pairs]],
        )
    return replace(
        batch,
        atom_ptr=_pointer(counts),
        graph_index=torch.repeat_interleave(counts),
        bonds=None if bonds is None else number[bonds[:, atom[bonds[0]]]],
        graphs=graphs,
        **changed,
    )


def repeat_structures(batch: Batch, times: int) -> Batch:
    """All structures of a batch, as often as is asked, copy after copy; each copy has the neighbours of the first.

    Nothing is sorted: what a graph has found out about itself is shifted. Rows of Hessians are not asked for.
    """
    atoms, graphs = batch.num_atoms, batch.num_graphs
    changed: dict[str, Tensor] = {}
    for name in (*PER_ATOM, *PER_STRUCTURE):
        value = getattr(batch, name)
        if value is not None:
            changed[name] = value.repeat(times, *(1,) * (value.dim() - 1))
    return replace(
        batch,
        atom_ptr=_pointers(batch.atom_ptr, times),
        graph_index=_shifted(batch.graph_index, times, graphs),
        bonds=None if batch.bonds is None else torch.cat([batch.bonds + copy * atoms for copy in range(times)], 1),
        graphs={cutoff: _graph(graph, times) for cutoff, graph in batch.graphs.items()},
        hessian_rows=None,
        **changed,
    )


def _graph(graph: NeighborGraph, times: int) -> NeighborGraph:
    csr, nodes, edges = graph.csr, graph.csr.num_nodes, graph.csr.num_edges
    copies = replace(
        graph,
        csr=CSRGraph(
            _shifted(csr.edge_src, times, nodes),
            _shifted(csr.edge_dst, times, nodes),
            _pointers(csr.edge_ptr, times),
            _shifted(csr.edge_order, times, edges),
            _pointers(csr.src_ptr, times),
            _shifted(csr.src_order, times, edges),
        ),
        edge_shift=graph.edge_shift.repeat(times, 1),
        pair=_shifted(graph.pair, times, graph.pair_edge.shape[0]),
        pair_edge=_shifted(graph.pair_edge, times, edges),
    )
    if graph.pairs is not None:
        with torch.inference_mode(False):
            vars(copies)["pairs"] = PairIndex(copies.pair, _shifted(graph.pairs.pair_edges, times, edges))
    return copies


def _shifted(index: Tensor, times: int, size: int) -> Tensor:
    """Numbers of things of which each copy has ``size``."""
    shift = size * torch.arange(times, device=index.device)
    return (index.unsqueeze(0) + shift.view(-1, *(1,) * index.dim())).flatten(0, 1)


def _pointers(pointer: Tensor, times: int) -> Tensor:
    """Where each part begins, and where the last ends."""
    starts = pointer[:-1].unsqueeze(0) + pointer[-1] * torch.arange(times, device=pointer.device).unsqueeze(1)
    return torch.cat([starts.flatten(), times * pointer[-1:]])


def _pointer(counts: Tensor) -> Tensor:
    """[n + 1], where each of n parts of some sizes begins, and where the last ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
