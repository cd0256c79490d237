"""What a cache of teacher outputs keeps, and where: the part that caches in memory and on disk share.

A store is a set of long arrays and two pointers, as a data file is: structure k of the store (its slot) owns one row of every array per
structure, rows ``atom_start[k]:atom_start[k + 1]`` of every array per atom, and ``edge_start[k]:edge_start[k + 1]`` of every array per edge.
Edges are there only where a term compares edges with edges. Of Hessians, every structure of n atoms owns its whole matrix in blocks of three
numbers, 3 n² of them: ∂²E / ∂x_r ∂x_j for row r = 3 · atom + axis and atom j, one after another, rows outermost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import DataError
from fastkd.teachers.hessian import HESSIAN, all_rows
from fastkd.teachers.output import Need, TeacherOutput, split_need

Per = Literal["structure", "atom", "edge", "matrix"]

POSITIONS = "positions"
#: Arrays that tell which edges the features of edges belong to; atoms are counted within a structure.
EDGE_SRC, EDGE_DST, EDGE_SHIFT, EDGE_DIRECTION = "edges/src", "edges/dst", "edges/shift", "edges/direction"
_PER_STRUCTURE = ("energy", "graph_feature", "stress")


def per(name: str) -> Per:
    """What the rows of an array are: structures, atoms, edges, or blocks of Hessians."""
    kind = split_need(name)[0]
    if kind == HESSIAN:
        return "matrix"
    if kind in _PER_STRUCTURE:
        return "structure"
    return "edge" if kind == "edge" or kind.startswith("edges/") else "atom"


def wants_edges(needs: Iterable[Need]) -> bool:
    """Whether edges themselves have to be kept."""
    return any(split_need(need)[0] == "edge" for need in needs)


def whole_rows(batch: Batch, needs: Iterable[Need]) -> Batch:
    """The batch as a store asks about it: for every row of its Hessians, if it keeps these."""
    return replace(batch, hessian_rows=all_rows(batch)) if any(per(need) == "matrix" for need in needs) else batch


@dataclass(frozen=True, eq=False)
class Block:
    """What the teacher said of one batch, ready to be laid behind that of the batches before it."""

    structures: Tensor  #: [n] int64, numbers in the data set
    atoms: Tensor  #: [n] int64, atoms of each
    edges: Tensor | None  #: [n] int64, edges of each; None if no edges are kept
    values: dict[str, Tensor]  #: rows by name, see `per`

    @classmethod
    def of(cls, batch: Batch, output: TeacherOutput, needs: frozenset[Need]) -> Block:
        """From a batch, see `whole_rows`, and the teacher's output for it.

        Raises:
            ValueError: if something is not there that was asked for.
        """
        values = {POSITIONS: batch.positions.detach()}
        for need in sorted(needs):
            value = output.get(need)
            if value is None:
                raise ValueError(f"the teacher was asked for {need} and did not give it")
            values[need] = _packed(value, batch) if per(need) == "matrix" else value
        edges = None
        if wants_edges(needs):
            graph = output.graph
            if graph is None or output.edge_shift is None or output.edge_direction is None:
                raise ValueError("the teacher gave edge features without their edges")
            first = batch.atom_ptr[batch.graph_index[graph.edge_dst]]
            edges = graph.edge_ptr[batch.atom_ptr].diff()
            values |= {EDGE_SRC: graph.edge_src - first, EDGE_DST: graph.edge_dst - first}
            values |= {EDGE_SHIFT: output.edge_shift, EDGE_DIRECTION: output.edge_direction}
        return cls(batch.structure_index, batch.atom_ptr.diff(), edges, values)

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())

    def cpu(self) -> Block:
        """The same on the CPU."""
        values = {name: value.cpu() for name, value in self.values.items()}
        return Block(self.structures.cpu(), self.atoms.cpu(), None if self.edges is None else self.edges.cpu(), values)


def _packed(rows: Tensor, batch: Batch) -> Tensor:
    """All rows of every structure, [s, n_atoms, 3], as whole matrices one after another, [Σ 3 n², 3]."""
    bounds = batch.atom_ptr.tolist()
    return torch.cat([rows[: 3 * (last - first), first:last].reshape(-1, 3) for first, last in pairwise(bounds)])


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of some structures, structure after structure, in the arrays of one kind."""

    first: Tensor  #: [n] int64, first row of each structure
    count: Tensor  #: [n] int64, rows of each
    index: Tensor  #: [rows] int64, all of them

    @classmethod
    def of(cls, start: Tensor, slots: Tensor) -> Rows:
        """From a pointer [structures + 1] and slots [n]."""
        first, count = start[slots], start[slots + 1] - start[slots]
        place = torch.repeat_interleave(count)
        before = count.cumsum(0) - count
        return cls(first, count, (first - before)[place] + torch.arange(place.shape[0], device=place.device))

    @classmethod
    def single(cls, slots: Tensor) -> Rows:
        """One row for each structure."""
        return cls(slots, torch.ones_like(slots), slots)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which structures a store has, and where their rows are."""

    slot: Tensor  #: [largest structure number + 1] int64: place of a structure in the store, −1 if absent
    atom_start: Tensor  #: [structures + 1] int64
    edge_start: Tensor | None  #: [structures + 1] int64; None if no edges are kept

    @classmethod
    def of(cls, structures: Tensor, atoms: Tensor, edges: Tensor | None) -> Layout:
        """From structure numbers, and how many atoms and edges each has.

        Raises:
            DataError: if a structure comes twice, or there is none.
        """
        if not len(structures):
            raise DataError("there is no structure to ask the teacher about; the training split is empty")
        slot = structures.new_full((int(structures.max()) + 1,), -1)
        slot[structures] = torch.arange(len(structures), device=structures.device)
        if int((slot >= 0).sum()) != len(structures):
            raise DataError("a structure was handed to the teacher's cache twice")
        return cls(slot, pointer(atoms), None if edges is None else pointer(edges))

    def __len__(self) -> int:
        return len(self.atom_start) - 1

    @cached_property
    def matrix_start(self) -> Tensor:
        """[structures + 1] int64, first block of each structure's Hessian."""
        return pointer(3 * self.atom_start.diff().square())

    def matrix_rows(self, slots: Tensor, batch: Batch) -> tuple[Rows, Tensor]:
        """Blocks of the rows that a batch asks for, in the order of [s, n_atoms], and which of them there are, [s, n_atoms, 1] bool.

        A row that a structure does not have is its first one.
        """
        assert batch.hessian_rows is not None
        rows, atoms = batch.hessian_rows, batch.atom_ptr.diff()
        local = (rows - 3 * batch.atom_ptr[:-1]).clamp(min=0)
        first = self.matrix_start[slots] + local * atoms  # [s, n_graphs]
        within = torch.arange(batch.num_atoms, device=rows.device) - batch.atom_ptr[batch.graph_index]
        index = first[:, batch.graph_index] + within
        there = (rows >= 0)[:, batch.graph_index].unsqueeze(-1)
        return Rows(first.flatten(), atoms.expand_as(first).flatten(), index.flatten()), there

    @property
    def structures(self) -> frozenset[int]:
        """Numbers of all structures."""
        return frozenset(torch.nonzero(self.slot >= 0)[:, 0].tolist())

    def to(self, device: torch.device | str) -> Layout:
        """The same on another device."""
        edges = None if self.edge_start is None else self.edge_start.to(device)
        return Layout(self.slot.to(device), self.atom_start.to(device), edges)


