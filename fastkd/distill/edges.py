"""e2e: the student's edge features against the teacher's, on the same edges.

Either both models have the same edges anyway, or a PaiNN student is handed the teacher's: the edge list and its vectors, on which it
then passes its messages too (as in the public code of Ekström Kelvinius et al., NeurIPS 2023). At inference it has its own graph again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from fastkd_kernels import CSRGraph
from torch import Tensor

from fastkd.config import TermConfig
from fastkd.data.batch import Batch
from fastkd.distill import strategies
from fastkd.distill.projections import Projection
from fastkd.distill.term import Term, have
from fastkd.errors import ConfigError
from fastkd.models.base import Prediction
from fastkd.models.ocp_graph import GivenGraph
from fastkd.teachers.output import Need, TeacherOutput


class EdgeTerm(Term):
    """e2e: a projected edge feature of the student against the teacher's."""

    def __init__(self, name: str, config: TermConfig, where: str, need: Need, projection: Projection, cutoff: float | None) -> None:
        super().__init__(name, config, frozenset({need}), where)
        self.target = need
        self.projection = projection
        self.layers = tuple(f"regular_{layer}" for layer in config.student_layers) or ("final",)
        self.student_keeps = frozenset(self.layers)
        self.handed = config.edges == "teacher"
        self.cutoff = cutoff  # Å, of the student's graph; None if it does not say
        self._compared = False

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        features = student.features
        found = [have(features.at("edge", layer), self, f"edge of the student at {layer}") for layer in self.layers]
        feature, target = torch.cat(found, -1), have(teacher.get(self.target), self, self.target)
        if not self.handed:
            graph = batch.graph(have(self.cutoff, self, "the student's cutoff"))
            own = features.edge_graph
            shift = graph.edge_shift if own is None else own.shift
            self._require_same(graph.csr if own is None else own.csr, shift, teacher)
        weight = None
        if batch.atom_weight is not None:
            weight = batch.atom_weight[have(teacher.graph, self, "graph").edge_dst]
        return strategies.edge_to_edge(feature, self.constant(target), self.projection, self.loss, weight)  # type: ignore[arg-type]

    def _require_same(self, graph: CSRGraph, shift: Tensor, teacher: TeacherOutput) -> None:
        theirs = have(teacher.graph, self, "graph")
        same = graph.num_edges == theirs.num_edges
        # on an accelerator looking waits for the device: once is enough to notice a difference of rules
        if same and not (self._compared and graph.edge_src.is_cuda):
            self._compared = True
            same = torch.equal(graph.edge_src, theirs.edge_src) and torch.equal(graph.edge_dst, theirs.edge_dst)
            same = same and torch.equal(shift, have(teacher.edge_shift, self, "edge_shift"))
        if not same:
            raise ConfigError(
                f"term {self.name}: student and teacher have different edges ({graph.num_edges} and {theirs.num_edges} in this batch); "
                "choose cutoffs and neighbour limits that agree, or edges=teacher with a painn student"
            )


def on_teachers_edges(batch: Batch, teacher: TeacherOutput, cutoff: float) -> Batch:
    """The batch as a student with this cutoff sees it when it is handed the teacher's edges.

    Args:
        batch: the structures.
        teacher: with ``graph`` and ``edge_shift``.
        cutoff: Å, of the student.

    Raises:
        ValueError: if the teacher's output has no edges.
    """
    if teacher.graph is None or teacher.edge_shift is None:
        raise ValueError("the teacher gave no edges to hand on")
    edges = torch.arange(teacher.graph.num_edges, device=teacher.graph.edge_src.device)
    # each edge is a pair of its own: a limit on neighbours may have cut its reverse off
    graph = GivenGraph(teacher.graph, cutoff, teacher.edge_shift, edges, edges)
    return replace(batch, graphs={**batch.graphs, cutoff: graph})
