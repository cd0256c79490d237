"""A training step of other packages' models, plain and after `fastkd_kernels.compat.patch`.

Energy, forces, and the backward pass of a loss on both, of two copies of one model that take turns. Before anything is timed, energies, forces and
the gradients of all weights are compared in float64 at the same size: no agreement, no numbers. The packages run without their compiled
extensions, with plain torch in their place (`tests/kernels/peer_packages.py`); that is part of both copies' time.

Run: ``python -m bench.bench_patches`` (needs the extra ``peers``, and ``make peers``; models of a missing package are left out).
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastkd_kernels.compat import patch
from fastkd_kernels.tolerances import relative_error
from torch import Tensor, nn

from bench.common import interleaved, provenance, write_json
from tests.kernels import peer_models
from tests.kernels.peer_models import PEERS, Molecules, Peer

LIMIT = 1e-9  #: ‖patched − plain‖ / ‖plain‖ in float64: sums of up to 1e5 terms in another order, differentiated twice


@dataclass(frozen=True)
class Entry:
    """A model at the size at which it is timed."""

    title: str
    peer: str  #: in `PEERS`, which says how to feed it
    build: Callable[[], nn.Module]
    sizes: tuple[int, ...]  #: atoms of each molecule


def _gemnet() -> nn.Module:
    widths = {"atom": 64, "edge": 64, "trip_in": 32, "trip_out": 32, "quad_in": 16, "quad_out": 16, "aint_in": 32, "aint_out": 32}
    widths |= {"rbf": 16, "cbf": 16, "sbf": 32}
    return peer_models.gemnet_oc(num_spherical=7, num_radial=64, **{f"emb_size_{name}": size for name, size in widths.items()})


_large, _middle, _small = (24,) * 8, (24,) * 4, (24,) * 2
ENTRIES = {
    "pyg_schnet": Entry("torch_geometric SchNet, 128 × 3", "pyg_schnet", lambda: peer_models.pyg_schnet(128, 128, 3, 50), _large),
    "schnetpack_schnet": Entry(
        "schnetpack SchNet, 128 × 3", "schnetpack_schnet", lambda: peer_models.schnetpack("SchNet", 128, 50), _large
    ),
    "schnetpack_painn": Entry("schnetpack PaiNN, 128 × 3", "schnetpack_painn", lambda: peer_models.schnetpack("PaiNN", 128, 20), _large),
    "ocp_painn": Entry("fairchem PaiNN, 128 × 3", "ocp_painn", lambda: peer_models.ocp_painn(128, 64), _large),
    "dimenet": Entry("torch_geometric DimeNet, 64 × 2", "dimenet", lambda: peer_models.dimenet(64, 8, 7, 6), _middle),
    "dimenet++": Entry("torch_geometric DimeNet++, 128 × 2", "dimenet++", lambda: peer_models.dimenet_pp(128, 64, 8, 128, 7, 6), _middle),
    "gemnet_oc": Entry("fairchem GemNet-OC, 64 × 2", "gemnet_oc", _gemnet, _small),
    "gemnet_oc_small": Entry("fairchem GemNet-OC, 64 × 2", "gemnet_oc", _gemnet, (8, 8)),
}


@dataclass(frozen=True, eq=False)
class Step:
    """One training step of one copy of a model."""

    peer: Peer
    model: nn.Module
    molecules: Molecules

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Energies [n_graphs] and forces [n_atoms, 3]."""
        positions = self.molecules.positions.detach().requires_grad_()
        energy = self.peer.energy(self.model, self.molecules, positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -gradient

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Energies and forces, after the backward pass of mean E + 100 mean ‖F‖ into the weights."""
        self.model.zero_grad()
        energy, forces = self.outputs()
        (energy.mean() + 100 * forces.norm(dim=1).mean()).backward()
        return energy.detach(), forces.detach()


def make_steps(entry: Entry, dtype: torch.dtype, seed: int) -> tuple[Step, Step, int]:
    """Plain, patched, and how many modules were replaced."""
    torch.manual_seed(seed)
    peer, plain = PEERS[entry.peer], entry.build().to(dtype)
    patched = copy.deepcopy(plain)
    report = patch(patched)
    molecules = Molecules.random(entry.sizes, seed, dtype)
    return Step(peer, plain, molecules), Step(peer, patched, molecules), len(report.replaced)


def worst_error(plain: Step, patched: Step) -> tuple[str, float]:
    """The largest relative error of energies, forces and the gradients of all weights, and whose it is."""
    theirs, ours = plain(), patched()
    errors = {"energy": relative_error(ours[0], theirs[0]), "forces": relative_error(ours[1], theirs[1])}
    for (name, mine), (_, other) in zip(patched.model.named_parameters(), plain.model.named_parameters(), strict=True):
        if (mine.grad is None) != (other.grad is None):
            return name, float("inf")
        if mine.grad is not None and other.grad is not None:
            errors[name] = relative_error(mine.grad, other.grad)
    return max(errors.items(), key=lambda item: item[1])


def measure(entry: Entry, *, repeats: int, seed: int) -> dict[str, Any]:
    """One row of the table, or the error that forbids it."""
    plain, patched, replaced = make_steps(entry, torch.float64, seed)
    name, error = worst_error(plain, patched)
    row = {"model": entry.title, "atoms": sum(entry.sizes), "edges": plain.molecules.edge_index.shape[1], "replaced": replaced}
    if not error <= LIMIT:
        return {**row, "failed": f"{name} differs by {error:.1e}, more than {LIMIT:.0e}"}
    plain, patched, _ = make_steps(entry, torch.float32, seed)
    timings = interleaved({"plain": plain, "patched": patched}, repeats=repeats)
    return {**row, "error": error, **timings, "ratio": timings["plain"].median / timings["patched"].median}


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    head = f"{row['model']:<34} {row['atoms']:>5} {row['edges']:>6}"
    if "failed" in row:
        print(f"{head}  {row['failed']}: nothing is timed", flush=True)
    else:
        print(f"{head}  {row['plain']!s:>32}  {row['patched']!s:>32}  {row['ratio']:5.2f}x  {row['error']:.0e}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), help="which ones")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each copy")
    parser.add_argument("--seed", type=int, default=0, help="of weights and positions")
    parser.add_argument("--json", type=Path, default=None, help="write the result here")
    args = parser.parse_args(argv)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = run(args.models, args.repeats, args.seed)
        write_json(args.json, "patches", rows, args.seed)
    finally:
        torch.set_num_threads(before)
    return 1 if any("failed" in row for row in rows) else 0


def run(names: list[str], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Measure and print, model by model."""
    origin = provenance(seed)
    print(f"{origin['device']}, 1 thread of {origin['cores']}, torch {origin['versions']['torch']}, commit {origin['commit']}, seed {seed}")
    print(f"training step, float32; {'atoms':>16} {'edges':>6}  {'plain, median (20 % to 80 %)':>32}  {'patched':>32}  {'ratio':>6}  error")
    rows = []
    for name in names:
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the packages' own use of deprecated functions
            try:
                PEERS[ENTRIES[name].peer].prepare(monkeypatch)
                rows.append(measure(ENTRIES[name], repeats=repeats, seed=seed))
            except (pytest.skip.Exception, ModuleNotFoundError) as error:
                print(f"{ENTRIES[name].title:<34} left out: {error}", file=sys.stderr)
                continue
        show(rows[-1])
    return rows


if __name__ == "__main__":
    sys.exit(main())
