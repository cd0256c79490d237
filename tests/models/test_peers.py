"""Our SchNet is PyTorch Geometric's: same weights, same energies, forces and gradients."""

import pytest
import torch

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")

from bench.bench_schnet_pyg import make_pair, training_step

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_energies_forces_and_weight_gradients_are_equal(dtype):
    pair = make_pair(molecules=3, width=16, layers=3, radial=12, seed=1, dtype=dtype)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    errors = pair.errors()
    assert set(errors) >= {"energy", "forces", "embedding.weight", "interactions.2.mlp.0.weight", "lin2.bias"}
    assert max(errors.values()) < tolerance, errors


def test_a_difference_is_noticed():
    pair = make_pair(molecules=2, width=8, layers=2, radial=6, seed=1, dtype=torch.float64)
    with torch.no_grad():
        pair.ours.interactions[1].filter.first.weight[0, 0] += 1e-3
    assert max(pair.errors().values()) > 1e-9
    assert torch.isfinite(training_step(pair.ours_outputs, pair.target, pair.ours.parameters())[2])
