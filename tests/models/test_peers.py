"""Our models are those of other packages: same weights, same energies, forces and gradients."""

import importlib.util

import pytest
import torch

pytest.importorskip("torch_geometric", reason="needs the extra `peers`")

from bench import bench_painn_schnetpack, bench_schnet_pyg
from bench.training_step import ethanol, training_step

needs_schnetpack = pytest.mark.skipif(importlib.util.find_spec("schnetpack") is None, reason="needs schnetpack, see `make peers`")
pytestmark = pytest.mark.peers


def pair(make_pair, molecules, width, layers, dtype, method="auto"):
    made = make_pair(ethanol(molecules, 1, dtype), width, layers, 1)
    made.ours.tables.method = method
    return made


PEERS = [
    pytest.param(bench_schnet_pyg.make_pair, id="schnet"),
    pytest.param(bench_painn_schnetpack.make_pair, id="painn", marks=needs_schnetpack),
]


@pytest.mark.parametrize("make_pair", PEERS)
@pytest.mark.parametrize(
    ("dtype", "method", "tolerance"),
    [
        (torch.float64, "exact", 1e-11),
        # what the finest tables of `LIMITS` leave: their slopes are 1e-9 off
        (torch.float64, "table", 3e-9),
        (torch.float32, "exact", 2e-5),
        (torch.float32, "table", 2e-5),
    ],
    ids=["float64-exact", "float64-table", "float32-exact", "float32-table"],
)
def test_energies_forces_and_weight_gradients_are_equal(make_pair, dtype, method, tolerance):
    made = pair(make_pair, 3, 16, 3, dtype, method)
    errors = made.errors()
    # all weights of theirs, and two more
    assert len(errors) == len(list(made.as_ours(dict(made.theirs.named_parameters())))) + 2
    assert max(errors.values()) < tolerance, errors


def test_a_difference_is_noticed():
    made = pair(bench_schnet_pyg.make_pair, 2, 8, 2, torch.float64)
    with torch.no_grad():
        made.ours.interactions[1].filter.first.weight[0, 12] += 1e-3
    assert max(made.errors().values()) > 1e-9
    assert torch.isfinite(training_step(made.ours_outputs, made.target, made.ours.parameters())[2])
