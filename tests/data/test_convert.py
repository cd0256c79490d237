"""Converters against files that ASE and numpy write."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from fastkd.data import DataFile, Structure, Units
from fastkd.data.convert import SourceOptions, SplitPlan, convert, parse_slice
from fastkd.errors import DataError

from .common import crystal, molecule


def atoms_of(structure: Structure) -> Atoms:
    atoms = Atoms(structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    results: dict[str, Any] = {"energy": structure.energy, "forces": np.asarray(structure.forces, float)}
    if structure.stress is not None:
        results["stress"] = structure.stress.reshape(9)[[0, 4, 8, 5, 2, 1]]
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(system_name=structure.system, part=structure.split)
    return atoms


SOURCES = [molecule(0), crystal(1), molecule(2, atoms=3), crystal(2)]
KEYS = SourceOptions(system_key="system_name", split_key="part")


def check(path: Path, expected: list[Structure], tolerance: float = 1e-7) -> None:
    with DataFile(path) as data:
        data.check_hash()
        assert len(data) == len(expected)
        for found, source in zip(data.read(range(len(data))), expected, strict=True):
            assert found.atomic_numbers.tolist() == source.atomic_numbers.tolist()
            np.testing.assert_allclose(found.positions, source.positions, atol=2e-6)
            np.testing.assert_allclose(found.forces, source.forces, atol=1e-6)
            assert found.energy == pytest.approx(source.energy, abs=tolerance)
            assert (found.system, found.split) == (source.system, source.split)
            if source.cell is not None:
                np.testing.assert_allclose(found.cell, source.cell, atol=1e-6)
                np.testing.assert_allclose(found.stress, source.stress, atol=1e-6)
                assert found.pbc.tolist() == source.pbc.tolist()


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.traj", "a.db"])
def test_files_that_ase_writes(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name.endswith(".db"):
        with ase.db.connect(source) as database:
            for structure in SOURCES:
                database.write(atoms_of(structure), system_name=structure.system, part=structure.split)
    else:
        ase.io.write(tmp_path / name.removesuffix(".gz"), [atoms_of(s) for s in SOURCES])
        if name.endswith(".gz"):
            source.write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    report = convert(source, tmp_path / "out.h5", options=KEYS, level_of_theory="made up")
    assert (report.structures, report.with_energy, report.with_forces) == (4, 4, 4)
    check(tmp_path / "out.h5", SOURCES)
    with DataFile(tmp_path / "out.h5") as data:
        assert data.provenance["source"] == name
        assert data.content_hash == report.content_hash


def test_names_of_ones_own(tmp_path: Path) -> None:
    frames = []
    for structure in SOURCES[:1] * 2:
        atoms = atoms_of(structure)
        atoms.info["dft_energy"], atoms.arrays["dft_forces"] = atoms.calc.results["energy"] - 1, 2 * atoms.calc.results["forces"]
        frames.append(atoms)
    del frames[1].arrays["dft_forces"]
    ase.io.write(tmp_path / "a.extxyz", frames)
    options = SourceOptions(energy_key="dft_energy", forces_key="dft_forces", system="chain")
    with pytest.raises(DataError, match=r"1 of 2 structures have no finite forces \(first: 1\).*--allow-missing-labels"):
        convert(tmp_path / "a.extxyz", tmp_path / "out.h5", options=options)
    assert not (tmp_path / "out.h5").exists()
    report = convert(tmp_path / "a.extxyz", tmp_path / "out.h5", options=options, level_of_theory="x", allow_missing_labels=True)
    assert (report.with_energy, report.with_forces) == (2, 1)
    with DataFile(tmp_path / "out.h5") as data:
        assert data[0].energy == pytest.approx(SOURCES[0].energy - 1)
        np.testing.assert_allclose(data[0].forces, 2 * SOURCES[0].forces, atol=1e-6)
        assert data[1].forces is None
        assert data[1].system == "chain"
    with pytest.raises(DataError, match=r"no structure has a property 'dft_enrgy'\. They have .*dft_energy"):
        convert(tmp_path / "a.extxyz", tmp_path / "typo.h5", options=SourceOptions(energy_key="dft_enrgy"))
    assert not (tmp_path / "typo.h5").exists()


def test_labels_that_nobody_finds_are_pointed_out(tmp_path: Path) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.info["REF_energy"] = -3.0
    ase.io.write(tmp_path / "a.extxyz", [atoms])
    with pytest.raises(DataError, match=r"no structure has energy; the source has REF_energy\..*--energy-key; --allow-missing-labels"):
        convert(tmp_path / "a.extxyz", tmp_path / "out.h5")
    assert [item.name for item in tmp_path.iterdir()] == ["a.extxyz"]
    report = convert(tmp_path / "a.extxyz", tmp_path / "out.h5", allow_missing_labels=True)
    assert (report.structures, report.with_energy, report.with_forces) == (1, 0, 0)


@pytest.mark.parametrize(
    ("properties", "options", "message"),
    [
        ("energy=abc", SourceOptions(), "the energy must hold real numbers, not .*'abc'.*--energy-key"),
        ("energy=1 e=abc", SourceOptions(energy_key="e"), "the energy must hold real numbers, not .*'abc'.*--energy-key"),
        ('energy="1 2 3"', SourceOptions(), r"the energy has shape \(3,\).*--energy-key"),
        ("energy=1 f=abc", SourceOptions(forces_key="f"), "forces must hold real numbers, not .*'abc'.*--forces-key"),
        ("energy=1 s=abc", SourceOptions(stress_key="s"), "a stress must hold real numbers, not .*'abc'.*--stress-key"),
        ('energy=1 s="1 2 3"', SourceOptions(stress_key="s"), r"a stress has 6 or 9 numbers, this one has shape \(3,\).*--stress-key"),
        ('energy=1 Lattice="nan 0 0 0 5 0 0 0 5"', SourceOptions(), "cell is not finite"),
    ],
)
def test_labels_of_the_wrong_kind(tmp_path: Path, properties: str, options: SourceOptions, message: str) -> None:
    source = tmp_path / "a.extxyz"
    source.write_text(f'2\nProperties=species:S:1:pos:R:3:forces:R:3 {properties} pbc="F F F"\nH 0 0 0 0 0 1\nH 0 0 0.8 0 0 -1\n')
    with pytest.raises(DataError, match=rf"a\.extxyz, structure 0: {message}"):
        convert(source, tmp_path / "out.h5", options=options)
    assert [item.name for item in tmp_path.iterdir()] == ["a.extxyz"]


@pytest.mark.parametrize("select", [slice(None), slice(1, None, 2)])
def test_a_broken_structure_is_called_by_its_number_in_the_source(tmp_path: Path, select: slice) -> None:
    broken = molecule(3, split="", system="", positions=np.full((5, 3), np.nan))
    sources = [molecule(n, split="", system="") for n in range(3)] + [broken]
    ase.io.write(tmp_path / "a.extxyz", [atoms_of(s) for s in sources])
    positions = np.stack([s.positions for s in sources])
    np.savez(tmp_path / "a.npz", z=broken.atomic_numbers, R=positions, E=np.zeros(4), F=np.zeros_like(positions))
    for name in ("a.extxyz", "a.npz"):
        with pytest.raises(DataError, match=rf"{name}, structure 3: positions are not finite"):
            convert(tmp_path / name, tmp_path / "out.h5", options=SourceOptions(select=select))
    assert not (tmp_path / "out.h5").exists()


def test_energies_alone(tmp_path: Path) -> None:
    numbers, positions = np.tile([8, 1, 1], 4), np.random.default_rng(0).normal(0, 2, (12, 3))
    flat = {"atomic_numbers": numbers, "positions": positions, "natoms": [3] * 4, "energy": np.arange(4.0)}
    np.savez(tmp_path / "a.npz", **flat)
    with pytest.raises(DataError, match="--no-forces takes energies alone"):
        convert(tmp_path / "a.npz", tmp_path / "a.h5")
    report = convert(tmp_path / "a.npz", tmp_path / "a.h5", forces=False)
    assert (report.structures, report.with_energy, report.with_forces) == (4, 4, 0)
    # forces that are there are left away
    np.savez(tmp_path / "b.npz", **flat, forces=np.ones((12, 3)))
    assert convert(tmp_path / "b.npz", tmp_path / "b.h5", forces=False).content_hash == report.content_hash
    with DataFile(tmp_path / "b.h5") as data:
        assert "forces" not in data.fields
        assert not len(data.missing_labels(forces=False))
        assert len(data.missing_labels()) == 4
    # energies are still wanted
    np.savez(tmp_path / "c.npz", **flat | {"energy": [1.0, np.nan, 2.0, 3.0]})
    with pytest.raises(DataError, match="1 of 4 structures have no finite energy"):
        convert(tmp_path / "c.npz", tmp_path / "c.h5", forces=False)


@pytest.mark.parametrize("name", ["run@1.extxyz", "run@0.xyz", "run[1].extxyz", "Ä b.EXTXYZ"])
def test_names_of_files_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    ase.io.write(tmp_path / "a.extxyz", [atoms_of(SOURCES[0])])
    (tmp_path / "a.extxyz").rename(tmp_path / name)
    convert(tmp_path / name, tmp_path / "out.h5", options=KEYS)
    check(tmp_path / "out.h5", SOURCES[:1])


def test_a_source_is_never_replaced_by_its_conversion(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat())
    before = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "link.npz").symlink_to("a.npz")
    for out in ("a.npz", "link.npz"):
        with pytest.raises(DataError, match="is the source itself"):
            convert(tmp_path / "a.npz", tmp_path / out, overwrite=True)
    assert (tmp_path / "a.npz").read_bytes() == before


def test_constraints_do_not_remove_forces(tmp_path: Path) -> None:
    atoms = atoms_of(SOURCES[0])
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "a.traj", [atoms])
    convert(tmp_path / "a.traj", tmp_path / "out.h5")
    with DataFile(tmp_path / "out.h5") as data:
        np.testing.assert_allclose(data[0].forces, SOURCES[0].forces, atol=1e-6)


def flat(**changes: Any) -> dict[str, Any]:
    sources = [molecule(n, atoms=3 + n % 3, split="", system="") for n in range(6)]
    arrays = {
        "atomic_numbers": np.concatenate([s.atomic_numbers for s in sources]),
        "positions": np.concatenate([s.positions for s in sources]),
        "forces": np.concatenate([s.forces for s in sources]),
        "natoms": np.array([s.num_atoms for s in sources]),
        "energy": np.array([s.energy for s in sources]),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def test_npz_laid_end_to_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat(energy=flat()["energy"][:, None]))
    convert(tmp_path / "a.npz", tmp_path / "out.h5")
    check(tmp_path / "out.h5", [molecule(n, atoms=3 + n % 3, split="", system="") for n in range(6)])


@pytest.mark.parametrize(
    "names",
    [
        ("atomic_numbers", "positions", "energy", "forces"),
        ("nuclear_charges", "coords", "energies", "forces"),
        ("z", "R", "E", "F"),
    ],
)
def test_npz_of_one_molecule(tmp_path: Path, names: tuple[str, ...]) -> None:
    sources = [molecule(n, split="", system="") for n in range(4)]
    arrays = (
        sources[0].atomic_numbers,
        np.stack([s.positions for s in sources]),
        np.array([s.energy for s in sources]),
        np.stack([s.forces for s in sources]),
    )
    np.savez(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)))
    convert(tmp_path / "a.npz", tmp_path / "out.h5")
    check(tmp_path / "out.h5", sources)
    convert(tmp_path / "a.npz", tmp_path / "part.h5", options=SourceOptions(select=parse_slice("1::2")))
    check(tmp_path / "part.h5", sources[1::2])


def test_npz_padded_with_zero(tmp_path: Path) -> None:
    sources = [molecule(n, atoms=2 + n, split="", system="") for n in range(4)]
    padded = {"atomic_numbers": np.zeros((4, 6), int), "positions": np.zeros((4, 6, 3)), "forces": np.full((4, 6, 3), np.nan)}
    for row, source in enumerate(sources):
        for name, array in padded.items():
            array[row, : source.num_atoms] = getattr(source, name)
    np.savez(tmp_path / "a.npz", **padded, energy=np.array([s.energy for s in sources]))
    convert(tmp_path / "a.npz", tmp_path / "out.h5")
    check(tmp_path / "out.h5", sources)


def test_npz_with_units_and_theory_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat(), e_unit="kcal/mol", r_unit="Ang", theory=np.bytes_("CCSD"))
    convert(tmp_path / "a.npz", tmp_path / "out.h5")
    with DataFile(tmp_path / "out.h5") as data:
        assert data.level_of_theory == "CCSD"
        assert data[0].energy == pytest.approx(molecule(0, atoms=3).energy * 0.0433641, rel=1e-6)
    convert(tmp_path / "a.npz", tmp_path / "same.h5", units=Units("kcal/mol"))
    with pytest.raises(DataError, match="states that it is in kcal/mol and Ang, but eV and Å were asked for"):
        convert(tmp_path / "a.npz", tmp_path / "no.h5", units=Units())


def test_npz_with_texts_as_bytes_and_numbers_as_floats(tmp_path: Path) -> None:
    source = flat()
    arrays = {"atomic_numbers": source["atomic_numbers"].astype(float), "natoms": source["natoms"].astype(float)}
    np.savez(tmp_path / "a.npz", **(source | arrays), part=np.array([b"train", b"val"] * 3), mol=np.array(["a", "b"] * 3), theory=b"\xff")
    convert(tmp_path / "a.npz", tmp_path / "out.h5", options=SourceOptions(split_key="part", system_key="mol"))
    with DataFile(tmp_path / "out.h5") as data:
        assert data.splits.tolist() == ["train", "val"] * 3
        assert data.systems.tolist() == ["a", "b"] * 3
        assert data[1].atomic_numbers.tolist() == molecule(1, atoms=4).atomic_numbers.tolist()
        assert data.level_of_theory == "\ufffd"


def test_npz_crystals(tmp_path: Path) -> None:
    cell = np.diag([4.0, 5.0, 0.0])
    arrays = flat(cell=np.stack([cell] * 6), stress=np.arange(36.0).reshape(6, 6))
    np.savez(tmp_path / "a.npz", **arrays)
    convert(tmp_path / "a.npz", tmp_path / "auto.h5")
    convert(tmp_path / "a.npz", tmp_path / "told.h5", options=SourceOptions(pbc="TFF"))
    np.savez(tmp_path / "one.npz", **flat(cell=cell))
    convert(tmp_path / "one.npz", tmp_path / "one.h5")
    with DataFile(tmp_path / "auto.h5") as auto, DataFile(tmp_path / "told.h5") as told, DataFile(tmp_path / "one.h5") as one:
        assert auto[3].pbc.tolist() == one[3].pbc.tolist() == [True, True, False]
        assert told[3].pbc.tolist() == [True, False, False]
        np.testing.assert_array_equal(one[5].cell, cell)
        # Voigt order xx, yy, zz, yz, xz, xy
        np.testing.assert_array_equal(auto[0].stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])


def test_splits_listed_in_the_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat(), a=[4, 0], b=[1], wrong=[6], twice=[0, 5])
    report = convert(tmp_path / "a.npz", tmp_path / "out.h5", plan=SplitPlan(members={"train": "a", "test": "b"}))
    assert report.splits == {"train": 2, "test": 1, "": 3}
    with DataFile(tmp_path / "out.h5") as data:
        assert data.splits.tolist() == ["train", "test", "", "", "train", ""]
    for members, message in (
        ({"train": "c"}, "no array 'c' for the split 'train'"),
        ({"train": "wrong"}, "wrong must list structure numbers from 0 to 5"),
        ({"train": "a", "test": "twice"}, "structure 0 is in the splits 'train' and 'test'"),
    ):
        with pytest.raises(DataError, match=message):
            convert(tmp_path / "a.npz", tmp_path / "no.h5", plan=SplitPlan(members=members))
    assert not (tmp_path / "no.h5").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": None}, "no positions .looked for positions, coords"),
        ({"atomic_numbers": None}, "no atomic numbers"),
        ({"positions": np.zeros((4, 2))}, r"positions have shape \(4, 2\)"),
        ({"forces": np.zeros((3, 3))}, r"forces have shape \(3, 3\), positions"),
        ({"natoms": np.array([3, 4])}, "do not fit together"),
        ({"energy": np.zeros(4)}, r"energy has shape \(4,\), but there are 6 structures"),
        ({"energy": np.zeros((6, 2))}, "need one number each"),
        ({"energy": np.array([None] * 6)}, "Python objects"),
        ({"energy": np.array(list("abcdef"))}, "energy must hold real numbers, not <U1 such as 'a'.*--energy-key"),
        ({"energy": np.zeros(6, complex)}, "energy must hold real numbers, not complex128"),
        ({"positions": np.full((24, 3), "x")}, "positions must hold real numbers"),
        ({"forces": np.full((24, 3), "x")}, "forces must hold real numbers"),
        ({"atomic_numbers": np.array(["H"] * 24)}, "atomic numbers must hold real numbers, not <U1 such as 'H'"),
        ({"atomic_numbers": np.full(24, 1.5)}, "atomic numbers must be whole numbers, got 1.5"),
        ({"atomic_numbers": np.full(24, np.nan)}, "atomic numbers must be whole numbers, got nan"),
        ({"atomic_numbers": np.full(24, 257)}, "atomic numbers must be 1 to 118, got 257"),
        ({"natoms": np.array([-3, 11, 3, 4, 5, 4])}, "do not fit together"),
        ({"natoms": np.array([2.5, 4.5, 5, 3, 4, 5])}, "natoms must be whole numbers, got 2.5"),
        ({"natoms": np.array([0, 7, 5, 3, 4, 5])}, "structure 0 has no atoms"),
        ({"cell": np.zeros((6, 6))}, r"cell has shape \(6, 6\), must be \[3, 3\] or \[6, 3, 3\]"),
        ({"cell": np.full((3, 3), np.nan)}, "cell is not finite"),
        ({"cell": np.full((3, 3), "x")}, "cell must hold real numbers"),
        ({"pbc": np.ones((6, 2), bool)}, r"pbc has shape \(6, 2\), must be \[3\] or \[6, 3\]"),
        ({"pbc": np.array(["T", "T", "F"])}, "pbc holds <U1.*--pbc"),
        ({"e_unit": "foo", "r_unit": "Å"}, r"a\.npz: unknown energy unit 'foo'"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **flat(**changes))
    with pytest.raises(DataError, match=message):
        convert(tmp_path / "a.npz", tmp_path / "out.h5")
    assert [item.name for item in tmp_path.iterdir()] == ["a.npz"]


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.extxyz").write_text("2\n\nH 0 0 0\nH 0 0 1\n2\n\nH 0 0 0\n")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04neither zip nor npy")
    with (tmp_path / "single.npz").open("wb") as handle:
        np.save(handle, np.zeros(3))
    (tmp_path / "a.strange").write_text("?")
    (tmp_path / "empty.extxyz").write_text("")
    for name, message in (
        ("cut.extxyz", r"cut\.extxyz, structure \d: ASE cannot read it"),
        ("cut.npz", "cannot be read as npz"),
        ("pickle.npz", "Python objects"),
        ("single.npz", "a single array"),
        ("a.strange", "ASE cannot read it"),
        ("empty.extxyz", "no structures|cannot read"),
        ("absent.extxyz", "no such file"),
        ("absent.npz", "no such file"),
        ("absent.db", "no such file"),
        ("x.h5", "is HDF5"),
    ):
        with pytest.raises(DataError, match=message):
            convert(tmp_path / name, tmp_path / "out" / "out.h5")
    assert not list((tmp_path / "out").iterdir())
