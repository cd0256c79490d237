"""Small molecules, their graphs by brute force, and predictions of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.models import Features, Prediction


def molecule(index: int) -> tuple[Tensor, Tensor]:
    """Atomic numbers and positions [n, 3] Å (float64) of structure ``index``: 3 to 7 atoms, no two closer than about 0.9 Å."""
    generator = torch.Generator().manual_seed(1000 + index)
    atoms = 3 + index % 5
    grid = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)
    chosen = grid[torch.randperm(27, generator=generator)[:atoms]] * 1.4
    jitter = torch.rand(atoms, 3, generator=generator, dtype=torch.float64) * 0.4
    numbers = torch.tensor([1, 6, 8])[torch.randint(3, (atoms,), generator=generator)]
    return numbers, chosen + jitter


def radius_graph(positions: Tensor, graph_index: Tensor, cutoff: float) -> NeighborGraph:
    """All pairs within the cutoff, without periodicity, sorted by destination; every edge is its own pair."""
    close = torch.cdist(positions, positions) < cutoff
    close &= graph_index[:, None] == graph_index[None, :]
    close.fill_diagonal_(False)
    dst, src = close.nonzero(as_tuple=True)
    edges = torch.arange(len(src))
    return NeighborGraph(CSRGraph.from_edges(src, dst, len(positions)), cutoff, torch.zeros(len(src), 3, dtype=torch.int64), edges, edges)


def make_batch(structures: Sequence[int], cutoffs: Sequence[float] = (3.0,), dtype: torch.dtype = torch.float64) -> Batch:
    """A batch of the molecules with these numbers."""
    parts = [molecule(index) for index in structures]
    natoms = torch.tensor([len(numbers) for numbers, _ in parts])
    positions = torch.cat([position for _, position in parts])
    graph_index = torch.arange(len(parts)).repeat_interleave(natoms)
    return Batch(
        atomic_numbers=torch.cat([numbers for numbers, _ in parts]),
        positions=positions.to(dtype),
        atom_ptr=torch.nn.functional.pad(natoms.cumsum(0), (1, 0)),
        graph_index=graph_index,
        cell=torch.zeros(len(parts), 3, 3, dtype=dtype),
        pbc=torch.zeros(len(parts), 3, dtype=torch.bool),
        energy=torch.zeros(len(parts), dtype=torch.float64),
        forces=torch.zeros(len(positions), 3, dtype=dtype),
        labelled=torch.zeros(len(parts), dtype=torch.bool),
        structure_index=torch.tensor(structures),
        graphs={cutoff: radius_graph(positions, graph_index, cutoff) for cutoff in cutoffs},
    )


def normal(*size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prediction(batch: Batch, width: int, blocks: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Prediction:
    """Random numbers in the shape of a student's prediction; everything requires gradients."""
    atoms = batch.num_atoms
    layers = tuple(normal(atoms, width, seed=seed + i, dtype=dtype).requires_grad_() for i in range(blocks + 1))
    vectors = tuple(normal(atoms, 3, width, seed=seed + 50 + i, dtype=dtype).requires_grad_() for i in range(blocks))
    return Prediction(
        energy=normal(batch.num_graphs, seed=seed + 90).requires_grad_(),
        forces=normal(atoms, 3, seed=seed + 91, dtype=dtype).requires_grad_(),
        atom_energy=normal(atoms, seed=seed + 92, dtype=dtype).requires_grad_(),
        features=Features(node=layers[-1], vector=vectors[-1], layers=layers, vector_layers=vectors),
    )
