"""Structures of a data file, or of a list, with their neighbour lists kept after first use.

Example:
    >>> dataset = StructureDataset(DataFile("water.h5"), cutoffs=(5.0,))
    >>> batch = dataset.batch([0, 3, 5])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastkd.data.batch import Batch
from fastkd.data.batching import Pieces, collate
from fastkd.data.mixture import JoinedFiles
from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure

#: Memory that prepared structures may take before further ones are made anew each time.
CACHE_BYTES = 4 << 30

_BLOCK = 4096


class StructureDataset:
    """Random access to prepared structures.

    Args:
        source: a data file, two of them, or structures.
        cutoffs: of the neighbour graphs each batch shall have, Å.
        dtype: of batches.
        unlabelled: numbers of structures whose labels must not be seen, although the source may have them.
        cache_bytes: how much memory prepared structures may take.
    """

    def __init__(
        self,
        source: DataFile | JoinedFiles | Sequence[Structure],
        cutoffs: Sequence[float],
        *,
        dtype: torch.dtype = torch.float32,
        unlabelled: Sequence[int] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.source = source
        self.cutoffs = tuple(sorted({float(cutoff) for cutoff in cutoffs}))
        self.dtype = dtype
        self.unlabelled = frozenset(int(index) for index in unlabelled)
        self._cache: dict[int, Pieces] = {}
        self._free_bytes = cache_bytes

    def __len__(self) -> int:
        return len(self.source)

    def pieces(self, indices: Sequence[int]) -> list[Pieces]:
        """Prepared structures by number.

        Raises:
            DataError: if atoms of one overlap.
        """
        absent = [int(index) for index in dict.fromkeys(indices) if index not in self._cache]
        made: dict[int, Pieces] = {}
        if absent:
            read = self.source.read(absent) if isinstance(self.source, DataFile | JoinedFiles) else [self.source[index] for index in absent]
            for index, structure in zip(absent, read, strict=True):
                piece = Pieces.of(structure, index, self.cutoffs, labelled=index not in self.unlabelled)
                made[index] = piece
                if piece.num_bytes <= self._free_bytes:
                    self._cache[index] = piece
                    self._free_bytes -= piece.num_bytes
        return [self._cache.get(int(index)) or made[int(index)] for index in indices]

    def preload(self, indices: Sequence[int]) -> None:
        """Prepare structures ahead of their first batch, as far as the cache reaches: reading many at once is much faster than one by one."""
        for first in range(0, len(indices), _BLOCK):
            if self._free_bytes <= 0:
                return
            self.pieces([int(index) for index in indices[first : first + _BLOCK]])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Structures by number, laid end to end."""
        return collate(self.pieces(indices), self.dtype)

    def batches(self, indices: Sequence[int], *, max_structures: int = 64, max_atoms: int = 2048) -> Iterator[Batch]:
        """All of ``indices`` once, in order, in batches that depend on nothing but them."""
        self.preload(indices)
        for chunk in self.chunks(indices, max_structures=max_structures, max_atoms=max_atoms):
            yield self.batch(chunk)

    def chunks(self, indices: Sequence[int], *, max_structures: int = 64, max_atoms: int = 2048) -> Iterator[list[int]]:
        """Which structures `batches` puts together; nothing but sizes is looked at."""
        chunk: list[int] = []
        atoms = 0
        for index in indices:
            size = self._num_atoms(int(index))
            if chunk and (len(chunk) == max_structures or atoms + size > max_atoms):
                yield chunk
                chunk, atoms = [], 0
            chunk.append(int(index))
            atoms += size
        if chunk:
            yield chunk

    def _num_atoms(self, index: int) -> int:
        if isinstance(self.source, DataFile | JoinedFiles):
            return self.source.num_atoms(index)
        return self.source[index].num_atoms
