"""Rows of a cache file from its shards themselves: what the virtual data sets of the file show, at a fraction of the time.

HDF5 looks for the sources of a virtual data set anew in every read, among all of its shards. Here the places of shards are read once; a shard is opened
when its first row is asked for, at most `OPEN_FILES` stay open, and together their chunk caches take no more than `CACHE_BYTES`.

Example:
    >>> reader = ShardReader(file, folder, names)
    >>> reader.read("node", 1200, 1221, out)  # out: [21, 128]
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from fastkd.teachers.cache_shards import CHUNK_BYTES, DAMAGE

#: Shards that are open at a time.
OPEN_FILES = 32
#: Bytes of chunks that are kept, once read and checked, of all arrays of all open shards.
CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class ShardArray:
    """Where the rows of an array are."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    bounds: list[int]  #: first row in each shard that has any, and the number of all
    shards: list[Path]
    chunk: int  #: rows that are read and checked at a time; reading over a gap of fewer costs less than another read


class ShardReader:
    """Arrays of a cache file, read at random.

    Args:
        file: that shows all shards as whole arrays; it stays open elsewhere.
        folder: where its shards are, beside it.
        names: of arrays.

    Raises:
        ValueError: if an array is not made of shards.
    """

    def __init__(self, file: h5py.File, folder: Path, names: Iterable[str]) -> None:
        self.reads = 0  #: of HDF5, so far
        self.arrays = {name: _mapped(file[name], folder) for name in names}
        shards = {path for array in self.arrays.values() for path in array.shards}
        open_arrays = max(1, min(OPEN_FILES, len(shards)) * len(self.arrays))
        self._cache = max(2 * CHUNK_BYTES, CACHE_BYTES // open_arrays)
        self._open: OrderedDict[Path, tuple[h5py.File, dict[str, tuple[h5py.h5d.DatasetID, h5py.h5s.SpaceID]]]] = OrderedDict()

    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Rows ``start`` to ``stop`` of an array into ``out``, [stop − start, …], contiguous and of the array's dtype.

        Raises:
            OSError: if HDF5 cannot read them, or a checksum is wrong.
            ValueError: if a shard is not the one that the file was made of.
        """
        array, done = self.arrays[name], 0
        place = bisect_right(array.bounds, start) - 1
        while start < stop:
            last = min(stop, array.bounds[place + 1])
            count = last - start
            data, space = self._dataset(array, name, place)
            rest = array.shape[1:]
            space.select_hyperslab((start - array.bounds[place], *(0 for _ in rest)), (count, *rest))
            data.read(h5py.h5s.create_simple((count, *rest)), space, out[done : done + count])
            self.reads += 1
            done, start, place = done + count, last, place + 1

    def _dataset(self, array: ShardArray, name: str, place: int) -> tuple[h5py.h5d.DatasetID, h5py.h5s.SpaceID]:
        path = array.shards[place]
        if path in self._open:
            self._open.move_to_end(path)
        else:
            while len(self._open) >= OPEN_FILES:
                _close(self._open.popitem(last=False)[1][0])
            # a number much larger than the number of chunks keeps these from falling on each other
            slots = 100 * (self._cache // CHUNK_BYTES) + 1
            file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=self._cache, rdcc_nslots=slots)
            self._open[path] = file, {}
        file, found = self._open[path]
        if name not in found:
            dataset = file[name]
            rows = array.bounds[place + 1] - array.bounds[place]
            if dataset.shape != (rows, *array.shape[1:]) or dataset.dtype != array.dtype:
                raise ValueError(f"{path} holds {dataset.shape} {dataset.dtype}, not {(rows, *array.shape[1:])} {array.dtype}")
            found[name] = dataset.id, dataset.id.get_space()
        return found[name]

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            _close(self._open.popitem()[1][0])


def _close(file: h5py.File) -> None:
    # HDF5 may fail to close a damaged file; it was only read, so nothing is lost
    with contextlib.suppress(*DAMAGE):
        file.close()


def _mapped(dataset: h5py.Dataset, folder: Path) -> ShardArray:
    bounds: list[int] = [0]
    shards: list[Path] = []
    shape = tuple(dataset.shape)
    width = max(1, dataset.dtype.itemsize * int(np.prod(shape[1:], dtype=int)))
    if dataset.size:
        parts = [(int(part.vspace.get_select_bounds()[0][0]), part) for part in dataset.virtual_sources()]
        for first, part in sorted(parts, key=lambda item: item[0]):
            if first != bounds[-1]:
                raise ValueError(f"rows {bounds[-1]} to {first} of {dataset.name} are in no shard")
            bounds.append(int(part.vspace.get_select_bounds()[1][0]) + 1)
            shards.append(folder / Path(part.file_name).name)
        if bounds[-1] != shape[0]:
            raise ValueError(f"{dataset.name} has {shape[0]} rows, its shards have {bounds[-1]}")
    return ShardArray(shape, dataset.dtype, bounds, shards, max(1, CHUNK_BYTES // width))
