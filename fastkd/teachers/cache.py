"""Teacher outputs computed once per structure and kept in memory, laid out like the data set: long arrays and pointers.

The teacher is frozen and structures do not change, so after one pass a step costs a gather instead of a forward pass. What is kept
are energies, forces and features *per atom*; edge features are reduced into atoms first, because no student takes part in that sum.
Only where a term compares edges with edges (e2e) are they kept as they are, with the edges that they belong to.

What a batch gets back is, to the bit, what the teacher said about each structure when the cache was built. Batches are gathered, not
computed, so that neither the order of steps nor a resume can change a bit; a live teacher may differ in the last digit between batches
of different sizes, because matrix products may round differently for other numbers of rows.

Example:
    >>> cache = CachedTeacher.build(teacher, terms.needs, batches, dataset_hash=dataset.hash)
    >>> output = cache(batch)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import CheckpointError, DataError
from fastkd.teachers.base import BaseTeacher, TeacherCost
from fastkd.teachers.output import Need, TeacherOutput, split_need

#: Kept by structure; edges by edge; all else by atom.
_PER_STRUCTURE = ("energy", "graph_feature", "stress")


@dataclass(frozen=True, eq=False)
class KeptEdges:
    """The teacher's edges of every structure, structure after structure; atoms are counted within each."""

    start: Tensor  #: [structures + 1] int64, first edge of each structure
    src: Tensor  #: [edges] int64
    dst: Tensor  #: [edges] int64, rising within a structure
    shift: Tensor  #: [edges, 3] int64
    direction: Tensor  #: [edges, 3]

    @classmethod
    def join(cls, parts: list[tuple[Batch, TeacherOutput]]) -> KeptEdges:
        """From the outputs for all batches, in their order."""
        counts, src, dst, shift, direction = [], [], [], [], []
        for batch, output in parts:
            graph = output.graph
            if graph is None or output.edge_shift is None or output.edge_direction is None:
                raise ValueError("the teacher gave edge features without their edges")
            first = batch.atom_ptr[batch.graph_index[graph.edge_dst]]
            counts.append(graph.edge_ptr[batch.atom_ptr].diff())
            src.append(graph.edge_src - first)
            dst.append(graph.edge_dst - first)
            shift.append(output.edge_shift)
            direction.append(output.edge_direction)
        start = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
        return cls(start, torch.cat(src), torch.cat(dst), torch.cat(shift), torch.cat(direction))

    def of(self, slots: Tensor, batch: Batch) -> tuple[Tensor, CSRGraph]:
        """Rows [n_edges] of the edges of some structures, and the graph that these make in a batch."""
        counts = self.start[slots + 1] - self.start[slots]
        ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        place = torch.repeat_interleave(counts)
        rows = (self.start[slots] - ptr[:-1])[place] + torch.arange(place.shape[0], device=place.device)
        first = batch.atom_ptr[:-1][place]
        return rows, CSRGraph.from_edges(self.src[rows] + first, self.dst[rows] + first, batch.num_atoms)

    def to(self, device: torch.device | str) -> KeptEdges:
        """The same on another device."""
        return KeptEdges(*(getattr(self, item.name).to(device) for item in fields(self)))


