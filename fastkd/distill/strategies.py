"""The strategies, each a small pure function on named tensors.

Source: F. Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge distillation, NeurIPS 2023, and the
authors' public code for what the paper leaves open. Averages of features run over *all* atoms; fixed atoms are left out of forces only.
A ``weight`` multiplies the loss of each row (structure, atom or edge) before the mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from fastkd_kernels import CSRGraph, global_structure_loss, linear_cka, local_structure_loss
from torch import Tensor

from fastkd.distill.projections import FeatureLoss, Projection, elementwise

ForcesLoss = Literal["l2", "mse", "mae", "huber"]


def energy_loss(
    student_energy: Tensor,
    teacher_energy: Tensor,
    kind: FeatureLoss = "mae",
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Vanilla (1), energy: mean over structures of w ρ(E_s − E_t), subtracted in float64 because totals are large.

    Args:
        student_energy: [n_graphs] eV.
        teacher_energy: [n_graphs] eV.
        kind: ``mae``, ``mse`` or ``huber``.
        where: [n_graphs] bool, structures that count; None for all.
        weight: w, [n_graphs]; None for 1.
    """
    return _mean_where(student_energy.double() - teacher_energy.double(), kind, where, weight)


def forces_loss(
    student_forces: Tensor, teacher_forces: Tensor, kind: ForcesLoss = "l2", free: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Vanilla (1), forces: mean over free atoms of ‖F_s,i − F_t,i‖₂ in eV/Å; other kinds are means over components.

    Args:
        student_forces: [n_atoms, 3] eV/Å.
        teacher_forces: [n_atoms, 3] eV/Å.
        kind: ``l2``, ``mse``, ``mae`` or ``huber``.
        free: [n_atoms] bool, atoms that may move; None for all.
        weight: [n_atoms], of each atom's structure; None for 1.
    """
    residual = student_forces - teacher_forces.to(student_forces.dtype)
    atoms: int | Tensor = max(residual.shape[0], 1)
    if free is not None:
        # a mask instead of a selection: an accelerator need not report back how many there are
        residual = residual * free.unsqueeze(-1)
        atoms = free.sum().clamp(min=1)
    if kind != "l2":
        return elementwise(residual, kind, weight) * (residual.shape[0] / atoms)
    # vector_norm has a zero subgradient at zero, so that a perfect student does not become NaN
    norm: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return (norm if weight is None else norm * weight.to(norm.dtype)).sum() / atoms


def hessian_loss(
    student_rows: Tensor,
    teacher_rows: Tensor,
    valid: Tensor,
    graph_index: Tensor,
    kind: ForcesLoss = "l2",
    free: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """hessian: mean over free atoms j of the mean over rows r of their structure of ‖H_s,rj − H_t,rj‖₂, in eV/Å².

    ``l2`` is what the authors' code minimises; the others are means of ρ over the three components instead of the norm, and ``mse`` has the
    square of the paper's formula.

    Args:
        student_rows: [s, n_atoms, 3] eV/Å².
        teacher_rows: [s, n_atoms, 3] eV/Å².
        valid: [s, n_graphs] bool, which rows a structure has.
        graph_index: [n_atoms] int64.
        kind: ``l2``, ``mse``, ``mae`` or ``huber``.
        free: [n_atoms] bool, atoms that may move, or [s, n_atoms] for each row; None for all.
        weight: [n_atoms], of each atom's structure; None for 1.
    """
    residual = student_rows - teacher_rows.to(student_rows.dtype)
    counted = valid[:, graph_index]
    if free is not None:
        counted = counted & free
    # a mask instead of a selection: an accelerator need not report back how many there are
    residual = residual * counted.unsqueeze(-1)
    if kind == "l2":
        size = torch.linalg.vector_norm(residual, dim=-1)
    elif kind == "huber":
        size = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="none").mean(-1)
    else:
        size = (residual.square() if kind == "mse" else residual.abs()).mean(-1)
    rows = counted.sum(0)
    each = size.sum(0) / rows.clamp(min=1)
    total: Tensor = (each if weight is None else each * weight.to(each.dtype)).sum()
    return total / (rows > 0).sum().clamp(min=1)


def atom_energy_loss(
    student_atom_energy: Tensor,
    teacher_atom_energy: Tensor,
    shift: Tensor | None = None,
    kind: FeatureLoss = "mae",
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Vanilla (2): mean over atoms of ρ(E_s,i − E_t,i) in eV, contributions before the sum over a structure.

    Args:
        student_atom_energy: [n_atoms] eV, without reference energies.
        teacher_atom_energy: [n_atoms] eV, without reference energies.
        shift: [n_atoms] float64, eV, the teacher's reference energy of each atom minus the student's; None if they share them.
        kind: ``mae``, ``mse`` or ``huber``.
        where: [n_atoms] bool, atoms that count; None for all.
        weight: [n_atoms], of each atom's structure; None for 1.
    """
    target = teacher_atom_energy.double() if shift is None else teacher_atom_energy.double() + shift
    return _mean_where(student_atom_energy.double() - target, kind, where, weight)


def _mean_where(residual: Tensor, kind: FeatureLoss, where: Tensor | None, weight: Tensor | None) -> Tensor:
    if where is None:
        return elementwise(residual, kind, weight)
    return elementwise(residual * where, kind, weight) * (residual.shape[0] / where.sum().clamp(min=1))


def node_to_node(
    student_node: Tensor, teacher_node: Tensor, projection: Projection, kind: FeatureLoss = "mse", weight: Tensor | None = None
) -> Tensor:
    """n2n: mean_{i,c} ρ( M(x_s)_ic − x_t,ic ), ``student_node`` [n_atoms, k·c], ``teacher_node`` [n_atoms, d]."""
    return projection.node_loss(student_node, teacher_node, kind, weight)


def edge_to_node(
    student_node: Tensor, teacher_edge_sum: Tensor, projection: Projection, kind: FeatureLoss = "mse", weight: Tensor | None = None
) -> Tensor:
    """e2n: mean_{i,c} ρ( M(x_s)_ic − [Σ_{s→i} e_t,si]_c ), ``teacher_edge_sum`` [n_atoms, d_edge]."""
    return projection.node_loss(student_node, teacher_edge_sum, kind, weight)


def vector_to_vector(
    student_vector: Tensor, teacher_vector: Tensor, projection: Projection, kind: FeatureLoss = "mse", weight: Tensor | None = None
) -> Tensor:
    """v2v: mean_{i,a,c} ρ( M(v_s)_iac − v_t,iac ), ``student_vector`` [n_atoms, 3, k·c], ``teacher_vector`` [n_atoms, 3, d].

    M mixes channels and has no bias. ``teacher_vector`` is the teacher's own, or Σ_{s→i} r̂_si ⊗ e_t,si of its edge features. The loss is
    invariant under rotations for ``mse``; ``mae`` and ``huber`` act on components and are not.
    """
    return projection.vector_loss(student_vector, teacher_vector, kind, weight)


def vector_geometric(student_vector: Tensor, teacher_vector: Tensor, projection: Projection, atom_ptr: Tensor, mix: float = 0.5) -> Tensor:
    """v2v geometric: (1 − g) · | ‖v_s‖ − ‖v_t‖ | + g · (1 − cos(v_s, v_t)) with v_s = M(v); norms and cosines over x, y, z per channel.

    Mean over channels, then over the atoms of each structure, then over structures. Invariant under rotations. A vector of length 0 has
    no direction: its cosine is 0.

    Args:
        student_vector: [n_atoms, 3, k·c].
        teacher_vector: [n_atoms, 3, d].
        projection: M, without bias.
        atom_ptr: [n_graphs + 1] int64.
        mix: g.
    """
    return projection.geometric_loss(student_vector, teacher_vector, atom_ptr, mix)


def edge_to_edge(
    student_edge: Tensor, teacher_edge: Tensor, projection: Projection, kind: FeatureLoss = "mse", weight: Tensor | None = None
) -> Tensor:
    """e2e: mean_{e,c} ρ( M(e_s)_ec − e_t,ec ) over the same edges; ``student_edge`` [n_edges, k·c], ``teacher_edge`` [n_edges, d]."""
    return projection.node_loss(student_edge, teacher_edge, kind, weight)


def alignment(student: Tensor, teacher: Tensor, projection: Projection) -> Tensor:
    """cka: 1 − CKA(M(x_s), x_t), linear and centred, over all atoms of the batch; ``student`` [n_atoms, k·c], ``teacher`` [n_atoms, d].

    1 where CKA is undefined: fewer than two atoms, or a side that is the same for all.
    """
    mapped = projection.map(student)
    return 1 - linear_cka(mapped, teacher.to(mapped.dtype))


def local_structure(student: Tensor, teacher: Tensor, projection: Projection, graph: CSRGraph) -> Tensor:
    """lsp: mean over edges of p_t (log p_t − log p_s), with p the softmax of +‖f_src − f_dst‖ over the edges that end in one atom.

    Args:
        student: [n_atoms, k·c], mapped by M first.
        teacher: [n_atoms, d].
        projection: M.
        graph: the edges.
    """
    mapped = projection.map(student)
    return local_structure_loss(mapped, teacher.to(mapped.dtype), graph)


def global_structure(student: Tensor, teacher: Tensor, projection: Projection, atom_ptr: Tensor) -> Tensor:
    """gsp: mean over structures of mean_{i,j} (D_s,ij − D_t,ij)² with D_ij the mean over channels (and axes) of (f_i − f_j)².

    Args:
        student: [n_atoms, k·c] or [n_atoms, 3, k·c], mapped by M first.
        teacher: [n_atoms, d] or [n_atoms, 3, d].
        projection: M.
        atom_ptr: [n_graphs + 1] int64.
    """
    mapped = projection.map(student)
    return global_structure_loss(mapped, teacher.to(mapped.dtype), atom_ptr)


def mean_of_sum(total: Tensor, degree: Tensor) -> Tensor:
    """Means from sums over incoming edges, [n_atoms, …], ``degree`` [n_atoms]; atoms without edges keep 0."""
    return total / degree.clamp(min=1).view(-1, *(1,) * (total.dim() - 1)).to(total.dtype)
