"""The same terms and the same teacher's sums, composed of generic operators as one would write them down: the other side of every comparison.

Nothing here knows an operator of fastkd_kernels. A projection is a linear layer whose output [n, d] exists, so does the difference to the teacher's
feature; edges go onto atoms as `index_add` of [n_edges, 3, d]; CKA is made of two [n_atoms, n_atoms] Gram matrices, GSP of
all differences [n, n, c] of one structure after another, LSP of gathered differences [n_edges, c] and a softmax of scatters.
Projections are those of our terms, the very same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkd.config import TermConfig
from fastkd.data.batch import Batch
from fastkd.distill import Terms
from fastkd.distill.edges import EdgeTerm
from fastkd.distill.projections import LinearProjection
from fastkd.distill.term import Term, have
from fastkd.distill.terms import FeatureTerm, OutputTerm
from fastkd.models.base import Prediction
from fastkd.teachers import TeacherOutput
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.output import Need

SUMS: frozenset[Need] = frozenset({"edge_sum", "edge_vector_sum"})


def plain_teacher(teacher: BaseTeacher, needs: frozenset[Need]) -> Callable[[Batch], TeacherOutput]:
    """A live teacher whose edge features are summed into atoms by generic operators."""
    asked = needs - SUMS | ({"edge"} if needs & SUMS else frozenset())

    def ask(batch: Batch) -> TeacherOutput:
        output = teacher(batch, asked)
        if not needs & SUMS:
            return output
        with torch.no_grad():
            return reduced(output, needs, batch.num_atoms)

    return ask


def reduced(output: TeacherOutput, needs: frozenset[Need], atoms: int) -> TeacherOutput:
    """With the sums over edges that are needed."""
    edge, direction, graph = output.edge, output.edge_direction, output.graph
    assert edge is not None
    assert direction is not None
    assert graph is not None
    if "edge_sum" in needs:
        output = replace(output, edge_sum=edge.new_zeros(atoms, edge.shape[1]).index_add(0, graph.edge_dst, edge))
    if "edge_vector_sum" in needs:
        outer = direction[:, :, None] * edge[:, None, :]
        output = replace(output, edge_vector_sum=edge.new_zeros(atoms, 3, edge.shape[1]).index_add(0, graph.edge_dst, outer))
    return output if "edge" in needs else replace(output, edge=None, edge_direction=None, edge_shift=None)


def plain_terms(terms: Terms, items: tuple[TermConfig, ...]) -> Terms:
    """Terms as those of ``terms``, which were built from ``items``, with their projections."""
    return Terms([PlainTerm(term, item) for term, item in zip(terms, items, strict=True)], seed=terms.seed)


class PlainTerm(Term):
    """A term of ours in plain torch."""

    def __init__(self, term: Term, config: TermConfig) -> None:
        super().__init__(term.name, config, term.needs)
        self.term = term
        self.student_keeps = term.student_keeps

    def raw(self, student: Prediction, teacher: TeacherOutput, batch: Batch) -> Tensor:
        term = self.term
        if isinstance(term, OutputTerm):
            return _outputs(term, student, teacher)
        if isinstance(term, EdgeTerm):
            found = [have(student.features.at("edge", layer), term, layer) for layer in term.layers]
            feature, target = torch.cat(found, -1), have(teacher.get(term.target), term, term.target)
            return (project(term.projection, feature) - target).square().mean()
        assert isinstance(term, FeatureTerm)
        feature, target = project(term.projection, term.student_feature(student)), term.teacher_feature(teacher)
        if self.loss == "cka":
            return 1 - cka(feature, target)
        if self.loss == "lsp":
            csr = batch.graph(have(term.cutoff, term, "the student's cutoff")).csr
            return lsp(feature, target, csr.edge_src, csr.edge_dst)
        if self.loss == "gsp":
            return gsp(feature, target, batch.atom_ptr)
        return (feature - target).square().mean()


def project(projection: nn.Module, feature: Tensor) -> Tensor:
    """The linear layer."""
    assert isinstance(projection, LinearProjection)
    return linear(feature, projection.weight, projection.bias)


def _outputs(term: Term, student: Prediction, teacher: TeacherOutput) -> Tensor:
    if term.kind == "energy":
        return (student.energy - have(teacher.energy, term, "energy")).abs().mean()
    if term.kind == "forces":
        return (have(student.forces, term, "forces") - have(teacher.forces, term, "forces")).norm(dim=1).mean()
    return (student.atom_energy - have(teacher.atom_energy, term, "atom_energy")).abs().mean()


def cka(x: Tensor, y: Tensor) -> Tensor:
    """⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖) with K = XXᵀ, L = YYᵀ."""
    k, left = (_centred(feature @ feature.T) for feature in (x, y))
    return (k * left).sum() / ((k * k).sum() * (left * left).sum()).sqrt()


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def lsp(x: Tensor, y: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Mean over edges of p_t (log p_t − log p_s)."""
    log_s, log_t = (_log_softmax((feature[src] - feature[dst]).norm(dim=1), dst, x.shape[0]) for feature in (x, y))
    return (log_t.exp() * (log_t - log_s)).mean()


def _log_softmax(value: Tensor, index: Tensor, size: int) -> Tensor:
    largest = value.new_full((size,), -torch.inf).scatter_reduce(0, index, value.detach(), "amax")
    shifted = value - largest[index]
    return shifted - value.new_zeros(size).index_add(0, index, shifted.exp()).log()[index]


def gsp(x: Tensor, y: Tensor, atom_ptr: Tensor) -> Tensor:
    """Mean over structures of mean_ij (D_s,ij − D_t,ij)²."""
    losses = [(_distances(x[a:b]) - _distances(y[a:b])).square().mean() for a, b in pairwise(atom_ptr.tolist())]
    return torch.stack(losses).mean()


def _distances(feature: Tensor) -> Tensor:
    return (feature[:, None] - feature[None, :]).square().mean(-1)
