"""Files that are not as they should be: a DataError that says what, where and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastkd.config import DataConfig
from fastkd.data import DataFile, open_data_file, select
from fastkd.errors import DataError

from .common import molecule, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "data.h5", [molecule(n) for n in range(20)])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.h5: no such file.*'embedded'"):
        DataFile(tmp_path / "nothing.h5")
    with pytest.raises(DataError, match="no such file"):
        DataFile(tmp_path)


def test_a_file_that_may_not_be_read_or_went_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataFile(path)
    data.close()
    path.rename(path.with_name("moved.h5"))
    with pytest.raises(DataError, match=r"data\.h5 is not there any more"):
        data.read([0])
    path.with_name("moved.h5").rename(path)
    assert len(data.read([0])) == 1

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(DataError, match=r"data\.h5 may not be read by this user"):
        DataFile(path)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.3, 0.7, 0.98])
def test_truncated(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(DataError, match=r"data\.h5.*(truncated|not an HDF5 file).*(copy it again|convert)"):
        DataFile(path)


def test_no_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    path.write_text("3\nwater\nO 0 0 0\n" * 100)
    with pytest.raises(DataError, match="not an HDF5 file"):
        DataFile(path)


def test_a_damaged_block(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["positions"].id.get_chunk_info(0)
    with path.open("r+b") as handle:
        handle.seek(chunk.byte_offset + 10)
        handle.write(b"\xff" * 20)
    data = DataFile(path)
    for read in (lambda: data[0], data.check_values, data.check_hash):
        with pytest.raises(DataError, match=r"data\.h5.*cannot be read.*copy it again"):
            read()


@pytest.mark.parametrize("signature", [b"SNOD", b"HEAP", b"TREE", b"GCOL"])
def test_damage_to_what_hdf5_knows_of_itself(path: Path, signature: bytes) -> None:
    content = path.read_bytes()
    assert signature in content
    # signatures of the nodes of HDF5's own trees and heaps; behind each lies another of its exceptions
    path.write_bytes(content.replace(signature, b"????", 1))
    with pytest.raises(DataError, match=r"data\.h5.*cannot be read.*copy it again") as caught:
        open_data_file(str(path))
    assert str(caught.value).startswith(str(path))
    # a refused file leaves nothing behind: a good copy under its name is read
    path.write_bytes(content)
    with open_data_file(str(path)) as data:
        data.check_hash()


@pytest.mark.parametrize(
    "error", [RuntimeError("bad heap"), KeyError("message not aligned"), ValueError("no dtype"), OSError("ran off end")]
)
def test_every_error_of_h5py_is_a_data_error(path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(h5py.File, "__getitem__", fail)
        with pytest.raises(DataError, match=rf"its header cannot be read \({error.args[0]}\)\. The file is damaged; copy it again"):
            DataFile(path)
    data = DataFile(path)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    for read, what in ((lambda: data[0], "atomic_numbers"), (data.check_hash, "its content")):
        with pytest.raises(DataError, match=rf"{what} cannot be read \({error.args[0]}\)"):
            read()


def rewrite(name: str, change: Callable[[np.ndarray], object]) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        file[name] = change(values)

    return apply


def with_value(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def add_cells(change: Callable[[np.ndarray], object]) -> Callable[[h5py.File], None]:
    return lambda file: file.__setitem__("cell", change(np.zeros((20, 3, 3))))


def unit(name: str, value: str) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.__setitem__("unit", value)


def set_attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def group(name: str) -> Callable[[h5py.File], None]:
    def apply(file: h5py.File) -> None:
        del file[name]
        file.create_group(name)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.__delitem__("format"), "not one of fastkd's.*fastkd convert"),
        (set_attribute("format", "other"), "'format' is 'other'"),
        (set_attribute("schema_version", 2), "schema version 2, this release reads version 1"),
        (lambda file: file.attrs.__delitem__("schema_version"), "schema version None"),
        (drop("positions"), "lacks positions"),
        (drop("atom_ptr"), "lacks atom_ptr"),
        (rewrite("positions", lambda v: v[:-1]), r"positions has shape \(99, 3\), atom_ptr needs \(100, 3\)"),
        (rewrite("forces", lambda v: v[:, :2]), r"forces has shape \(100, 2\)"),
        (rewrite("energy", lambda v: v[:-1]), r"energy has shape \(19,\), atom_ptr needs \(20,\)"),
        (rewrite("energy", lambda v: v.astype(int)), "energy holds int64, but must hold float values"),
        (rewrite("atomic_numbers", lambda v: v.astype(float)), "atomic_numbers holds float64, but must hold integer values"),
        (rewrite("split", lambda v: np.arange(len(v))), "split holds int64, but must hold text values"),
        (rewrite("atom_ptr", lambda v: v[::-1].copy()), "atom_ptr must begin with 0 and grow"),
        (rewrite("atom_ptr", lambda v: v + 1), "atom_ptr must begin with 0 and grow"),
        (rewrite("atom_ptr", with_value(3, 10)), "atom_ptr must begin with 0 and grow"),
        (rewrite("atom_ptr", lambda v: v.astype(float)), "atom_ptr must be a one-dimensional array of integers"),
        (rewrite("atom_ptr", lambda v: v[None]), "atom_ptr must be a one-dimensional array of integers"),
        (rewrite("atom_ptr", lambda v: 7), "atom_ptr must be a one-dimensional array of integers"),
        (rewrite("atom_ptr", lambda v: v[:0]), "atom_ptr must begin with 0"),
        (group("atom_ptr"), "atom_ptr must be a one-dimensional array of integers"),
        (group("energy"), "energy has shape a group"),
        (unit("energy", "kcal/mol"), "energy is in 'kcal/mol', format v1 keeps 'eV'.*--energy-unit"),
        (unit("positions", "nm"), "positions is in 'nm'"),
    ],
)
def test_refused_when_opened(path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        DataFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite("positions", with_value(42, np.nan)), r"positions are not finite in structure 8 \(atom 42\)"),
        (add_cells(with_value(7, np.nan)), "the cell of structure 7 is not finite"),
        (rewrite("positions", with_value(0, np.inf)), r"positions are not finite in structure 0 \(atom 0\)"),
        (rewrite("atomic_numbers", with_value(99, 0)), r"atomic numbers are not between 1 and 118 in structure 19 \(atom 99\)"),
        (rewrite("atomic_numbers", with_value(5, 200)), r"atomic numbers .* in structure 1 \(atom 5\)"),
    ],
)
def test_refused_before_training(path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    DataFile(path).close()
    with pytest.raises(DataError, match=message):
        open_data_file(str(path))


@pytest.mark.parametrize("name", ["energy", "forces"])
def test_nan_labels_are_counted_and_named(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        rows = [1, 4, 11] if name == "energy" else [5, 22, 23, 57]
        file[name][rows] = np.nan
    data = open_data_file(str(path))
    np.testing.assert_array_equal(data.missing_labels(), [1, 4, 11])
    with pytest.raises(DataError, match=r"3 structures of the training split.*numbers 1, 4, 11.*data\.allow_missing_labels=true"):
        select(data, DataConfig(), 0)
    chosen = select(data, DataConfig(allow_missing_labels=True, unlabelled=3), 0)
    assert chosen.unlabelled.tolist() == [1, 4, 11]
    assert not set(chosen.labelled) & {1, 4, 11}


def test_a_file_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "bare.h5", [molecule(n, energy=np.nan, forces=None) for n in range(10)])
    data = open_data_file(str(path))
    assert data.missing_labels().tolist() == list(range(10))
    with pytest.raises(DataError, match="2 structures of the val split have no energy or forces"):
        select(data, DataConfig(allow_missing_labels=True, unlabelled=2), 0)


def test_provenance_that_is_no_json(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = "{"
    with pytest.raises(DataError, match="'provenance' is no JSON object"):
        _ = DataFile(path).provenance
