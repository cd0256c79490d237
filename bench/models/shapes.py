"""Structures that the models are measured on. They need no data; frames of a file can take the place of the largest molecule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.models.ocp_graph import ocp_graph

RATTLE = 0.1  #: Å
BOX = 200.0  #: Å, of molecules: no image is near


@dataclass(frozen=True, eq=False)
class Structures:
    """Copies of one structure, every atom of each displaced, before there is a graph. Positions are float64."""

    numbers: Tensor  #: [atoms] int64, of one copy
    positions: Tensor  #: [copies, atoms, 3] Å
    cell: Tensor | None = None  #: [3, 3] Å, periodic in three directions; None: molecules
    tags: Tensor | None = None  #: [atoms] int64, as of OC20

    def batch(self, cutoff: float, dtype: torch.dtype, device: torch.device | str = "cpu", *, max_neighbors: int = 0) -> Batch:
        """A batch with the graph of one cutoff: all neighbours, or the ``max_neighbors`` nearest of each atom."""
        copies, atoms, _ = self.positions.shape
        positions = self.positions.reshape(-1, 3)
        boxes = (BOX * torch.eye(3, dtype=torch.float64) if self.cell is None else self.cell).repeat(copies, 1, 1)
        graph = ocp_graph(positions, boxes, torch.full((copies,), atoms), cutoff, max_neighbors, symmetric=False)
        periodic = self.cell is not None
        batch = Batch(
            atomic_numbers=self.numbers.repeat(copies),
            positions=positions.to(dtype),
            atom_ptr=torch.arange(copies + 1) * atoms,
            graph_index=torch.arange(copies).repeat_interleave(atoms),
            cell=boxes.to(dtype) if periodic else torch.zeros(copies, 3, 3, dtype=dtype),
            pbc=torch.full((copies, 3), periodic),
            energy=torch.zeros(copies, dtype=torch.float64),
            forces=torch.zeros(copies * atoms, 3, dtype=dtype),
            labelled=torch.ones(copies, dtype=torch.bool),
            structure_index=torch.arange(copies),
            graphs={cutoff: graph},
            tags=None if self.tags is None else self.tags.repeat(copies),
        )
        return batch.to(device)


@dataclass(frozen=True)
class Shape:
    """Structures by name, and how many of them make a batch."""

    name: str
    text: str
    copies: int
    atoms: Callable[[], Atoms]
    periodic: bool = False
    frames: np.ndarray[Any, Any] | None = None  #: [at least copies, atoms, 3] Å; None: all copies are alike

    def structures(self, seed: int, copies: int | None = None) -> Structures:
        """The batch, every atom displaced by about `RATTLE`, and by no more than twice as much along an axis."""
        atoms, copies = self.atoms(), copies or self.copies
        frames = np.stack([atoms.positions] * copies) if self.frames is None else self.frames[:copies]
        still = torch.from_numpy(np.asarray(frames, np.float64))
        generator = torch.Generator().manual_seed(seed)
        moved = still + RATTLE * torch.randn(still.shape, generator=generator, dtype=torch.float64).clamp(-2, 2)
        numbers = torch.from_numpy(atoms.numbers.astype(np.int64))
        if not self.periodic:
            return Structures(numbers, moved)
        return Structures(numbers, moved, torch.from_numpy(atoms.cell.array.copy()), torch.from_numpy(atoms.get_tags().astype(np.int64)))


def frames(path: Path, count: int) -> Shape:
    """``count`` evenly spaced frames of an .npz file with ``positions`` [n, atoms, 3] Å and ``atomic_numbers`` [atoms]."""
    with np.load(path) as file:
        positions, numbers = file["positions"], file["atomic_numbers"]
    if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3) or len(positions) < count:
        raise SystemExit(f"{path}: need positions [at least {count}, {len(numbers)}, 3], got {list(positions.shape)}")
    chosen = positions[:: len(positions) // count][:count]
    return Shape("frames", f"{count} × {path.stem}", count, lambda: Atoms(numbers, chosen[0]), frames=chosen)


@cache
def alcohol(carbons: int) -> Atoms:
    """A straight chain HO–CH₂–…–CH₃ of ideal tetrahedra: 3 · carbons + 3 atoms."""
    bond, half = {"CC": 1.53, "CO": 1.43, "CH": 1.09, "OH": 0.96}, math.acos(-1 / 3) / 2
    along, across = math.sin(half), math.cos(half)
    heavy, place = [], np.zeros(3)
    for number in range(carbons + 1):
        heavy.append(place)
        length = bond["CO" if number == carbons - 1 else "CC"]
        place = place + length * np.array([along, across if number % 2 == 0 else -across, 0.0])
    symbols, positions = ["C"] * carbons + ["O"], list(heavy)
    for number, place in enumerate(heavy[:-1]):
        side = -1.0 if number % 2 == 0 else 1.0  # away from both neighbours
        directions = [np.array([0.0, side * across, z * along]) for z in (-1, 1)]
        if number == 0:
            directions.append(np.array([-along, across, 0.0]))
        positions += [place + bond["CH"] * direction for direction in directions]
        symbols += ["H"] * len(directions)
    up = across if carbons % 2 == 0 else -across
    positions.append(heavy[-1] + bond["OH"] * np.array([along, up, 0.0]))
    return Atoms([*symbols, "H"], np.array(positions))


@cache
def droplet() -> Atoms:
    """Eight ethanol molecules on the corners of a cube, about as dense as the liquid: 72 atoms."""
    one, whole = molecule("CH3CH2OH"), Atoms()
    for corner in np.ndindex(2, 2, 2):
        copy = one.copy()
        copy.rotate(90 * sum(corner), "z")
        copy.positions += 5.0 * np.array(corner) - copy.positions.mean(0)
        whole += copy
    return whole


@cache
def slab() -> Atoms:
    """CO on a copper slab of 3 × 3 × 4 atoms with 20 Å of vacuum, tagged as OC20 does: 0 below, 1 surface, 2 adsorbate."""
    atoms = fcc100("Cu", (3, 3, 4), vacuum=10.0)
    layer = atoms.get_tags()
    add_adsorbate(atoms, molecule("CO", positions=[[0, 0, 1.15], [0, 0, 0]]), 1.9, "ontop")
    atoms.set_tags([*np.where(layer == 1, 1, 0), 2, 2])
    atoms.pbc = True
    return atoms


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("ethanol", "32 × ethanol", 32, lambda: molecule("CH3CH2OH")),
        Shape("organic", "4 × heptan-1-ol", 4, lambda: alcohol(7)),
        Shape("droplet", "2 × 8 ethanol molecules", 2, droplet),
        Shape("slab", "2 × CO on Cu(100), periodic", 2, slab, periodic=True),
        Shape("one_slab", "CO on Cu(100), periodic", 1, slab, periodic=True),
    )
}


def small(shape: Shape) -> Shape:
    """The same with one or two structures."""
    return replace(shape, copies=min(shape.copies, 2))
