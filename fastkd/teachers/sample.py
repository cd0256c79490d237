"""Two small structures to try a teacher on when there is no data at hand: with different counts of atoms, edges and structures."""

from __future__ import annotations

import numpy as np
import torch

from fastkd.data.batch import Batch
from fastkd.data.batching import Pieces, collate
from fastkd.data.structure import Structure
from fastkd.errors import DataError

_OXYGEN, _CARBON, _HYDROGEN = 8, 6, 1


def sample_structures(known_element: torch.Tensor, *, periodic: bool) -> list[Structure]:
    """Two structures of elements that a model knows.

    Args:
        known_element: [119] bool.
        periodic: two crystals instead of two molecules.
    """
    known = [int(z) for z in known_element.nonzero().flatten()]
    if not known:
        raise DataError("the teacher knows no element")
    preferred = [z for z in (_OXYGEN, _HYDROGEN, _CARBON) if z in known]
    first, second = (preferred + known + known)[:2]
    generator = np.random.default_rng(0)
    if periodic:
        cell = np.array([[0.0, 2.1, 2.2], [2.2, 0.0, 2.1], [2.1, 2.2, 0.0]])
        one = np.array([[0.0, 0.0, 0.0], [2.05, 2.2, 2.15]])
        # a longer cell with a third atom, rattled: nothing about it is symmetric
        long = cell * np.array([[1.0], [1.0], [2.0]])
        other = np.array([[0.0, 0.0, 0.0], [2.05, 2.2, 2.15], [2.1, 2.2, 0.1]]) + generator.normal(0, 0.05, (3, 3))
        pbc = np.ones(3, dtype=bool)
        return [
            Structure(np.array([first, second]), one, cell, pbc),
            Structure(np.array([first, second, first]), other, long, pbc),
        ]
    bent = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    pyramid = np.array([[0.0, 0.0, 0.0], [0.94, 0.0, -0.38], [-0.47, 0.81, -0.38], [-0.47, -0.81, -0.38]]) + generator.normal(
        0, 0.03, (4, 3)
    )
    return [
        Structure(np.array([first, second, second]), bent),
        Structure(np.array([first, second, second, second]), pyramid),
    ]


def sample_batch(known_element: torch.Tensor, cutoff: float | None, *, periodic: bool, dtype: torch.dtype = torch.float64) -> Batch:
    """The two structures as a batch, with the neighbour graph of a cutoff, if any."""
    cutoffs = () if cutoff is None else (cutoff,)
    structures = sample_structures(known_element, periodic=periodic)
    return collate([Pieces.of(structure, number, cutoffs) for number, structure in enumerate(structures)], dtype)
