"""How structures are divided into train, val and test.

Frames that follow each other in a trajectory look alike: a random split of them puts near copies of training frames into the test set. Split
such data by blocks of time with guards between, or by whole systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fastkd.errors import ConfigError, DataError

NAMES = ("train", "val", "test")
_LETTERS = {"T": "train", "V": "val", "E": "test"}


@dataclass(frozen=True)
class SplitPlan:
    """One way to split: by fractions, by blocks of time, or by lists in the source; none of them keeps what the source says."""

    fractions: tuple[float, ...] = ()  #: of train, val, test; the rest belongs to no split
    by: str = "structure"  #: what is drawn at random: structure or system
    seed: int = 0
    blocks: str = ""  #: such as TTTVTTETTE: equal blocks of time of each system; T train, V val, E test
    guard: int = 0  #: structures left out at each end of a val or test block
    members: dict[str, str] = field(default_factory=dict)  #: name of a split → array of structure numbers in the npz source

    @property
    def given(self) -> bool:
        """Whether splits come from the source."""
        return not self.fractions and not self.blocks

    def assign(self, systems: Sequence[str]) -> list[str]:
        """Name of the split of each structure, "" for none.

        Args:
            systems: of each structure, in the order of the file.

        Raises:
            DataError: if a split would be empty.
        """
        split = self._by_blocks(systems) if self.blocks else self._at_random(systems)
        asked = {_LETTERS[letter] for letter in self.blocks} | {name for name, f in zip(NAMES, self.fractions, strict=False) if f > 0}
        empty = [name for name in NAMES if name in asked and name not in split]
        if empty:
            raise DataError(
                f"{len(systems)} structures are too few: the {empty[0]} split would be empty. Change the split, or give more structures."
            )
        return split

    def _at_random(self, systems: Sequence[str]) -> list[str]:
        generator = np.random.default_rng(self.seed)
        # whole systems, or each structure for itself, in random order
        labels = np.asarray(systems) if self.by == "system" else np.arange(len(systems))
        _, group = np.unique(labels, return_inverse=True)
        sizes = np.bincount(group)
        order = generator.permutation(len(sizes))
        last = np.cumsum(sizes[order])
        bounds = np.round(np.cumsum(self.fractions) * len(systems))
        # a group belongs to the split in which its middle lies
        middle = last - 0.5 * sizes[order]
        number = np.searchsorted(bounds, middle, side="right")
        names = np.array([*NAMES[: len(self.fractions)], ""])
        of_group = np.empty(len(sizes), dtype=int)
        of_group[order] = number
        return [str(name) for name in names[of_group[group]]]

    def _by_blocks(self, systems: Sequence[str]) -> list[str]:
        split = np.full(len(systems), "", dtype=object)
        for system in dict.fromkeys(systems):
            frames = np.flatnonzero(np.asarray(systems) == system)
            bounds = np.linspace(0, len(frames), len(self.blocks) + 1).astype(int)
            for letter, first, last in zip(self.blocks, bounds[:-1], bounds[1:], strict=True):
                guard = 0 if letter == "T" else self.guard
                split[frames[first + guard : max(last - guard, first)]] = _LETTERS[letter]
        return [str(name) for name in split]


def parse_fractions(text: str) -> tuple[float, ...]:
    """``0.8,0.1,0.1``: fractions of train, val and test.

    Raises:
        ConfigError: if they are not one to three numbers from 0 to 1 that sum to at most 1.
    """
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        fractions = ()
    if not 1 <= len(fractions) <= len(NAMES) or min(fractions) < 0 or max(fractions) <= 0 or not sum(fractions) <= 1 + 1e-9:
        raise ConfigError(f"--split {text!r}: must be fractions of train, val and test that sum to at most 1, such as 0.8,0.1,0.1")
    return fractions


def parse_blocks(text: str) -> str:
    """``TTTVTTETTE``: one letter for each block of time.

    Raises:
        ConfigError: if there are other letters, or no block to train on.
    """
    blocks = text.upper()
    if "T" not in blocks or set(blocks) - set(_LETTERS):
        raise ConfigError(
            f"--blocks {text!r}: must be letters T (train), V (val) and E (test), one for each block of time, such as TTTVTTETTE"
        )
    return blocks


def parse_members(items: Sequence[str]) -> dict[str, str]:
    """``train=train_01``: arrays of structure numbers in the source, by split.

    Raises:
        ConfigError: if an item is not of the form NAME=ARRAY.
    """
    members = {}
    for item in items:
        name, equals, array = item.partition("=")
        if not (name and equals and array):
            raise ConfigError(f"--split-index {item!r}: must be NAME=ARRAY, such as train=train_01")
        members[name] = array
    return members
