"""Tags, fixed atoms and bonds from extxyz, ASE databases and npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from fastkd.cli import main
from fastkd.data import DataFile, Structure
from fastkd.data.convert import SourceOptions, convert
from fastkd.errors import DataError

from .common import molecule


def slab(number: int, **changes: Any) -> Atoms:
    """Two fixed atoms below two free ones, and an adsorbate."""
    generator = np.random.default_rng(number)
    atoms = Atoms("Cu4H", generator.normal(size=(5, 3)) + 3 * np.arange(5)[:, None], cell=9 * np.eye(3), pbc=[True, True, False])
    atoms.set_tags(changes.get("tags", [0, 0, 1, 1, 2]))
    atoms.set_constraint(changes.get("constraint", FixAtoms([0, 1])))
    atoms.calc = SinglePointCalculator(atoms, energy=float(number), forces=generator.normal(size=(5, 3)) + 1)
    return atoms


def written(path: Path, frames: list[Atoms]) -> Path:
    if path.suffix == ".db":
        with ase.db.connect(path) as database:
            for atoms in frames:
                database.write(atoms)
    else:
        ase.io.write(path, frames)
    return path


def converted(path: Path, **options: Any) -> list[Structure]:
    out = path.with_suffix(".h5")
    convert(path, out, options=SourceOptions(**options), overwrite=True)
    with DataFile(out) as data:
        data.check_values()
        data.check_hash()
        return data.read(range(len(data)))


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.traj", "a.db"])
def test_slabs_with_fixed_atoms(tmp_path: Path, name: str) -> None:
    frames = [slab(0), slab(1, constraint=FixAtoms([3])), slab(2, constraint=[])]
    found = converted(written(tmp_path / name, frames))
    assert [s.tags.tolist() for s in found] == [[0, 0, 1, 1, 2]] * 3
    assert [np.flatnonzero(s.fixed).tolist() for s in found] == [[0, 1], [3], []]
    for structure, atoms in zip(found, frames, strict=True):
        # a constraint takes no force away
        np.testing.assert_allclose(structure.forces, atoms.calc.results["forces"], atol=1e-6)
        assert structure.bonds is None
    for structure in converted(written(tmp_path / name, frames) if name != "a.db" else tmp_path / name, tags=False)[:3]:
        assert structure.tags is None
        assert structure.fixed is None


def test_the_layout_of_oc20s_own_files(tmp_path: Path) -> None:
    """Properties=species:pos:move_mask:tags:forces, move_mask being true where atoms may move."""
    text = (
        '3\nLattice="9 0 0 0 9 0 0 0 20" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-1.5 pbc="T T T"\n'
        "Cu 0 0 0 F 0 0.1 0 0\nCu 0 0 3 T 1 0 0.2 0\nO 0 0 5 T 2 0 0 0.3\n"
    )
    (tmp_path / "0.extxyz").write_text(text)
    (found,) = converted(tmp_path / "0.extxyz")
    assert found.tags.tolist() == [0, 1, 2]
    assert found.fixed.tolist() == [True, False, False]
    np.testing.assert_allclose(np.diag(found.forces), [0.1, 0.2, 0.3], rtol=1e-6)


@pytest.mark.parametrize(
    ("constraint", "fixed"),
    [
        (FixAtoms(mask=[True, False, True, False, False]), [0, 2]),
        ([FixAtoms([0]), FixAtoms([4])], [0, 4]),
        (FixCartesian([1, 2]), [1, 2]),
        (FixCartesian([1], mask=(True, True, False)), None),
        (FixBondLength(0, 1), None),
        ([FixBondLength(0, 1), FixAtoms([-1])], [4]),
    ],
)
def test_only_atoms_held_in_all_directions_are_fixed(tmp_path: Path, constraint: Any, fixed: list[int] | None) -> None:
    (found,) = converted(written(tmp_path / "a.traj", [slab(0, constraint=constraint)]))
    assert fixed == (None if found.fixed is None else np.flatnonzero(found.fixed).tolist())


def test_a_column_of_fixed_atoms_joins_constraints(tmp_path: Path) -> None:
    atoms = slab(0)
    atoms.arrays["fixed"] = np.array([0, 0, 0, 1, 0])
    (found,) = converted(written(tmp_path / "a.extxyz", [atoms]))
    assert np.flatnonzero(found.fixed).tolist() == [0, 1, 3]
    atoms.set_constraint()
    (found,) = converted(written(tmp_path / "b.extxyz", [atoms]))
    assert np.flatnonzero(found.fixed).tolist() == [3]
    assert atoms.arrays["fixed"].tolist() == [0, 0, 0, 1, 0]


def test_tags_that_are_not_oc20s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "layers.traj", [slab(0), slab(1, tags=[4, 3, 2, 1, 0])])
    assert main(["convert", str(source), str(tmp_path / "out.h5")]) == 2
    error = capsys.readouterr().err
    assert "layers.traj, structure 1: the tag of atom 0 is 4, OC20's are 0" in error
    assert "--no-tags" in error
    assert not (tmp_path / "out.h5").exists()
    assert main(["convert", str(source), str(tmp_path / "out.h5"), "--no-tags"]) == 0
    with DataFile(tmp_path / "out.h5") as data:
        assert not {"tags", "fixed"} & set(data.fields)
        assert data.provenance["options"] == {"tags": False}


def test_tags_that_are_all_zero_are_none(tmp_path: Path) -> None:
    found = converted(written(tmp_path / "a.extxyz", [slab(0, tags=[0] * 5)]))
    assert found[0].tags is None
    with DataFile(tmp_path / "a.h5") as data:
        assert "tags" not in data.fields


def packed(structures: list[Structure]) -> dict[str, Any]:
    names = ("atomic_numbers", "positions", "forces")
    return {name: np.concatenate([getattr(s, name) for s in structures]) for name in names} | {
        "energy": np.array([s.energy for s in structures]),
        "natoms": np.array([s.num_atoms for s in structures]),
    }


def test_npz_end_to_end(tmp_path: Path) -> None:
    structures = [molecule(0, atoms=3), molecule(1, atoms=1), molecule(2, atoms=4)]
    tags, fixed = np.array([0, 1, 2, 1, 2, 2, 0, 1]), np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)
    bonds, counts = np.array([[0, 1], [2, 1], [3, 0]]), np.array([2, 0, 1])
    np.savez(tmp_path / "a.npz", **packed(structures), tags=tags, fixed=fixed, bonds=bonds, nbonds=counts)
    found = converted(tmp_path / "a.npz")
    assert [s.tags.tolist() for s in found] == [[0, 1, 2], [1], [2, 2, 0, 1]]
    assert [s.fixed.tolist() for s in found] == [[True, False, False], [True], [False, False, True, False]]
    assert [s.bonds.tolist() for s in found] == [[[0, 1], [2, 1]], [], [[3, 0]]]
    (one,) = converted(tmp_path / "a.npz", select=slice(2, 3))
    assert (one.tags.tolist(), one.bonds.tolist()) == ([2, 2, 0, 1], [[3, 0]])
    assert {(s.tags, s.fixed, s.bonds) for s in converted(tmp_path / "a.npz", tags=False)} == {(None, None, None)}


def test_npz_frames_share_a_row(tmp_path: Path) -> None:
    frames = [molecule(n, atoms=3) for n in range(4)]
    arrays = {"z": frames[0].atomic_numbers, "R": np.stack([s.positions for s in frames]), "F": np.stack([s.forces for s in frames])}
    arrays |= {"E": np.array([s.energy for s in frames]), "tags": np.array([0, 1, 2]), "bonds": np.array([[0, 1]])}
    np.savez(tmp_path / "a.npz", **arrays, fixed=np.arange(12).reshape(4, 3) % 2)
    found = converted(tmp_path / "a.npz")
    assert [s.tags.tolist() for s in found] == [[0, 1, 2]] * 4
    assert [s.fixed.tolist() for s in found] == [[False, True, False], [True, False, True]] * 2
    assert [s.bonds.tolist() for s in found] == [[[0, 1]]] * 4


def test_npz_padding_goes(tmp_path: Path) -> None:
    structures = [molecule(0, atoms=3), molecule(1, atoms=2)]
    padded = {"z": np.zeros((2, 3), int), "R": np.zeros((2, 3, 3)), "F": np.zeros((2, 3, 3)), "E": np.array([s.energy for s in structures])}
    for n, s in enumerate(structures):
        for key, value in (("z", s.atomic_numbers), ("R", s.positions), ("F", s.forces)):
            padded[key][n, : s.num_atoms] = value
    np.savez(tmp_path / "a.npz", **padded, tags=np.array([[0, 1, 2], [2, 1, -1]]), fixed=np.array([[1, 0, 0], [0, 1, 7]]))
    found = converted(tmp_path / "a.npz")
    assert [s.tags.tolist() for s in found] == [[0, 1, 2], [2, 1]]
    assert [s.fixed.tolist() for s in found] == [[True, False, False], [False, True]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": np.ones(4, int)}, r"a\.npz: tags has shape \(4,\), must be \[5\]"),
        ({"fixed": np.ones((5, 3), bool)}, r"a\.npz: fixed has shape \(5, 3\), must be \[5\]"),
        ({"tags": np.array([1, 1, 1, 1, 9])}, r"a\.npz, structure 1: the tag of atom 1 is 9"),
        ({"bonds": np.zeros((2, 3), int)}, r"a\.npz: bonds have shape \(2, 3\), must be \[n_bonds, 2\]"),
        (
            {"bonds": np.array([[0, 1], [1, 2]])},
            r"a\.npz, structure 1: the bond of atoms 1 and 2 leads out of the structure, whose atoms are 0 to 1",
        ),
        (
            {"bonds": np.array([[0, 1]]), "nbonds": np.array([1])},
            "nbonds has 1 numbers that sum to 1, but there are 2 structures and 1 bonds",
        ),
        (
            {"bonds": np.array([[0, 1]]), "nbonds": np.array([1, 1])},
            "nbonds has 2 numbers that sum to 2, but there are 2 structures and 1 bonds",
        ),
        ({"bonds": np.array([[0, 1]]), "nbonds": np.array([2, -1])}, "nbonds has 2 numbers that sum to 1"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **packed([molecule(0, atoms=3), molecule(1, atoms=2)]), **changes)
    with pytest.raises(DataError, match=message):
        converted(tmp_path / "a.npz")
    assert not (tmp_path / "a.h5").exists()
