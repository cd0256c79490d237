"""The folders of `examples/`: what makes their data, on a cheap teacher; and each config, shortened, with a small teacher in place of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet

from examples import sampling, speed
from examples.chgnet import make_data as chgnet
from examples.rmd17_painn import make_data as rmd17
from examples.sampling import Plan, Start, run_dynamics, structure_of, write_frames
from examples.sevennet import make_data as sevennet
from examples.so3lr import make_data as so3lr
from fastkd.cli import main
from fastkd.config import ModelConfig
from fastkd.config_loading import arm_config, load_config
from fastkd.data import DataFile, DataWriter, Structure
from fastkd.errors import ConfigError, DataError
from fastkd.models import build_model, save_model
from fastkd.teachers import load_teacher
from fastkd.teachers.ase import AseTeacher

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(ROOT.glob("examples/*/config.yaml"))
NAMES = [path.parent.name for path in CONFIGS]
KCAL = units.kcal / units.mol


def copper(seed: int = 0) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def emt() -> AseTeacher:
    return AseTeacher(EMT(), "ase:ase.calculators.emt:EMT")


class Spring(Calculator):
    """Every atom on a spring of 1 eV/Å² to the origin."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        self.results = {"energy": 0.5 * float(np.square(atoms.positions).sum()), "forces": -atoms.positions}


# dynamics


def test_from_rest_and_without_friction_it_is_velocity_verlet():
    starts = [Start(copper(seed), "train", temperature=0.0) for seed in range(3)]
    plan = Plan(frames=4, time_step=2.0, interval=5, equilibration=3, friction=0.0, at_once=2)
    frames = run_dynamics(emt(), starts, plan)
    for start, trajectory in zip(starts, frames, strict=True):
        atoms = start.atoms.copy()
        atoms.calc = EMT()
        dynamics = VelocityVerlet(atoms, timestep=2.0 * units.fs)
        dynamics.run(3)
        for frame in trajectory:
            dynamics.run(5)
            np.testing.assert_allclose(frame.positions, atoms.positions, rtol=0, atol=1e-9)
        assert np.abs(trajectory[-1].positions - start.atoms.positions).max() > 0.01


def test_the_temperature_is_that_of_each_trajectory():
    cold, hot = 200.0, 800.0
    # ten atoms that know nothing of each other: three springs each
    atoms = Atoms("C10", positions=np.random.default_rng(0).normal(0, 0.2, (10, 3)))
    starts = [Start(atoms, "train", temperature) for temperature in (cold, hot) * 8]
    frames = run_dynamics(AseTeacher(Spring(), "spring"), starts, Plan(frames=100, time_step=2.0, interval=5, friction=0.05))
    squares = [np.mean([np.square(frame.positions).mean() for frame in trajectory]) for trajectory in frames]
    # equipartition: k ⟨x²⟩ = k_B T
    assert np.mean(squares[0::2]) == pytest.approx(units.kB * cold, rel=0.08)
    assert np.mean(squares[1::2]) == pytest.approx(units.kB * hot, rel=0.08)


def test_trajectories_are_their_own_and_the_same_again():
    plan = Plan(frames=2, time_step=1.0, interval=2, equilibration=1)
    one = run_dynamics(emt(), [Start(copper(), "train", 300.0)] * 2, plan)
    again = run_dynamics(emt(), [Start(copper(), "train", 300.0)], plan)
    np.testing.assert_allclose(one[0][1].positions, again[0][1].positions, rtol=0, atol=1e-12)
    assert np.abs(one[0][1].positions - one[1][1].positions).max() > 1e-3


def test_an_explosion_is_an_error():
    near = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.4]])
    with pytest.raises(DataError, match="exploded"):
        run_dynamics(emt(), [Start(near, "train", 300.0)], Plan(frames=1, time_step=20.0))


