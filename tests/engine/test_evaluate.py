from __future__ import annotations

import pytest
import torch

from fastkd.engine.evaluate import inference_rate, predict
from fastkd.engine.threads import choose_threads, thread_count
from fastkd.errors import DataError

from .synthetic import ATOMS, make_batch, seeded_model


def test_predictions_do_not_depend_on_batching() -> None:
    model = seeded_model(8, 0).double().train()
    model.reference_energy[6] = -5.0
    whole = predict(model, [make_batch(torch.arange(4), dtype=torch.float64)])
    parts = predict(model, [make_batch(torch.arange(n, n + 2), dtype=torch.float64) for n in (0, 2)])
    assert model.training
    assert whole.natoms.tolist() == [ATOMS] * 4
    assert whole.structure_index.tolist() == parts.structure_index.tolist() == [0, 1, 2, 3]
    assert abs(whole.energy_pred - parts.energy_pred).max() < 1e-12
    assert abs(whole.forces_pred - parts.forces_pred).max() < 1e-12
    metrics = whole.metrics()
    assert metrics.energy_mae == pytest.approx(float(abs(whole.energy_pred - whole.energy).mean()))
    assert whole.energy_pred.dtype == whole.forces_pred.dtype == "float64"


def test_no_structures_and_missing_labels_are_errors() -> None:
    model = seeded_model(8, 0)
    with pytest.raises(DataError, match="no structure to evaluate on"):
        predict(model, [])
    with pytest.raises(DataError, match="structure 1 has no labels"):
        predict(model, [make_batch(torch.arange(2), torch.tensor([True, False]))])


def test_inference_rate_counts_atoms() -> None:
    assert inference_rate(seeded_model(8, 0), [make_batch(torch.arange(2))], repeats=2) > 0


def test_threads_are_chosen_by_time_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with thread_count(1):
        assert torch.get_num_threads() == 1
        assert choose_threads(lambda: None) == (1, "threads: 1 (all there are)")
    assert torch.get_num_threads() == before
    # a clock that runs faster with one thread, and one that does not
    for cost in ({1: 1.0, 2: 3.0}, {1: 3.0, 2: 1.0}):
        now = [0.0]
        monkeypatch.setattr("fastkd.engine.threads.time.perf_counter", lambda now=now: now[0])

        def work(now: list[float] = now, cost: dict[int, float] = cost) -> None:
            now[0] += cost[torch.get_num_threads()]

        with thread_count(2):
            chosen, message = choose_threads(work)
        assert chosen == min(cost, key=cost.__getitem__)
        assert "1000.0 ms" in message
        assert "3000.0 ms" in message
