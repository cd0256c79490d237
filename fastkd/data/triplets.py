"""Triplets k → j → i of a neighbour graph: which edges end where another begins."""

from __future__ import annotations

import torch
from fastkd_kernels import CSRGraph, TripletIndex
from torch import Tensor


def find_triplets(csr: CSRGraph, edge_shift: Tensor) -> TripletIndex:
    """Every pair of edges k → j and j → i but those that lead straight back.

    Back means to the same periodic image: k may be another image of i. Edges of an atom to its own images are edges like others.

    Args:
        csr: edges.
        edge_shift: [n_edges, 3], periodic image of the source of each edge.

    Returns:
        ``edge_in`` are the edges k → j, ``edge_out`` the edges j → i, by output edge, then in the order of the edges into j.
    """
    first = csr.edge_ptr[csr.edge_src]
    counts = csr.edge_ptr[csr.edge_src + 1] - first
    edge_out = torch.arange(csr.num_edges, device=first.device).repeat_interleave(counts)
    number = torch.arange(edge_out.shape[0], device=first.device) - (counts.cumsum(0) - counts)[edge_out]
    edge_in = csr.edge_order[first[edge_out] + number]
    back = (csr.edge_src[edge_in] == csr.edge_dst[edge_out]) & (edge_shift[edge_in] + edge_shift[edge_out] == 0).all(1)
    return TripletIndex.from_triplets(edge_in[~back], edge_out[~back], csr.num_edges)
