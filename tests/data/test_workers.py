"""Reading from several processes: forked, spawned, and as workers of a DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.data import DataFile, StructureDataset

from .common import molecule, write

SIZE = 200


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("workers") / "data.h5", [molecule(n, atoms=3 + n % 7) for n in range(SIZE)])


def read_all(data: DataFile, seed: int, results: multiprocessing.SimpleQueue) -> None:
    order = np.random.default_rng(seed).permutation(SIZE).tolist()
    found = [(number, float(data[number].energy), float(data[number].positions.sum())) for number in order]
    results.put((os.getpid() == data._pid, found))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_handle_never_crosses_a_process(path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    context = multiprocessing.get_context(method)
    data = DataFile(path)
    expected = {n: (float(s.energy), float(s.positions.sum())) for n, s in enumerate(data.read(range(SIZE)))}
    queues = [context.SimpleQueue() for _ in range(2)]
    workers = [context.Process(target=read_all, args=(data, seed, queue)) for seed, queue in enumerate(queues)]
    for worker in workers:
        worker.start()
    # the parent reads at the same time
    for number in np.random.default_rng(9).permutation(SIZE):
        assert float(data[int(number)].energy) == expected[int(number)][0]
    for queue, worker in zip(queues, workers, strict=True):
        own_handle, found = queue.get()
        assert own_handle
        worker.join(60)
        assert worker.exitcode == 0
        assert {n: values for n, *values in found} == {n: list(values) for n, values in expected.items()}
    assert data[0].energy == expected[0][0]


def test_pickling_leaves_the_handle_behind(path: Path) -> None:
    data = DataFile(path)
    copy = pickle.loads(pickle.dumps(data))
    assert copy._file is None
    assert copy[3].energy == data[3].energy
    data.close()
    assert data[3].energy == copy[3].energy


class Loaded(torch.utils.data.Dataset):
    def __init__(self, dataset: StructureDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset) // 10

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.dataset.batch(range(10 * number, 10 * number + 10)).energy


def test_workers_of_a_loader(path: Path) -> None:
    data = DataFile(path)
    expected = [s.energy for s in data.read(range(SIZE))]
    dataset = StructureDataset(data, (5.0,))
    dataset.batch([0])
    loader = torch.utils.data.DataLoader(Loaded(dataset), batch_size=None, num_workers=2)
    assert torch.cat(list(loader)).tolist() == expected
