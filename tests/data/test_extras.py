"""Tags, fixed atoms and bonds: from sources through files to batches, and what is refused on the way."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fastkd.cli import main
from fastkd.data import DataFile, DataWriter, Pieces, Structure, StructureDataset, collate, force_rms, make_card, open_data_file
from fastkd.data import writer as writer_module
from fastkd.errors import DataError

from .common import assert_same, crystal, molecule, write

OLD = Path(__file__).parents[1] / "fixtures" / "data_v1.h5"
#: What the writer stored before files could have tags, fixed atoms or bonds.
OLD_HASH = "e89935fb5b441103b38e82d39205235fcf52d2b90121a6c4e19236588d65e020"
OLD_STRUCTURES = [molecule(0), crystal(1), molecule(2, atoms=1), crystal(3), molecule(4, atoms=9, energy=np.nan, forces=None)]


def random_bonds(generator: np.random.Generator, atoms: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Some of all pairs, in random order, either end first."""
    pairs = np.argwhere(np.triu(generator.random((atoms, atoms)) < 0.5, 1))
    pairs = generator.permutation(pairs)
    return np.where(generator.random((len(pairs), 1)) < 0.5, pairs, pairs[:, ::-1])


def random_structure(number: int) -> Structure:
    generator = np.random.default_rng(number)
    atoms = int(generator.integers(1, 12)) if number else 1
    return molecule(
        number,
        atoms,
        tags=generator.integers(0, 3, atoms),
        fixed=generator.random(atoms) < 0.4,
        bonds=random_bonds(generator, atoms) if number % 4 else np.zeros((0, 2), dtype=int),
    )


def assert_same_extras(found: Structure, expected: Structure) -> None:
    assert_same(found, expected)
    for name in ("tags", "fixed", "bonds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("buffered", [1, 25, 1 << 16])
def test_round_trip_at_any_size_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: int) -> None:
    monkeypatch.setattr(writer_module, "_BUFFERED_ATOMS", buffered)
    structures = [random_structure(n) for n in range(40)]
    assert {s.num_atoms for s in structures} >= {1, 5, 11}
    assert any(len(s.bonds) == 0 for s in structures)
    path = write(tmp_path / "x.h5", structures)
    with open_data_file(str(path)) as data:
        assert (data.file["tags"].dtype, data.file["fixed"].dtype, data.file["bonds"].dtype) == (np.int8, np.bool_, np.int32)
        data.check_hash()
        order = np.random.default_rng(1).permutation(40).tolist()
        for number, found in zip(order, data.read(order), strict=True):
            assert_same_extras(found, structures[number])
        again = write(tmp_path / "again.h5", data.read(range(40)))
    with DataFile(path) as first, DataFile(again) as second:
        assert first.content_hash == second.content_hash


def test_bonds_that_no_structure_has_are_not_unknown_bonds(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [molecule(n, atoms=1, bonds=np.zeros((0, 2), int)) for n in range(3)])
    with open_data_file(str(path)) as data:
        assert data.bond_ptr.tolist() == [0, 0, 0, 0]
        assert [s.bonds.shape for s in data.read(range(3))] == [(0, 2)] * 3
        batch = StructureDataset(data, (5.0,)).batch([0, 2])
    assert batch.bonds.shape == (2, 0)


def test_structures_without_tags_count_as_free_slab_and_without_fixed_as_free(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [molecule(0), molecule(1, tags=np.full(5, 2), fixed=np.ones(5, int)), molecule(2, atoms=2)])
    with DataFile(path) as data:
        assert [s.tags.tolist() for s in data.read(range(3))] == [[1] * 5, [2] * 5, [1] * 2]
        assert [s.fixed.tolist() for s in data.read(range(3))] == [[False] * 5, [True] * 5, [False] * 2]
        assert data.bond_ptr is None
        assert data[0].bonds is None


