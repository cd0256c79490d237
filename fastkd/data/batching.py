"""From structures to batches: what belongs to one structure is prepared once, and laid end to end for every batch.

Neighbour lists, their order by source and their pairs are kept per structure, so that a batch is a few concatenations: no search and no
sort while training.

Example:
    >>> batch = collate([Pieces.of(structure, index=0, cutoffs=(5.0,))], dtype=torch.float32)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.data.format import DEFAULT_TAG
from fastkd.data.neighbors import Edges, find_neighbors
from fastkd.data.structure import Floats, Structure
from fastkd.errors import DataError

Ints = npt.NDArray[np.int64]

_NO_CELL = np.zeros((3, 3))
_NO_PBC = np.zeros(3, dtype=bool)


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """Neighbours of one structure, ready to be shifted to its place in a batch."""

    edges: Edges
    in_degree: Ints  #: [n_atoms], edges that end in each atom
    out_degree: Ints  #: [n_atoms]
    src_order: Ints  #: [n_edges], stable order by source

    @classmethod
    def of(cls, edges: Edges, atoms: int) -> LocalGraph:
        return cls(
            edges,
            np.bincount(edges.dst, minlength=atoms).astype(np.int64),
            np.bincount(edges.src, minlength=atoms).astype(np.int64),
            np.argsort(edges.src, kind="stable").astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """One structure as `collate` wants it."""

    index: int  #: in its data set
    structure: Structure
    graphs: dict[float, LocalGraph]  #: by cutoff, Å
    labelled: bool  #: whether its labels are seen: an energy, and forces if it has any

    @classmethod
    def of(cls, structure: Structure, index: int, cutoffs: Sequence[float], *, labelled: bool = True) -> Pieces:
        """Find the neighbours of a structure; ``labelled`` says whether its labels may be used, if it has them.

        Raises:
            DataError: if two atoms overlap.
        """
        name = f"structure {index}" + (f" ({structure.system})" if structure.system else "")
        graphs = {
            float(cutoff): LocalGraph.of(
                find_neighbors(structure.positions, structure.cell, structure.pbc, cutoff, name), structure.num_atoms
            )
            for cutoff in cutoffs
        }
        return cls(index, structure, graphs, labelled and has_labels(structure))

    @property
    def num_atoms(self) -> int:
        return self.structure.num_atoms

    def num_edges(self, cutoff: float) -> int:
        """Directed edges of one of its graphs."""
        return self.graphs[cutoff].edges.num_edges

    @property
    def num_bytes(self) -> int:
        """Memory of the neighbour lists, which are the bulk."""
        return sum(72 * graph.edges.num_edges for graph in self.graphs.values()) + 64 * self.num_atoms


def has_labels(structure: Structure) -> bool:
    """Whether it has an energy; forces may be missing, and then it is labelled by its energy alone."""
    return bool(np.isfinite(structure.energy))


def collate(pieces: Sequence[Pieces], dtype: torch.dtype = torch.float32) -> Batch:
    """Lay structures end to end.

    Args:
        pieces: at least one structure; all with neighbour lists of the same cutoffs.
        dtype: of positions, cells and forces; energies are float64.

    Raises:
        DataError: if some of the structures have bonds and others do not know of any.
    """
    structures = [piece.structure for piece in pieces]
    atoms = np.array([structure.num_atoms for structure in structures], dtype=np.int64)
    atom_ptr = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum(atoms, out=atom_ptr[1:])
    labelled = np.array([piece.labelled for piece in pieces])
    with_forces = labelled & np.array([s.forces is not None for s in structures])
    energy = [float(s.energy) if known else 0.0 for s, known in zip(structures, labelled, strict=True)]
    forces: list[Floats] = [
        s.forces if known and s.forces is not None else np.zeros((s.num_atoms, 3), np.float32)
        for s, known in zip(structures, labelled, strict=True)
    ]
    return Batch(
        atomic_numbers=torch.from_numpy(np.concatenate([s.atomic_numbers for s in structures]).astype(np.int64, copy=False)),
        positions=_floats([s.positions for s in structures], dtype),
        atom_ptr=torch.from_numpy(atom_ptr),
        graph_index=torch.from_numpy(np.repeat(np.arange(len(pieces), dtype=np.int64), atoms)),
        cell=_floats([_NO_CELL[None] if s.cell is None else s.cell[None] for s in structures], dtype),
        pbc=torch.from_numpy(np.stack([_NO_PBC if s.pbc is None else np.asarray(s.pbc, bool) for s in structures])),
        energy=torch.tensor(energy, dtype=torch.float64),
        forces=_floats(forces, dtype),
        labelled=torch.from_numpy(labelled),
        structure_index=torch.tensor([piece.index for piece in pieces], dtype=torch.int64),
        graphs={cutoff: _join([p.graphs[cutoff] for p in pieces], atom_ptr, cutoff) for cutoff in pieces[0].graphs},
        bonds=_bonds(pieces, atom_ptr),
        tags=_per_atom([s.tags for s in structures], atoms, DEFAULT_TAG, np.int64),
        fixed=_per_atom([s.fixed for s in structures], atoms, False, np.bool_),
        force_labels=None if (with_forces == labelled).all() else torch.from_numpy(with_forces),
    )


def find_graphs(batch: Batch, cutoffs: Iterable[float]) -> dict[float, NeighborGraph]:
    """Neighbour graphs of a batch as its atoms stand now, equal to those of a batch collated of such structures.

    They are searched on the CPU: on an accelerator this waits for the positions.

    Args:
        batch: whose graphs, if it has any, are not looked at.
        cutoffs: Å.

    Raises:
        DataError: if two atoms overlap.
    """
    positions, cell = (value.detach().cpu().double().numpy() for value in (batch.positions, batch.cell))
    pbc, atom_ptr, index = (value.cpu().numpy() for value in (batch.pbc, batch.atom_ptr, batch.structure_index))
    found = {}
    for cutoff in sorted({float(cutoff) for cutoff in cutoffs}):
        local = []
        for number, (first, last) in enumerate(pairwise(atom_ptr.tolist())):
            edges = find_neighbors(positions[first:last], cell[number], pbc[number], cutoff, f"structure {index[number]}")
            local.append(LocalGraph.of(edges, last - first))
        found[cutoff] = _join(local, atom_ptr, cutoff).to(batch.positions.device)
    return found


def _per_atom(parts: Sequence[npt.NDArray[Any] | None], atoms: Ints, fill: int, dtype: type[np.generic]) -> Tensor | None:
    """Values of all atoms, ``fill`` where a structure has none; None if no structure has any."""
    if all(part is None for part in parts):
        return None
    filled = [np.full(count, fill) if part is None else part for part, count in zip(parts, atoms.tolist(), strict=True)]
    return torch.from_numpy(np.concatenate(filled).astype(dtype))


def _bonds(pieces: Sequence[Pieces], atom_ptr: Ints) -> Tensor | None:
    """Both directions of all bonds, [2, n_bonds] int64; None if no structure knows of any."""
    without = [piece.index for piece in pieces if piece.structure.bonds is None]
    if len(without) == len(pieces):
        return None
    if without:
        raise DataError(
            f"structure {without[0]} has no list of bonds, others of its batch have one. Give every structure one, [0, 2] where there are none."
        )
    bonds = [np.asarray(p.structure.bonds, np.int64).reshape(-1, 2) + first for p, first in zip(pieces, atom_ptr[:-1], strict=True)]
    joined = np.concatenate(bonds)
    return torch.from_numpy(np.concatenate([joined, joined[:, ::-1]]).T.copy())


def _floats(parts: Sequence[Floats], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts))).to(dtype)


def _join(graphs: Sequence[LocalGraph], atom_ptr: Ints, cutoff: float) -> NeighborGraph:
    edges = [graph.edges for graph in graphs]
    counts = np.array([e.num_edges for e in edges], dtype=np.int64)
    first_edge = np.cumsum(counts) - counts
    pairs = np.array([len(e.pair_edge) for e in edges], dtype=np.int64)
    first_pair = np.cumsum(pairs) - pairs
    atom_shift, edge_shift = np.repeat(atom_ptr[:-1], counts), np.repeat(first_edge, counts)
    total = int(counts.sum())
    csr = CSRGraph(
        edge_src=torch.from_numpy(np.concatenate([e.src for e in edges]) + atom_shift),
        edge_dst=torch.from_numpy(np.concatenate([e.dst for e in edges]) + atom_shift),
        edge_ptr=_pointers([graph.in_degree for graph in graphs]),
        edge_order=torch.arange(total),  # each structure's edges are sorted by destination already
        src_ptr=_pointers([graph.out_degree for graph in graphs]),
        src_order=torch.from_numpy(np.concatenate([graph.src_order for graph in graphs]) + edge_shift),
    )
    return NeighborGraph(
        csr=csr,
        cutoff=cutoff,
        edge_shift=torch.from_numpy(np.concatenate([e.shift for e in edges])),
        pair=torch.from_numpy(np.concatenate([e.pair for e in edges]) + np.repeat(first_pair, counts)),
        pair_edge=torch.from_numpy(np.concatenate([e.pair_edge for e in edges]) + np.repeat(first_edge, pairs)),
    )


def _pointers(degrees: Sequence[Ints]) -> Tensor:
    joined = np.concatenate(degrees)
    pointers = np.zeros(len(joined) + 1, dtype=np.int64)
    np.cumsum(joined, out=pointers[1:])
    return torch.from_numpy(pointers)
