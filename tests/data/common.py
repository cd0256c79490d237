"""Small structures with every property, and files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastkd.data import DataWriter, Structure

SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2


def molecule(number: int, atoms: int = 5, **changes: Any) -> Structure:
    """Carbons and hydrogens on a line, rattled; different sizes and labels by number."""
    generator = np.random.default_rng(number)
    positions = np.arange(atoms)[:, None] * [1.2, 0.1, 0.0] + generator.normal(scale=0.05, size=(atoms, 3))
    values: dict[str, Any] = {
        "atomic_numbers": np.where(np.arange(atoms) % 2 == 0, 6, 1),
        "positions": positions.astype(np.float32),
        "energy": float(-10.0 * atoms + generator.normal()),
        "forces": generator.normal(size=(atoms, 3)).astype(np.float32),
        "split": SPLITS[number % 10],
        "system": f"chain{atoms}",
        "time_fs": 0.5 * number,
    }
    return Structure(**values | changes)


def crystal(number: int, atoms: int = 4) -> Structure:
    generator = np.random.default_rng(100 + number)
    cell = 4.0 * np.eye(3) + generator.normal(scale=0.3, size=(3, 3))
    fractional = (np.arange(atoms)[:, None] * [0.25, 0.5, 0.75] + 0.02 * generator.normal(size=(atoms, 3))) % 1.0
    stress = generator.normal(size=(3, 3))
    return molecule(
        number,
        atoms,
        positions=(fractional @ cell).astype(np.float32),
        cell=cell,
        pbc=np.array([True, True, number % 2 == 0]),
        stress=stress + stress.T,
        system="crystal",
    )


def write(path: Path, structures: list[Structure], **options: Any) -> Path:
    with DataWriter(path, level_of_theory="made up", **options) as writer:
        writer.extend(structures)
    return path


def assert_same(found: Structure, expected: Structure) -> None:
    for name in ("atomic_numbers", "positions", "forces", "cell", "pbc", "stress"):
        value, wanted = getattr(found, name), getattr(expected, name)
        if wanted is None:
            assert value is None or not value.any(), name
        else:
            np.testing.assert_array_equal(value, wanted, err_msg=name)
    assert (found.energy, found.split, found.system, found.time_fs) == (expected.energy, expected.split, expected.system, expected.time_fs)
