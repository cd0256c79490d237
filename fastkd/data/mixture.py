"""Synthetic structures beside those of the data: two files counted as one, and how much each structure counts in the loss.

Example:
    >>> source = JoinedFiles(DataFile("dft.h5"), DataFile("synthetic.h5"))
    >>> weight = mixing_weights(source.second(batch.structure_index), ratio=0.2)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure


class JoinedFiles:
    """Two data files as one: the structures of ``other`` come after those of ``file``, and are counted on."""

    def __init__(self, file: DataFile, other: DataFile) -> None:
        self.file, self.other = file, other
        self.content_hash = hashlib.sha256(f"{file.content_hash} {other.content_hash}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.file) + len(self.other)

    @overload
    def second(self, indices: Tensor) -> Tensor: ...
    @overload
    def second(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]: ...
    def second(self, indices: Tensor | npt.NDArray[np.int64]) -> Tensor | npt.NDArray[np.bool_]:
        """Which of some structures are of the other file."""
        return indices >= len(self.file)

    def num_atoms(self, index: int) -> int:
        """Atoms of one structure."""
        first = len(self.file)
        return self.file.num_atoms(index) if index < first else self.other.num_atoms(index - first)

    def read(self, indices: Sequence[int]) -> list[Structure]:
        """Structures by number."""
        first = len(self.file)
        own = [index for index in indices if index < first]
        others = [index for index in indices if index >= first]
        found = dict(zip(own, self.file.read(own), strict=True)) if own else {}
        if others:
            found |= dict(zip(others, self.other.read([index - first for index in others]), strict=True))
        return [found[index] for index in indices]


def mixing_weights(synthetic: Tensor, ratio: float) -> Tensor:
    """Weight of each structure of a batch in every loss, [n_graphs] float64: w = 1 / (1 − p + r p), and r w for synthetic ones.

    p is the synthetic share of the batch; the mean weight is 1 whatever p and r are (the authors' code for arXiv:2306.14818).

    Args:
        synthetic: [n_graphs] bool.
        ratio: r.
    """
    share = synthetic.double().mean()
    weight = 1.0 / (1.0 - share + ratio * share)
    return torch.where(synthetic, ratio * weight, weight)
