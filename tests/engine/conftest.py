"""A small data file and a small teacher on disk, for tests that go through the whole engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure
from fastkd.data.writer import DataWriter
from fastkd.models import save_model

from .synthetic import make_batch, seeded_model


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training, 6 validation and 6 test structures of one system."""
    path = tmp_path_factory.mktemp("data") / "pentagons.h5"
    with DataWriter(path, level_of_theory="harmonic pairs") as writer:
        for number in range(36):
            batch = make_batch(torch.tensor([number]), dtype=torch.float64)
            writer.append(
                Structure(
                    atomic_numbers=batch.atomic_numbers.numpy(),
                    positions=batch.positions.numpy(),
                    energy=float(batch.energy[0]),
                    forces=batch.forces.numpy().astype(np.float32),
                    split="train" if number < 24 else "val" if number < 30 else "test",
                    system="pentagon",
                )
            )
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained PaiNN: what it says is nonsense, but always the same."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(seeded_model(12, 99), folder)
    return folder


@pytest.fixture(scope="session")
def teacher_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, seed, width in (("big", 99, 12), ("small", 98, 10), ("other", 97, 12)):
        made[name] = tmp_path_factory.mktemp(name)
        save_model(seeded_model(width, seed), made[name])
    return made


@pytest.fixture(scope="session")
def synthetic_file(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten structures that are in the data too, under other numbers."""
    path = tmp_path_factory.mktemp("synthetic") / "made.h5"
    with DataFile(data_file) as source, DataWriter(path, level_of_theory="teacher") as writer:
        writer.extend(source.read(list(range(20, 30))))
    return path


@pytest.fixture
def config_file(tmp_path: Path, data_file: Path) -> Path:
    """A single run of 12 steps in ``tmp_path/run``."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"run: {{dir: '{tmp_path / 'run'}', threads: 1, inference_repeats: 1, device: cpu, report: false}}\n"
        f"data: {{path: '{data_file}', batch_size: 4, labelled: 8}}\n"
        "model: {width: 8, layers: 2, radial: 6}\n"
        "train: {steps: 12, warmup: 2, evaluate_every: 3, checkpoint_every: 4, learning_rate: 1e-2}\n"
        "compare: {bootstrap: 20}\n"
    )
    return path
