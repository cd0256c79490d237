"""The edge-to-node losses in plain torch: the specification, on any device, differentiable to any order by autograd.

Half-precision input is computed in float32, as in the kernels: the teacher's sum is not rounded back.
"""

from __future__ import annotations

from torch import Tensor

from ..edge_to_node import reference as reduction
from ..graph import CSRGraph
from ..projected_loss import reference as projection
from ..projected_loss.kinds import accumulator


def edge_to_node_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_edge: Tensor,
    graph: CSRGraph,
    kind: str = "mse",
    node_weight: Tensor | None = None,
    reduce: str = "sum",
) -> Tensor:
    """The projected loss against the teacher's reduced edges."""
    goal = target(teacher_edge.to(accumulator(x)), None, graph.edge_dst, graph.edge_ptr, reduce == "mean")
    return projection.projected_loss(x, weight, bias, goal, kind, node_weight)


def edge_to_node_vector_loss(
    v: Tensor,
    weight: Tensor,
    teacher_edge: Tensor,
    direction: Tensor,
    graph: CSRGraph,
    kind: str = "mse",
    node_weight: Tensor | None = None,
    reduce: str = "sum",
) -> Tensor:
    """The projected loss on 3 N rows, without bias; the three rows of a node share its weight."""
    dtype = accumulator(v)
    goal = target(teacher_edge.to(dtype), direction.to(dtype), graph.edge_dst, graph.edge_ptr, reduce == "mean")
    row_weight = None if node_weight is None else node_weight.repeat_interleave(3)
    return projection.projected_loss(v.reshape(-1, v.shape[2]), weight, None, goal, kind, row_weight)


def target(edge: Tensor, direction: Tensor | None, dst: Tensor, ptr: Tensor, mean: bool) -> Tensor:
    """What the projection is compared with: [N, D], or [3 N, D] if there are directions."""
    nodes = ptr.shape[0] - 1
    if direction is None:
        total = reduction.edge_to_node(edge, dst, nodes)
    else:
        total = reduction.edge_to_node_vector(edge, direction, dst, nodes).reshape(3 * nodes, edge.shape[1])
    return total * row_scale(ptr, total) if mean else total


def row_scale(ptr: Tensor, rows: Tensor) -> Tensor:
    """1 / degree, and 1 for nodes that no edge enters: [rows, 1], for one or three rows a node."""
    scale = 1 / ptr.diff().clamp(min=1).to(rows.dtype)
    return (scale if rows.shape[0] == scale.shape[0] else scale.repeat_interleave(3))[:, None]
