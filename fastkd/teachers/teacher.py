"""A frozen model as a teacher: evaluation mode, no gradients, and only as much work as the terms ask for.

Example:
    >>> teacher = load_teacher("embedded")
    >>> source = LiveTeacher(teacher, terms.needs)
    >>> output = source(batch)  # the batch must hold the neighbour graph of teacher.cutoff
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from fastkd_kernels import edge_to_node_both
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.distill.strategies import reduce_edge_vectors, reduce_edges
from fastkd.errors import CheckpointError
from fastkd.models.base import Features, Potential
from fastkd.teachers.output import Need, Offer, TeacherOutput

EMBEDDED = "embedded"


@dataclass
class TeacherCost:
    """What a teacher has cost so far."""

    seconds: float = 0.0  #: s, spent in the teacher
    structures: int = 0  #: computed, counting repeats
    atoms: int = 0
    bytes: int = 0  #: kept in memory; 0 for a live teacher

    def __str__(self) -> str:
        kept = f", {self.bytes / 1e6:.1f} MB kept" if self.bytes else ""
        return f"teacher: {self.structures} structures ({self.atoms} atoms) in {self.seconds:.1f} s{kept}"


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of a state dict: equal for equal weights on any device."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Teacher:
    """A potential that is only looked at: frozen, in evaluation mode, and outside of any module, so that no state dict holds it.

    Args:
        potential: the model. It is taken over: set to evaluation mode, its parameters no longer require gradients.
        source: where it came from, for messages and reports.
    """

    def __init__(self, potential: Potential, source: str = "") -> None:
        self.potential = potential.eval().requires_grad_(False)
        self.source = source
        self.offer = Offer.of(potential, "teacher")
        self.hash = state_hash(potential)

    @property
    def cutoff(self) -> float:
        """Å; batches must be collated with the neighbour graph of this cutoff."""
        return self.potential.cutoff

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.potential.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.potential.parameters()).dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Teacher:
        """Move the model. Reference energies and scale keep float64."""
        keep = {name: buffer.detach().clone() for name, buffer in self.potential.named_buffers() if buffer.dtype == torch.float64}
        self.potential.to(device=device, dtype=dtype)
        for name, buffer in keep.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.potential.get_submodule(owner), leaf, buffer.to(device))
        return self

    def __call__(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Outputs and features for a batch.

        Args:
            batch: holds the neighbour graph of ``cutoff``; its dtype may differ from the teacher's.
            needs: what to compute; conservative forces cost a backward pass and are computed only when asked for.

        Returns:
            What was asked for, detached. With edge needs, also the edge features themselves with their graph and directions.
        """
        if batch.positions.dtype != self.dtype:
            batch = batch.to(dtype=self.dtype)
        with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            prediction = self.potential(batch, forces="forces" in needs, create_graph=False)
            return TeacherOutput(
                energy=_detached(prediction.energy) if "energy" in needs else None,
                forces=_detached(prediction.forces) if "forces" in needs else None,
                atom_energy=_detached(prediction.atom_energy) if "atom_energy" in needs else None,
                node=_detached(prediction.features.node) if "node" in needs else None,
                vector=_detached(prediction.features.vector) if "vector" in needs else None,
                degree=batch.graph(self.cutoff).csr.edge_ptr.diff() if "degree" in needs else None,
                graph=batch.graph(self.cutoff).csr,
                cutoff=self.cutoff,
                **self._edges(batch, prediction.features, needs),
            )

    def _edges(self, batch: Batch, features: Features, needs: frozenset[Need]) -> dict[str, Tensor | None]:
        if not needs & {"edge_sum", "edge_vector_sum"}:
            return {}
        if features.edge is None:
            raise ValueError(f"{self.offer.name} offers no edge features, but {sorted(needs)} was asked of it")
        edge = features.edge.detach()  # computed here, without gradients
        graph = batch.graph(self.cutoff)
        direction = torch.nn.functional.normalize(batch.edge_vectors(graph), dim=-1)
        total = vectors = None
        if {"edge_sum", "edge_vector_sum"} <= needs:
            total, vectors = edge_to_node_both(edge, direction, graph.csr)
        elif "edge_sum" in needs:
            total = reduce_edges(edge, graph.csr)
        else:
            vectors = reduce_edge_vectors(edge, direction, graph.csr)
        return {"edge": edge, "edge_direction": direction, "edge_sum": total, "edge_vector_sum": vectors}


class LiveTeacher:
    """Computes the teacher anew for every batch."""

    def __init__(self, teacher: Teacher, needs: frozenset[Need]) -> None:
        self.teacher = teacher
        self.needs = needs
        self.cost = TeacherCost()

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's output for a batch; time is counted in ``cost`` (on a GPU that is the time to launch)."""
        started = time.perf_counter()
        output = self.teacher(batch, self.needs)
        self.cost.seconds += time.perf_counter() - started
        self.cost.structures += batch.num_graphs
        self.cost.atoms += batch.num_atoms
        return output


def load_teacher(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Teacher:
    """A teacher from a model folder (``model.safetensors`` and ``model.json``), or the one that ships with fastkd.

    Args:
        path: folder, or ``embedded``.
        device: where it should live.
        dtype: of its weights; None keeps them as they are stored.

    Raises:
        CheckpointError: if the folder or one of the files is missing, or does not hold a model.
    """
    if str(path) == EMBEDDED:
        with resources.as_file(resources.files("fastkd") / "assets" / "teacher") as folder:
            return _load(folder, EMBEDDED).to(device, dtype)
    return _load(Path(path), str(path)).to(device, dtype)


def _load(folder: Path, source: str) -> Teacher:
    from fastkd.models.io import load_potential

    if not folder.is_dir():
        mend = "make it with `make teacher`" if source == EMBEDDED else "teacher.path is a folder with model.safetensors and model.json"
        raise CheckpointError(f"no teacher at {folder}: {mend}")
    return Teacher(load_potential(folder), source)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
