"""A frozen model as a teacher: evaluation mode, no gradients, and only as much work as the terms ask for.

Example:
    >>> teacher = load_teacher("embedded")
    >>> source = LiveTeacher(teacher, terms.needs)
    >>> output = source(batch)  # the batch must hold the neighbour graph of teacher.cutoff
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Self, cast

import torch
from fastkd_kernels import CSRGraph, edge_to_node, edge_to_node_both, edge_to_node_vector
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.models import Features, Potential
from fastkd.teachers.base import BaseTeacher, TeacherCost
from fastkd.teachers.hessian import EXACT, exact_rows
from fastkd.teachers.output import Need, NeedName, Offer, TeacherOutput, at_layer, split_need

#: What a model's features give.
_FEATURES = frozenset({"node", "vector", "edge", "edge_sum", "edge_vector_sum"})


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of a state dict: equal for equal weights on any device."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Teacher(BaseTeacher):
    """A potential that is only looked at: frozen, in evaluation mode, and outside of any module, so that no state dict holds it.

    Args:
        potential: the model. It is taken over: set to evaluation mode, its parameters no longer require gradients.
        source: where it came from, for messages and reports.
        licence: of its weights, if its file says so.
    """

    def __init__(self, potential: Potential, source: str = "", licence: str = "") -> None:
        self.potential = potential.eval().requires_grad_(False)
        self.source, self.licence = source, licence
        self.offer = Offer.of(potential, "teacher")
        self.hash = state_hash(potential)

    @property
    def cutoff(self) -> float:  # type: ignore[override]
        """Å; batches must be collated with the neighbour graph of this cutoff."""
        return self.potential.cutoff

    @property
    def num_parameters(self) -> int:  # type: ignore[override]
        return sum(parameter.numel() for parameter in self.potential.parameters())

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return next(self.potential.parameters()).dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return next(self.potential.parameters()).device

    @property
    def known_element(self) -> Tensor:  # type: ignore[override]
        return self.potential.known_element.cpu()

    @property
    def reference_energy(self) -> Tensor:  # type: ignore[override]
        return self.potential.reference_energy.cpu()

    @property
    def energy_scale(self) -> Tensor:  # type: ignore[override]
        return self.potential.energy_scale

    @property
    def energy_offset(self) -> Tensor:
        return self.potential.energy_offset

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
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
        return self._asked(batch, needs, gradient=False)

    differentiable = True

    def with_gradient(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """The same numbers, differentiable by ``batch.positions`` to any order."""
        return self._asked(batch, needs, gradient=True)

    def _asked(self, batch: Batch, needs: frozenset[Need], *, gradient: bool) -> TeacherOutput:
        home = batch.positions.device
        if batch.positions.dtype != self.dtype or home != self.device:
            batch = batch.to(device=self.device if self.device != home else None, dtype=self.dtype)
        output = self._ask(batch, needs, gradient=gradient)
        return output if self.device == home else output.to(home)

    def _ask(self, batch: Batch, needs: frozenset[Need], *, gradient: bool) -> TeacherOutput:
        with torch.set_grad_enabled(gradient), torch.autocast(batch.positions.device.type, enabled=False):
            self.potential.kept_layers = frozenset(layer for _, layer in map(split_need, needs))
            prediction = self.potential(batch, forces="forces" in needs, create_graph=gradient)
            features = prediction.features
            own = features.edge_graph
            graph = batch.graph(self.cutoff).csr if own is None else own.csr
            found = self._features(batch, features, needs)
            return TeacherOutput(
                energy=prediction.energy if "energy" in needs else None,
                forces=prediction.forces if "forces" in needs else None,
                atom_energy=prediction.atom_energy if "atom_energy" in needs else None,
                degree=graph.edge_ptr.diff() if "degree" in needs else None,
                graph=graph,
                cutoff=self.cutoff,
                layers={need: value for need, value in found.items() if "@" in need},
                **{name: value for name, value in found.items() if "@" not in name},
            )

    def hessian_rows(self, batch: Batch, method: str) -> Tensor:
        """See `BaseTeacher.hessian_rows`; ``exact`` differentiates the forces again, direct ones too."""
        if method != EXACT or batch.hessian_rows is None:
            return super().hessian_rows(batch, method)
        home = batch.positions.device
        batch = batch.to(device=self.device if self.device != home else None, dtype=self.dtype)
        rows = batch.hessian_rows
        positions = batch.positions.detach().clone().requires_grad_(True)
        with torch.enable_grad(), torch.autocast(positions.device.type, enabled=False):
            forces = self.potential(replace(batch, positions=positions), create_graph=True).forces
            assert forces is not None
            assert rows is not None
            return exact_rows(forces, positions, rows, batch, create_graph=False).to(home)

    def _features(self, batch: Batch, features: Features, needs: frozenset[Need]) -> dict[str, Tensor]:
        """Features by need, and with edges their directions and images."""
        found: dict[str, Tensor] = {}
        direction: Tensor | None = None
        for layer in sorted({layer for name, layer in map(split_need, needs) if name in _FEATURES}):
            asked = {name for name, where in map(split_need, needs) if where == layer and name in _FEATURES}
            for kind in sorted(asked & {"node", "vector"}):
                found[_need(kind, layer)] = self._have(features.at(kind, layer), kind, layer)
            sums = asked - {"node", "vector"}
            if not sums:
                continue
            edge = self._have(features.at("edge", layer), "edge", layer)
            graph, shift, direction = self._edge_graph(batch, features, direction)
            parts = edges_to_atoms(edge, graph, direction, frozenset(sums))
            found |= {_need(name, layer): value for name, value in parts.items() if value is not None and name != "edge_direction"}
            found |= {"edge_direction": direction, "edge_shift": shift}
        return found

    def _edge_graph(self, batch: Batch, features: Features, direction: Tensor | None) -> tuple[CSRGraph, Tensor, Tensor]:
        own = features.edge_graph
        if own is not None:
            return own.csr, own.shift, own.direction
        graph = batch.graph(self.cutoff)
        return graph.csr, graph.edge_shift, unit_vectors(batch, graph) if direction is None else direction

    def _have(self, value: Tensor | None, kind: str, layer: str) -> Tensor:
        if value is None:
            raise ValueError(f"{self.offer.name} offers no {kind} features at layer {layer}, but these were asked of it")
        return value


def _need(name: str, layer: str) -> Need:
    return at_layer(cast("NeedName", name), layer)


def unit_vectors(batch: Batch, graph: NeighborGraph) -> Tensor:
    """Direction of each edge of a graph, [n_edges, 3]."""
    return torch.nn.functional.normalize(batch.edge_vectors(graph), dim=-1)


def edges_to_atoms(edge: Tensor, graph: CSRGraph, direction: Tensor, needs: frozenset[Need]) -> dict[str, Tensor | None]:
    """Edge features [n_edges, d] in the order of ``graph``, directions [n_edges, 3], and the sums over incoming edges that are asked for."""
    total = vectors = None
    if {"edge_sum", "edge_vector_sum"} <= needs:
        total, vectors = edge_to_node_both(edge, direction, graph)
    elif "edge_sum" in needs:
        total = edge_to_node(edge, graph)
    elif "edge_vector_sum" in needs:
        vectors = edge_to_node_vector(edge, direction, graph)
    return {"edge": edge, "edge_direction": direction, "edge_sum": total, "edge_vector_sum": vectors}


class LiveTeacher:
    """Computes the teacher anew for every batch."""

    def __init__(self, teacher: BaseTeacher, needs: frozenset[Need]) -> None:
        self.teacher = teacher
        self.needs = needs
        self.cost = TeacherCost()

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's output for a batch; time is counted in ``cost``."""
        return self.cost.measured(self.teacher, batch, self.needs)

    def ask(self, batch: Batch, needs: frozenset[Need], *, gradient: bool = False) -> TeacherOutput:
        """Anything else, counted too; with ``gradient`` differentiable by positions, see `BaseTeacher.with_gradient`."""
        return self.cost.measured(self.teacher, batch, needs, gradient=gradient)
