"""Build a cache file: shards first, by one process or many, each after the other; then one file that shows them as whole arrays.

Example:
    >>> plan = CachePlan(key, Path("teacher.h5"), batches)
    >>> build_shards(plan, teacher, dataset.batch, rank=0, world=2)  # and elsewhere rank=1
    >>> join(plan)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

import fastkd
from fastkd.data.batch import Batch
from fastkd.data.sink import Sink
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.teachers.base import BaseTeacher, TeacherCost
from fastkd.teachers.cache_dtypes import Error
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.cache_shards import (
    ATOMS,
    DAMAGE,
    EDGES,
    FORMAT,
    STRUCTURES,
    VERSION,
    Shard,
    ShardWriter,
    cannot_write,
    close_quietly,
    find_shards,
    finish,
)
from fastkd.teachers.store import Block, whole_rows

#: A shard ends after so many bytes or seconds, whichever comes first: what a kill can cost at most.
SHARD_BYTES, SHARD_SECONDS = 256 << 20, 120.0
#: An unfinished shard that nobody has written to for so long is what a kill left.
STALE_SECONDS = 3600.0
ATOM_PTR, EDGE_PTR = "atom_ptr", "edge_ptr"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachePlan:
    """Which outputs go into a cache file, in which order."""

    key: CacheKey
    path: Path  #: of the joined file
    batches: tuple[tuple[int, ...], ...]  #: structure numbers, as the teacher is asked; no structure twice

    @cached_property
    def hash(self) -> str:
        """SHA-256 of key and batches: shards of another plan are not used."""
        return hashlib.sha256((self.key.hash + json.dumps(self.batches)).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where the shards are, beside the file."""
        return self.path.with_name(f"{self.path.stem}-{self.hash[:12]}.shards")

    def part(self, rank: int, world: int) -> range:
        """Batches of one process of some.

        Raises:
            ConfigError: if there is no such process.
        """
        if world < 1 or not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world}: ranks count from 0 to world − 1")
        return range(rank * len(self.batches) // world, (rank + 1) * len(self.batches) // world)

    def missing(self, shards: Sequence[Shard], part: range | None = None) -> list[range]:
        """Batches, in runs, that no shard has."""
        part = range(len(self.batches)) if part is None else part
        gaps, first = [], part.start
        for shard in shards:
            if first < min(shard.first, part.stop):
                gaps.append(range(first, min(shard.first, part.stop)))
            first = max(first, shard.stop)
        return gaps + ([range(first, part.stop)] if first < part.stop else [])


@dataclass(frozen=True)
class BuildReport:
    """What one process did."""

    structures: int  #: asked of the teacher now
    resumed: int  #: of its part, found finished
    cost: TeacherCost


def build_shards(
    plan: CachePlan,
    teacher: BaseTeacher,
    make_batch: Callable[[Sequence[int]], Batch],
    *,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Ask the teacher about the batches of one process that no shard has yet.

    Args:
        plan: of the cache.
        teacher: whose outputs are kept.
        make_batch: from structure numbers, on any device, with the neighbour graph of the teacher's cutoff.
        rank: of this process.
        world: how many processes share the work; each may run at any time, on any machine that sees the folder.
        progress: called with the structures done and to do.

    Raises:
        DataError: if a structure comes twice, the disk is full or cannot be written, or a number does not fit its dtype.
        ConfigError: if there is no such rank.
    """
    numbers = [number for batch in plan.batches for number in batch]
    if not numbers:
        raise DataError("there is no structure to ask the teacher about; the training split is empty")
    if len(set(numbers)) != len(numbers):
        raise DataError("a structure was handed to the teacher's cache twice")
    part, shards = plan.part(rank, world), find_shards(plan.folder, plan.hash)
    gaps = plan.missing(shards, part)
    todo, total = (sum(len(plan.batches[k]) for run in runs for k in run) for runs in (gaps, [part]))
    cost, done = TeacherCost(), total - todo
    for run in gaps:
        writer, opened = ShardWriter(plan.folder, plan.hash, run.start, dict(plan.key.dtypes)), time.perf_counter()
        try:
            for number in run:
                batch, before = whole_rows(make_batch(plan.batches[number]), plan.key.needs), cost.settle()
                block = Block.of(batch, cost.measured(teacher, batch, plan.key.needs), plan.key.needs)
                writer.append(block, cost.settle() - before)
                done += batch.num_graphs
                if progress is not None:
                    progress(done, total)
                full = writer.num_bytes >= SHARD_BYTES or time.perf_counter() - opened >= SHARD_SECONDS
                if full and number + 1 < run.stop:
                    writer.close()
                    writer, opened = ShardWriter(plan.folder, plan.hash, number + 1, dict(plan.key.dtypes)), time.perf_counter()
            writer.close()
        except BaseException:
            writer.discard()
            raise
    return BuildReport(todo, total - todo, cost)


def join(plan: CachePlan, told: Mapping[str, Any] | None = None) -> Path:
    """Write the file that shows all shards as whole arrays.

    Args:
        plan: of the cache, all of whose batches have shards.
        told: more to keep in the file, as JSON: the measured error of the loss, the device.

    Raises:
        CheckpointError: if some batches have no shard, saying which.
        DataError: if the file cannot be written, or a shard cannot be read.
    """
    shards = find_shards(plan.folder, plan.hash)
    gaps = plan.missing(shards)
    if gaps:
        runs = ", ".join(f"{run.start} to {run.stop - 1}" for run in gaps[:5]) + (" …" if len(gaps) > 5 else "")
        raise CheckpointError(
            f"{plan.path}: batches {runs} of {len(plan.batches)} are not built; run the same command for the ranks that are left, "
            "or once without --rank"
        )
    partial = plan.path.with_name(f".{plan.path.name}.{os.getpid()}.partial")
    sink: Sink | None = None
    file: h5py.File | None = None
    try:
        sink = Sink(partial)
        file = h5py.File(sink, "w")
        _write(file, plan, shards, told or {})
        finish(file, sink, partial, plan.path)
    except OSError as error:
        # the sink tells what HDF5 cannot: why a write failed
        close_quietly(file, sink, partial)
        raise cannot_write(plan.path, error) from error
    except BaseException:
        close_quietly(file, sink, partial)
        raise
    for stale in plan.folder.glob(".*.partial"):
        # another process may be writing the same plan at this moment: only what is this one's, or was long left alone
        with contextlib.suppress(OSError):
            if f".{os.getpid()}." in stale.name or time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    return plan.path


def _write(file: h5py.File, plan: CachePlan, shards: Sequence[Shard], told: Mapping[str, Any]) -> None:
    counts = {name: _column(shards, name) for name in (STRUCTURES, ATOMS, EDGES) if name in shards[0].rows}
    file.create_dataset(STRUCTURES, data=counts[STRUCTURES])
    file.create_dataset(ATOM_PTR, data=_pointer(counts[ATOMS]))
    if EDGES in counts:
        file.create_dataset(EDGE_PTR, data=_pointer(counts[EDGES]))
    with h5py.File(shards[0].path, "r", locking="best-effort") as model:
        for name in shards[0].rows:
            if name not in counts:
                _join_array(file, plan.folder.name, shards, model[name], name)
    for need, _ in plan.key.dtypes:
        error = Error()
        for shard in shards:
            error.join(shard.errors[need])
        file[need].attrs.update({"relative_error": error.relative, "largest_error": error.largest})
    file.attrs.update(
        {
            "format": FORMAT,
            "version": VERSION,
            "creator": f"fastkd {fastkd.__version__}",
            "key": plan.key.json(),
            "seconds": sum(shard.seconds for shard in shards),
            "batches": len(plan.batches),
            "shard_folder": plan.folder.name,
            "shards": json.dumps([[shard.name, shard.size] for shard in shards]),
            "told": json.dumps(dict(told)),
        }
    )


def _join_array(file: h5py.File, folder: str, shards: Sequence[Shard], model: h5py.Dataset, name: str) -> None:
    """One array out of those of all shards: a virtual data set, which holds no numbers of its own."""
    shape = (sum(shard.rows[name] for shard in shards), *model.shape[1:])
    if 0 in shape:
        dataset = file.create_dataset(name, shape=shape, dtype=model.dtype)
    else:
        layout, row = h5py.VirtualLayout(shape=shape, dtype=model.dtype), 0
        for shard in shards:
            rows = shard.rows[name]
            if rows:
                # a relative name is looked for beside the file, so that both can be moved together
                layout[row : row + rows] = h5py.VirtualSource(f"{folder}/{shard.name}", name, shape=(rows, *model.shape[1:]))
            row += rows
        dataset = file.create_virtual_dataset(name, layout)
    dataset.attrs.update({item: model.attrs[item] for item in ("per", "dtype", "live_dtype")})


def _column(shards: Sequence[Shard], name: str) -> Ints:
    parts = []
    for shard in shards:
        try:
            with h5py.File(shard.path, "r", locking="best-effort") as file:
                parts.append(np.asarray(file[name][:], dtype=np.int64))
        except DAMAGE as error:
            raise DataError(f"{shard.path}: {name} cannot be read ({error}); remove this file, and build the cache again") from error
    return np.concatenate(parts)


def _pointer(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
