"""Writing and reading: round trips, streaming, units, and failures that leave nothing behind."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastkd.data import DataFile, DataWriter, Structure, Units
from fastkd.data import sink as sink_module
from fastkd.data import writer as writer_module
from fastkd.errors import DataError

from .common import assert_same, crystal, molecule, write


def test_round_trip_of_every_property(tmp_path: Path) -> None:
    structures = [molecule(0), crystal(1), molecule(2, atoms=1), crystal(3), molecule(4, atoms=9)]
    path = write(tmp_path / "all.h5", structures, licence="CC0-1.0", provenance={"seed": 3})
    with DataFile(path) as data:
        assert len(data) == 5
        for number, expected in enumerate(structures):
            assert_same(data[number], expected)
        for found, number in zip(data.read([4, 0, 4, 1]), [4, 0, 4, 1], strict=True):
            assert_same(found, structures[number])
        assert data.level_of_theory == "made up"
        assert data.licence == "CC0-1.0"
        assert data.provenance == {"seed": 3}
        assert data.file["positions"].attrs["unit"] == "Å"
        data.check_hash()
        data.check_values()
        assert_same(data[-1], structures[-1])
        with pytest.raises(IndexError):
            data.read([5])


def test_streaming_writes_the_same_file_as_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first structures lack properties that later ones have, and the other way round
    structures = [molecule(n, energy=np.nan, forces=None, split="") for n in range(7)]
    structures += [crystal(n) for n in range(7)] + [molecule(n) for n in range(3)]
    whole = write(tmp_path / "whole.h5", structures)
    monkeypatch.setattr(writer_module, "_BUFFERED_ATOMS", 7)
    with DataWriter(tmp_path / "stream.h5", level_of_theory="made up") as writer:
        for structure in structures:
            writer.append(structure)
            assert writer._buffered_atoms < 7
    with DataFile(whole) as one, DataFile(tmp_path / "stream.h5") as other:
        assert one.content_hash == other.content_hash
        assert one.fields == other.fields
        for number, expected in enumerate(structures):
            found = other[number]
            assert np.isnan(found.energy) == np.isnan(expected.energy)
            assert (found.forces is None) == (expected.forces is None)
            assert (found.stress is None) == (expected.stress is None)
            np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(other.missing_labels(), np.arange(7))


def test_structures_that_are_changed_after_they_were_added_stay_as_they_were(tmp_path: Path) -> None:
    positions = np.zeros((1, 3))
    with DataWriter(tmp_path / "md.h5", level_of_theory="x") as writer:
        for step in range(3):
            positions[:] = step
            writer.append(Structure(np.array([1]), positions, energy=1.0))
    with DataFile(tmp_path / "md.h5") as data:
        assert [float(s.positions[0, 0]) for s in data.read(range(3))] == [0.0, 1.0, 2.0]


def test_the_hash_speaks_of_values(tmp_path: Path) -> None:
    structures = [molecule(n) for n in range(4)]
    path = write(tmp_path / "a.h5", structures)
    double = write(tmp_path / "b.h5", structures, positions_dtype="float64", provenance={"other": 1})
    other = write(tmp_path / "c.h5", [*structures[:3], replace(structures[3], split="val")])
    with DataFile(path) as a, DataFile(double) as b, DataFile(other) as c:
        assert a.content_hash == b.content_hash != c.content_hash
        assert b[0].positions.dtype == np.float64
    with h5py.File(path, "r+") as file:
        file["energy"][2] += 1e-9
    with DataFile(path) as data, pytest.raises(DataError, match="changed after it was written"):
        data.check_hash()


@pytest.mark.parametrize(
    ("units", "energy", "length", "forces"),
    [
        (Units("kcal/mol", "Å"), 0.0433641, 1.0, 0.0433641),
        (Units("kJ/mol", "nm"), 0.01036427, 10.0, 0.001036427),
        (Units("hartree", "bohr"), 27.211386, 0.52917721, 51.4220675),
        (Units("meV", "Angstrom"), 1e-3, 1.0, 1e-3),
        (Units("Ha", "Å", "hartree/bohr"), 27.211386, 1.0, 51.4220675),
        (Units("kcal/mol", "Å", "kcal/mol/Å"), 0.0433641, 1.0, 0.0433641),
    ],
)
def test_units_are_converted_at_the_border(tmp_path: Path, units: Units, energy: float, length: float, forces: float) -> None:
    source = crystal(1)
    path = write(tmp_path / "u.h5", [source], units=units)
    with DataFile(path) as data:
        found = data[0]
    assert found.energy == pytest.approx(source.energy * energy, rel=1e-6)
    np.testing.assert_allclose(found.positions, source.positions * length, rtol=1e-6)
    np.testing.assert_allclose(found.cell, source.cell * length, rtol=1e-7)
    np.testing.assert_allclose(found.forces, source.forces * forces, rtol=1e-6)
    np.testing.assert_allclose(found.stress, source.stress * energy / length**3, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (Units(energy="kcal/mole"), r"unknown energy unit 'kcal/mole'. Known: eV, meV, kcal/mol, .* Did you mean kcal/mol\?"),
        (Units(length="borh"), r"unknown length unit 'borh'. .*Did you mean bohr\?"),
        (Units(energy="xyz!"), r"unknown energy unit 'xyz!'. Known: [^?]*$"),
        (Units(forces="hartree"), "unknown force unit 'hartree'"),
        (Units(forces="hartree/mile"), "unknown length unit 'mile'"),
    ],
)
def test_unknown_units(tmp_path: Path, units: Units, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataWriter(tmp_path / "u.h5", level_of_theory="x", units=units)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": np.zeros((4, 3))}, r"structure 1: positions has shape \(4, 3\), 5 atoms need \(5, 3\)"),
        ({"forces": np.zeros((5, 2))}, r"structure 1: forces has shape \(5, 2\)"),
        ({"positions": np.full((5, 3), np.nan)}, "structure 1: positions are not finite"),
        ({"positions": np.full((5, 3), np.inf)}, "structure 1: positions are not finite"),
        ({"atomic_numbers": np.zeros(5, int)}, "atomic numbers must be 1 to 118, got 0"),
        ({"atomic_numbers": np.zeros(0, int), "positions": np.zeros((0, 3)), "forces": None}, "structure 1 has no atoms"),
        ({"cell": np.zeros((3, 2))}, "cell has shape"),
        ({"cell": np.full((3, 3), np.inf)}, "structure 1: cell is not finite"),
        ({"atomic_numbers": np.full(5, np.nan)}, "structure 1: atomic numbers must be 1 to 118, got nan"),
        ({"atomic_numbers": np.full(5, 6.5)}, "structure 1: atomic numbers must be 1 to 118, got 6.5"),
        ({"system": "a\0b"}, r"structure 1: its system 'a\\x00b' cannot be kept as UTF-8 text"),
        ({"split": "a\udcff"}, "structure 1: its split .* cannot be kept as UTF-8 text"),
    ],
)
def test_malformed_structures_leave_no_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "bad.h5", [molecule(0), molecule(1, **changes)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["level_of_theory", "licence"])
def test_texts_that_hdf5_cannot_keep(tmp_path: Path, name: str) -> None:
    for text in ("PBE\0", "PBE\udcff"):
        with pytest.raises(DataError, match="cannot be kept as UTF-8 text"):
            DataWriter(tmp_path / "x.h5", **{"level_of_theory": "x", name: text})
    assert not list(tmp_path.iterdir())


def test_a_failure_while_the_file_is_closed_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer_module, "content_hash", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x.h5", [molecule(0)])
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


def interrupted(path: Path, **options: bool) -> None:
    with DataWriter(path, level_of_theory="x", **options) as writer:
        writer.append(molecule(1))
        assert path.with_name("x.h5.partial").exists()
        raise KeyboardInterrupt


def test_an_existing_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [molecule(0)])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"exists already.*--overwrite"):
        write(path, [molecule(1)])
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, overwrite=True)
    assert path.read_bytes() == before
    write(path, [molecule(1)], overwrite=True)
    with DataFile(path) as data:
        assert_same(data[0], molecule(1))
    assert [item.name for item in tmp_path.iterdir()] == ["x.h5"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"x\.h5 cannot be written.*Choose a folder that you may write to"):
        DataWriter(tmp_path / "file" / "x.h5", level_of_theory="x")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(writer_module, "Sink", refuse)
    with pytest.raises(DataError, match=r"x\.h5 cannot be written \(Permission denied\)"):
        DataWriter(tmp_path / "x.h5", level_of_theory="x")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("room", [0, 5_000, 200_000, 700_000])
def test_a_full_disk_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    class SmallDisk(sink_module.Sink):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._file = Limited(self._file, room)

    class Limited:
        def __init__(self, file: object, room: int) -> None:
            self.file, self.room = file, room

        def write(self, data: bytes) -> int:
            end = self.file.tell() + len(data)
            if end > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    monkeypatch.setattr(writer_module, "Sink", SmallDisk)
    monkeypatch.setattr(writer_module, "_BUFFERED_ATOMS", 4000)
    with pytest.raises(DataError, match=r"x\.h5: the disk is full \(No space left on device\)\. Free some space"):
        write(tmp_path / "x.h5", [molecule(n, atoms=800) for n in range(50)])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_hdf5_survives_a_real_refusal_of_the_system(tmp_path: Path) -> None:
    script = f"""
