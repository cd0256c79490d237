"""Caches belong to what was said: teachers that say something else have another hash, and half-written files of others are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from ase.calculators.lj import LennardJones

from fastkd.data.batch import Batch
from fastkd.errors import DataError
from fastkd.models import PaiNN, PaiNNOptions
from fastkd.teachers import CachedTeacher, ForeignModule, LiveTeacher, ModuleTeacher, Outputs, Teacher, TeacherOutput, load_teacher
from fastkd.teachers import cache_build as build_module
from fastkd.teachers.ase import AseTeacher
from fastkd.teachers.cache_build import STALE_SECONDS, build_shards, join
from fastkd.teachers.cache_file import open_cache
from fastkd.teachers.hessian import sample_rows
from fastkd.teachers.store import EDGE_DIRECTION, EDGE_DST, EDGE_SHIFT, EDGE_SRC, POSITIONS, Rows

from .cache_common import CUTOFF, NEEDS, Chatty, assert_same, built, make_batch, make_plan
from .foreign import make

HOLDS = ("energy", "atom_energy", "forces", "stress")
ROOT = Path(__file__).parents[2]
#: Of Hessians by differences: h in Å, and the largest relative error against exact rows, whose part of h² is 8e-6 and 8e-8 here.
STEPS = {"0.0001": 2e-5, "1e-05": 1e-6}


def scaled(scale: float = 1.0) -> ForeignModule:
    """What an option changes may be no weight."""
    return make(outputs=lambda said, batch: Outputs(energy=scale * said["energy"]), features=[])


def hash_of(**changes: Any) -> str:
    return ModuleTeacher(make(**changes), "foreign").hash


def run_python(code: str, seed: int) -> str:
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_another_process_has_the_same_hash() -> None:
    # this process and one in which the same set has another order
    order = str(frozenset(HOLDS))
    seed = next(seed for seed in range(1, 50) if run_python(f"print(frozenset({HOLDS}))", seed) != order)
    code = "from tests.teachers.test_cache_identity import HOLDS, hash_of; print(hash_of(references_in=frozenset(HOLDS)))"
    assert run_python(code, seed) == hash_of(references_in=frozenset(HOLDS))


def test_modules_that_say_something_else_have_another_hash() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"reference_energy": {"H": -13.6}},
        {"reference_energy": {"H": -13.7}},
        {"reference_energy": None},
        {"forces": "module"},
        {"references_in": frozenset({"energy"})},
    ]
    hashes = [hash_of(**change) for change in changes]
    assert len(set(hashes)) == len(changes)
    assert [hash_of(**change) for change in changes] == hashes


def test_options_of_a_factory_are_part_of_the_hash() -> None:
    path = "module:tests.teachers.test_cache_identity:scaled"
    hashes = [load_teacher(path, options=options).hash for options in ({}, {"scale": 2.0}, {"scale": 3.0}, {"scale": 3.0})]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


class Doubled(LennardJones):
    """The same parameters, another calculator."""


def test_another_class_of_calculator_has_another_hash() -> None:
    one, same, other = (AseTeacher(kind(), "ase:x:make").hash for kind in (LennardJones, LennardJones, Doubled))
    assert one == same != other


@pytest.mark.parametrize("named", ["option", "nested option", "source"])
def test_a_file_of_weights_may_be_replaced_under_its_name(tmp_path: Path, named: str) -> None:
    weights = tmp_path / "weights.txt"

    def asked(content: str) -> str:
        weights.write_text(content)
        if named == "source":
            return AseTeacher(LennardJones(), f"mace:{weights}").hash
        # an option need not be a path, nor be short enough for one
        value = [{"models": [str(weights)]}] if named == "nested option" else str(weights)
        return AseTeacher(LennardJones(), "ase:x:make", factory_options={"weights": value, "note": "x" * 5000}).hash

    first, second, again = asked("1"), asked("2"), asked("1")
    assert first == again != second


def test_join_removes_its_own_leftovers_and_old_ones_alone(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "t.h5", range(6))
    build_shards(plan, Chatty(), make_batch)
    # no process has so high a number
    fresh, old, own = (plan.folder / f".00000009.{number}.partial" for number in (10**9, 10**9 + 1, os.getpid()))
    for path in (fresh, old, own):
        path.touch()
    past = old.stat().st_mtime - STALE_SECONDS - 60
    os.utime(old, (past, past))
    join(plan)
    assert [path.exists() for path in (fresh, old, own)] == [True, False, False]


def test_two_processes_may_build_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SHARD_BYTES", 1)
    plan, teacher = make_plan(tmp_path / "t.h5", range(9)), Chatty()

    def overtaken(numbers: Sequence[int]) -> Batch:
        if 6 in numbers:
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: 10**9)
                built(tmp_path / "t.h5", range(9))
        return make_batch(numbers)

    build_shards(plan, teacher, overtaken)
    with open_cache(join(plan)) as file:
        assert_same(file.teacher(NEEDS)(make_batch([7, 1])), teacher(make_batch([7, 1]), NEEDS))


@pytest.mark.parametrize("name", ["node", "node@regular_1", "forces", POSITIONS, "edges/dst", "edge_ptr"])
def test_a_file_that_lacks_an_array_is_refused(tmp_path: Path, name: str) -> None:
    path = built(tmp_path / "t.h5", range(6))
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(DataError, match=rf"its header cannot be read \(.*{name}"):
        open_cache(path)


@pytest.mark.parametrize("step", STEPS)
def test_small_steps_have_the_precision_of_the_teacher(step: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Teacher(PaiNN(PaiNNOptions(width=8, layers=2, radial=6, cutoff=CUTOFF)).double())
    # far from the origin float32 has fewer digits left for a step
    batch = make_batch([1, 2, 4, 5, 6])
    batch = replace(batch, positions=batch.positions + 10.0)
    batch = replace(batch, hessian_rows=sample_rows(batch, 3, seed=0, step=0))
    assert batch.positions.dtype == torch.float32
    exact, near = (teacher.hessian_rows(batch, method).double() for method in ("exact", step))
    assert float((near - exact).norm() / exact.norm()) < STEPS[step]


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CachedTeacher]:
    live = LiveTeacher(Chatty(), NEEDS)  # type: ignore[arg-type]
    with open_cache(built(tmp_path / "t.h5", range(6))) as file:
        yield file.teacher(NEEDS, live=live, store=file.load() if request.param == "memory" else None)


def taken(store: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is read from a store from now on."""
    names: list[str] = []
    real: Callable[..., torch.Tensor] = store.take

    def take(name: str, rows: Rows) -> torch.Tensor:
        names.append(name)
        return real(name, rows)

    monkeypatch.setattr(store, "take", take)
    return names


