"""Teacher outputs computed once per structure and kept, in memory or on disk, laid out like the data set: long arrays and pointers.

The teacher is frozen and structures do not change, so after one pass a step costs a gather instead of a forward pass. What is kept
are energies, forces and features *per atom*; edge features are reduced into atoms first, because no student takes part in that sum.
Only where a term compares edges with edges (e2e) are they kept as they are, with the edges that they belong to. Of Hessians all rows are kept,
9 n² numbers for a structure of n atoms, because every step draws others.

What a batch gets back is, to the bit, what the teacher said about each structure when the cache was built (on disk: unless a narrower
dtype was asked for). Batches are gathered, not computed, so that neither the order of steps nor a resume can change a bit; a live
teacher may differ in the last digit between batches of different sizes, because matrix products may round differently for other numbers of
rows.

Example:
    >>> cache = CachedTeacher.build(teacher, terms.needs, batches, dataset_hash=dataset.hash)
    >>> output = cache(batch)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.data.rearrange import select_structures
from fastkd.errors import CheckpointError, DataError
from fastkd.teachers.base import BaseTeacher, TeacherCost
from fastkd.teachers.output import Need, TeacherOutput, split_need
from fastkd.teachers.store import (
    EDGE_DIRECTION,
    EDGE_DST,
    EDGE_SHIFT,
    EDGE_SRC,
    POSITIONS,
    Block,
    MemoryStore,
    Rows,
    Store,
    per,
    wants_edges,
    whole_rows,
)
from fastkd.teachers.teacher import LiveTeacher


class CachedTeacher:
    """Outputs of one teacher for the structures of one data set, in a store. Call it with any batch of those structures.

    Args:
        store: where the outputs are; `build` makes one in memory, `fastkd.teachers.cache_file.open_cache` finds one on disk.
        teacher_hash: `BaseTeacher.hash`.
        dataset_hash: content hash of the data set that ``structure_index`` counts in.
        cutoff: of the teacher, Å.
        needs: what is kept.
        cost: of building it.
        live: whom to ask about structures that are not in the store or have moved, such as augmented ones; None: they are an error.
    """

    def __init__(
        self,
        store: Store,
        *,
        teacher_hash: str,
        dataset_hash: str,
        cutoff: float | None,
        needs: frozenset[Need],
        cost: TeacherCost,
        live: LiveTeacher | None = None,
    ) -> None:
        self.store = store
        self.teacher_hash = teacher_hash
        self.dataset_hash = dataset_hash
        self.cutoff = cutoff
        self.needs = needs
        self.cost = cost
        self.live = live

    @classmethod
    def build(cls, teacher: BaseTeacher, needs: frozenset[Need], batches: Iterable[Batch], *, dataset_hash: str) -> CachedTeacher:
        """Run the teacher once over every structure, and keep what it says in memory.

        Args:
            teacher: the teacher.
            needs: what to keep, `Terms.needs`.
            batches: every structure once, in an order that does not depend on the state of training: then a resumed run has the same bits.
            dataset_hash: content hash of the data set that ``structure_index`` counts in.

        Raises:
            DataError: if a structure comes twice, or there is none.
        """
        started, live = time.perf_counter(), TeacherCost()
        batches = (whole_rows(batch, needs) for batch in batches)
        store = MemoryStore.of([Block.of(batch, live.measured(teacher, batch, needs), needs) for batch in batches])
        cost = TeacherCost(
            seconds=time.perf_counter() - started,
            structures=len(store.layout),
            atoms=int(store.layout.atom_start[-1]),
            bytes=store.num_bytes,
            batches=live.batches,
        )
        return cls(store, teacher_hash=teacher.hash, dataset_hash=dataset_hash, cutoff=teacher.cutoff, needs=needs, cost=cost)

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
        neighbour list. Structures that are new or have moved are asked of ``live``, if there is one and the batch brings its graph.

        Raises:
            DataError: if a structure is not in the cache, or not as it was then, and nobody can be asked (on a GPU, where looking
                would wait for the device, only batches that could be asked about live are looked at).
        """
        can_ask = self.live is not None and (self.cutoff is None or self.cutoff in batch.graphs)
        if batch.positions.device.type == "cpu" or can_ask:
            known = self._known(batch)
            if not bool(known.all()):
                if not can_ask:
                    self._refuse(batch, known)
                return self._partly_live(batch, known)
        return self._gather(batch)

    def _gather(self, batch: Batch) -> TeacherOutput:
        """Outputs for a batch of known structures."""
        layout = self.store.layout
        home = batch.positions.device
        if layout.slot.device != home:
            # a file is read on the CPU
            output = self._gather(replace(batch, graphs={}).to(layout.slot.device)).to(home)
            own = None if self.cutoff is None else batch.graphs.get(self.cutoff)
            return output if own is None or output.graph is not None else replace(output, graph=own.csr)
        slots = layout.slot[batch.structure_index]
        rows = {"structure": Rows.single(slots), "atom": Rows.of(layout.atom_start, slots)}
        found = None if self.cutoff is None else batch.graphs.get(self.cutoff)
        graph = None if found is None else found.csr
        more: dict[str, Any] = {}
        if layout.edge_start is not None and wants_edges(self.needs):
            edge = rows["edge"] = Rows.of(layout.edge_start, slots)
            first = torch.repeat_interleave(batch.atom_ptr[:-1], edge.count)
            graph = CSRGraph.from_edges(self.store.take(EDGE_SRC, edge) + first, self.store.take(EDGE_DST, edge) + first, batch.num_atoms)
            more = {"edge_direction": self.store.take(EDGE_DIRECTION, edge), "edge_shift": self.store.take(EDGE_SHIFT, edge)}
        for need in self._asked(batch):
            if per(need) == "matrix":
                blocks, there = layout.matrix_rows(slots, batch)
                more[need] = self.store.take(need, blocks).view(-1, batch.num_atoms, 3) * there
            else:
                more[need] = self.store.take(need, rows[per(need)])
        return _output(graph, self.cutoff, more)

    def _asked(self, batch: Batch) -> list[Need]:
        """What is kept, without Hessians where a batch asks for no rows: who keeps them may share the cache with who does not want them."""
        return sorted(need for need in self.needs if batch.hessian_rows is not None or per(need) != "matrix")

    def _known(self, batch: Batch) -> Tensor:
        """Which structures are here as they were when the cache was built, [n_graphs] bool."""
        layout, home = self.store.layout, batch.positions.device
        if layout.slot.device != home:
            return self._known(replace(batch, graphs={}).to(layout.slot.device)).to(home)
        index = batch.structure_index
        outside = (index < 0) | (index >= layout.slot.shape[0])
        slots = torch.where(outside, -1, layout.slot[index.clamp(0, layout.slot.shape[0] - 1)])
        known = slots >= 0
        kept = slots.clamp(min=0)
        known = known & ((layout.atom_start[kept + 1] - layout.atom_start[kept]) == batch.atom_ptr.diff())
        # nearly always all is as it was
        if bool(known.all()) and torch.equal(self.store.take(POSITIONS, Rows.of(layout.atom_start, slots)), batch.positions.detach()):
            return known
        # positions of those whose sizes agree, so that rows meet rows
        atoms = known[batch.graph_index]
        same = (self.store.take(POSITIONS, Rows.of(layout.atom_start, slots[known])) == batch.positions.detach()[atoms]).all(dim=-1)
        moved = torch.zeros_like(known).index_put((batch.graph_index[atoms][~same],), known.new_ones(()))
        return known & ~moved

    def _refuse(self, batch: Batch, known: Tensor) -> None:
        index = int(batch.structure_index[~known][0])
        slot = self.store.layout.slot
        if not 0 <= index < len(slot) or int(slot[index]) < 0:
            raise DataError(f"structure {index} is not in the teacher's cache, which was built for other structures")
        raise DataError(
            "a structure differs from the one the teacher's cache was built for (moved atoms or another data set); "
            "use teacher.cache=none for structures that change during training"
        )

    def _partly_live(self, batch: Batch, known: Tensor) -> TeacherOutput:
        """Known structures from the store, the others from the teacher itself."""
        assert self.live is not None
        asked = self._asked(batch)
        if not bool(known.any()):
            return self.live.ask(batch, frozenset(asked))
        others = self.live.ask(select_structures(batch, ~known), frozenset(asked))
        parts = [self._gather(select_structures(batch, known)), others]
        atom = known[batch.graph_index]
        order = {"structure": _back(known), "atom": _back(atom)}
        found = None if self.cutoff is None else batch.graphs.get(self.cutoff)
        graph = None if found is None else found.csr
        more: dict[str, Any] = {}
        if wants_edges(self.needs):
            graph, order["edge"] = _joined(parts, atom, batch)
            for name in ("edge_direction", "edge_shift"):
                more[name] = torch.cat([getattr(part, name) for part in parts])[order["edge"]]
        for need in asked:
            values = [_had(part.get(need), need) for part in parts]
            more[need] = torch.cat(values, 1)[:, order["atom"]] if per(need) == "matrix" else torch.cat(values)[order[per(need)]]
        return _output(graph, self.cutoff, more)

    def narrowed(self, needs: frozenset[Need]) -> CachedTeacher:
        """The same store for a run that needs less of it: nothing else is gathered, read or asked live."""
        if needs == self.needs:
            return self
        live = None if self.live is None else LiveTeacher(self.live.teacher, needs)
        return CachedTeacher(
            self.store,
            teacher_hash=self.teacher_hash,
            dataset_hash=self.dataset_hash,
            cutoff=self.cutoff,
            needs=needs,
            cost=self.cost,
            live=live,
        )

    def to(self, device: torch.device | str) -> CachedTeacher:
        """The same cache on another device; one on disk stays there.

        Raises:
            ValueError: if the store is not in memory.
        """
        if not isinstance(self.store, MemoryStore):
            raise ValueError("only a cache in memory moves to another device")
        return CachedTeacher(
            self.store.to(device),
            teacher_hash=self.teacher_hash,
            dataset_hash=self.dataset_hash,
            cutoff=self.cutoff,
            needs=self.needs,
            cost=self.cost,
            live=self.live,
        )


