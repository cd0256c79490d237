"""The local structure loss in plain torch: the specification, on any device, differentiable to any order by autograd.

Half-precision features are computed in float32, as in the kernels. Names and formulas are those of the README.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import CSRGraph

#: Features as near as this count as the same: their distance is a constant, with derivative 0. Its inverse is finite in float32.
EPS = 1e-12


def accumulator(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def local_structure_loss(x: Tensor, y: Tensor, graph: CSRGraph) -> Tensor:
    """The public function by definition."""
    student = edge_distance(x, graph.edge_src, graph.edge_dst)
    teacher = edge_distance(y.to(student.dtype), graph.edge_src, graph.edge_dst)
    return divergence(student, teacher, graph.edge_dst, graph.num_nodes).sum() / max(graph.num_edges, 1)


def edge_distance(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Norms of differences, [E]; constant, so without a derivative of any order, where d ≤ ε."""
    square = _difference(x, src, dst).square().sum(1)
    close = square.sqrt() <= EPS
    # the root of a number that is not 0, because autograd would multiply an infinite slope by 0
    return torch.where(close, square.detach().sqrt(), torch.where(close, 1, square).sqrt())


def edge_dot(a: Tensor, b: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """(a_src − a_dst) · (b_src − b_dst), [E]."""
    return (_difference(a, src, dst) * _difference(b, src, dst)).sum(1)


def edge_laplacian(w: Tensor, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """Σ over the edges e that touch i of w_e (x_i − x_j), j being the other end, [N, C]."""
    pull = w[:, None] * _difference(x, src, dst)
    return torch.zeros_like(x, dtype=pull.dtype).index_add(0, src, pull).index_add(0, dst, -pull).to(x.dtype)


def divergence(student: Tensor, teacher: Tensor, dst: Tensor, nodes: int) -> Tensor:
    """KL_j = Σ_{e → j} p^t_e (log p^t_e − log p^s_e), [N]."""
    log_s, log_t = _log_softmax(student, dst, nodes), _log_softmax(teacher, dst, nodes)
    return student.new_zeros(nodes).index_add(0, dst, log_t.exp() * (log_t - log_s))


def divergence_gradient(student: Tensor, teacher: Tensor, upstream: Tensor, dst: Tensor, nodes: int) -> Tensor:
    """The derivative of Σ_j h_j KL_j by the student's distances: h_dst (p^s − p^t), [E]."""
    return upstream[dst] * (_log_softmax(student, dst, nodes).exp() - _log_softmax(teacher, dst, nodes).exp())


def _difference(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    x = x.to(accumulator(x))
    return x[src] - x[dst]


def _log_softmax(d: Tensor, dst: Tensor, nodes: int) -> Tensor:
    # shifting by a constant changes neither the value nor a derivative
    most = d.new_zeros(nodes).scatter_reduce(0, dst, d.detach(), "amax", include_self=False)
    shifted = d - most[dst]
    return shifted - d.new_zeros(nodes).index_add(0, dst, shifted.exp()).log()[dst]
