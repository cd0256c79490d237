"""Building the cache on disk: whole or not there, whatever kills the build, and damage is noticed."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fastkd.data import sink as sink_module
from fastkd.data.batch import Batch
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.teachers import cache_build as build_module
from fastkd.teachers import cache_shards as shards_module
from fastkd.teachers.cache_build import build_shards, join
from fastkd.teachers.cache_file import open_cache
from fastkd.teachers.cache_shards import find_shards

from .cache_common import NEEDS, Chatty, assert_same, built, make_batch, make_plan


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("after", [1, 4, 10])
def test_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    plan, teacher = make_plan(tmp_path / "t.h5", range(18)), Chatty()
    monkeypatch.setattr(build_module, "SHARD_BYTES", 1)  # a shard for each batch

    def dying(numbers: Sequence[int]) -> Batch:
        if len(teacher.asked) >= after:
            raise Killed
        return make_batch(numbers)

    # a kill closes no file
    monkeypatch.setattr(shards_module.ShardWriter, "discard", lambda self: None)
    with pytest.raises(Killed):
        build_shards(plan, teacher, dying)
    monkeypatch.undo()
    left = list(plan.folder.glob(".*.partial"))
    assert left
    with pytest.raises(CheckpointError, match=r"are not built"):
        join(plan)
    before = len(teacher.asked)
    report = build_shards(plan, teacher, make_batch)
    assert (report.resumed, report.structures) == (before, 18 - before)
    assert sorted(teacher.asked) == list(range(18))
    with open_cache(join(plan)) as file:
        assert_same(file.teacher(NEEDS)(make_batch([17, 0, 8])), teacher(make_batch([17, 0, 8]), NEEDS))
    assert not list(plan.folder.glob(".*.partial"))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
def test_half_a_shard_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: float) -> None:
    monkeypatch.setattr(build_module, "SHARD_BYTES", 1)
    plan, teacher = make_plan(tmp_path / "t.h5", range(9)), Chatty()
    build_shards(plan, teacher, make_batch)
    victim = find_shards(plan.folder, plan.hash)[1].path
    data = victim.read_bytes()
    victim.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    teacher.asked.clear()
    assert build_shards(plan, teacher, make_batch).structures == 3
    assert teacher.asked == [3, 4, 5]
    with open_cache(join(plan)) as file:
        assert_same(file.teacher(NEEDS)(make_batch([4, 8])), teacher(make_batch([4, 8]), NEEDS))


def test_shards_of_another_plan_are_not_used(tmp_path: Path) -> None:
    one, other = make_plan(tmp_path / "t.h5", range(6)), make_plan(tmp_path / "t.h5", range(9))
    build_shards(one, Chatty(), make_batch)
    assert one.folder != other.folder
    assert build_shards(other, Chatty(), make_batch).structures == 9
    assert not find_shards(one.folder, other.hash)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_work_and_join(tmp_path: Path, world: int) -> None:
    plan, teacher = make_plan(tmp_path / "t.h5", range(20)), Chatty()
    for rank in reversed(range(world)):
        if rank < world - 1:
            with pytest.raises(CheckpointError, match="run the same command for the ranks that are left"):
                join(plan)
        build_shards(plan, teacher, make_batch, rank=rank, world=world)
    assert sorted(teacher.asked) == list(range(20))
    with open_cache(join(plan)) as file:
        assert len(file.shards) == world
        batch = make_batch([19, 3, 0, 12])
        assert_same(file.teacher(NEEDS)(batch), teacher(batch, NEEDS))
    # strangers see whole arrays, in the order of structure_index
    with h5py.File(plan.path) as raw:
        assert raw["node"].is_virtual
        place = raw["atom_ptr"][:]
        for k, number in enumerate(raw["structure_index"][:].tolist()):
            assert np.array_equal(raw["node"][place[k] : place[k + 1]], teacher(make_batch([number]), NEEDS).node.numpy())
    for rank in (-1, world):
        with pytest.raises(ConfigError, match="ranks count from 0"):
            build_shards(plan, teacher, make_batch, rank=rank, world=world)


def test_moved_together_file_and_shards_still_belong_together(tmp_path: Path) -> None:
    path = built(tmp_path / "a" / "t.h5", range(6))
    path.parent.rename(tmp_path / "b")
    with open_cache(tmp_path / "b" / "t.h5") as file:
        assert_same(file.teacher(NEEDS)(make_batch([1, 4])), Chatty()(make_batch([1, 4]), NEEDS))


def test_structures_come_once_and_there_is_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        build_shards(make_plan(tmp_path / "t.h5", [0, 1, 0]), Chatty(), make_batch)
    with pytest.raises(DataError, match="no structure"):
        build_shards(make_plan(tmp_path / "t.h5", []), Chatty(), make_batch)


def test_numbers_too_large_for_a_dtype_are_an_error(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "t.h5", range(3), dtype="float16")
    with pytest.raises(DataError, match=r"reaches .*, which float16 cannot hold"):
        build_shards(plan, Chatty(scale=1e6), make_batch)  # type: ignore[arg-type]
    assert not list(plan.folder.glob("*"))


@pytest.mark.parametrize("room", [0, 700, 9000, 20000])
def test_a_full_disk_is_said_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    class SmallDisk(sink_module.Sink):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._file = Limited(self._file)  # type: ignore[assignment]

    class Limited:
        def __init__(self, file: Any) -> None:
            self._file, self._left = file, room

        def write(self, data: bytes) -> int:
            if len(data) > self._left:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._left -= len(data)
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    plan, teacher = make_plan(tmp_path / "t.h5", range(30)), Chatty()
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "Sink", SmallDisk)
        with pytest.raises(DataError, match=r"the disk is full \(No space left on device\)\. Free some space"):
            build_shards(plan, teacher, make_batch)  # type: ignore[arg-type]
    assert not list(plan.folder.glob("*"))
    assert not list(plan.folder.glob(".*"))
    build_shards(plan, teacher, make_batch)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "Sink", SmallDisk)
        if room <= 9000:
            with pytest.raises(DataError, match="the disk is full"):
                join(plan)
            assert not plan.path.exists()
            assert not list(tmp_path.glob(".*"))
    join(plan)
    open_cache(plan.path).close()


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = built(tmp_path / "t.h5", range(30))
    with open_cache(path) as file:
        shard, size = file.shards[0]
        file.check()
    whole = shard.read_bytes()
    with h5py.File(shard) as raw:
        offset = raw["node"].id.get_chunk_info(0).byte_offset
    # one flipped bit in a number
    shard.write_bytes(whole[: offset + 5] + bytes([whole[offset + 5] ^ 16]) + whole[offset + 6 :])
    with open_cache(path) as file:
        with pytest.raises(DataError, match=r"node cannot be read .*damaged or truncated"):
            file.teacher(NEEDS)(make_batch([0]))
        with pytest.raises(DataError, match="node cannot be read"):
            file.check()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=f"has {size - 10:,} bytes instead of {size:,}"):
        open_cache(path)
    shard.unlink()
    with pytest.raises(DataError, match="is not there"):
        open_cache(path)
    shard.write_bytes(whole)
    data = path.read_bytes()
    for bad in (b"", data[: len(data) // 2], b"no HDF5 at all", data[:-1]):
        path.write_bytes(bad)
        with pytest.raises(DataError):
            open_cache(path)
    with h5py.File(path, "w") as raw:
        raw.attrs["format"] = "fastkd"
    with pytest.raises(DataError, match="no cache of teacher outputs"):
        open_cache(path)
    with pytest.raises(DataError, match=r"no such file\. Build it: fastkd cache build"):
        open_cache(tmp_path / "other.h5")