def _output(graph: CSRGraph | None, cutoff: float | None, found: dict[str, Any]) -> TeacherOutput:
    layers = {need: value for need, value in found.items() if "@" in need}
    return TeacherOutput(graph=graph, cutoff=cutoff, layers=layers, **{need: value for need, value in found.items() if "@" not in need})


def _back(first: Tensor) -> Tensor:
    """Where each row of a whole is in its chosen rows followed by the others, [n] int64."""
    chosen = int(first.sum())
    return torch.where(first, first.cumsum(0) - 1, chosen + (~first).cumsum(0) - 1)


def _joined(parts: list[TeacherOutput], atom: Tensor, batch: Batch) -> tuple[CSRGraph, Tensor]:
    """The graph of two parts of a batch, and where its edges are in those of the first followed by those of the second."""
    ends = []
    for part, chosen in zip(parts, (atom, ~atom), strict=True):
        if part.graph is None:
            raise ValueError("the teacher gave edge features without their edges")
        numbers = torch.nonzero(chosen)[:, 0]
        ends.append((numbers[part.graph.edge_src], numbers[part.graph.edge_dst]))
    src, dst = (torch.cat(pair) for pair in zip(*ends, strict=True))
    # structure after structure, as in any batch
    order = torch.argsort(batch.graph_index[dst], stable=True)
    return CSRGraph.from_edges(src[order], dst[order], batch.num_atoms), order


def _had(value: Tensor | None, need: Need) -> Tensor:
    if value is None:
        raise ValueError(f"the teacher was asked for {split_need(need)[0]} and did not give it")
    return value
