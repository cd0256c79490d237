"""A SchNet training step against ``torch_geometric.nn.models.SchNet``; see `bench.training_step`.

Run: ``python -m bench.bench_schnet_pyg`` (needs the extra ``peers``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.training_step import CUTOFF, Pair, command
from fastkd.data.batch import Batch
from fastkd.models.ocp import load_schnet, schnet_name

RADIAL = 50


class GivenEdges(nn.Module):
    """PyG's ``interaction_graph``: edges that were found before, lengths computed from positions."""

    def __init__(self, edge_index: Tensor) -> None:
        super().__init__()
        self.edge_index = edge_index

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        source, target = self.edge_index
        return self.edge_index, (positions[source] - positions[target]).norm(dim=-1)


def make_pair(batch: Batch, width: int, layers: int, seed: int) -> Pair:
    """Both models with the same weights."""
    from torch_geometric.nn.models import SchNet as PyGSchNet

    dtype, device, csr = batch.positions.dtype, batch.positions.device, batch.graph(CUTOFF).csr
    torch.manual_seed(seed)
    theirs = PyGSchNet(width, width, layers, RADIAL, CUTOFF, interaction_graph=GivenEdges(torch.stack([csr.edge_src, csr.edge_dst])))
    theirs = theirs.to(device, dtype)
    # its constants are rounded to float32 when the module is made, ours never are
    for module in theirs.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    centres = torch.linspace(0, CUTOFF, RADIAL, dtype=torch.float64, device=device)
    theirs.distance_expansion.offset = centres.to(dtype)
    theirs.distance_expansion.coeff = -0.5 / (centres[1] - centres[0]).item() ** 2
    config = {"hidden_channels": width, "num_filters": width, "num_interactions": layers, "num_gaussians": RADIAL, "cutoff": CUTOFF}
    ours = load_schnet(config, theirs.state_dict()).model.to(device).train()

    def energy(positions: Tensor) -> Tensor:
        total: Tensor = theirs(batch.atomic_numbers, positions, batch.graph_index)
        return total.squeeze(-1)

    def as_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {schnet_name(name): weight for name, weight in weights.items()}

    return Pair(ours, theirs, energy, as_ours, batch, 0.1 * torch.randn(batch.num_atoms, 3, dtype=dtype).to(device))


def main() -> int:
    return command("schnet_pyg", "SchNet", "torch_geometric", 6, make_pair, __doc__)


if __name__ == "__main__":
    sys.exit(main())
