"""What the loader hands to models: structures laid end to end, and one neighbour graph per cutoff.

Shapes and units follow the table of canonical names in docs/architecture.md: eV and Å everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from fastkd_kernels import CSRGraph, PairIndex, TripletIndex
from torch import Tensor

from .triplets import find_triplets


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """All pairs of atoms (and periodic images) closer than ``cutoff``, each in both directions, sorted by destination."""

    csr: CSRGraph
    cutoff: float  #: Å
    edge_shift: Tensor  #: [n_edges, 3] int64, periodic image of the source
    pair: Tensor  #: [n_edges] int64, number of the undirected pair an edge belongs to; the two directions share one (or each is its own)
    pair_edge: Tensor  #: [n_pairs] int64, one edge of each pair: ``edge_length[pair_edge][pair] == edge_length``

    @property
    def num_edges(self) -> int:
        return self.csr.num_edges

    @cached_property
    def pairs(self) -> PairIndex | None:
        """The two directed edges of each pair, or None if some edge has no reverse (a limit on neighbours cut it off)."""
        if 2 * self.pair_edge.shape[0] != self.num_edges:
            return None
        # kept for whoever comes next, who may want gradients
        with torch.inference_mode(False):
            return PairIndex(self.pair, torch.sort(self.pair, stable=True).indices.view(-1, 2))

    @cached_property
    def triplets(self) -> TripletIndex:
        """Triplets k → j → i, from edge k → j to edge j → i, without those that lead straight back."""
        with torch.inference_mode(False):
            return find_triplets(self.csr, self.edge_shift)

    def to(self, device: torch.device | str) -> NeighborGraph:
        """The same graph on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "cutoff"})


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures laid end to end. Floating tensors share one dtype, except ``energy``, which is always float64: totals are large.

    ``labelled`` tells which graphs have an energy, and `with_forces` which of these have forces too; entries of ``energy`` and ``forces`` of
    the others are 0 and mean nothing.
    """

    atomic_numbers: Tensor  #: [n_atoms] int64
    positions: Tensor  #: [n_atoms, 3] Å
    atom_ptr: Tensor  #: [n_graphs + 1] int64
    graph_index: Tensor  #: [n_atoms] int64
    cell: Tensor  #: [n_graphs, 3, 3] Å, rows are lattice vectors; zero where not periodic
    pbc: Tensor  #: [n_graphs, 3] bool
    energy: Tensor  #: [n_graphs] float64, eV, total
    forces: Tensor  #: [n_atoms, 3] eV/Å
    labelled: Tensor  #: [n_graphs] bool
    structure_index: Tensor  #: [n_graphs] int64, position of each graph in its data set
    graphs: dict[float, NeighborGraph] = field(default_factory=dict)  #: by cutoff, Å
    bonds: Tensor | None = None  #: [2, n_bonds] int64, src and dst of each, both directions, if the data brings them
    tags: Tensor | None = None  #: [n_atoms] int64, 0 below the surface, 1 surface, 2 adsorbate (OC20); None: all 1
    fixed: Tensor | None = None  #: [n_atoms] bool, atoms that are held in place, if the data says so
    weight: Tensor | None = None  #: [n_graphs], of each structure in every loss; None: all 1
    force_labels: Tensor | None = None  #: [n_graphs] bool, graphs with labelled forces; None: all that are ``labelled``
    hessian_rows: Tensor | None = None  #: [s, n_graphs] int64, rows of the Hessian that a step looks at, 3 · atom + axis; −1 for none

    @property
    def num_graphs(self) -> int:
        return self.atom_ptr.shape[0] - 1

    @property
    def num_atoms(self) -> int:
        return self.atomic_numbers.shape[0]

    @property
    def with_forces(self) -> Tensor:
        """Graphs whose forces are labels, [n_graphs] bool: all of ``labelled``, unless some of these have an energy alone."""
        return self.labelled if self.force_labels is None else self.force_labels

    @property
    def free(self) -> Tensor | None:
        """Atoms that may move, [n_atoms] bool; None: all."""
        return None if self.fixed is None else ~self.fixed

    @property
    def atom_weight(self) -> Tensor | None:
        """`weight` of each atom's structure, [n_atoms]."""
        return None if self.weight is None else self.weight[self.graph_index]

    def graph(self, cutoff: float) -> NeighborGraph:
        """The neighbour graph of one cutoff.

        Raises:
            KeyError: if the batch was collated without it.
        """
        try:
            return self.graphs[cutoff]
        except KeyError:
            raise KeyError(f"no neighbour graph of {cutoff} Å in this batch, only of {sorted(self.graphs)}") from None

    def edge_vectors(self, graph: NeighborGraph, positions: Tensor | None = None) -> Tensor:
        """Position of dst minus position of the src image of each edge, [n_edges, 3] Å, differentiable in ``positions``."""
        positions = self.positions if positions is None else positions
        csr = graph.csr
        vectors = positions[csr.edge_dst] - positions[csr.edge_src]
        if bool(self.pbc.any()):
            shift = graph.edge_shift.to(positions.dtype)
            vectors = vectors - torch.einsum("ei,eij->ej", shift, self.cell[self.graph_index[csr.edge_dst]])
        return vectors

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on another device, or with floating tensors of another dtype."""
        moved = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                cast = dtype if value.is_floating_point() and item.name != "energy" else None
                moved[item.name] = value.to(device=device, dtype=cast)
        graphs = self.graphs if device is None else {cutoff: graph.to(device) for cutoff, graph in self.graphs.items()}
        return replace(self, graphs=graphs, **moved)
