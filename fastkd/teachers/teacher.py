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
from fastkd_kernels import edge_to_node, edge_to_node_both, edge_to_node_vector
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import CheckpointError
from fastkd.models import Features, Potential, load_model
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
        """Move the model in place; its reference energies stay in float64."""
        self.potential.to(device=device, dtype=dtype)
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
            features = prediction.features
            graph = batch.graph(self.cutoff).csr
            return TeacherOutput(
                energy=prediction.energy if "energy" in needs else None,
                forces=prediction.forces if "forces" in needs else None,
                atom_energy=prediction.atom_energy if "atom_energy" in needs else None,
                node=features.node if "node" in needs else None,
                vector=features.vector if "vector" in needs else None,
                degree=graph.edge_ptr.diff() if "degree" in needs else None,
                graph=graph,
                cutoff=self.cutoff,
                **self._edges(batch, features, needs),
            )

    def _edges(self, batch: Batch, features: Features, needs: frozenset[Need]) -> dict[str, Tensor | None]:
        if not needs & {"edge_sum", "edge_vector_sum"}:
            return {}
        if features.edge is None:
            raise ValueError(f"{self.offer.name} offers no edge features, but {sorted(needs)} was asked of it")
        edge = features.edge
        graph = batch.graph(self.cutoff)
        direction = torch.nn.functional.normalize(batch.edge_vectors(graph), dim=-1)
        total = vectors = None
        if {"edge_sum", "edge_vector_sum"} <= needs:
            total, vectors = edge_to_node_both(edge, direction, graph.csr)
        elif "edge_sum" in needs:
            total = edge_to_node(edge, graph.csr)
        else:
            vectors = edge_to_node_vector(edge, direction, graph.csr)
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
        path: folder or ``.safetensors`` file, or ``embedded``.
        device: where it should live.
        dtype: of its weights; None keeps them as they are stored.

    Raises:
        CheckpointError: if there is nothing at the path, or no model of fastkd.
    """
    if str(path) == EMBEDDED:
        with resources.as_file(resources.files("fastkd") / "assets" / "teacher") as folder:
            return _load(folder, EMBEDDED).to(device, dtype)
    return _load(Path(path), str(path)).to(device, dtype)


def _load(path: Path, source: str) -> Teacher:
    if not path.exists():
        mend = "make it with `make teacher`" if source == EMBEDDED else "teacher.path names a folder with model.safetensors and model.json"
        raise CheckpointError(f"there is no teacher at {path}: {mend}")
    return Teacher(load_model(path), source)
