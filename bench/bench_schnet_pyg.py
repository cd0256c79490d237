"""A SchNet training step against ``torch_geometric.nn.models.SchNet``: energy, forces, and the backward pass of a loss on both.

Same weights, same molecules, same edges, same process; the two take turns. Before anything is timed, energies, forces and the
gradients of all weights are compared in the dtype of the benchmark: no agreement, no numbers.

Run: ``python -m bench.bench_schnet_pyg`` (needs the extra ``peers``).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.build import molecule
from torch import Tensor, nn

from bench.common import interleaved, provenance, write_json
from fastkd.data.batch import Batch
from fastkd.models.base import Potential
from fastkd.models.ocp import load_schnet, schnet_name
from fastkd.models.ocp_graph import ocp_graph

CUTOFF = 5.0  #: Å, wider than ethanol
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-11}  #: ‖ours − theirs‖ / ‖theirs‖; float32 sums of 1e4 terms, twice differentiated


class GivenEdges(nn.Module):
    """PyG's ``interaction_graph``: edges that were found before, lengths computed from positions."""

    def __init__(self, edge_index: Tensor) -> None:
        super().__init__()
        self.edge_index = edge_index

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        source, target = self.edge_index
        return self.edge_index, (positions[source] - positions[target]).norm(dim=-1)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models with the same weights, and what to feed them."""

    ours: Potential
    theirs: nn.Module
    batch: Batch
    target: Tensor  #: forces to fit, [n_atoms, 3]

    def ours_outputs(self) -> tuple[Tensor, Tensor]:
        """Energies [n_graphs] and forces [n_atoms, 3]."""
        prediction = self.ours(self.batch)
        assert prediction.forces is not None
        return prediction.energy, prediction.forces

    def theirs_outputs(self) -> tuple[Tensor, Tensor]:
        """The same by torch_geometric."""
        positions = self.batch.positions.detach().requires_grad_()
        energy = self.theirs(self.batch.atomic_numbers, positions, self.batch.graph_index).squeeze(-1)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -gradient

    def errors(self) -> dict[str, float]:
        """Relative error of energies, forces and the gradient of every weight, by torch_geometric's names."""
        ours = training_step(self.ours_outputs, self.target, self.ours.parameters())
        theirs = training_step(self.theirs_outputs, self.target, self.theirs.parameters())
        mine = {name: parameter.grad for name, parameter in self.ours.named_parameters()}
        errors = {"energy": _relative(ours[0], theirs[0]), "forces": _relative(ours[1], theirs[1])}
        for name, parameter in self.theirs.named_parameters():
            gradient = mine[schnet_name(name)]
            assert parameter.grad is not None
            assert gradient is not None
            errors[name] = _relative(gradient[: parameter.shape[0]], parameter.grad)  # our table of elements is longer
        return errors


