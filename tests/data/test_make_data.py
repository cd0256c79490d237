"""The script that makes the embedded data: what it writes of a trajectory, and that the labels shipped are those of GFN2-xTB."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fastkd.data import DataFile, data_path

FRAMES = 200


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    path = Path(__file__).parents[2] / "scripts" / "make_data.py"
    spec = importlib.util.spec_from_file_location("make_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module
    spec.loader.exec_module(module)
    return module


def test_every_frame_with_a_split_is_labelled_and_written(make_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a potential that costs nothing stands in for GFN2-xTB
    monkeypatch.setattr(make_data, "label", lambda numbers, positions: (float(np.square(positions).sum()), -2 * positions))
    positions = np.random.default_rng(0).normal(size=(FRAMES, 9, 3)).astype(np.float32)
    make_data.write_file(tmp_path / "small.h5", [make_data.Trajectory("ethanol", np.full(9, 6), positions)], seed=5)
    split = make_data.split_by_blocks(FRAMES)
    kept = np.flatnonzero(split)
    assert 0 < len(kept) < FRAMES
    with DataFile(tmp_path / "small.h5") as data:
        data.check_hash()
        assert data.splits.tolist() == split[kept].tolist()
        np.testing.assert_array_equal(data.rows("time_fs"), 50.0 * kept)
        np.testing.assert_array_equal(data.rows("positions").reshape(-1, 9, 3), positions[kept])
        np.testing.assert_array_equal(data.rows("forces").reshape(-1, 9, 3), -2 * positions[kept])
        np.testing.assert_allclose(data.rows("energy"), np.square(positions[kept], dtype=np.float64).sum((1, 2)), rtol=1e-6)
        assert data.provenance["seed"] == 5
        assert data.provenance["molecules"] == {"ethanol": "CCO"}


def test_labels_shipped_are_those_of_the_method(make_data: ModuleType) -> None:
    assert make_data.check_labels(data_path("embedded"), frames=1) < make_data.LABEL_TOLERANCE