def test_frames_are_written_with_split_system_and_time(tmp_path):
    plan = Plan(frames=3, time_step=2.0, interval=2, equilibration=4)
    molecule = Start(Atoms("Cu2", positions=[[5, 5, 5], [5, 5, 7.3]]), "test", 300.0, system="dimer")
    starts = [Start(copper(), "train", 300.0), molecule]
    write_frames(tmp_path / "out.h5", starts, run_dynamics(emt(), starts, plan), plan, "a test")
    with DataFile(tmp_path / "out.h5") as data:
        assert data.splits.tolist() == ["train"] * 3 + ["test"] * 3
        assert data.systems.tolist() == ["Cu4"] * 3 + ["dimer"] * 3
        assert len(data.missing_labels()) == 6
        assert [data[k].time_fs for k in range(3)] == [12.0, 16.0, 20.0]
        assert data[0].pbc.all()
        assert data[0].cell[0, 0] == pytest.approx(3.61, abs=1e-6)
        assert np.abs(data[3].positions.mean(0)).max() < 1e-5
        assert data.provenance["plan"]["seed"] == 0


def test_the_whole_script_with_any_teacher(tmp_path, capsys):
    out = tmp_path / "cu.h5"
    starts = [Start(copper(), split, 300.0) for split in ("train", "val", "test")]
    arguments = (out, "ase:ase.calculators.emt:EMT", starts, Plan(frames=2, interval=1, equilibration=0))
    assert sampling.make_by_dynamics(*arguments) == 0
    assert "3 trajectories of 2 frames" in capsys.readouterr().out
    assert sampling.make_by_dynamics(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sampling.make_by_dynamics(*arguments, overwrite=True) == 0


# what each example starts from


def test_every_molecule_has_trajectories_of_each_split():
    starts = so3lr.starts()
    systems = {start.name for start in starts}
    assert len(systems) == 4
    for system in systems:
        assert {start.split for start in starts if start.name == system} == {"train", "val", "test"}


def test_a_deformed_crystal_has_a_symmetric_strain_within_bounds():
    ideal = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    random = np.random.default_rng(0)
    strains = []
    for _ in range(200):
        crystal = sampling.deformed(ideal, random, 0.03, (0.0, 0.0))
        strains.append(np.linalg.solve(ideal.cell.array, crystal.cell.array) - np.eye(3))
        np.testing.assert_allclose(strains[-1], strains[-1].T, atol=1e-12)
        np.testing.assert_allclose(crystal.get_scaled_positions(), ideal.get_scaled_positions(), atol=1e-9)
    assert 0.028 < np.abs(strains).max() <= 0.03
    # a uniform distribution on (−a, a) has a standard deviation of a / √3
    assert np.std([strain[0, 0] for strain in strains]) == pytest.approx(0.03 / np.sqrt(3), rel=0.15)
    moved = [sampling.deformed(ideal, random, 0.0, (0.1, 0.1)).positions - ideal.positions for _ in range(100)]
    assert np.std(moved) == pytest.approx(0.1, rel=0.05)
    np.testing.assert_allclose(ideal.cell.array, 5.6 * np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("draw", "elements", "shortest"), [(sevennet.alloy, {14, 32}, 1.5), (chgnet.halide, {3, 9, 11, 17}, 1.3)], ids=["sevennet", "chgnet"]
)
def test_random_crystals(draw, elements, shortest, tmp_path, capsys):
    counts = {"train": 60, "val": 5, "test": 10}
    assert sampling.make_at_random(tmp_path / "a.h5", draw, counts, 0, "crystals") == 0
    assert "75 structures" in capsys.readouterr().out
    with DataFile(tmp_path / "a.h5") as data:
        assert {split: data.splits.tolist().count(split) for split in counts} == counts
        assert set(data.systems.tolist()) == {"crystals"}
        structures = data.read(range(75))
    assert {int(z) for s in structures for z in s.atomic_numbers} == elements
    assert all(s.num_atoms == 8 and s.pbc.all() for s in structures)
    # pure crystals of either end and mixtures of several compositions
    shares = [int((s.atomic_numbers == max(elements)).sum()) for s in structures]
    assert min(shares) == 0
    assert max(shares) == (8 if len(elements) == 2 else 4)
    assert len(set(shares)) > 3
    pairs = np.triu_indices(8, 1)
    assert (
        min(Atoms(s.atomic_numbers, s.positions, cell=s.cell, pbc=True).get_all_distances(mic=True)[pairs].min() for s in structures)
        > shortest
    )
    assert len({s.positions.tobytes() for s in structures}) == 75
    assert sampling.make_at_random(tmp_path / "a.h5", draw, counts, 0, "crystals") == 2
    assert "exists" in capsys.readouterr().err
    again = np.random.default_rng(0)
    np.testing.assert_allclose(structures[0].positions, draw(again).positions, rtol=0, atol=1e-6)


def test_mixed_halides_are_neutral_rock_salt():
    random = np.random.default_rng(0)
    for atoms in (chgnet.halide(random) for _ in range(40)):
        cations = np.isin(atoms.numbers, (3, 11))
        assert cations.sum() == 4
        # the nearest neighbours of an ion are of the other kind
        nearest = atoms.get_all_distances(mic=True) + 100 * np.eye(8)
        assert (cations[nearest.argmin(1)] != cations).all()


# rMD17


def npz(path: Path, *, public: bool, frames: int = 40) -> dict[str, np.ndarray]:
    """A twin of rMD17's file in either layout."""
    random = np.random.default_rng(0)
    positions, energy, forces = random.normal(0, 2, (frames, 9, 3)), random.normal(-4200, 1, frames), random.normal(0, 1, (frames, 9, 3))
    numbers = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8)
    order = random.permutation(frames)
    split = {"train_01": order[:20], "test_01": order[20:35]}
    if public:
        np.savez(path, nuclear_charges=numbers, coords=positions, energies=energy / KCAL, forces=forces / KCAL, old_indices=order)
        for name, indices in split.items():
            np.savetxt(path.parent / f"index_{name}.csv", indices, fmt="%d")
    else:
        np.savez(path, atomic_numbers=numbers, positions=positions, energy=energy, forces=forces, **split)
    return {"positions": positions, "energy": energy, "forces": forces, **split}