def training_step(
    outputs: Callable[[], tuple[Tensor, Tensor]], target: Tensor, parameters: Iterable[nn.Parameter]
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies, forces, and the loss mean E + 100 mean ‖F − target‖, after its backward pass into the weights."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    energy, forces = outputs()
    loss = energy.mean() + 100 * (forces - target).norm(dim=1).mean()
    loss.backward()
    return energy.detach(), forces.detach(), loss.detach()


def make_pair(*, molecules: int, width: int, layers: int, radial: int, seed: int, dtype: torch.dtype) -> Pair:
    """Both models on ``molecules`` distorted ethanol molecules."""
    from torch_geometric.nn.models import SchNet as PyGSchNet

    batch = ethanol(molecules, seed, dtype)
    csr = batch.graph(CUTOFF).csr
    torch.manual_seed(seed)
    theirs = PyGSchNet(width, width, layers, radial, CUTOFF, interaction_graph=GivenEdges(torch.stack([csr.edge_src, csr.edge_dst])))
    theirs = theirs.to(dtype)
    # its constants are rounded to float32 when the module is made, ours never are
    for module in theirs.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    centres = torch.linspace(0, CUTOFF, radial, dtype=torch.float64)
    theirs.distance_expansion.offset = centres.to(dtype)
    theirs.distance_expansion.coeff = -0.5 / (centres[1] - centres[0]).item() ** 2
    config = {"hidden_channels": width, "num_filters": width, "num_interactions": layers, "num_gaussians": radial, "cutoff": CUTOFF}
    ours = load_schnet(config, theirs.state_dict()).model.train()
    return Pair(ours, theirs, batch, 0.1 * torch.randn(batch.num_atoms, 3, dtype=dtype))


def ethanol(molecules: int, seed: int, dtype: torch.dtype) -> Batch:
    """Ethanol molecules with every atom displaced by about 0.1 Å, all atoms neighbours: 9 atoms and 72 edges each."""
    atoms = molecule("CH3CH2OH")
    count = len(atoms)
    generator = torch.Generator().manual_seed(seed)
    still = torch.from_numpy(atoms.positions).repeat(molecules, 1)
    positions = still + 0.1 * torch.randn(still.shape, generator=generator, dtype=torch.float64)
    natoms = torch.full((molecules,), count)
    box = 60 * torch.eye(3, dtype=torch.float64).repeat(molecules, 1, 1)
    return Batch(
        atomic_numbers=torch.from_numpy(atoms.numbers).long().repeat(molecules),
        positions=positions.to(dtype),
        atom_ptr=torch.arange(molecules + 1) * count,
        graph_index=torch.arange(molecules).repeat_interleave(count),
        cell=torch.zeros(molecules, 3, 3, dtype=dtype),
        pbc=torch.zeros(molecules, 3, dtype=torch.bool),
        energy=torch.zeros(molecules, dtype=torch.float64),
        forces=torch.zeros(molecules * count, 3, dtype=dtype),
        labelled=torch.ones(molecules, dtype=torch.bool),
        structure_index=torch.arange(molecules),
        graphs={CUTOFF: ocp_graph(positions, box, natoms, CUTOFF, 0, symmetric=True)},
    )


def _relative(got: Tensor, want: Tensor) -> float:
    size = want.double().norm().item()
    difference = (got.double() - want.double()).norm().item()
    return difference / size if size else difference


def measure(pair: Pair, *, threads: int, repeats: int) -> dict[str, Any]:
    """One row of the table; torch's number of threads is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timings = interleaved(
            {
                "torch_geometric": lambda: training_step(pair.theirs_outputs, pair.target, pair.theirs.parameters()),
                "fastkd": lambda: training_step(pair.ours_outputs, pair.target, pair.ours.parameters()),
            },
            repeats=repeats,
        )
    finally:
        torch.set_num_threads(before)
    return {"threads": threads, **timings, "ratio": timings["torch_geometric"].median / timings["fastkd"].median}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=32, help="ethanol molecules per batch")
    parser.add_argument("--width", type=int, default=128, help="features and filters")
    parser.add_argument("--layers", type=int, default=6, help="interaction blocks")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each model")
    parser.add_argument("--seed", type=int, default=0, help="of weights and displacements")
    parser.add_argument("--json", type=Path, default=None, help="write the result here")
    args = parser.parse_args()

    pair = make_pair(molecules=args.molecules, width=args.width, layers=args.layers, radial=50, seed=args.seed, dtype=torch.float32)
    errors = pair.errors()
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > LIMITS[torch.float32]:
        print(f"{worst} differs by {errors[worst]:.1e}, more than {LIMITS[torch.float32]:.0e}: nothing is timed", file=sys.stderr)
        return 1
    graph, origin = pair.batch.graph(CUTOFF), provenance(args.seed)
    print(f"SchNet {args.width}x{args.layers}, float32, {args.molecules} ethanol, {graph.num_edges} edges, {len(graph.pair_edge)} pairs")
    print(f"{origin['device']}, {origin['cores']} cores, torch {origin['versions']['torch']}, commit {origin['commit']}, seed {args.seed}")
    print(f"largest relative error of energies, forces and weight gradients: {errors[worst]:.1e} ({worst})")
    print(f"{'threads':>7}  {'torch_geometric, median (20 % to 80 %)':>40}  {'fastkd':>32}  {'ratio':>6}")
    rows = []
    for threads in args.threads:
        row = measure(pair, threads=threads, repeats=args.repeats)
        rows.append(row)
        print(f"{threads:>7}  {row['torch_geometric']!s:>40}  {row['fastkd']!s:>32}  {row['ratio']:5.2f}x", flush=True)
    write_json(args.json, "schnet_pyg", rows, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