class CachedTeacher:
    """Outputs of one teacher for the structures of one data set. Make it with `build`; call it with any batch of those structures."""

    def __init__(
        self,
        *,
        teacher_hash: str,
        dataset_hash: str,
        cutoff: float | None,
        needs: frozenset[Need],
        slot: Tensor,
        atom_start: Tensor,
        positions: Tensor,
        values: dict[str, Tensor],
        cost: TeacherCost,
        edges: KeptEdges | None = None,
    ) -> None:
        self.teacher_hash = teacher_hash
        self.dataset_hash = dataset_hash
        self.cutoff = cutoff
        self.needs = needs
        self.cost = cost
        self._slot = slot  # [largest structure index + 1] int64: row of a structure here, −1 if absent
        self._atom_start = atom_start  # [structures + 1] int64
        self._positions = positions  # [atoms, 3] Å, to notice a moved structure
        self._values = values
        self._edges = edges

    @classmethod
    def build(cls, teacher: BaseTeacher, needs: frozenset[Need], batches: Iterable[Batch], *, dataset_hash: str) -> CachedTeacher:
        """Run the teacher once over every structure.

        Args:
            teacher: the teacher.
            needs: what to keep, `Terms.needs`.
            batches: every structure once, in an order that does not depend on the state of training: then a resumed run has the same bits.
            dataset_hash: content hash of the data set that ``structure_index`` counts in.

        Raises:
            DataError: if a structure comes twice, or there is none.
        """
        started, live = time.perf_counter(), TeacherCost()
        structures, positions, counts = [], [], []
        parts: dict[str, list[Tensor]] = {}
        graphs: list[tuple[Batch, TeacherOutput]] = []
        with_edges = any(split_need(need)[0] == "edge" for need in needs)
        for batch in batches:
            output = live.measured(teacher, batch, needs)
            structures.append(batch.structure_index)
            positions.append(batch.positions.detach())
            counts.append(batch.atom_ptr.diff())
            for need in needs:
                parts.setdefault(need, []).append(_had(output.get(need), need))
            if with_edges:
                graphs.append((batch, output))
        if not structures:
            raise DataError("there is no structure to ask the teacher about; the training split is empty")
        index = torch.cat(structures)
        slot = index.new_full((int(index.max()) + 1,), -1)
        slot[index] = torch.arange(len(index), device=index.device)
        if int((slot >= 0).sum()) != len(index):
            raise DataError("a structure was handed to the teacher's cache twice")
        atom_start = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
        values = {name: torch.cat(tensors) for name, tensors in parts.items()}
        edges = KeptEdges.join(graphs) if with_edges else None
        kept = [slot, atom_start, torch.cat(positions), *values.values()]
        kept += [] if edges is None else [getattr(edges, item.name) for item in fields(edges)]
        cost = TeacherCost(
            seconds=time.perf_counter() - started,
            structures=len(index),
            atoms=int(atom_start[-1]),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in kept),
            batches=live.batches,
        )
        return cls(
            teacher_hash=teacher.hash,
            dataset_hash=dataset_hash,
            cutoff=teacher.cutoff,
            needs=needs,
            slot=slot,
            atom_start=atom_start,
            positions=kept[2],
            values=values,
            cost=cost,
            edges=edges,
        )

    def require(self, *, teacher_hash: str, dataset_hash: str, needs: frozenset[Need]) -> None:
        """Make sure that this cache belongs to a teacher, a data set and terms.

        Raises:
            CheckpointError: if it belongs to others, saying which.
        """
        if teacher_hash != self.teacher_hash:
            raise CheckpointError(f"the cache belongs to teacher {self.teacher_hash[:12]}, not {teacher_hash[:12]}; build it anew")
        if dataset_hash != self.dataset_hash:
            raise CheckpointError(f"the cache belongs to data set {self.dataset_hash[:12]}, not {dataset_hash[:12]}; build it anew")
        if not needs <= self.needs:
            raise CheckpointError(f"the cache lacks {sorted(needs - self.needs)} of the teacher; build it anew")

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Teacher outputs for a batch of any structures of the cache, in any order.

        The batch's dtype and the teacher's may differ; terms settle that. The batch may lack the teacher's graph, which saves its
        neighbour list.

        Raises:
            DataError: if a structure is not in the cache, or not as it was then (on a GPU only its presence and size are
                trusted, not looked at: that would wait for the device).
        """
        slots = self._slots(batch)
        atoms = (self._atom_start[slots] - batch.atom_ptr[:-1])[batch.graph_index] + torch.arange(
            batch.num_atoms, device=batch.graph_index.device
        )
        if batch.positions.device.type == "cpu":
            self._check_geometry(batch, slots, atoms)
        found = None if self.cutoff is None else batch.graphs.get(self.cutoff)
        graph = None if found is None else found.csr
        more: dict[str, Any] = {}
        rows = None
        if self._edges is not None:
            rows, graph = self._edges.of(slots, batch)
            more = {"edge_direction": self._edges.direction[rows], "edge_shift": self._edges.shift[rows]}
        for need, value in self._values.items():
            name = split_need(need)[0]
            row = slots if name in _PER_STRUCTURE else atoms
            more[need] = value.index_select(0, rows if name == "edge" and rows is not None else row)
        layers = {need: more.pop(need) for need in list(more) if "@" in need}
        return TeacherOutput(graph=graph, cutoff=self.cutoff, layers=layers, **more)

    def _slots(self, batch: Batch) -> Tensor:
        index = batch.structure_index
        if index.device.type == "cpu":
            outside = (index < 0) | (index >= self._slot.shape[0])
            known = torch.where(outside, -1, self._slot[index.clamp(0, self._slot.shape[0] - 1)]) >= 0
            if not bool(known.all()):
                raise DataError(f"structure {int(index[~known][0])} is not in the teacher's cache, which was built for other structures")
        return self._slot[index]

    def _check_geometry(self, batch: Batch, slots: Tensor, atoms: Tensor) -> None:
        same_size = torch.equal(self._atom_start[slots + 1] - self._atom_start[slots], batch.atom_ptr.diff())
        if not same_size or not torch.equal(self._positions.index_select(0, atoms), batch.positions.detach()):
            raise DataError(
                "a structure differs from the one the teacher's cache was built for (moved atoms or another data set); "
                "use teacher.cache=none for structures that change during training"
            )

    def to(self, device: torch.device | str) -> CachedTeacher:
        """The same cache on another device."""
        return CachedTeacher(
            teacher_hash=self.teacher_hash,
            dataset_hash=self.dataset_hash,
            cutoff=self.cutoff,
            needs=self.needs,
            slot=self._slot.to(device),
            atom_start=self._atom_start.to(device),
            positions=self._positions.to(device),
            values={name: tensor.to(device) for name, tensor in self._values.items()},
            cost=self.cost,
            edges=None if self._edges is None else self._edges.to(device),
        )


def _had(value: Tensor | None, need: Need) -> Tensor:
    if value is None:
        raise ValueError(f"the teacher was asked for {need} and did not give it")
    return value