@pytest.mark.parametrize("public", [True, False])
def test_rmd17_in_either_layout(public, tmp_path, capsys):
    truth = npz(tmp_path / "e.npz", public=public)
    out = tmp_path / "out" / "e.h5"
    options = ["--splits", str(tmp_path)] if public else []
    assert rmd17.main([str(tmp_path / "e.npz"), "--out", str(out), *options]) == 0
    assert "10 train, 10 val, 15 test" in capsys.readouterr().out
    with DataFile(out) as data:
        test = data.read(np.flatnonzero(data.splits == "test").tolist())
        assert data.licence == "CC0-1.0"
    for structure, k in zip(test, truth["test_01"], strict=True):
        assert structure.energy == pytest.approx(truth["energy"][k], abs=1e-9)
        np.testing.assert_allclose(structure.forces, truth["forces"][k], rtol=0, atol=1e-6)
        np.testing.assert_allclose(structure.positions, truth["positions"][k], rtol=0, atol=1e-6)


def test_rmd17_says_what_is_wrong(tmp_path, capsys):
    npz(tmp_path / "e.npz", public=True)
    assert rmd17.main([str(tmp_path / "e.npz"), "--out", str(tmp_path / "e.h5")]) == 2
    assert "--splits" in capsys.readouterr().err
    assert rmd17.main([str(tmp_path / "e.npz"), "--out", str(tmp_path / "e.h5"), "--splits", str(tmp_path / "no")]) == 2
    assert "index_train_01.csv" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="no npz of rMD17"):
        rmd17.make_file(tmp_path / "other.npz", tmp_path / "e.h5")
    np.savetxt(tmp_path / "index_test_01.csv", np.arange(40), fmt="%d")
    with pytest.raises(DataError, match="overlap"):
        rmd17.make_file(tmp_path / "e.npz", tmp_path / "e.h5", tmp_path)
    assert not (tmp_path / "e.h5").exists()


# configs


