"""What a run takes of a file, its reference energies, and the data card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastkd.config import DataConfig
from fastkd.data import DataFile, data_path, fit_reference, force_rms, make_card, make_references, open_data_file, select
from fastkd.data.reference import compositions
from fastkd.errors import ConfigError, DataError

from .common import crystal, molecule, write

SIZE = 100


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFile:
    return DataFile(write(tmp_path_factory.mktemp("select") / "data.h5", [molecule(n, atoms=4 + n % 2) for n in range(SIZE)]))


def test_the_four_sets(data: DataFile) -> None:
    chosen = select(data, DataConfig(labelled=10, unlabelled=20, val_size=5), 0)
    assert [len(part) for part in (chosen.labelled, chosen.unlabelled, chosen.val, chosen.test)] == [10, 20, 5, 20]
    for part in (chosen.labelled, chosen.unlabelled, chosen.val, chosen.test):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    assert not set(chosen.labelled) & set(chosen.unlabelled)
    assert set(data.splits[chosen.train]) == {"train"}
    assert set(data.splits[chosen.val]) == {"val"}
    assert chosen.val[0] == 6
    assert chosen.val[-1] == 97, "evenly spaced, ends included"


def test_the_seed_decides_and_larger_runs_contain_smaller_ones(data: DataFile) -> None:
    first = select(data, DataConfig(labelled=10), 0)
    assert (first.labelled == select(data, DataConfig(labelled=10, unlabelled=5, val_size=3), 0).labelled).all()
    assert set(first.labelled) < set(select(data, DataConfig(labelled=20), 0).labelled)
    assert set(first.labelled) != set(select(data, DataConfig(labelled=10), 1).labelled)
    assert (first.test == select(data, DataConfig(labelled=10), 1).test).all()


def test_systems(data: DataFile) -> None:
    chosen = select(data, DataConfig(systems=["chain5"]), 0)
    assert set(data.systems[np.concatenate([chosen.train, chosen.val, chosen.test])]) == {"chain5"}


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (DataConfig(train_split="test"), ConfigError, r"data.train_split and data.test_split are both 'test'"),
        (DataConfig(train_split="val"), ConfigError, r"data.train_split and data.val_split are both 'val'"),
        (DataConfig(train_split="trian"), DataError, r"split 'trian' \(data.train_split\) is empty. It has test \(20\), train \(60\), val"),
        (DataConfig(test_split=""), DataError, r"split '' \(data.test_split\) is empty"),
        (DataConfig(systems=["water"]), DataError, "no system 'water'.*chain4, chain5"),
        (DataConfig(labelled=61), ConfigError, "ask for more than the 60 structures"),
        (DataConfig(labelled=50, unlabelled=11), ConfigError, "data.labelled=50 and data.unlabelled=11 ask for more than the 60"),
    ],
)
def test_choices_that_cannot_be_made(data: DataFile, config: DataConfig, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        select(data, config, 0)


def test_energies_alone_are_labels_if_forces_have_no_weight(tmp_path: Path) -> None:
    bare = DataFile(write(tmp_path / "bare.h5", [molecule(n, forces=None) for n in range(SIZE)]))
    assert len(select(bare, DataConfig(), 0, forces=False).labelled) == 60
    with pytest.raises(ConfigError, match=r"energies and no forces.*loss\.forces_weight=0"):
        select(bare, DataConfig(), 0)
    mixed = DataFile(write(tmp_path / "mixed.h5", [molecule(n, **({"forces": None} if n % 20 == 0 else {})) for n in range(SIZE)]))
    with pytest.raises(DataError, match=r"5 structures of the training split have no energy or forces.*with loss\.forces_weight=0"):
        select(mixed, DataConfig(), 0)
    allowed = select(mixed, DataConfig(allow_missing_labels=True), 0)
    assert not set(allowed.labelled.tolist()) & set(range(0, SIZE, 20))
    assert len(select(mixed, DataConfig(), 0, forces=False).labelled) == 60
    # what has neither is no label either way
    blank = DataFile(write(tmp_path / "blank.h5", [molecule(n, energy=float("nan"), forces=None) for n in range(SIZE)]))
    for forces in (True, False):
        with pytest.raises(DataError, match="20 structures of the val split have no energy"):
            select(blank, DataConfig(), 0, forces=forces)
    card = make_card(mixed, select(mixed, DataConfig(), 0, forces=False), forces=False)
    assert card.facts["labels"] == "100 energies, 95 of them with forces"
    assert not [text for text in card.warnings if "no energy" in text]
    assert "5 structures have no energy or forces" in " ".join(make_card(mixed).warnings)


def test_a_file_without_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [molecule(n, split="") for n in range(4)])
    with pytest.raises(DataError, match=r"split 'val' .*is empty.*convert with --split 0\.8,0\.1,0\.1"):
        select(DataFile(path), DataConfig(), 0)


def test_elements_that_were_never_trained_on(tmp_path: Path) -> None:
    structures = [molecule(n) for n in range(10)]
    structures[9] = molecule(9, atomic_numbers=np.array([6, 1, 8, 1, 7]))
    path = write(tmp_path / "x.h5", structures)
    with pytest.raises(DataError, match="the test split has N, O, which no training structure has"):
        select(DataFile(path), DataConfig(), 0)


def test_reference_energies_are_found_again() -> None:
    true = {1: -13.5, 6: -1030.25, 8: -2040.0}
    generator = np.random.default_rng(0)
    structures = [molecule(n, 6, atomic_numbers=generator.choice(list(true), size=6)) for n in range(40)]
    energy = np.array([sum(true[int(z)] for z in s.atomic_numbers) for s in structures])
    references = fit_reference(compositions(structures), energy)
    assert {z: pytest.approx(e) for z, e in true.items()} == {z: references.energies[z] for z in np.flatnonzero(references.known)}


def test_a_single_molecule_gets_the_shortest_solution() -> None:
    structures = [molecule(n) for n in range(10)]
    energy = np.array([s.energy for s in structures])
    references = fit_reference(compositions(structures), energy)
    # 3 C and 2 H: proportional to the counts, and the mean is met
    assert references.energies[6] / references.energies[1] == pytest.approx(1.5)
    assert 3 * references.energies[6] + 2 * references.energies[1] == pytest.approx(energy.mean())
    assert not references.energies[[0, 7, 8]].any()


def test_given_references() -> None:
    structures = [molecule(0), molecule(1)]
    energy = np.array([s.energy for s in structures])
    assert make_references({"H": -10.0, "C": -10.0}, structures, energy, "x.h5").energies[6] == -10.0
    assert not make_references("none", structures, energy, "x.h5").energies.any()
    with pytest.raises(ConfigError, match=r"reference_energies lacks C, which the data has"):
        make_references({"H": -10.0}, structures, energy, "x.h5")
    with pytest.raises(ConfigError, match="'Hx' is no element"):
        make_references({"H": -10.0, "C": -1.0, "Hx": 1.0}, structures, energy, "x.h5")
    with pytest.raises(
        DataError, match=r"x\.h5: [+-]\d+\.\d eV per atom are left after subtracting.*another level of theory.*--energy-unit"
    ):
        make_references({"H": -13.6, "C": -1030.0}, structures, energy, "x.h5")


def test_force_rms() -> None:
    forces = np.array([[3.0, 0, 0], [0, 4.0, 0]])
    one = molecule(0, atoms=2, forces=forces)
    assert force_rms([one, molecule(1, forces=None)]) == pytest.approx(np.sqrt(25 / 6))
    assert force_rms([molecule(1, forces=None)]) == 1.0
    assert force_rms([molecule(0, atoms=2, forces=0 * forces)]) == 1.0


def test_the_card_of_a_run(data: DataFile) -> None:
    chosen = select(data, DataConfig(labelled=10, unlabelled=20), 0)
    card = make_card(data, chosen, cutoffs=(2.0, 5.0))
    text = card.text()
    for part in (
        "level of theory     made up",
        "eV/Å",
        "H, C",
        "4 to 5 per structure",
        "chain4 (",
        data.content_hash[:12],
        "neighbours in 2 Å",
        "|F| max [eV/Å]",
        "E − E₀ [eV/atom]",
        "hidden",
    ):
        assert part in text, part
    assert [row["split"] for row in card.splits] == ["train", "unlabelled", "val", "test"]
    assert [row["structures"] for row in card.splits] == ["10", "20", "20", "20"]
    assert card.warnings == []
    json.dumps(card.as_dict())
    norms = np.linalg.norm(np.concatenate([s.forces for s in data.read(chosen.test)]), axis=1)
    assert card.splits[3]["|F| rms"] == f"{np.sqrt((norms**2).mean()):.2f}"


def test_the_card_warns(tmp_path: Path) -> None:
    structures = [molecule(n) for n in range(10)]
    structures[3] = molecule(3, forces=np.full((5, 3), 80.0))
    structures[8] = molecule(2, split="test")
    structures[9] = molecule(9, energy=np.nan, forces=None)
    far = np.arange(5)[:, None] * np.array([30.0, 0, 0])
    structures[4] = molecule(4, positions=far)
    path = write(tmp_path / "x.h5", structures)
    warnings = "\n".join(make_card(DataFile(path)).warnings)
    for part in (
        "1 structure has no energy or forces",
        "1 structure has forces above 50 eV/Å",
        "structure 8 of test is also in train",
        "no neighbour",
    ):
        assert part in warnings, part


def test_the_card_of_crystals(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [crystal(n) for n in range(10)])
    facts = make_card(DataFile(path)).facts
    assert facts["periodic"] == "10 structures"
    assert facts["systems"] == "crystal (10)"


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd.data import card as card_module

    monkeypatch.setattr(card_module, "MAX_STRUCTURES", 8)
    path = write(tmp_path / "x.h5", [molecule(n) for n in range(100)])
    card = make_card(DataFile(path))
    assert [row["structures"] for row in card.splits] == ["60", "20", "20"]
    assert [row["atoms"] for row in card.splits] == ["300", "100", "100"]
    assert "at most 8 structures of each split" in card.facts["statistics"]


def test_the_embedded_data() -> None:
    data = open_data_file("embedded")
    data.check_hash()
    assert data.path == data_path("embedded")
    assert data.path.stat().st_size <= 3_000_000
    assert data.level_of_theory == "GFN2-xTB (tblite 0.8.0)"
    assert data.licence == "CC0-1.0"
    assert {"seed", "temperature_K", "time_step_fs", "versions"} <= data.provenance.keys()
    assert set(data.systems) == {"ethanol", "malonaldehyde", "aspirin"}
    assert not len(data.missing_labels())
    # neighbours in time never straddle splits
    for system in ("ethanol", "malonaldehyde", "aspirin"):
        of = data.systems == system
        time, split = data.rows("time_fs")[of], data.splits[of]
        assert (np.diff(time) > 0).all()
        borders = np.diff(time)[split[1:] != split[:-1]]
        assert len(borders)
        assert borders.min() >= 500.0
    chosen = select(data, DataConfig(systems=["ethanol"], labelled=50, unlabelled=1000), 0)
    assert len(chosen.train) == 1050
    assert make_card(data, chosen).warnings == []
    # internal forces sum to zero
    total = [np.abs(s.forces.sum(axis=0)).max() for s in data.read(chosen.labelled)]
    assert max(total) < 1e-3


def test_references_stay_near_a_prior_that_compositions_do_not_contradict():
    counts = np.zeros((4, 119))
    counts[:, [1, 6, 8]] = 6, 2, 1  # one molecule: only the sum is determined
    energy = np.array([-310.0, -309.8, -310.2, -310.0])
    prior = np.zeros(119)
    prior[[1, 6, 8]] = -13.0, -59.0, -108.0
    near, plain = fit_reference(counts, energy, prior).energies, fit_reference(counts, energy).energies
    np.testing.assert_allclose(counts @ near, counts @ plain)
    assert np.abs(near - prior).max() < 3.0
    assert np.abs(plain - prior).max() > 20.0
    assert not near[[7, 9]].any()
