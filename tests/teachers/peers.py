"""What the tests with real packages share: structures rounded to float32, so that both sides see the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from fastkd.cli import main
from fastkd.data import DataWriter, Structure
from fastkd.data.batching import Pieces, collate
from fastkd.models.factory import read_header
from fastkd.teachers import BaseTeacher

from .test_engine import config

LABELS = frozenset({"energy", "forces"})


def rattled(atoms: Atoms, seed: int = 0, by: float = 0.05) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(by, seed=seed)
    atoms.positions = atoms.positions.astype(np.float32)
    atoms.cell[:] = np.array(atoms.cell).astype(np.float32)
    return atoms


def structure_of(atoms: Atoms, **more) -> Structure:
    periodic = bool(atoms.pbc.any())
    return Structure(atoms.numbers, atoms.positions, np.array(atoms.cell) if periodic else None, atoms.pbc if periodic else None, **more)


def batch_of(teacher: BaseTeacher, structures: list[Atoms]):
    cutoffs = () if teacher.cutoff is None else (teacher.cutoff,)
    return collate([Pieces.of(structure_of(atoms), k, cutoffs) for k, atoms in enumerate(structures)], torch.float64)


def agrees_with_calculator(teacher: BaseTeacher, calculator, structures: list[Atoms], *, energy: float, forces: float) -> None:
    """Batched outputs against the package's own calculator, one structure at a time; tolerances in eV/atom and eV/Å."""
    got = teacher(batch_of(teacher, structures), LABELS)
    energies, slopes = [], []
    for atoms in structures:
        atoms.calc = calculator
        energies.append(float(atoms.get_potential_energy()) / len(atoms))
        slopes.append(np.array(atoms.get_forces()))
    sizes = np.array([len(atoms) for atoms in structures])
    assert np.abs(np.concatenate(slopes)).max() > 0.1
    np.testing.assert_allclose(got.energy.numpy() / sizes, energies, rtol=0, atol=energy)
    np.testing.assert_allclose(got.forces.double().numpy(), np.concatenate(slopes), rtol=0, atol=forces)


def energies_of_atoms_add_up(teacher: BaseTeacher, structures: list[Atoms], tolerance: float) -> None:
    batch = batch_of(teacher, structures)
    got = teacher(batch, frozenset({"energy", "atom_energy"}))
    total = got.atom_energy.double() + teacher.reference_energy[batch.atomic_numbers]
    summed = torch.zeros(batch.num_graphs, dtype=torch.float64).index_add(0, batch.graph_index, total)
    torch.testing.assert_close(summed, got.energy, rtol=0, atol=tolerance)


def a_student_learns(
    tmp_path: Path, teacher: str, structures: list[Atoms], terms: list[str], options: dict | None = None, cutoff: float = 4.0
) -> dict:
    """Label a file with the teacher, distil for a few steps, live and cached; the teacher's card in the student's."""
    source, data = tmp_path / "bare.h5", tmp_path / "data.h5"
    with DataWriter(source, level_of_theory="none") as writer:
        for number in range(8):
            for k, atoms in enumerate(structures):
                split = "train" if number < 4 else "val" if number < 6 else "test"
                writer.append(structure_of(rattled(atoms, seed=number), split=split, system=str(k)))
    pairs = [f"{key}={value}" for key, value in (options or {}).items()]
    assert main(["label", str(source), str(data), "--teacher", teacher, "--options", *pairs]) == 0
    for cache in ("memory", "none"):
        folder = tmp_path / cache
        folder.mkdir()
        setting = {"path": teacher, "cache": cache, "options": options or {}}
        distil = {"terms": [{"kind": kind} for kind in terms]}
        path = config(folder, data, teacher=setting, distill=distil, model={"cutoff": cutoff})
        assert main(["train", str(path), "train.steps=3", "train.evaluate_every=3"]) == 0
    return read_header(tmp_path / "none" / "run")["provenance"]["teacher"]
