"""Neighbour lists against a search over all atoms and images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastkd.data import find_neighbors
from fastkd.data import neighbors as module
from fastkd.errors import DataError

Edge = tuple[int, int, int, int, int]


def brute_force(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> set[Edge]:
    # enough images that the shortest way across the cell, times their number, exceeds the cutoff
    reach = [0, 0, 0]
    if pbc.any():
        filled = cell.copy()
        filled[~pbc] = np.eye(3)[~pbc] * 1e3
        heights = 1 / np.linalg.norm(np.linalg.inv(filled), axis=0)
        spread = np.ptp(positions @ np.linalg.inv(filled), axis=0)
        reach = [int(np.ceil(cutoff / h + s)) + 1 if p else 0 for h, s, p in zip(heights, spread, pbc, strict=True)]
    edges = set()
    for shift in itertools.product(*(range(-r, r + 1) for r in reach)):
        delta = positions[:, None] - (positions[None] + np.array(shift) @ cell)
        length = np.linalg.norm(delta, axis=-1)
        for dst, src in zip(*np.nonzero(length < cutoff), strict=True):
            if dst != src or any(shift):
                edges.add((int(src), int(dst), *shift))
    return edges


def as_set(edges: module.Edges) -> set[Edge]:
    found = list(zip(edges.src.tolist(), edges.dst.tolist(), *edges.shift.T.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


def check_order_and_pairs(edges: module.Edges) -> None:
    keys = np.stack([edges.dst, edges.src, *edges.shift.T], axis=1)
    assert (keys[np.lexsort(keys.T[::-1])] == keys).all()
    assert edges.src.dtype == edges.dst.dtype == edges.shift.dtype == edges.pair.dtype == edges.pair_edge.dtype == np.int64
    assert 2 * len(edges.pair_edge) == edges.num_edges
    for pair, first in enumerate(edges.pair_edge):
        both = np.flatnonzero(edges.pair == pair)
        assert len(both) == 2
        assert both[0] == first
        a, b = both
        assert (edges.src[a], edges.dst[a]) == (edges.dst[b], edges.src[b])
        assert (edges.shift[a] == -edges.shift[b]).all()


@pytest.mark.parametrize("atoms", [1, 2, 9, 63, 65, 120])
def test_molecules(atoms: int) -> None:
    positions = np.random.default_rng(atoms).uniform(0, 2.0 * atoms ** (1 / 3), size=(atoms, 3))
    edges = find_neighbors(positions, None, None, 3.0)
    assert as_set(edges) == brute_force(positions, np.zeros((3, 3)), np.zeros(3, bool), 3.0)
    check_order_and_pairs(edges)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("size", [1.7, 4.0, 9.0])
@pytest.mark.parametrize("atoms", [1, 3, 10])
def test_crystals_with_images_of_their_own(pbc: tuple[bool, bool, bool], size: float, atoms: int) -> None:
    generator = np.random.default_rng(atoms)
    cell = size * (np.eye(3) + 0.2 * generator.normal(size=(3, 3)))
    # some atoms lie outside of the cell
    positions = (generator.uniform(-0.7, 1.6, size=(atoms, 3))) @ cell
    edges = find_neighbors(positions, cell, np.array(pbc), 4.0)
    assert as_set(edges) == brute_force(positions, cell, np.array(pbc), 4.0)
    check_order_and_pairs(edges)


def test_a_slab_without_a_third_vector() -> None:
    cell = np.array([[3.0, 0, 0], [0.5, 3.2, 0], [0, 0, 0]])
    positions = np.array([[0.0, 0, 0], [1.5, 1.5, 1.8], [0.2, 0.1, 3.9]])
    pbc = np.array([True, True, False])
    assert as_set(find_neighbors(positions, cell, pbc, 5.0)) == brute_force(positions, cell, pbc, 5.0)


def test_the_cutoff_is_exclusive() -> None:
    positions = np.array([[0.0, 0, 0], [0, 0, 3.0]])
    assert find_neighbors(positions, None, None, 3.0).num_edges == 0
    assert find_neighbors(positions, None, None, 3.0 + 1e-9).num_edges == 2


@pytest.mark.parametrize("periodic", [False, True])
def test_overlapping_atoms(periodic: bool) -> None:
    positions = np.array([[0.0, 0, 0], [2.0, 0, 0], [5.0, 0, 1e-5]])
    cell, pbc = (5.0 * np.eye(3), np.ones(3, bool)) if periodic else (None, None)
    if not periodic:
        positions[2] = [2.0, 0, 1e-5]
    with pytest.raises(DataError, match=r"frame 7: atoms \d and 2 are 1\.0e-05 Å apart.*positions are in Å"):
        find_neighbors(positions, cell, pbc, 4.0, "frame 7")


def test_periodic_without_a_lattice() -> None:
    with pytest.raises(DataError, match=r"pbc is \[True, False, False\], but a periodic direction has no lattice vector"):
        find_neighbors(np.zeros((1, 3)), None, np.array([True, False, False]), 4.0)


def test_both_ways_of_searching_agree() -> None:
    positions = np.random.default_rng(0).uniform(0, 8, size=(module._BRUTE_FORCE_ATOMS, 3))
    dense = module._both_directions(*module._all_pairs(positions, 4.0)[:3])
    listed = module._both_directions(*module._listed_pairs(positions, np.zeros((3, 3)), np.zeros(3, bool), 4.0)[:3])
    for name in ("src", "dst", "shift"):
        np.testing.assert_array_equal(getattr(dense, name), getattr(listed, name))