def teacher_for(folder: Path, numbers: set[int]) -> Path:
    """A small PaiNN with random weights that knows some elements."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=16, layers=1))
    model.know_elements(numbers)
    save_model(model, folder, {})
    return folder


def structures_of(name: str) -> list[Structure]:
    """A few structures like those of an example, without labels."""
    if name in ("sevennet", "chgnet"):
        random = np.random.default_rng(0)
        atoms = [(sevennet.alloy if name == "sevennet" else chgnet.halide)(random) for _ in range(4)]
    else:
        atoms = [start.atoms for start in so3lr.starts()[::5]]
    found = []
    for number in range(10):
        split = "train" if number < 6 else "val" if number < 8 else "test"
        for k, one in enumerate(atoms):
            moved = one.copy()
            moved.rattle(0.05, seed=10 * number + k)
            found.append(structure_of(moved, split=split, system=str(k)))
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_configs_are_comparable(path):
    config = load_config(path)
    names = [arm.name for arm in config.compare.arms]
    assert names[0] == "alone"
    arms = {arm.name: arm_config(config, arm, 0, Path("x")) for arm in config.compare.arms}
    assert not arms["alone"].teacher.path
    # the same student for the same number of steps, whatever it learns from
    assert len({(str(arm.model), arm.train.steps, arm.data.labelled, arm.data.batch_size) for arm in arms.values()}) == 1
    assert "n2n" in {term.kind for term in arms["features"].distill.terms}
    assert {term.kind for term in arms["outputs"].distill.terms} == {"energy", "forces"}
    assert arms["outputs"].data.unlabelled == arms["features"].data.unlabelled > 0


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_each_config_runs(path, tmp_path, capsys):
    structures = structures_of(path.parent.name)
    teacher = teacher_for(tmp_path / "teacher", {int(z) for s in structures for z in s.atomic_numbers})
    with DataWriter(tmp_path / "bare.h5", level_of_theory="none") as writer:
        writer.extend(structures)
    assert main(["label", str(tmp_path / "bare.h5"), str(tmp_path / "data.h5"), "--teacher", str(teacher)]) == 0
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for arm in tree["compare"]["arms"]:
        changed = arm.get("set", {})
        if "teacher.path" in changed:
            changed["teacher.path"] = str(teacher)
        if "data.unlabelled" in changed:
            changed["data.unlabelled"] = 10
    tree["compare"] |= {"seeds": [0], "bootstrap": 20}
    tree["data"] |= {"path": str(tmp_path / "data.h5"), "labelled": 6}
    tree["train"] |= {"steps": 3, "warmup": 1, "evaluate_every": 3, "checkpoint_every": 3}
    tree["run"] |= {"dir": str(tmp_path / "run"), "report": False, "inference_repeats": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    table = capsys.readouterr().out
    assert all(arm["title"].split(",")[0] in table for arm in tree["compare"]["arms"])
    student = tmp_path / "run" / "student.safetensors"
    assert speed.main([str(student), str(teacher), str(tmp_path / "data.h5"), "--structures", "2", "--repeats", "1"]) == 0
    assert "2 at once: teacher" in capsys.readouterr().out


def test_speed_is_measured_in_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "evaluate", lambda model, structures, batch_size: asked.append(model))
    costs = speed.compare(["teacher", "student"], [None] * 4, 1, 3)
    assert asked == ["teacher", "student"] * 4
    assert len(costs) == 2
    with pytest.raises(ConfigError, match="at least one"):
        speed.compare(["teacher"], [], 1, 3)


# with the packages themselves


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("package", "name", "atoms", "time_step"),
    [
        ("so3krates_torch", "so3lr", [start.atoms for start in so3lr.starts()[::5]], 0.5),
        ("sevenn", "sevennet", [sevennet.alloy(np.random.default_rng(0))], 2.0),
        ("chgnet", "chgnet", [chgnet.halide(np.random.default_rng(k)) for k in range(2)], 2.0),
    ],
)
def test_the_teacher_itself_drives(package, name, atoms, time_step):
    pytest.importorskip(package)
    teacher = load_teacher(name)
    frames = run_dynamics(teacher, [Start(one, "train", 300.0) for one in atoms], Plan(3, time_step, interval=2, equilibration=0))
    for one, trajectory in zip(atoms, frames, strict=True):
        moved = np.abs(trajectory[-1].positions - one.positions).max()
        assert 1e-3 < moved < 0.5
