"""Run folders made up of random numbers with a chosen size of error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastkd.analysis import CurveWriter, Predictions, Run, RunSummary
from fastkd.analysis.runs import CURVE_UNITS

NUMBERS = ([8, 1, 1], [6, 1, 1, 1, 1], [6, 8])


def make_predictions(energy_error: float, forces_error: float, seed: int = 0, structures: int = 40) -> Predictions:
    """Labels that are the same for every seed, predictions whose mean absolute errors are about what is asked for."""
    labels, noise = np.random.default_rng(99), np.random.default_rng(seed)
    kinds = [NUMBERS[i % len(NUMBERS)] for i in range(structures)]
    natoms = np.array([len(kind) for kind in kinds])
    energy = -100.0 * natoms + labels.normal(size=structures)
    forces = labels.normal(size=(natoms.sum(), 3))
    scale = np.sqrt(np.pi / 2)  # mean |x| of a standard normal number is √(2/π)
    return Predictions(
        structure_index=np.arange(structures) * 3 + 5,
        natoms=natoms,
        energy=energy,
        energy_pred=energy + scale * energy_error * natoms * noise.normal(size=structures),
        forces=forces,
        forces_pred=forces + scale * forces_error * noise.normal(size=forces.shape),
        atomic_numbers=np.concatenate([np.array(kind) for kind in kinds]),
    )


def make_run(folder: Path, name: str, order: int, *, role: str = "student", seed: int = 0, errors=(0.01, 0.1), **summary: object) -> Run:
    """Write a run folder and read it back."""
    folder.mkdir(parents=True)
    predictions = make_predictions(*errors, seed=1000 * order + seed)
    predictions.save(folder)
    fields = {"title": f"the {name}", "parameters": 1234 + order, "atoms_per_second": 5000.0 + seed, **summary}
    RunSummary(name=name, role=role, seed=seed, order=order, test=predictions.metrics(), versions={"torch": "2.13.0"}, **fields).save(
        folder
    )
    if role == "student":
        writer = CurveWriter(folder, CURVE_UNITS)
        for step in (0, 100, 200):
            decay = float(np.exp(-step / 100))
            row = {"step": step, "seconds": step / 10, "loss_total": 3 * decay}
            writer.append({**row, "val_energy_mae": 1000 * errors[0] * (1 + decay), "val_forces_mae": 1000 * errors[1] * (1 + decay)})
    return Run.load(folder)


def make_comparison(root: Path) -> Path:
    """A teacher, three arms, three seeds each."""
    make_run(root / "teacher", "teacher", 0, role="teacher", errors=(0.002, 0.02), parameters=654_321)
    for order, (name, errors) in enumerate({"alone": (0.010, 0.10), "distilled": (0.008, 0.08), "unlabelled": (0.004, 0.04)}.items()):
        for seed in range(3):
            make_run(root / name / f"seed{seed}", name, order, seed=seed, errors=errors)
    (root / "config.yaml").write_text("model:\n  width: 32  # <features>\n", encoding="utf-8")
    (root / "data_card.txt").write_text("3 molecules, GFN2-xTB\n", encoding="utf-8")
    return root
