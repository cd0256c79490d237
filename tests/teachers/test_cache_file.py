"""The cache on disk: the same bits as in memory, and refused where it does not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fastkd.data.batch import Batch
from fastkd.data.rearrange import select_structures
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.models import PaiNN, PaiNNOptions
from fastkd.teachers import CachedTeacher, LiveTeacher, Teacher
from fastkd.teachers import cache_build as build_module
from fastkd.teachers import cache_reader as reader_module
from fastkd.teachers import cache_shards as shards_module
from fastkd.teachers.base import TeacherCost
from fastkd.teachers.cache_build import build_shards, join
from fastkd.teachers.cache_dtypes import dtypes_of, rounded
from fastkd.teachers.cache_file import merge, open_cache
from fastkd.teachers.cache_key import CacheKey
from fastkd.teachers.output import TeacherOutput
from fastkd.teachers.store import MemoryStore, Rows

from .cache_common import CUTOFF, NEEDS, PAINN, Chatty, assert_same, built, make_batch, make_plan, structure


@pytest.mark.parametrize("seed", range(4))
def test_random_batches_get_the_bits_that_memory_gives(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(60)[: 17 + seed].tolist()
    # small chunks and shards, so that both have borders inside
    monkeypatch.setattr(shards_module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(build_module, "SHARD_BYTES", 2000)
    plan, teacher = make_plan(tmp_path / "t.h5", numbers), Chatty()
    build_shards(plan, teacher, make_batch)
    with open_cache(join(plan)) as file:
        assert len(file.shards) > 2
        memory = CachedTeacher.build(teacher, NEEDS, map(make_batch, plan.batches), dataset_hash="d" * 64)
        loaded = file.teacher(NEEDS, store=file.load())
        for size in (1, 2, 9):
            batch = make_batch(generator.choice(numbers, size).tolist())
            for cache in (file.teacher(NEEDS), loaded):
                assert_same(cache(batch), memory(batch))
                assert_same(cache(batch), teacher(batch, NEEDS))
        assert set(file.errors().values()) == {0.0}


@pytest.mark.parametrize("numbers", [[3], [7, 3, 11]])
def test_structures_of_one_atom_and_without_edges(tmp_path: Path, numbers: list[int]) -> None:
    assert make_batch(numbers).graph(CUTOFF).num_edges == 0
    with open_cache(built(tmp_path / "t.h5", numbers)) as file:
        assert_same(file.teacher(NEEDS)(make_batch(numbers)), Chatty()(make_batch(numbers), NEEDS))
        assert file.arrays["edge"]["shape"] == (0, 6)
    alone = [number for number in range(40) if len(structure(number)[0]) == 1]
    with open_cache(built(tmp_path / "alone.h5", alone)) as file:
        assert_same(file.teacher(NEEDS)(make_batch(alone[::-1])), Chatty()(make_batch(alone[::-1]), NEEDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_teacher_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF)).to(dtype))
    plan = make_plan(tmp_path / "t.h5", range(8), needs=PAINN, teacher=teacher)
    build_shards(plan, teacher, lambda numbers: make_batch(numbers, dtype))
    with open_cache(join(plan)) as file:
        for numbers in plan.batches:
            batch = make_batch(numbers, dtype)
            assert_same(file.teacher(PAINN)(batch), LiveTeacher(teacher, PAINN)(batch), PAINN)


def test_needs_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    with open_cache(built(tmp_path / "t.h5", range(6))) as file:
        output = file.teacher(frozenset({"node"}))(make_batch([2, 5]))
        assert output.edge is output.energy is output.edge_shift is None
        # positions to compare, and one feature
        assert file.reads <= 2 * 2
        assert file.memory_bytes({"node"}) == sum(len(structure(number)[0]) for number in range(6)) * 4 * (3 + 7)


def test_reads_are_few() -> None:
    first, count = np.array([50, 0, 5, 90, 5]), np.array([5, 5, 3, 0, 3])
    starts, stops = merge(first, count, gap=10)
    assert (starts.tolist(), stops.tolist()) == ([0, 50], [8, 55])
    assert merge(first, count, gap=100)[0].tolist() == [0]
    assert merge(first, count, gap=-1)[0].tolist() == [0, 5, 50]
    assert merge(first[:0], count[:0], gap=1)[0].tolist() == []


def test_reads_of_a_batch_do_not_grow_with_its_size(tmp_path: Path) -> None:
    with open_cache(built(tmp_path / "t.h5", range(60))) as file:
        cache = file.teacher(frozenset({"node", "forces"}))
        cache(make_batch(range(0, 60, 2)))
        assert file.reads == 3  # positions, to compare, and each feature: one read, gaps and all


def test_shards_are_read_as_the_virtual_file_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any run of rows, across any number of shards, with fewer files open than there are shards."""
    monkeypatch.setattr(build_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(reader_module, "OPEN_FILES", 2)
    with open_cache(built(tmp_path / "t.h5", range(24))) as file:
        assert len(file.shards) == 8
        whole = {name: file._file[name][:] for name in file.arrays}
        generator = np.random.default_rng(0)
        for name, values in whole.items():
            for first, last in [(0, len(values)), *np.sort(generator.integers(0, len(values) + 1, (20, 2)), axis=1).tolist()]:
                out = np.empty_like(values[first:last])
                file._reader.read(name, first, last, out)
                assert np.array_equal(out, values[first:last]), name
                assert len(file._reader._open) <= 2
        # nothing to read is no read
        before = file.reads
        file._reader.read("node", 3, 3, np.empty((0, 7), np.float32))
        assert file.reads == before


@pytest.mark.parametrize(("numbers", "apart"), [([14, 2, 5, 9], True), ([7], True), ([2, 3, 9], False), ([4, 4], False), ([], True)])
def test_structures_far_apart_are_read_to_their_places(tmp_path: Path, numbers: list[int], apart: bool) -> None:
    with open_cache(built(tmp_path / "t.h5", range(16))) as file:
        memory, slots = file.load(), file.layout.slot[torch.tensor(numbers, dtype=torch.int64)]
        # as if chunks were as small as rows
        file._reader.arrays = {name: replace(array, chunk=0) for name, array in file._reader.arrays.items()}
        rows = Rows.of(file.layout.atom_start, slots)
        for name in ("node", "vector", "forces"):
            found = file._read_apart(name, rows, file._reader.arrays[name])
            assert (found is not None) == apart
            assert torch.equal(file.take(name, rows), memory.take(name, rows))


def test_a_shard_that_is_not_the_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SHARD_BYTES", 1)
    path = built(tmp_path / "t.h5", range(12))
    with open_cache(path) as file:
        one, other = (shard for shard, _ in file.shards[:2])
        assert file.layout.atom_start[3] != file.layout.atom_start[6] - file.layout.atom_start[3]
        # shards are opened when they are first asked for: what has happened to them until then is noticed
        one.write_bytes(other.read_bytes())
        with pytest.raises(DataError, match=r"cannot be read .*not \("):
            file.teacher(NEEDS)(make_batch([0, 1]))
        one.unlink()
        with pytest.raises(DataError, match="cannot be read"):
            file.teacher(NEEDS)(make_batch([0, 1]))


def test_whose_cache_it_is_is_said(tmp_path: Path) -> None:
    path = built(tmp_path / "t.h5", range(6), dtype="bfloat16")
    with open_cache(path) as file:
        key = file.key
        key.require(replace(key, dtypes=tuple(pair for pair in key.dtypes if pair[0] == "node")), path)
        others = {
            "teacher's weights: cccccccccccc, not eeeeeeeeeeee": {"teacher": "e" * 64},
            "teacher's dtype: float32, not float64": {"teacher_dtype": "float64"},
            r"teacher's cutoff \[Å\]: 3.0, not 4.0": {"cutoff": 4.0},
            "teacher's neighbour settings: all, not nearest 50": {"neighbours": "nearest 50"},
            "data set: dddddddddddd, not eeeeeeeeeeee": {"data": "e" * 64},
            "dtype of positions: float32, not float64": {"data_dtype": "float64"},
            "dtypes that features are kept in.*bfloat16.*float16": {"dtypes": tuple(dtypes_of("float16", NEEDS).items())},
            r"lacks node@regular_2 of the teacher": {"dtypes": (*key.dtypes, ("node@regular_2", "bfloat16"))},
        }
        for message, change in others.items():
            with pytest.raises(CheckpointError, match=message):
                key.require(replace(key, **change), path)


def test_the_key_sees_a_cutoff_that_no_weight_tells() -> None:
    def key(**options: Any) -> CacheKey:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = PaiNN(PaiNNOptions(width=8, layers=1, radial=6, **{"cutoff": CUTOFF} | options))
        return CacheKey.of(Teacher(model), {"node": "own"}, data="d", data_dtype="float32")

    assert key() == key()
    assert key(max_neighbors=3).neighbours != key().neighbours
    assert key(cutoff=4.0).cutoff != key().cutoff
    assert len({key().hash, key(max_neighbors=3).hash, key(cutoff=4.0).hash}) == 3


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_errors_of_dtypes_are_measured(tmp_path: Path, dtype: str, bound: float) -> None:
    numbers = list(range(12))
    with open_cache(built(tmp_path / "t.h5", numbers, dtype=dtype)) as file:
        batch = make_batch(numbers)
        said, kept = Chatty()(batch, NEEDS), file.teacher(NEEDS)(batch)
        for need, error in file.errors().items():
            delta = kept.get(need).double() - said.get(need).double()
            assert error == pytest.approx(float(delta.norm() / said.get(need).double().norm()), rel=1e-9), need
            assert file.arrays[need]["largest_error"] == float(delta.abs().max())
            exact = need in ("energy", "forces", "atom_energy", "degree") or not bound
            assert error == 0.0 if exact else bound / 10 < error < bound
        # the same rounding as the loss at the start of training is measured with
        assert_same(kept, rounded(said, dict(file.key.dtypes)))
    own = built(tmp_path / "own.h5", numbers)
    with open_cache(own) as exact_file, open_cache(tmp_path / "t.h5") as file:
        bits = {"float32": 32, "float16": 16, "bfloat16": 16}[dtype]
        for file_, expected in ((exact_file, 32), (file, bits)):
            with h5py.File(file_.path) as raw:
                assert 8 * raw["vector"].dtype.itemsize == expected


def test_dtypes_by_need() -> None:
    needs = {"node", "node@regular_1", "forces", "energy"}
    assert dtypes_of({"node": "float16", "forces": "float32"}, needs) == {
        "energy": "own",
        "forces": "float32",
        "node": "float16",
        "node@regular_1": "float16",
    }
    assert dtypes_of({"node@regular_1": "bfloat16"}, needs)["node"] == "own"
    with pytest.raises(ConfigError, match="names 'energy'"):
        dtypes_of({"energy": "float16"}, needs)
    with pytest.raises(ConfigError, match="names 'vector', which no term asks"):
        dtypes_of({"vector": "float16"}, needs)


def test_new_and_moved_structures_are_asked_live(tmp_path: Path) -> None:
    teacher = Chatty()
    with open_cache(built(tmp_path / "t.h5", range(10))) as file:
        for store in (None, file.load()):
            live = LiveTeacher(teacher, NEEDS)  # type: ignore[arg-type]
            cache = file.teacher(NEEDS, live=live, store=store)
            for numbers, new in (([3, 40, 0, 41, 7], [40, 41]), ([50], [50]), ([1, 2], []), ([99, 8], [99])):
                teacher.asked.clear()
                batch = make_batch(numbers)
                output = cache(batch)
                assert teacher.asked == new
                assert_same(output, teacher(batch, NEEDS))
            teacher.asked.clear()
            batch = make_batch([4, 5, 6])
            moved = replace(batch, positions=batch.positions + 1e-3 * (batch.graph_index == 1)[:, None])
            cache(moved)
            assert teacher.asked == [5]
            # augmented structures have no number
            assert_same(cache(replace(batch, structure_index=torch.tensor([4, -1, 6]))), output_of(teacher, [4, -1, 6], batch))
            for bare in (replace(make_batch([3, 40]), graphs={}), replace(moved, graphs={})):
                with pytest.raises(DataError, match=r"not in the teacher's cache|moved atoms"):
                    cache(bare)


def output_of(teacher: Chatty, numbers: list[int], batch: Batch) -> TeacherOutput:
    # seeds are not negative: what the teacher says of a structure without a number is what it says of 2 ** 64 − 1
    return teacher(replace(batch, structure_index=torch.tensor(numbers)), NEEDS)


def test_a_part_of_a_batch_is_the_batch_of_that_part() -> None:
    batch = replace(make_batch([5, 3, 8, 0]), tags=torch.arange(make_batch([5, 3, 8, 0]).num_atoms))
    part = select_structures(batch, torch.tensor([True, False, True, False]))
    wanted = make_batch([5, 8])
    for name in ("atomic_numbers", "positions", "atom_ptr", "graph_index", "structure_index"):
        assert torch.equal(getattr(part, name), getattr(wanted, name)), name
    for name, value in vars(wanted.graph(CUTOFF).csr).items():
        assert torch.equal(getattr(part.graph(CUTOFF).csr, name), value), name
    for name in ("pair", "pair_edge", "edge_shift"):
        assert torch.equal(getattr(part.graph(CUTOFF), name), getattr(wanted.graph(CUTOFF), name)), name
    assert len(part.tags) == part.num_atoms


def test_what_is_told_is_kept(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "t.h5", range(4))
    build_shards(plan, Chatty(), make_batch)
    join(plan, {"loss_error": {"n2n": 1e-4}})
    with open_cache(plan.path) as file:
        assert file.told["loss_error"] == {"n2n": 1e-4}
        assert isinstance(file.cost, TeacherCost)
        assert (file.cost.structures, file.cost.batches) == (4, 2)
        assert CacheKey.from_json(file.key.json()) == file.key
    with pytest.raises(ValueError, match="not a key"):
        CacheKey.from_json(json.dumps({"teacher": "x"}))


def test_an_empty_gather_is_empty(tmp_path: Path) -> None:
    with open_cache(built(tmp_path / "t.h5", range(4))) as file:
        none = torch.empty(0, dtype=torch.int64)
        assert file.take("node", Rows(none, none, none)).shape == (0, 7)
        assert isinstance(file.load({"node"}), MemoryStore)