def test_a_file_of_before_reads_as_before_and_is_written_as_before(tmp_path: Path) -> None:
    again = write(tmp_path / "again.h5", OLD_STRUCTURES, licence="CC0-1.0", provenance={"seed": 3})
    for path in (OLD, again):
        with open_data_file(str(path)) as data:
            data.check_hash()
            assert data.content_hash == OLD_HASH
            assert not {"tags", "fixed", "bonds", "bond_ptr"} & set(data.file)
            for number, expected in enumerate(OLD_STRUCTURES):
                found = data[number]
                assert (found.tags, found.fixed, found.bonds) == (None, None, None)
                if number != 4:
                    assert_same(found, expected)
            assert np.isnan(data[4].energy)
            assert data[4].forces is None
            batch = StructureDataset(data, (5.0,)).batch([0, 1, 2, 3])
            assert (batch.tags, batch.fixed, batch.free, batch.bonds) == (None, None, None, None)
    with h5py.File(OLD) as old, h5py.File(again) as new:
        assert set(old) == set(new)
        for name in old:
            np.testing.assert_array_equal(old[name][()], new[name][()])


def test_the_hash_is_what_the_document_says(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [random_structure(n) for n in range(5)])
    digest = hashlib.sha256(b"fastkd v1")
    kinds = {"i": "<i8", "u": "<i8", "f": "<f8", "b": "|u1"}
    names = [
        "atom_ptr",
        "atomic_numbers",
        "positions",
        "forces",
        "energy",
        "split",
        "system",
        "time_fs",
        "tags",
        "fixed",
        "bond_ptr",
        "bonds",
    ]
    with h5py.File(path) as file:
        assert set(names) == set(file)
        for name in names:
            values = file[name][:]
            digest.update(f"{name} {values.shape}".encode())
            text = values.dtype == object
            digest.update(b"".join(item + b"\0" for item in values) if text else values.astype(kinds[values.dtype.kind]).tobytes())
        assert file.attrs["content_hash"] == digest.hexdigest()


@pytest.mark.parametrize("name", ["tags", "fixed", "bonds"])
def test_each_of_them_counts_in_the_hash(tmp_path: Path, name: str) -> None:
    structures = [random_structure(n) for n in range(1, 4)]
    value = getattr(structures[1], name).copy()
    value[0] = (value[0] + 1) % 3 if name == "tags" else ~value[0] if name == "fixed" else value[0][::-1]
    changed = [structures[0], replace(structures[1], **{name: value}), structures[2]]
    with DataFile(write(tmp_path / "a.h5", structures)) as a, DataFile(write(tmp_path / "b.h5", changed)) as b:
        assert a.content_hash != b.content_hash


