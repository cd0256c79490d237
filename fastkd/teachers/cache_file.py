"""A cache file, opened: checked, and read at random with few reads.

Rows of one batch are sorted, runs that are near each other are read in one go from the shards themselves (`fastkd.teachers.cache_reader`), and each chunk's
checksum is looked at by HDF5. A file that fits in memory can be loaded whole, and is then as fast as a cache that was never on disk.

Example:
    >>> cache = open_cache("teacher.h5").teacher(needs, live=LiveTeacher(teacher, needs))
    >>> output = cache(batch)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastkd.errors import DataError
from fastkd.teachers.base import TeacherCost
from fastkd.teachers.cache import CachedTeacher
from fastkd.teachers.cache_build import ATOM_PTR, EDGE_PTR
from fastkd.teachers.cache_dtypes import from_array
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.cache_reader import ShardArray, ShardReader
from fastkd.teachers.cache_shards import CHUNK_BYTES, DAMAGE, FORMAT, STRUCTURES, VERSION
from fastkd.teachers.output import Need
from fastkd.teachers.store import EDGE_DIRECTION, EDGE_DST, EDGE_SHIFT, EDGE_SRC, POSITIONS, Layout, MemoryStore, Rows, Store, wants_edges
from fastkd.teachers.teacher import LiveTeacher

Ints = npt.NDArray[np.int64]
#: That `CacheFile.check` reads at a time.
CHECK_BYTES = 64 << 20


class CacheFile(Store):
    """A finished cache file. `open_cache` makes one.

    Raises:
        DataError: if the file or one of its shards is not there, damaged, or no cache.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._reader: ShardReader | None = None
        if not self.path.is_file():
            raise DataError(f"{path}: no such file. Build it: fastkd cache build CONFIG teacher.cache_path={path}")
        with self._damage("the file"):
            self._file = h5py.File(self.path, "r", locking="best-effort")
        try:
            with self._damage("its header"):
                self._read_header()
        except BaseException:
            # while a refused file stays open, HDF5 hands out what it remembers of it, even when a good copy has taken its place
            self.close()
            raise

    def _read_header(self) -> None:
        told = self._file.attrs
        if told.get("format", "") != FORMAT:
            raise DataError(f"{self.path} is no cache of teacher outputs. Give the path of one, or of none yet, with teacher.cache_path")
        if int(told["version"]) != VERSION:
            raise DataError(f"{self.path} has version {told['version']}, this program reads {VERSION}; build it anew, or update fastkd")
        self.key = CacheKey.from_json(told["key"])
        self.told: dict[str, Any] = json.loads(told["told"])
        self.folder = self.path.parent / str(told["shard_folder"])
        self.shards = [(self.folder / str(name), int(size)) for name, size in json.loads(told["shards"])]
        for shard, size in self.shards:
            # HDF5 itself would fill in zeros for a shard that is missing
            found = shard.stat().st_size if shard.is_file() else None
            if found != size:
                what = "is not there" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise DataError(
                    f"{self.path}: its shard {shard} {what}. Copy it again, or remove {self.path}, and build the cache again: whole shards are kept"
                )
        pointers = [torch.from_numpy(self._file[name][:]) for name in (ATOM_PTR, EDGE_PTR) if name in self._file]
        self.layout = Layout.of(
            torch.from_numpy(self._file[STRUCTURES][:]), pointers[0].diff(), pointers[1].diff() if pointers[1:] else None
        )
        self._arrays: dict[str, h5py.Dataset] = {}
        self._file.visititems(self._visit)
        # an attribute takes longer to read than a row
        self._dtypes = {name: (str(item.attrs["dtype"]), str(item.attrs["live_dtype"])) for name, item in self._arrays.items()}
        self._reader = ShardReader(self._file, self.folder, self._arrays)
        if missing := set(self._names(self.key.needs)) - set(self._arrays):
            raise KeyError(sorted(missing))
        if wants_edges(self.key.needs) and self.layout.edge_start is None:
            raise KeyError(EDGE_PTR)
        self.num_bytes = self.path.stat().st_size + sum(size for _, size in self.shards)
        self.cost = TeacherCost(
            seconds=float(told["seconds"]),
            structures=len(self.layout),
            atoms=int(self.layout.atom_start[-1]),
            bytes=self.num_bytes,
            batches=int(told["batches"]),
        )

    def _visit(self, name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and "live_dtype" in item.attrs:
            self._arrays[name] = item

    @property
    def reads(self) -> int:
        """Of HDF5, so far."""
        return 0 if self._reader is None else self._reader.reads

    @property
    def arrays(self) -> dict[str, dict[str, Any]]:
        """What the file says of each array: shape, ``per``, ``dtype``, ``live_dtype``, and of features ``relative_error``, ``largest_error``."""
        return {name: {"shape": tuple(item.shape), **dict(item.attrs)} for name, item in self._arrays.items()}

    def errors(self) -> dict[Need, float]:
        """‖kept − said‖ / ‖said‖ of every need, as measured when the file was made."""
        return {need: float(self._arrays[need].attrs["relative_error"]) for need in sorted(self.key.needs)}

    def take(self, name: str, rows: Rows) -> Tensor:
        """Rows of an array, in the dtype that the teacher had.

        Raises:
            DataError: if they cannot be read.
        """
        assert self._reader is not None
        array = self._reader.arrays[name]
        apart = self._read_apart(name, rows, array)
        if apart is not None:
            return from_array(apart, *self._dtypes[name])
        starts, stops = merge(rows.first.numpy(), rows.count.numpy(), gap=array.chunk)
        place = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops - starts)])
        buffer = np.empty((int(place[-1]), *array.shape[1:]), dtype=array.dtype)
        with self._damage(name):
            for start, stop, into in zip(starts.tolist(), stops.tolist(), place.tolist(), strict=False):
                self._reader.read(name, start, stop, buffer[into : into + stop - start])
        index = rows.index.numpy()
        block = np.searchsorted(starts, index, side="right") - 1
        local = index - starts[block] + place[block] if len(starts) else index
        value = torch.from_numpy(buffer).index_select(0, torch.from_numpy(local))
        return from_array(value.numpy(), *self._dtypes[name])

    def _read_apart(self, name: str, rows: Rows, array: ShardArray) -> npt.NDArray[Any] | None:
        """Rows of structures that are too far apart to be read together, each straight to its place; None if some are not."""
        assert self._reader is not None
        first, count = rows.first.tolist(), rows.count.tolist()
        order = sorted(range(len(first)), key=first.__getitem__)
        reach = -1 - array.chunk
        for number in order:
            if first[number] <= reach + array.chunk:
                return None
            reach = first[number] + count[number]
        place = [0, *accumulate(count)]
        out = np.empty((place[-1], *array.shape[1:]), dtype=array.dtype)
        with self._damage(name):
            for number in order:
                self._reader.read(name, first[number], first[number] + count[number], out[place[number] : place[number + 1]])
        return out

    def load(self, needs: Iterable[Need] | None = None) -> MemoryStore:
        """All rows of some needs, in memory.

        Raises:
            DataError: if they cannot be read.
        """
        values = {}
        for name in self._names(self.key.needs if needs is None else needs):
            rows = len(self._arrays[name])
            whole = torch.tensor([0]), torch.tensor([rows])
            values[name] = self.take(name, Rows(*whole, torch.arange(rows)))
        return MemoryStore(self.layout, values)

    def memory_bytes(self, needs: Iterable[Need]) -> int:
        """Bytes that `load` takes."""
        total = 0
        for name in self._names(needs):
            facts = self.arrays[name]
            total += int(np.prod(facts["shape"], dtype=np.int64)) * getattr(torch, facts["live_dtype"]).itemsize
        return total

    def _names(self, needs: Iterable[Need]) -> list[str]:
        """Arrays that some needs take."""
        edges = {EDGE_SRC, EDGE_DST, EDGE_SHIFT, EDGE_DIRECTION} if wants_edges(needs := frozenset(needs)) else set()
        return sorted({POSITIONS, *needs} | edges)

    def check(self) -> None:
        """Read everything once, so that HDF5 looks at every checksum.

        Raises:
            DataError: if something is damaged.
        """
        assert self._reader is not None
        for name, array in self._reader.arrays.items():
            step = array.chunk * max(1, CHECK_BYTES // CHUNK_BYTES)
            buffer = np.empty((min(step, array.shape[0]), *array.shape[1:]), dtype=array.dtype)
            with self._damage(name):
                for first in range(0, array.shape[0], step):
                    last = min(first + step, array.shape[0])
                    self._reader.read(name, first, last, buffer[: last - first])

    def teacher(self, needs: frozenset[Need], *, live: LiveTeacher | None = None, store: Store | None = None) -> CachedTeacher:
        """Its outputs as a teacher; ``store`` is what `load` gave, if it did, perhaps on another device."""
        return CachedTeacher(
            store or self,
            teacher_hash=self.key.teacher,
            dataset_hash=self.key.data,
            cutoff=self.key.cutoff,
            needs=needs,
            cost=self.cost,
            live=live,
        )

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        if self._reader is not None:
            self._reader.close()
        # HDF5 may fail to close a damaged file; it was only read, so nothing is lost
        with contextlib.suppress(*DAMAGE):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Report failures of HDF5 as DataError."""
        try:
            yield
        except DAMAGE as error:
            reason = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise DataError(
                f"{self.path}: {what} cannot be read ({reason}). It is damaged or truncated; copy it again, or remove it with its folder of "
                "shards, and build the cache again"
            ) from error


def open_cache(path: Path | str) -> CacheFile:
    """A finished cache file, checked as far as can be without reading all of it.

    Raises:
        DataError: if it is not there, damaged, or no cache.
    """
    return CacheFile(path)


def merge(first: Ints, count: Ints, gap: int) -> tuple[Ints, Ints]:
    """Runs of rows to read: starts and stops, rising, of blocks that hold all rows asked for; runs nearer than ``gap`` rows become one."""
    some = count > 0
    order = np.argsort(first[some], kind="stable")
    starts, stops = first[some][order], (first + count)[some][order]
    if not len(starts):
        return starts, stops
    reach = np.maximum.accumulate(stops)
    new = np.concatenate([[True], starts[1:] > reach[:-1] + gap])
    last = np.concatenate([np.flatnonzero(new)[1:] - 1, [len(starts) - 1]])
    return starts[new], reach[last]
