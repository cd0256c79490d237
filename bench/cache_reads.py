"""What a training step waits for a cache of teacher outputs: shards read directly, the same through HDF5's virtual data sets, and from memory.

    python -m bench.cache_reads --structures 20000 --batch 8 --out reads.json

Numbers are made up, in the shapes of a real cache: small molecules with scalar and vector features, forces and energies. Every batch is read by all
three, in turn, and must be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from fastkd.teachers import cache_build
from fastkd.teachers.base import TeacherCost
from fastkd.teachers.cache_build import CachePlan, join
from fastkd.teachers.cache_dtypes import dtypes_of
from fastkd.teachers.cache_file import CacheFile, merge, open_cache
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.cache_shards import CHUNK_BYTES, ShardWriter
from fastkd.teachers.store import POSITIONS, Block, MemoryStore, Rows, Store

NEEDS = frozenset({"energy", "forces", "node", "vector"})


def build(path: Path, structures: int, width: int, shard_bytes: int, seed: int = 0) -> CacheFile:
    """A cache of made-up outputs for molecules of 9 to 30 atoms."""
    generator = torch.Generator().manual_seed(seed)
    chunks = tuple(tuple(range(first, min(first + 64, structures))) for first in range(0, structures, 64))
    key = CacheKey("0" * 64, "float32", 5.0, "all", "1" * 64, "float32", tuple(sorted(dtypes_of("own", NEEDS).items())))
    plan = CachePlan(key, path, chunks)
    writer = ShardWriter(plan.folder, plan.hash, 0, dict(key.dtypes))
    for number, chunk in enumerate(chunks):
        atoms = torch.randint(9, 31, (len(chunk),), generator=generator)
        rows = int(atoms.sum())
        shapes = {POSITIONS: (rows, 3), "forces": (rows, 3), "node": (rows, width), "vector": (rows, 3, width)}
        values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        values["energy"] = torch.randn(len(chunk), generator=generator, dtype=torch.float64)
        writer.append(Block(torch.tensor(chunk), atoms, None, values), 0.0)
        if writer.num_bytes >= shard_bytes and number + 1 < len(chunks):
            writer.close()
            writer = ShardWriter(plan.folder, plan.hash, number + 1, dict(key.dtypes))
    writer.close()
    return open_cache(join(plan))


class VirtualStore(Store):
    """The same rows through the virtual data sets of the file."""

    def __init__(self, path: Path, whole: CacheFile) -> None:
        self.layout, self.num_bytes = whole.layout, whole.num_bytes
        self.file = h5py.File(path, "r", locking="best-effort")

    def take(self, name: str, rows: Rows) -> Tensor:
        dataset = self.file[name]
        width = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=int)))
        starts, stops = merge(rows.first.numpy(), rows.count.numpy(), gap=CHUNK_BYTES // width)
        place = np.concatenate([[0], np.cumsum(stops - starts)])
        buffer = np.empty((int(place[-1]), *dataset.shape[1:]), dtype=dataset.dtype)
        for start, stop, into in zip(starts.tolist(), stops.tolist(), place.tolist(), strict=False):
            dataset.read_direct(buffer, np.s_[start:stop], np.s_[into : into + stop - start])
        index = rows.index.numpy()
        block = np.searchsorted(starts, index, side="right") - 1
        return torch.from_numpy(buffer).index_select(0, torch.from_numpy(index - starts[block] + place[block]))


def gather(store: Store, numbers: Tensor) -> dict[str, Tensor]:
    """What a batch takes: positions, to see that nothing has moved, and every need."""
    slots = store.layout.slot[numbers]
    single, atom = Rows.single(slots), Rows.of(store.layout.atom_start, slots)
    return {name: store.take(name, single if name == "energy" else atom) for name in (POSITIONS, *sorted(NEEDS))}


def measure(stores: dict[str, Store], batches: list[Tensor], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of each store for each batch, one after the other.

    Raises:
        ValueError: if they do not say the same.
    """
    times: dict[str, list[float]] = {name: [] for name in stores}
    for numbers in batches:
        said: dict[str, dict[str, Tensor]] = {}
        for name, store in stores.items():
            started = clock()
            said[name] = gather(store, numbers)
            times[name].append(1e3 * (clock() - started))
        first, *others = said.values()
        if not all(torch.equal(first[need], other[need]) for other in others for need in first):
            raise ValueError("the stores say different things of one batch")
    return times


def main(argv: list[str] | None = None) -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=8, help="structures per batch (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=100, help="measured; a fifth as many come before (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of features (default: %(default)s)")
    parser.add_argument("--shard-mb", type=int, default=cache_build.SHARD_BYTES >> 20, help="size of a shard (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for machines that others use too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    clock = time.process_time if args.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.h5"
        with build(path, args.structures, args.width, args.shard_mb << 20) as file:
            loaded: MemoryStore = file.load()
            stores: dict[str, Store] = {"shards": file, "virtual": VirtualStore(path, file), "memory": loaded}
            generator = torch.Generator().manual_seed(1)
            early = args.batches // 5
            batches = [torch.randint(args.structures, (args.batch,), generator=generator) for _ in range(early + args.batches)]
            times = {name: values[early:] for name, values in measure(stores, batches, clock).items()}
            shards, size, cost = len(file.shards), file.num_bytes, file.cost
    _report(args, times, shards, size, cost)


def _report(args: argparse.Namespace, times: dict[str, list[float]], shards: int, size: int, cost: TeacherCost) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{cost.structures} structures, {cost.atoms} atoms, {1e-6 * size:.0f} MB in {shards} shards; batches of {args.batch}")
    for name, median in medians.items():
        low, _, high = statistics.quantiles(times[name], n=4)
        print(f"{name:8s} {median:8.3f} ms a batch ({low:.3f} to {high:.3f}), {median / medians['shards']:6.2f} × shards")
    if args.out is not None:
        content = {
            "medians_ms": medians,
            "times_ms": times,
            "shards": shards,
            "bytes": size,
            "structures": cost.structures,
            "batch": args.batch,
        }
        args.out.write_text(json.dumps({**content, "clock": "processor" if args.cpu_time else "wall"}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
