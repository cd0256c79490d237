"""The order of batches: seeded, capped, mixed as asked, and resumed exactly."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fastkd.data import BatchSampler, Caps
from fastkd.errors import DataError


def size(index: int) -> tuple[int, int]:
    return 5 + index % 4, 20 + index % 7


def sampler(seed: int = 1, **options: object) -> BatchSampler:
    values: dict[str, object] = {"caps": Caps(4), "labelled_fraction": 0.0, "size": size}
    return BatchSampler(range(10), range(10, 40), seed=seed, **(values | options))


def take(source: BatchSampler, count: int) -> list[list[int]]:
    return [next(source) for _ in range(count)]


def test_the_seed_decides() -> None:
    assert take(sampler(1), 30) == take(sampler(1), 30)
    assert take(sampler(1), 30) != take(sampler(2), 30)


def test_every_epoch_has_each_structure_once_in_another_order() -> None:
    drawn = [index for batch in take(sampler(), 30) for index in batch]
    first, second, third = drawn[:40], drawn[40:80], drawn[80:120]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(40))
    assert first != second != third


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labelled_fraction": 0.25},
        {"labelled_fraction": 0.3, "caps": Caps(7, atoms=25)},
        {"caps": Caps(100, edges=60)},
        {"labelled_fraction": 0.5, "caps": Caps(1)},
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 3, 17, 50])
def test_resume_is_exact(options: dict[str, object], steps: int) -> None:
    whole = take(sampler(**options), steps + 40)
    first = sampler(**options)
    take(first, steps)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = sampler(**options)
    take(resumed, 5)
    resumed.load_state_dict(state)
    assert take(resumed, 40) == whole[steps:]


@pytest.mark.parametrize(("caps", "limit"), [(Caps(100, atoms=23), 23), (Caps(100, edges=70), 70), (Caps(3, atoms=23, edges=70), None)])
def test_caps_hold_and_are_used(caps: Caps, limit: int | None) -> None:
    batches = take(sampler(caps=caps), 100)
    for batch in batches:
        atoms, edges = (sum(values) for values in zip(*(size(i) for i in batch), strict=True))
        assert len(batch) <= caps.structures
        assert not caps.atoms or atoms <= caps.atoms
        assert not caps.edges or edges <= caps.edges
    if limit is not None:
        assert sum(map(len, batches)) / len(batches) > 2.5, "no batch ends before it has to"


@pytest.mark.parametrize(
    ("fraction", "caps"),
    [(0.25, Caps(8)), (0.25, Caps(8, atoms=14)), (0.5, Caps(1)), (0.25, Caps(4, edges=50)), (0.75, Caps(100, atoms=30))],
)
def test_the_share_of_labelled_structures_holds_even_when_caps_end_batches(fraction: float, caps: Caps) -> None:
    drawn = [index for batch in take(sampler(labelled_fraction=fraction, caps=caps), 400) for index in batch]
    assert sum(index < 10 for index in drawn) / len(drawn) == pytest.approx(fraction, abs=0.01)
    counts = Counter(drawn)
    # each pool is gone through epoch by epoch
    for pool in (range(10), range(10, 40)):
        assert max(counts[i] for i in pool) - min(counts[i] for i in pool) <= 1


def test_full_batches_have_exactly_their_share() -> None:
    for batch in take(sampler(labelled_fraction=0.25, caps=Caps(8)), 50):
        assert sum(index < 10 for index in batch) == 2
    for fraction in (0.01, 0.99):
        for batch in take(sampler(labelled_fraction=fraction, caps=Caps(4)), 20):
            assert 1 <= sum(index < 10 for index in batch) <= 3


def test_a_structure_above_the_cap_is_named() -> None:
    with pytest.raises(DataError, match=r"structure \d+ alone has 8 atoms, but data.batch_atoms is 7\. Raise the cap"):
        take(sampler(caps=Caps(4, atoms=7)), 40)
    with pytest.raises(DataError, match=r"alone has 2\d edges, but data.batch_edges is 21"):
        take(sampler(caps=Caps(4, edges=21)), 40)


def test_nothing_to_draw_from() -> None:
    with pytest.raises(DataError, match="no structures to draw batches from"):
        BatchSampler([], caps=Caps(4), seed=0)


def test_a_state_of_another_kind_of_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 pools, its saved state has 2"):
        sampler().load_state_dict(sampler(labelled_fraction=0.5).state_dict())
