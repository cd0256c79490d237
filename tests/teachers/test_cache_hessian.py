"""Rows of Hessians from caches in memory and on disk are the live teacher's, to the bit: atoms alone, moved structures, batches without rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from fastkd.data.batch import Batch
from fastkd.data.rearrange import select_structures
from fastkd.models import PaiNN, PaiNNOptions
from fastkd.teachers import CachedTeacher, LiveTeacher, Teacher
from fastkd.teachers.cache_file import CacheFile, open_cache
from fastkd.teachers.hessian import all_rows, sample_rows

from .cache_common import CUTOFF, assert_same, built, make_batch

EXACT, NEAR = "hessian_rows@exact", "hessian_rows@0.01"
NEEDS = frozenset({"energy", "forces", "node", "edge", EXACT, NEAR})
#: Batches of the build, three structures each: of 1 to 6 atoms, some without neighbours.
NUMBERS = range(12)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Teacher(PaiNN(PaiNNOptions(width=6, layers=2, radial=4, cutoff=CUTOFF)).float())


@pytest.fixture(scope="module")
def file(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheFile]:
    with open_cache(built(tmp_path_factory.mktemp("cache") / "t.h5", NUMBERS, teacher, needs=NEEDS)) as opened:
        yield opened


@pytest.fixture(scope="module", params=["memory", "disk", "preloaded"])
def cache(request: pytest.FixtureRequest, teacher: Teacher, file: CacheFile) -> CachedTeacher:
    live = LiveTeacher(teacher, NEEDS)
    if request.param == "memory":
        batches = [make_batch(NUMBERS[first : first + 3]) for first in range(0, len(NUMBERS), 3)]
        found = CachedTeacher.build(teacher, NEEDS, batches, dataset_hash="d" * 64)
        found.live = live
        return found
    return file.teacher(NEEDS, live=live, store=file.load() if request.param == "preloaded" else None)


def asked(numbers: Sequence[int], count: int, step: int = 0) -> Batch:
    batch = make_batch(numbers)
    return replace(batch, hessian_rows=sample_rows(batch, count, seed=3, step=step))


def test_there_are_atoms_alone_and_structures_without_edges() -> None:
    batch = make_batch(NUMBERS)
    assert (batch.atom_ptr.diff() == 1).any()
    assert (batch.graph(CUTOFF).csr.edge_ptr[batch.atom_ptr].diff() == 0).any()


@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("first", range(0, 12, 3))
def test_drawn_rows_are_the_live_ones_to_the_bit(cache: CachedTeacher, teacher: Teacher, first: int, count: int) -> None:
    batch = asked(NUMBERS[first : first + 3], count, step=count)
    found, live = cache(batch), teacher.ask(batch, NEEDS)
    assert found.get(EXACT).shape == (count, batch.num_atoms, 3)
    assert_same(found, live, NEEDS)
    # 20 rows are more than any structure has
    assert count < 20 or bool((batch.hessian_rows < 0).any())


@pytest.mark.parametrize("numbers", [[11], [3, 0], [7, 2, 9, 2, 0, 5]])
def test_any_batch_gets_each_structures_own_rows(cache: CachedTeacher, teacher: Teacher, numbers: list[int]) -> None:
    batch = asked(numbers, 5)
    found = cache(batch)
    for place, number in enumerate(numbers):
        home = list(NUMBERS[number - number % 3 : number - number % 3 + 3])
        built_in = make_batch(home)
        built_in = replace(built_in, hessian_rows=all_rows(built_in))
        said, spot = teacher.ask(built_in, NEEDS), home.index(number)
        first, last = batch.atom_ptr[place : place + 2].tolist()
        begin, end = built_in.atom_ptr[spot : spot + 2].tolist()
        for need in (EXACT, NEAR):
            for number_of_row, row in enumerate(batch.hessian_rows[:, place].tolist()):
                wanted = said.get(need)[row - 3 * first, begin:end] if row >= 0 else torch.zeros(last - first, 3)
                assert torch.equal(found.get(need)[number_of_row, first:last], wanted)


def test_batches_without_rows_get_everything_else(cache: CachedTeacher, teacher: Teacher) -> None:
    rest = NEEDS - {EXACT, NEAR}
    batch = make_batch([3, 4, 5])
    found = cache(batch)
    assert found.get(EXACT) is None
    assert_same(found, teacher.ask(batch, rest), rest)
    moved = replace(make_batch([0, 40, 1]), hessian_rows=None)
    assert cache(moved).get(NEAR) is None
    none = replace(batch, hessian_rows=torch.empty(0, 3, dtype=torch.int64))
    assert cache(none).get(EXACT).shape == (0, batch.num_atoms, 3)


@pytest.mark.parametrize("numbers", [[3, 40, 0, 41, 7], [40, 41], [5, 60, 4]])
def test_rows_of_new_structures_are_asked_live(cache: CachedTeacher, teacher: Teacher, numbers: list[int]) -> None:
    batch = asked(numbers, 4)
    new = torch.tensor([number >= 12 for number in numbers])
    found = cache(batch)
    parts = [teacher.ask(select_structures(batch, new), NEEDS)]
    atoms = new[batch.graph_index]
    assert torch.equal(found.get(EXACT)[:, atoms], parts[0].get(EXACT))
    assert torch.equal(found.get(NEAR)[:, atoms], parts[0].get(NEAR))
    if not bool(new.all()):
        known = cache(select_structures(batch, ~new))
        for need in (EXACT, NEAR):
            assert torch.equal(found.get(need)[:, ~atoms], known.get(need))


def test_a_moved_structure_among_others(cache: CachedTeacher, teacher: Teacher) -> None:
    batch = asked([6, 7, 8], 3)
    moved = replace(batch, positions=batch.positions + 0.05 * (batch.graph_index == 1)[:, None] * torch.tensor([1.0, -1.0, 0.5]))
    moved = replace(moved, positions=moved.positions * torch.where(batch.graph_index == 1, 1.01, 1.0)[:, None])
    found = cache(moved)
    second = batch.graph_index == 1
    for need in (EXACT, NEAR):
        assert torch.equal(found.get(need)[:, ~second], cache(batch).get(need)[:, ~second])
        live = teacher.ask(select_structures(moved, torch.tensor([False, True, False])), NEEDS).get(need)
        assert torch.equal(found.get(need)[:, second], live)


def test_a_part_of_a_batch_keeps_its_own_rows() -> None:
    batch = asked([5, 3, 8, 0, 1], 4)
    chosen = torch.tensor([True, False, True, False, True])
    part = select_structures(batch, chosen)
    for new, old in enumerate([0, 2, 4]):
        rows, wanted = part.hessian_rows[:, new], batch.hessian_rows[:, old]
        assert torch.equal(rows >= 0, wanted >= 0)
        assert torch.equal((rows - 3 * part.atom_ptr[new])[rows >= 0], (wanted - 3 * batch.atom_ptr[old])[wanted >= 0])