def pointer(counts: Tensor) -> Tensor:
    """[n + 1], where each of n parts of some sizes begins, and where the last ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


class Store(ABC):
    """Rows of arrays by name; `take` is all that a cache asks of it."""

    layout: Layout
    num_bytes: int  #: that its arrays take

    @abstractmethod
    def take(self, name: str, rows: Rows) -> Tensor:
        """Rows of an array, [rows, …], on the device of the layout."""


class MemoryStore(Store):
    """Everything in memory, on any device."""

    def __init__(self, layout: Layout, values: dict[str, Tensor]) -> None:
        self.layout, self.values = layout, values
        pointers = [layout.slot, layout.atom_start] + ([] if layout.edge_start is None else [layout.edge_start])
        self.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in [*pointers, *values.values()])

    @classmethod
    def of(cls, blocks: list[Block]) -> MemoryStore:
        """From what the teacher said of all batches.

        Raises:
            DataError: as `Layout.of`.
        """
        if not blocks:
            return cls(Layout.of(torch.empty(0, dtype=torch.int64), torch.empty(0), None), {})
        edges = [block.edges for block in blocks if block.edges is not None]
        layout = Layout.of(
            torch.cat([block.structures for block in blocks]),
            torch.cat([block.atoms for block in blocks]),
            torch.cat(edges) if edges else None,
        )
        return cls(layout, {name: torch.cat([block.values[name] for block in blocks]) for name in blocks[0].values})

    def take(self, name: str, rows: Rows) -> Tensor:
        return self.values[name].index_select(0, rows.index)

    def to(self, device: torch.device | str) -> MemoryStore:
        """The same on another device."""
        return MemoryStore(self.layout.to(device), {name: value.to(device) for name, value in self.values.items()})
