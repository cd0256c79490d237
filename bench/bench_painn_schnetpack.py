"""A PaiNN training step against ``schnetpack.representation.PaiNN`` with the same energy head on both; see `bench.training_step`.

Run: ``python -m bench.bench_painn_schnetpack`` (needs schnetpack, see ``make peers``).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.training_step import CUTOFF, Pair, command
from fastkd.data.batch import Batch
from fastkd.models.base import MAX_ATOMIC_NUMBER
from fastkd.models.painn import PaiNN, PaiNNOptions

RADIAL = 20


def schnetpack(module: str) -> Any:
    """A module of schnetpack, whose ``__init__`` would ask for its trainers, which are not needed here."""
    if "schnetpack" not in sys.modules:
        spec = importlib.util.find_spec("schnetpack")
        if spec is None or spec.submodule_search_locations is None:
            raise SystemExit("this benchmark needs schnetpack: make peers")
        package = ModuleType("schnetpack")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["schnetpack"] = package
    return importlib.import_module(f"schnetpack.{module}")


class SchNetPackPaiNN(nn.Module):
    """The representation and an energy per atom."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        parts = schnetpack("nn")
        basis, cutoff = parts.GaussianRBF(n_rbf=RADIAL, cutoff=CUTOFF), parts.CosineCutoff(CUTOFF)
        embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, width)
        self.representation = schnetpack("representation").PaiNN(width, layers, basis, cutoff, nuclear_embedding=embedding)
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))

    def forward(self, numbers: Tensor, edge_vector: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Energies of atoms, [n_atoms]."""
        inputs = {"_atomic_numbers": numbers, "_Rij": edge_vector, "_idx_i": target, "_idx_j": source}
        energies: Tensor = self.head(self.representation(inputs)["scalar_representation"])
        return energies.squeeze(-1)


#: Their names, as patterns, and ours.
_NAMES = (
    (r"representation\.embedding\.weight", r"embedding.weight"),
    (r"representation\.interactions\.(\d+)\.interatomic_context_net\.0\.(\w+)", r"messages.\1.context.0.\2"),
    (r"representation\.interactions\.(\d+)\.interatomic_context_net\.1\.(\w+)", r"messages.\1.context.2.\2"),
    (r"representation\.mixing\.(\d+)\.mu_channel_mix\.weight", r"updates.\1.vector_mix.weight"),
    (r"representation\.mixing\.(\d+)\.intraatomic_context_net\.0\.(\w+)", r"updates.\1.context.0.\2"),
    (r"representation\.mixing\.(\d+)\.intraatomic_context_net\.1\.(\w+)", r"updates.\1.context.2.\2"),
    (r"head\.(\d)\.(\w+)", r"energy_head.\1.\2"),
)


def as_ours(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Their weights, or gradients, by our names; filters of all blocks are one layer there, and some blocks have another order."""
    named = {}
    for name, weight in weights.items():
        if name.startswith("representation.filter_net."):
            kind = name.rsplit(".", 1)[1]
            named.update({f"messages.{number}.filter.{kind}": part for number, part in enumerate(weight.chunk(layers))})
        else:
            pattern, ours = next(pair for pair in _NAMES if re.fullmatch(pair[0], name))
            named[re.sub(pattern, ours, name)] = _reordered(name, weight)
    return named


def _reordered(name: str, weight: Tensor) -> Tensor:
    if "mu_channel_mix" in name:
        return torch.cat(weight.chunk(2)[::-1])
    if "intraatomic_context_net.1" in name:
        scalar, vector, dot = weight.chunk(3)
        return torch.cat([scalar, dot, vector])
    return weight


def make_pair(batch: Batch, width: int, layers: int, seed: int) -> Pair:
    """Both models with the same weights."""
    dtype, device, csr = batch.positions.dtype, batch.positions.device, batch.graph(CUTOFF).csr
    torch.manual_seed(seed)
    theirs = SchNetPackPaiNN(width, layers).to(device, dtype)
    # its constants are rounded to float32 when the module is made, ours never are
    basis, centres = theirs.representation.radial_basis, torch.linspace(0, CUTOFF, RADIAL, dtype=torch.float64)
    basis.offsets, basis.widths = centres.to(dtype), torch.full_like(centres, centres[1].item()).to(dtype)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    ours = PaiNN(PaiNNOptions(width=width, layers=layers, radial=RADIAL, cutoff=CUTOFF, basis="gaussian", envelope="cosine"))
    ours = ours.to(device, dtype)
    with torch.no_grad():
        for name, weight in as_ours(dict(theirs.named_parameters()), layers).items():
            ours.get_parameter(name).copy_(weight)
    source, target = csr.edge_src, csr.edge_dst

    def energy(positions: Tensor) -> Tensor:
        energies = theirs(batch.atomic_numbers, positions[source] - positions[target], source, target)
        return energies.new_zeros(batch.num_graphs).index_add(0, batch.graph_index, energies)

    return Pair(
        ours, theirs, energy, lambda weights: as_ours(weights, layers), batch, 0.1 * torch.randn(batch.num_atoms, 3, dtype=dtype).to(device)
    )


def main() -> int:
    return command("painn_schnetpack", "PaiNN", "schnetpack", 3, make_pair, __doc__)


if __name__ == "__main__":
    sys.exit(main())
