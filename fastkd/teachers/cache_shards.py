"""Shards of a cache file: what the teacher said of some batches in a row, each a whole HDF5 file or not there at all.

A build writes shards, one after another, and any number of processes may do so side by side: a shard is named by the batches in it. What a killed
build leaves is whole shards and ``*.partial`` files that nobody looks at, so that the next build goes on after them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from fastkd.data.sink import Sink
from fastkd.errors import DataError
from fastkd.teachers.cache_dtypes import OWN, Error, dtype_name, narrow, to_array
from fastkd.teachers.output import Need
from fastkd.teachers.store import EDGE_DST, EDGE_SHIFT, EDGE_SRC, Block, per

FORMAT, VERSION = "fastkd teacher cache", 1
#: Bytes of a chunk: what is read and checked at a time; HDF5 keeps a checksum of each.
CHUNK_BYTES = 1 << 14
#: What h5py raises when HDF5 meets bytes that make no sense.
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
#: Whole numbers within a structure need no 64 bits.
_SMALL = (EDGE_SRC, EDGE_DST, EDGE_SHIFT)
#: Arrays that count, in every shard.
STRUCTURES, ATOMS, EDGES = "structure_index", "atoms", "edges/count"


@dataclass(frozen=True)
class Shard:
    """A finished shard on disk."""

    path: Path
    first: int  #: batch
    stop: int  #: batch after the last
    rows: dict[str, int]  #: by array
    seconds: float  #: s, that the teacher took
    size: int  #: bytes
    errors: dict[str, Error]  #: by need

    @property
    def name(self) -> str:
        return self.path.name


class ShardWriter:
    """Takes the outputs for batches ``first``, ``first + 1``, …, and makes a file of them when it is closed."""

    def __init__(self, folder: Path, key: str, first: int, dtypes: Mapping[Need, str]) -> None:
        self.folder, self.key, self.first, self.dtypes = folder, key, first, dtypes
        self.stop, self.num_bytes = first, 0
        self.seconds = 0.0
        self.errors = {need: Error() for need in dtypes}
        self._partial = folder / f".{first:08d}.{os.getpid()}.partial"
        self._sink: Sink | None = None
        self._file: h5py.File | None = None
        with self._giving_up():
            folder.mkdir(parents=True, exist_ok=True)
            self._sink = Sink(self._partial)
            self._file = h5py.File(self._sink, "w")

    def append(self, block: Block, seconds: float) -> None:
        """Add the outputs for the next batch, on which the teacher spent some seconds.

        Raises:
            DataError: if the disk is full or does not want them, or a number is too large for its dtype.
        """
        block = block.cpu()
        with self._giving_up():
            self._extend(STRUCTURES, block.structures.numpy(), "int64")
            self._extend(ATOMS, block.atoms.numpy(), "int64")
            if block.edges is not None:
                self._extend(EDGES, block.edges.numpy(), "int64")
            for name, value in block.values.items():
                kept = narrow(value, self.dtypes.get(name, OWN), name)
                if name in self.errors:
                    self.errors[name].add(value, kept)
                array = to_array(kept)
                self._extend(name, array.astype(np.int32) if name in _SMALL else array, dtype_name(kept), dtype_name(value))
        self.stop += 1
        self.seconds += seconds
        self.num_bytes += block.num_bytes

    def close(self) -> Shard:
        """Put the shard in place, whole.

        Raises:
            DataError: if it cannot be written; then there is none.
        """
        path = self.folder / f"{self.first:08d}-{self.stop:08d}.h5"
        with self._giving_up():
            assert self._file is not None
            assert self._sink is not None
            errors = {need: asdict(error) for need, error in self.errors.items()}
            told = {"format": FORMAT, "version": VERSION, "key": self.key, "first": self.first, "stop": self.stop}
            self._file.attrs.update(told | {"seconds": self.seconds, "errors": json.dumps(errors)})
            finish(self._file, self._sink, self._partial, path)
            self._file = self._sink = None
        shard = read_shard(path, self.key)
        if shard is None:
            raise DataError(f"{path} cannot be read although it was just written; the disk is not to be trusted")
        return shard

    def discard(self) -> None:
        """Give up: remove the unfinished file."""
        close_quietly(self._file, self._sink, self._partial)
        self._file = self._sink = None

    def _extend(self, name: str, rows: npt.NDArray[Any], stored: str, live: str = "") -> None:
        assert self._file is not None
        if name not in self._file:
            create(self._file, name, rows, stored, live or stored)
        dataset = self._file[name]
        before = dataset.shape[0]
        dataset.resize(before + len(rows), axis=0)
        dataset[before:] = rows

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
            if self._sink is not None and self._sink.error is not None:
                raise self._sink.error
        except OSError as error:
            self.discard()
            raise cannot_write(self.folder, error) from error
        except BaseException:
            self.discard()
            raise


def create(file: h5py.File, name: str, rows: npt.NDArray[Any], stored: str, live: str) -> h5py.Dataset:
    """An empty array that grows, with a checksum for each chunk; ``stored`` and ``live`` are dtypes in the file and of the teacher."""
    width = max(1, rows.itemsize * int(np.prod(rows.shape[1:], dtype=int)))
    dataset = file.create_dataset(
        name,
        shape=(0, *rows.shape[1:]),
        maxshape=(None, *rows.shape[1:]),
        dtype=rows.dtype,
        chunks=(max(1, CHUNK_BYTES // width), *(max(1, size) for size in rows.shape[1:])),
        fletcher32=True,
    )
    dataset.attrs.update({"per": per_row(name), "dtype": stored, "live_dtype": live})
    return dataset


def per_row(name: str) -> str:
    """What the rows of an array of a shard are."""
    return "structure" if name in (STRUCTURES, ATOMS, EDGES) else per(name)


def finish(file: h5py.File, sink: Sink, partial: Path, path: Path) -> None:
    """Close a file, make sure that it is on disk, and give it its name.

    Raises:
        OSError: if something of it could not be written.
    """
    file.close()
    sink.sync()
    sink.close()
    partial.replace(path)


def close_quietly(file: h5py.File | None, sink: Sink | None, partial: Path) -> None:
    """Give up an unfinished file."""
    if file is not None and file.id.valid:
        file.close()
    if sink is not None:
        sink.close()
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> DataError:
    """What went wrong, and how to mend it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(
            f"{path}: the disk is full ({error.strerror}). Free some space, and the same command goes on; or set another teacher.cache_path, "
            "teacher.cache_dtype=bfloat16 (half the size), or teacher.cache=none."
        )
    return DataError(f"{path} cannot be written ({error.strerror or error}). Set teacher.cache_path to a folder that you may write to.")


def read_shard(path: Path, key: str) -> Shard | None:
    """A finished shard of a key, or None if the file is damaged or another's; then it has to be made anew."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            told = file.attrs
            if (told["format"], int(told["version"]), told["key"]) != (FORMAT, VERSION, key):
                return None
            rows: dict[str, int] = {}
            file.visititems(lambda name, item: rows.update({name: item.shape[0]}) if isinstance(item, h5py.Dataset) else None)
            errors = {need: Error(**error) for need, error in json.loads(told["errors"]).items()}
            return Shard(path, int(told["first"]), int(told["stop"]), rows, float(told["seconds"]), path.stat().st_size, errors)
    except DAMAGE:
        return None


def find_shards(folder: Path, key: str) -> list[Shard]:
    """Whole shards of a key, in order, none overlapping another."""
    found = [shard for path in sorted(folder.glob("*.h5")) if (shard := read_shard(path, key)) is not None]
    kept: list[Shard] = []
    # of two that begin at the same batch the longer one first
    for shard in sorted(found, key=lambda shard: (shard.first, -shard.stop)):
        if not kept or shard.first >= kept[-1].stop:
            kept.append(shard)
    return kept
