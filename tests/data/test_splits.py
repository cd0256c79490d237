"""Splits of what is converted, and the arguments that choose structures."""

from __future__ import annotations

from typing import Any

import pytest

from fastkd.data.convert import SplitPlan, parse_slice
from fastkd.data.convert.splits import parse_blocks, parse_fractions, parse_members
from fastkd.errors import ConfigError, DataError


def test_random_splits_have_the_sizes_asked_for() -> None:
    plan = SplitPlan(fractions=(0.7, 0.2, 0.1), seed=3)
    split = plan.assign([""] * 100)
    assert [split.count(name) for name in ("train", "val", "test")] == [70, 20, 10]
    assert split == plan.assign([""] * 100)
    assert split != SplitPlan(fractions=(0.7, 0.2, 0.1), seed=4).assign([""] * 100)
    rest = SplitPlan(fractions=(0.5, 0.2)).assign([""] * 100)
    assert [rest.count(name) for name in ("train", "val", "test", "")] == [50, 20, 0, 30]


def test_splits_by_system_keep_systems_together() -> None:
    systems = [f"s{n % 40}" for n in range(400)]
    split = SplitPlan(fractions=(0.8, 0.1, 0.1), by="system").assign(systems)
    assert len({(s, system) for s, system in zip(split, systems, strict=True)}) == 40
    assert [split.count(name) for name in ("train", "val", "test")] == [320, 40, 40]


def test_splits_by_blocks_of_time_have_guards() -> None:
    systems = ["a"] * 100 + ["b"] * 50
    split = SplitPlan(blocks="TTVTE", guard=3).assign(systems)
    a, b = split[:100], split[100:]
    assert a == ["train"] * 40 + [""] * 3 + ["val"] * 14 + [""] * 3 + ["train"] * 20 + [""] * 3 + ["test"] * 14 + [""] * 3
    assert b.count("val") == b.count("test") == 4
    with pytest.raises(DataError, match="the val split would be empty"):
        SplitPlan(blocks="TTVTE", guard=10).assign(systems[:100])
    with pytest.raises(DataError, match="3 structures are too few: the val split would be empty"):
        SplitPlan(fractions=(0.9, 0.05, 0.05)).assign([""] * 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (parse_slice, "5"),
        (parse_slice, "a:b"),
        (parse_slice, "-3:"),
        (parse_slice, "::0"),
        (parse_fractions, "0.8,0.3"),
        (parse_fractions, "0.8;0.1"),
        (parse_fractions, "nan,0.1"),
        (parse_fractions, "0,0"),
        (parse_fractions, ".2,.2,.2,.2"),
        (parse_blocks, "TTX"),
        (parse_blocks, "VE"),
        (lambda text: parse_members([text]), "train"),
    ],
)
def test_arguments_that_cannot_be_read(call: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--.*such as"):
        call(text)
