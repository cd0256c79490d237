"""Neighbour lists: which atoms, and which of their periodic images, are closer than a cutoff.

Example:
    >>> edges = find_neighbors(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), None, None, cutoff=5.0)
    >>> edges.src.tolist(), edges.dst.tolist()
    ([1, 0], [0, 1])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.errors import DataError

#: Å. Two nuclei never come closer; a file in which they do is damaged, or in another unit.
OVERLAP = 1e-3

#: Up to here all distances at once are faster than a cell list.
_BRUTE_FORCE_ATOMS = 64

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed edges of one structure, sorted by destination, then source, then image; both directions of each pair are there."""

    src: Ints  #: [n_edges]
    dst: Ints  #: [n_edges]
    shift: Ints  #: [n_edges, 3], periodic image of the source
    pair: Ints  #: [n_edges], number of the undirected pair
    pair_edge: Ints  #: [n_pairs], the first edge of each pair

    @property
    def num_edges(self) -> int:
        return len(self.src)


def find_neighbors(
    positions: Floats, cell: Floats | None, pbc: npt.NDArray[np.bool_] | None, cutoff: float, name: str = "structure"
) -> Edges:
    """All neighbours of every atom of one structure.

    Args:
        positions: [n_atoms, 3] Å.
        cell: [3, 3] Å, rows are lattice vectors; None or zero without periodicity.
        pbc: [3], periodic directions; None means none.
        cutoff: Å; neighbours are strictly closer.
        name: of the structure, for messages.

    Raises:
        DataError: if two atoms overlap, or a periodic direction has no lattice vector.
    """
    positions = np.asarray(positions, dtype=np.float64)
    periodic = np.zeros(3, dtype=bool) if pbc is None else np.asarray(pbc, dtype=bool)
    if periodic.any():
        box = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
        first, second, shift, squared = _periodic_pairs(positions, box, periodic, cutoff, name)
    elif len(positions) <= _BRUTE_FORCE_ATOMS:
        first, second, shift, squared = _all_pairs(positions, cutoff)
    else:
        first, second, shift, squared = _listed_pairs(positions, np.zeros((3, 3)), periodic, cutoff)
    if len(squared) and squared.min() < OVERLAP**2:
        worst = int(squared.argmin())
        raise DataError(
            f"{name}: atoms {first[worst]} and {second[worst]} are {np.sqrt(squared[worst]):.1e} Å apart. "
            "Remove the structure, or check that its positions are in Å."
        )
    return _both_directions(first, second, shift)


def _all_pairs(positions: Floats, cutoff: float) -> tuple[Ints, Ints, Ints, Floats]:
    first, second = np.triu_indices(len(positions), k=1)
    squared = np.square(positions[second] - positions[first]).sum(-1)
    close = squared < cutoff**2
    first, second = first[close].astype(np.int64), second[close].astype(np.int64)
    return first, second, np.zeros((len(first), 3), dtype=np.int64), squared[close]


def _listed_pairs(positions: Floats, box: Floats, periodic: npt.NDArray[np.bool_], cutoff: float) -> tuple[Ints, Ints, Ints, Floats]:
    """Each undirected pair once: the second atom, moved by its image, is a neighbour of the first."""
    from vesin import NeighborList

    found = NeighborList(cutoff=cutoff, full_list=False).compute(
        points=positions, box=box, periodic=[bool(p) for p in periodic], quantities="ijSd"
    )
    first, second, shift, length = (np.asarray(value) for value in found)
    close = length < cutoff
    return first[close].astype(np.int64), second[close].astype(np.int64), shift[close].astype(np.int64), np.square(length[close])


def _periodic_pairs(
    positions: Floats, box: Floats, periodic: npt.NDArray[np.bool_], cutoff: float, name: str
) -> tuple[Ints, Ints, Ints, Floats]:
    lengths = np.linalg.norm(box, axis=1)
    if (lengths[periodic] < OVERLAP).any():
        raise DataError(
            f"{name}: pbc is {periodic.tolist()}, but a periodic direction has no lattice vector. Set the cell, or pbc to false."
        )
    # a direction that is not periodic needs some vector that is independent of the others; it is never used
    if not periodic.all():
        filled = box.copy()
        _, _, rows = np.linalg.svd(box[periodic])
        filled[~periodic] = rows[periodic.sum() :] * (np.ptp(positions, axis=0).max() + 2 * cutoff + 1)
        box = filled
    return _listed_pairs(positions, box, periodic, cutoff)


def _both_directions(first: Ints, second: Ints, shift: Ints) -> Edges:
    pairs = len(first)
    # the edge from the image of `second` into `first`, and its reverse
    dst, src = np.concatenate([first, second]), np.concatenate([second, first])
    image = np.concatenate([shift, -shift])
    order = np.lexsort((image[:, 2], image[:, 1], image[:, 0], src, dst))
    pair = np.tile(np.arange(pairs, dtype=np.int64), 2)[order]
    pair_edge = np.empty(pairs, dtype=np.int64)
    pair_edge[pair[::-1]] = np.arange(2 * pairs - 1, -1, -1)
    return Edges(src[order], dst[order], image[order], pair, pair_edge)