FAULTS = [
    ({"tags": np.ones(4, int)}, r"tags have shape \(4,\), 5 atoms need \(5,\)"),
    ({"tags": np.array([0, 1, 2, 3, 1])}, r"the tag of atom 3 is 3, OC20's are 0 .* 1 .* 2 .*--no-tags"),
    ({"tags": np.array([0, -1, 2, 1, 1])}, "the tag of atom 1 is -1"),
    ({"tags": np.array([0, 1, 0.5, 1, 1])}, "the tag of atom 2 is 0.5"),
    ({"fixed": np.zeros((5, 3), bool)}, r"fixed has shape \(5, 3\), 5 atoms need \(5,\)"),
    ({"fixed": np.array([0, 1, 2, 0, 0])}, "fixed holds int64, but must be true or false"),
    ({"fixed": np.array(["T"] * 5)}, "fixed holds <U1"),
    ({"bonds": np.zeros((2, 3), int)}, r"bonds are int64 of shape \(2, 3\), must be integers \[n_bonds, 2\]"),
    ({"bonds": np.zeros((0, 2))}, "bonds are float64"),
    ({"bonds": np.array([[0, 1], [1, 5]])}, "the bond of atoms 1 and 5 leads out of the structure, whose atoms are 0 to 4"),
    ({"bonds": np.array([[-1, 1]])}, "the bond of atoms -1 and 1 leads out"),
    ({"bonds": np.array([[0, 1], [2, 2]])}, "the bond of atoms 2 and 2 joins an atom to itself"),
    ({"bonds": np.array([[0, 1], [1, 2], [1, 0]])}, "the bond of atoms 1 and 0 is there twice. List each pair once"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_what_a_writer_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first = molecule(0, bonds=np.array([[0, 1]])) if "bonds" in changes else molecule(0)
    with pytest.raises(DataError, match=rf"bad\.h5: structure 1: {message}"):
        write(tmp_path / "bad.h5", [first, molecule(1, **changes)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("with_bonds", [0, 1])
def test_bonds_of_some_structures_only(tmp_path: Path, with_bonds: int) -> None:
    structures = [replace(molecule(n), bonds=np.array([[0, 1]]) if n == with_bonds else None) for n in range(2)]
    expected = "has bonds, but those before it have none" if with_bonds else "has no bonds, but those before it have some"
    with pytest.raises(DataError, match=rf"structure 1 {expected}.*\[0, 2\] where there are none"):
        write(tmp_path / "bad.h5", structures)
    with pytest.raises(DataError, match=rf"structure {1 - with_bonds} has no list of bonds"):
        collate([Pieces.of(structure, n, (5.0,)) for n, structure in enumerate(structures)])


def set_values(name: str, place: int, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        file[name][place] = value

    return change


def replaced(name: str, values: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_values("tags", 7, 3), r"tags are not 0, 1 or 2 in structure 1 \(atom 7\). Mend the source, or convert it with --no-tags"),
        (replaced("tags", np.zeros(14, np.int8)), r"tags has shape \(14,\), atom_ptr needs \(15,\)"),
        (replaced("tags", np.zeros(15)), "tags holds float64, but must hold integer values"),
        (replaced("fixed", np.zeros(15, np.int8)), "fixed holds int8, but must hold bool values"),
        (replaced("bond_ptr", None), "lacks bond_ptr"),
        (replaced("bond_ptr", np.zeros(4)), "bond_ptr must be a one-dimensional array of integers"),
        (replaced("bond_ptr", np.array([0, 2, 1, 3])), "bond_ptr must begin with 0 and never shrink"),
        (replaced("bond_ptr", np.array([1, 1, 2, 3])), "bond_ptr must begin with 0 and never shrink"),
        (replaced("bond_ptr", np.array([0, 1, 3])), "bond_ptr has 3 entries, 3 structures need 4"),
        (replaced("bond_ptr", np.array([0, 1, 2, 2])), r"bonds has shape \(3, 2\), bond_ptr needs \(2, 2\)"),
        (replaced("bonds", np.zeros((3, 2))), "bonds holds float64, but must hold integer values"),
        (set_values("bonds", 2, [4, 5]), "structure 2: the bond of atoms 4 and 5 leads out of the structure, whose atoms are 0 to 4"),
        (set_values("bonds", 0, [3, 3]), "structure 0: the bond of atoms 3 and 3 joins an atom to itself"),
        (set_values("bonds", 1, [1, 0]), "structure 2: the bond of atoms 0 and 1 is there twice"),
    ],
)
def test_what_a_reader_refuses(tmp_path: Path, change: Any, message: str) -> None:
    bonds = [[[0, 1]], [], [[2, 1], [0, 1]]]
    structures = [
        molecule(n, tags=np.ones(5, int), fixed=np.zeros(5, bool), bonds=np.array(b, int).reshape(-1, 2)) for n, b in enumerate(bonds)
    ]
    path = write(tmp_path / "x.h5", structures)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=rf"x\.h5:? .*{message}|x\.h5: {message}"):
        open_data_file(str(path))


def test_batches_against_a_loop() -> None:
    structures = [random_structure(n) for n in (3, 0, 7, 4, 2)]
    batch = collate([Pieces.of(structure, n, (5.0,)) for n, structure in enumerate(structures)])
    tags, fixed, bonds = [], [], set()
    first = 0
    for structure in structures:
        tags += structure.tags.tolist()
        fixed += structure.fixed.tolist()
        for a, b in structure.bonds.tolist():
            bonds |= {(first + a, first + b), (first + b, first + a)}
        first += structure.num_atoms
    assert batch.tags.dtype == batch.bonds.dtype == torch.int64
    assert batch.tags.tolist() == tags
    assert batch.fixed.tolist() == fixed
    assert batch.free.tolist() == [not value for value in fixed]
    assert batch.bonds.shape == (2, len(bonds))
    assert set(map(tuple, batch.bonds.T.tolist())) == bonds
    moved = batch.to("meta", torch.float64)
    assert {getattr(moved, name).device.type for name in ("tags", "fixed", "bonds")} == {"meta"}
    assert (moved.tags.dtype, moved.fixed.dtype, moved.bonds.dtype) == (torch.int64, torch.bool, torch.int64)


def test_every_field_of_a_structure_is_in_the_file_or_the_hash_forgets_it() -> None:
    from fastkd.data.format import FIELDS

    assert {item.name for item in fields(Structure)} == set(FIELDS)


def test_a_batch_of_some_with_and_some_without() -> None:
    structures = [molecule(0), molecule(1, atoms=2, tags=np.array([0, 2]), fixed=np.array([True, False]))]
    batch = collate([Pieces.of(structure, n, (5.0,)) for n, structure in enumerate(structures)])
    assert batch.tags.tolist() == [1] * 5 + [0, 2]
    assert batch.fixed.tolist() == [False] * 5 + [True, False]


def test_the_scale_of_forces_is_that_of_free_atoms() -> None:
    forces = np.array([[3.0, 0, 0], [0, 4.0, 0]])
    structure = molecule(0, atoms=2, forces=forces, fixed=np.array([True, False]))
    assert force_rms([structure]) == pytest.approx(np.sqrt(16 / 3))
    assert force_rms([structure], free_atoms=False) == pytest.approx(np.sqrt(25 / 6))
    held = replace(structure, fixed=np.ones(2, bool))
    assert force_rms([structure, held]) == pytest.approx(np.sqrt(16 / 3))
    assert force_rms([held]) == 1.0


def test_the_data_card_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    structures = [
        molecule(0, tags=np.array([0, 0, 1, 2, 2]), fixed=np.array([1, 1, 0, 0, 0]), bonds=np.array([[0, 1], [1, 2]])),
        molecule(6, atoms=1, bonds=np.zeros((0, 2), int)),
    ]
    path = write(tmp_path / "x.h5", structures)
    assert main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tags 2 atoms below the surface (0), 2 of the free slab (1), 2 adsorbate (2)" in said
    assert "fixed 2 of 6 atoms" in said
    assert "bonds 0 to 2 per structure, 2 in all" in said
    with DataFile(OLD) as data:
        assert not {"tags", "fixed", "bonds"} & set(make_card(data).facts)


def test_labelled_files_keep_them(tmp_path: Path) -> None:
    structures = [
        replace(random_structure(n), energy=np.nan, forces=None, atomic_numbers=np.full(random_structure(n).num_atoms, 29))
        for n in range(6)
    ]
    structures = [replace(s, positions=s.positions * 2) for s in structures]
    source = write(tmp_path / "bare.h5", structures)
    assert main(["label", str(source), str(tmp_path / "out.h5"), "--teacher", "ase:ase.calculators.emt:EMT"]) == 0
    with open_data_file(str(tmp_path / "out.h5")) as data:
        assert not len(data.missing_labels())
        for found, expected in zip(data.read(range(6)), structures, strict=True):
            for name in ("tags", "fixed", "bonds"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            # forces of fixed atoms are labels too
            assert found.num_atoms == 1 or np.abs(found.forces).max() > 0


def test_units_leave_them_alone(tmp_path: Path) -> None:
    from fastkd.data import Units

    with DataWriter(tmp_path / "x.h5", level_of_theory="x", units=Units("kcal/mol", "nm")) as writer:
        writer.append(random_structure(5))
    with DataFile(tmp_path / "x.h5") as data:
        for name in ("tags", "fixed", "bonds"):
            np.testing.assert_array_equal(getattr(data[0], name), getattr(random_structure(5), name))