import resource, signal, numpy as np
from pathlib import Path
from fastkd.data import DataWriter, Structure
from fastkd.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with DataWriter({str(tmp_path / "x.h5")!r}, level_of_theory="x") as writer:
        for _ in range(800):
            writer.append(Structure(np.full(100, 6), np.random.rand(100, 3), forces=np.random.rand(100, 3)))
except DataError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "the disk is full (File too large)" in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_file_by_a_stranger_in_ten_lines(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "file-format.md").read_text(encoding="utf-8")
    code = document.split("```python")[1].split("```")[0].replace('"water.h5"', repr(str(tmp_path / "water.h5")))
    exec(code, {})
    with DataFile(tmp_path / "water.h5") as data:
        data.check_values()
        assert data[0].energy == -137.97
        assert data[0].split == "train"
        assert data[0].system == ""
        assert data.content_hash == ""


def test_the_hash_is_what_the_document_says(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "h.h5", [molecule(0), molecule(1)])
    digest = hashlib.sha256(b"fastkd v1")
    names = ["atom_ptr", "atomic_numbers", "positions", "forces", "energy", "cell", "pbc", "stress", "split", "system", "time_fs"]
    with h5py.File(path) as file:
        for name in names:
            if name not in file:
                continue
            values = file[name][:]
            digest.update(f"{name} {values.shape}".encode())
            if values.dtype == object:
                digest.update(b"".join(text + b"\0" for text in values))
            else:
                digest.update(values.astype("<f8" if values.dtype.kind == "f" else "<i8").tobytes())
        assert file.attrs["content_hash"] == digest.hexdigest()


def test_text_of_fixed_length_is_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", [molecule(0), molecule(8)])
    with h5py.File(path, "r+") as file:
        del file["split"]
        file["split"] = np.array([b"train", b"test"])
    with DataFile(path) as data:
        assert data.splits.tolist() == ["train", "test"]
        assert data[1].split == "test"