def test_a_narrowed_cache_reads_and_asks_for_nothing_else(cache: CachedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.narrowed(NEEDS) is cache
    needs = frozenset({"forces", "node@regular_1"})
    less, names, batch = cache.narrowed(needs), taken(cache.store, monkeypatch), make_batch([4, 1])
    found, wanted = less(batch), Chatty()(batch, NEEDS)
    assert set(names) == {POSITIONS, *needs}
    assert found.energy is None
    assert found.node is None
    for need in needs:
        assert torch.equal(found.get(need), wanted.get(need))
    # structure 8 is not kept
    asked: list[frozenset[str]] = []

    def ask(self: Chatty, batch: Batch, needs: frozenset[str]) -> TeacherOutput:
        asked.append(needs)
        return self(batch, needs)

    monkeypatch.setattr(Chatty, "ask", ask)
    more = less(make_batch([4, 8]))
    assert asked == [needs]
    assert more.energy is None
    # what was handed out before is as wide as it was
    assert cache.needs == NEEDS
    assert cache(batch).energy is not None


def test_edges_come_with_what_is_narrowed_to_them(cache: CachedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    names = taken(cache.store, monkeypatch)
    batch = make_batch([4, 1])
    found = cache.narrowed(frozenset({"edge"}))(batch)
    assert set(names) == {POSITIONS, "edge", EDGE_SRC, EDGE_DST, EDGE_SHIFT, EDGE_DIRECTION}
    wanted = cache(batch)
    assert torch.equal(found.edge, wanted.edge)
    assert torch.equal(found.graph.edge_src, wanted.graph.edge_src)
