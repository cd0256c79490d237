"""Rows of energy Hessians, of every structure of a batch at once.

A row is numbered 3 · atom + axis, with atoms counted in the batch. Structures do not know of each other, so that one derivative of a force of each
structure gives one row of each: s rows cost s backward passes, whatever the number of structures.

Example:
    >>> rows = sample_rows(batch, 4, seed=0, step=17)  # [4, n_graphs]
    >>> target = teacher.hessian_rows(replace(batch, hessian_rows=rows), "exact")  # [4, n_atoms, 3] eV/Å²
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.data.rearrange import repeat_structures

#: What a need for Hessian rows starts with; what follows the @ is how they are computed.
HESSIAN = "hessian_rows"
EXACT = "exact"
#: Atoms of the moved copies that are computed as one batch.
STACKED_ATOMS = 16384
#: Sets the draws of rows apart from everything else that a seed decides.
SEED_STREAM = 0x6865_7373


def hessian_need(method: str, step: float) -> str:
    """The need of rows: ``hessian_rows@exact``, or with the step of the finite difference in Å, ``hessian_rows@0.01``."""
    return f"{HESSIAN}@{EXACT if method == EXACT else format(step, 'g')}"


def sample_rows(batch: Batch, count: int, *, seed: int, step: int, free_atoms: bool = True) -> Tensor:
    """Rows drawn uniformly and without replacement from each structure, [count, n_graphs] int64 on the batch's device.

    They follow from seed, step and batch alone, so that a resumed run draws the same. A structure with fewer rows has −1 in the last ones.
    The first k rows are a draw of k.

    Args:
        batch: the structures.
        count: rows of each.
        seed: of the run.
        step: optimiser step.
        free_atoms: never draw a row of an atom that is held fixed.
    """
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) ^ SEED_STREAM) % 2**64)
    device = batch.positions.device
    # drawn on the CPU: the same on every device
    draw = torch.rand(3 * batch.num_atoms, generator=generator, dtype=torch.float64).to(device)
    taken = torch.zeros_like(batch.graph_index) if batch.fixed is None or not free_atoms else batch.fixed.long()
    order = torch.argsort(3 * batch.graph_index.repeat_interleave(3) + taken.repeat_interleave(3) + draw)
    available = 3 * torch.zeros_like(batch.atom_ptr[:-1]).index_add(0, batch.graph_index, 1 - taken)
    return _rows(order, 3 * batch.atom_ptr[:-1], available, count)


def all_rows(batch: Batch) -> Tensor:
    """Every row of every structure, [3 · most atoms of a structure, n_graphs] int64, with −1 where a structure has no more."""
    size = 3 * batch.atom_ptr.diff()
    order = torch.arange(3 * batch.num_atoms, device=size.device)
    return _rows(order, 3 * batch.atom_ptr[:-1], size, int(size.max()) if size.numel() else 0)


def _rows(order: Tensor, first: Tensor, available: Tensor, count: int) -> Tensor:
    rank = torch.arange(count, device=order.device).unsqueeze(1)
    if order.numel() == 0:
        return first.new_full((count, first.shape[0]), -1)
    found = order[(first + rank).clamp(max=order.shape[0] - 1)]
    return torch.where(rank < available, found, -1)


def directions(rows: Tensor, batch: Batch) -> Tensor:
    """Each row as a displacement, [s, n_atoms, 3]: 1 at its atom and axis in each structure, else 0."""
    flat = torch.zeros(rows.shape[0], 3 * batch.num_atoms, dtype=batch.positions.dtype, device=batch.positions.device)
    if flat.numel():
        flat.scatter_add_(1, rows.clamp(min=0), (rows >= 0).to(flat.dtype))
    return flat.view(rows.shape[0], batch.num_atoms, 3)


def exact_rows(forces: Tensor, positions: Tensor, rows: Tensor, batch: Batch, *, create_graph: bool) -> Tensor:
    """−∂F_row/∂x by one vector–Jacobian product for each row, [s, n_atoms, 3] eV/Å².

    Where forces are −dE/dx these are the rows of the Hessian ∂²E/∂x∂x; direct forces have a matrix that need not be symmetric, and these are its rows.

    Args:
        forces: [n_atoms, 3] eV/Å, with a graph that leads to ``positions``.
        positions: [n_atoms, 3] Å.
        rows: [s, n_graphs] int64.
        batch: the structures.
        create_graph: whether the rows will be differentiated.
    """
    if not forces.requires_grad:
        # nobody has a neighbour
        return torch.zeros(rows.shape[0], *positions.shape, dtype=forces.dtype, device=forces.device)
    found = []
    for direction in directions(rows, batch).to(forces.dtype):
        (row,) = torch.autograd.grad(
            forces, positions, grad_outputs=-direction, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        found.append(row)
    return torch.stack(found) if found else forces.new_zeros(0, *positions.shape)


def difference_rows(forces_of: Callable[[Batch], Tensor], batch: Batch, rows: Tensor, step: float, *, at_once: int = 0) -> Tensor:
    """Central differences −(F(x + h e) − F(x − h e)) / 2h, [s, n_atoms, 3] eV/Å², with an error of order h².

    These are columns of −∂F/∂x, which are its rows where forces are −dE/dx. Neighbour lists of the batch are kept while atoms move.

    Args:
        forces_of: forces [n_atoms, 3] eV/Å of a batch.
        batch: the structures.
        rows: [s, n_graphs] int64.
        step: h, Å.
        at_once: rows whose moved copies, two of each structure, are one batch; 0 asks for one copy of the batch after the other.
    """
    if not len(rows):
        return batch.positions.new_zeros(0, *batch.positions.shape)
    found = []
    for part in torch.split(directions(rows, batch), at_once or 1):
        moves = step * torch.cat([part, -part])
        if at_once:
            moved = replace(repeat_structures(batch, len(moves)), positions=(batch.positions + moves).flatten(0, 1))
            forces = forces_of(moved).view_as(moves)
        else:
            forces = torch.stack([forces_of(replace(batch, positions=batch.positions + move)) for move in moves])
        found.append((forces[len(part) :] - forces[: len(part)]) / (2 * step))
    return torch.cat(found)


def stacked_rows(batch: Batch) -> int:
    """How many rows' moved copies make one batch: as many as come to `STACKED_ATOMS`, at least one."""
    return max(1, STACKED_ATOMS // max(1, 2 * batch.num_atoms))
