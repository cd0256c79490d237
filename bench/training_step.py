"""A model's training step against the same model of another package: energy, forces, and the backward pass of a loss on both.

Same weights, same structures, same edges, same process; the two take turns. Before anything is timed, energies, forces and the gradients of
all weights are compared in the dtype of the benchmark: no agreement, no numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.common import interleaved, provenance, write_json
from bench.models.shapes import SHAPES, frames
from fastkd.data.batch import Batch
from fastkd.models.base import Potential

CUTOFF = 5.0  #: Å, wider than ethanol
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-11}  #: ‖ours − theirs‖ / ‖theirs‖; float32 sums of 1e4 terms, twice differentiated


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models with the same weights, and what to feed them."""

    ours: Potential
    theirs: nn.Module
    theirs_energy: Callable[[Tensor], Tensor]  #: positions → energies [n_graphs]
    as_ours: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  #: their weights, or gradients, by our names and in our order
    batch: Batch
    target: Tensor  #: forces to fit, [n_atoms, 3]
    theirs_direct: Callable[[], tuple[Tensor, Tensor]] | None = None  #: energies and forces of a model with a head for forces
    own_graphs: bool = False  #: both models cut graphs of their own out of the batch's; then neither may keep them from step to step

    def ours_outputs(self) -> tuple[Tensor, Tensor]:
        """Energies [n_graphs] and forces [n_atoms, 3]."""
        batch = self.batch
        if self.own_graphs:
            batch = replace(batch, graphs={cutoff: replace(graph) for cutoff, graph in batch.graphs.items()})
        prediction = self.ours(batch)
        assert prediction.forces is not None
        return prediction.energy, prediction.forces

    def theirs_outputs(self, *, create_graph: bool = True) -> tuple[Tensor, Tensor]:
        """The same by the other package; without ``create_graph``, forces cannot be differentiated again."""
        if self.theirs_direct is not None:
            return self.theirs_direct()
        positions = self.batch.positions.detach().requires_grad_()
        energy = self.theirs_energy(positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)
        return energy, -gradient

    def errors(self) -> dict[str, float]:
        """Relative error of energies, forces and the gradient of every weight, by our names."""
        ours = training_step(self.ours_outputs, self.target, self.ours.parameters())
        theirs = training_step(self.theirs_outputs, self.target, self.theirs.parameters())
        errors = {"energy": relative(ours[0], theirs[0]), "forces": relative(ours[1], theirs[1])}
        mine = dict(self.ours.named_parameters())
        for name, gradient in self.as_ours(gradients(self.theirs)).items():
            found = mine[name].grad
            assert found is not None
            errors[name] = relative(found[: gradient.shape[0]], gradient)  # our table of elements may be longer
        return errors


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all weights that have one."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


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


def relative(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖."""
    size = want.double().norm().item()
    difference = (got.double() - want.double()).norm().item()
    return difference / size if size else difference


# Structures


def ethanol(molecules: int, seed: int, dtype: torch.dtype) -> Batch:
    """Ethanol molecules with every atom displaced by about 0.1 Å, all atoms neighbours: 9 atoms and 72 edges each."""
    return SHAPES["ethanol"].structures(seed, molecules).batch(CUTOFF, dtype)


# The command

MakePair = Callable[[Batch, int, int, int], Pair]  #: batch, width, layers, seed


def measure(pair: Pair, peer: str, *, threads: int, repeats: int) -> dict[str, Any]:
    """One row of the table; torch's number of threads is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timings = interleaved(
            {
                peer: lambda: training_step(pair.theirs_outputs, pair.target, pair.theirs.parameters()),
                "fastkd": lambda: training_step(pair.ours_outputs, pair.target, pair.ours.parameters()),
            },
            repeats=repeats,
        )
    finally:
        torch.set_num_threads(before)
    return {"threads": threads, **timings, "ratio": timings[peer].median / timings["fastkd"].median}


def command(name: str, model: str, peer: str, layers: int, make_pair: MakePair, description: str | None) -> int:
    """Compare, measure and print; 1 if the two models do not agree."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=32, help="molecules per batch")
    parser.add_argument("--frames", type=Path, default=None, help="an .npz file with frames of a molecule to use instead of ethanol")
    parser.add_argument("--width", type=int, default=128, help="features (and filters)")
    parser.add_argument("--layers", type=int, default=layers, help="interaction blocks")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each model")
    parser.add_argument("--method", choices=["auto", "table", "exact"], default="auto", help="how our filters are made")
    parser.add_argument("--seed", type=int, default=0, help="of weights and displacements")
    parser.add_argument("--json", type=Path, default=None, help="write the result here")
    args = parser.parse_args()

    dtype = torch.float32
    shape = SHAPES["ethanol"] if args.frames is None else frames(args.frames, args.molecules)
    batch = shape.structures(args.seed, args.molecules).batch(CUTOFF, dtype)
    pair = make_pair(batch, args.width, args.layers, args.seed)
    assert pair.ours.tables is not None
    pair.ours.tables.method = args.method
    errors = pair.errors()
    worst = max(errors, key=lambda key: errors[key])
    if errors[worst] > LIMITS[dtype]:
        print(f"{worst} differs by {errors[worst]:.1e}, more than {LIMITS[dtype]:.0e}: nothing is timed", file=sys.stderr)
        return 1
    graph, origin = batch.graph(CUTOFF), provenance(args.seed)
    system = f"{args.molecules} × {'ethanol' if args.frames is None else args.frames.stem}"
    print(f"{model} {args.width}x{args.layers}, float32, {system}: {batch.num_atoms} atoms, {graph.num_edges} edges, filters {args.method}")
    print(f"{origin['device']}, {origin['cores']} cores, torch {origin['versions']['torch']}, commit {origin['commit']}, seed {args.seed}")
    print(f"largest relative error of energies, forces and weight gradients: {errors[worst]:.1e} ({worst})")
    print(f"{'threads':>7}  {peer + ', median (20 % to 80 %)':>40}  {'fastkd':>32}  {'ratio':>6}")
    rows = []
    for threads in args.threads:
        row = measure(pair, peer, threads=threads, repeats=args.repeats)
        rows.append(
            {"model": f"{model} {args.width}x{args.layers}", "system": system, "filters": args.method, "error": errors[worst], **row}
        )
        print(f"{threads:>7}  {row[peer]!s:>40}  {row['fastkd']!s:>32}  {row['ratio']:5.2f}x", flush=True)
    write_json(args.json, name, rows, args.seed)
    return 0
