"""PyTorch Geometric: SchNet, DimeNet and DimeNet++.

SchNet's convolution is `cfconv`. DimeNet's messages go from edge to edge: `cfconv` on the graph whose nodes are edges and whose edges are
triplets (DimeNet++), or, for DimeNet's bilinear layer, `triplet_reduce` followed by one product of matrices: since the layer is linear in
the outer product of basis and message, the sum over triplets can be taken before the layer instead of after, and the layer then
runs once an edge and not once a triplet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...cfconv.op import cfconv
from ...triplet_reduce.op import triplet_reduce
from ...triplet_reduce.triplets import TripletIndex
from .gate import Rule, full_name
from .gated import gated_sum
from .scope import Scope, alike

MODELS = ("torch_geometric.nn.models.schnet.SchNet", "torch_geometric.nn.models.dimenet.DimeNet")
MESSAGE_PASSING = "torch_geometric.nn.conv.message_passing.MessagePassing"
LEFT = {MESSAGE_PASSING: "message passing of a class that no kernel is known for"}


def message_passing_refusal(module: nn.Module) -> str | None:
    """Why a module that sums messages over edges cannot be replaced as it is set up."""
    aggregation: Any = getattr(module, "aggr_module", None)
    if full_name(type(aggregation)) != "torch_geometric.nn.aggr.basic.SumAggregation":
        return f"aggregation {type(aggregation).__name__}, not SumAggregation"
    if getattr(module, "decomposed_layers", 1) != 1:
        return f"decomposed_layers is {module.decomposed_layers}, not 1"
    if getattr(module, "node_dim", None) not in (-2, 0):
        return f"node_dim is {getattr(module, 'node_dim', None)}, not -2 or 0"
    return None


#: where a `MessagePassing` keeps the hooks on its steps
_STEP_HOOKS = tuple(
    f"_{step}_forward_{kind}hooks"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for kind in ("", "pre_")
)


def observed(module: nn.Module) -> bool:
    """Whether somebody wants to see single messages, which a fused kernel does not make: an explainer, or hooks on the steps."""
    return bool(getattr(module, "explain", False)) or any(getattr(module, name, None) for name in _STEP_HOOKS)


def _make_cfconv(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, edge_index: Tensor, edge_weight: Tensor, edge_attr: Tensor) -> Tensor:
        if observed(self):
            plain: Tensor = type(self).forward(self, x, edge_index, edge_weight, edge_attr)
            return plain
        smooth = 0.5 * (torch.cos(edge_weight * math.pi / self.cutoff) + 1.0)
        features, filters = alike(self.lin1(x), self.nn(edge_attr) * smooth.view(-1, 1))
        graph = scope.graph_of_pair(edge_index, features.shape[0], self.flow)
        out: Tensor = self.lin2(cfconv(features, filters, graph, backend=scope.backend))
        return out

    return forward


def _residual(block: Any, x: Tensor, direct: Tensor, gathered: Tensor) -> Tensor:
    """What follows the sum over triplets, in DimeNet and DimeNet++ alike."""
    h = direct + gathered
    for layer in block.layers_before_skip:
        h = layer(h)
    h = block.act(block.lin(h)) + x
    for layer in block.layers_after_skip:
        h = layer(h)
    out: Tensor = h
    return out


def _make_dimenet_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, rbf: Tensor, sbf: Tensor, idx_kj: Tensor, idx_ji: Tensor) -> Tensor:
        direct = self.act(self.lin_ji(x))
        message, angular = alike(self.act(self.lin_kj(x)) * self.lin_rbf(rbf), self.lin_sbf(sbf))
        triplets = scope.shared(_triplets, (idx_kj, idx_ji), x.shape[0])
        summed = triplet_reduce(message, angular, triplets, backend=scope.backend)  # [edges, bilinear, hidden]
        return _residual(self, x, direct, torch.einsum("ejl,ijl->ei", summed, self.W.to(summed.dtype)))

    return forward


def make_dimenet_pp_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, rbf: Tensor, sbf: Tensor, idx_kj: Tensor, idx_ji: Tensor) -> Tensor:
        direct = self.act(self.lin_ji(x))
        message = self.act(self.lin_kj(x)) * self.lin_rbf2(self.lin_rbf1(rbf))
        message, filters = alike(self.act(self.lin_down(message)), self.lin_sbf2(self.lin_sbf1(sbf)))
        summed = cfconv(message, filters, scope.graph(idx_kj, idx_ji, x.shape[0]), backend=scope.backend)
        return _residual(self, x, direct, self.act(self.lin_up(summed)))

    return forward


def make_dimenet_output(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, rbf: Tensor, i: Tensor, num_nodes: int | None = None) -> Tensor:
        if num_nodes is None:
            num_nodes = int(i.max()) + 1 if i.numel() else 0
        h = gated_sum(scope, x, rbf, self.lin_rbf, i, num_nodes)
        if hasattr(self, "lin_up"):
            h = self.lin_up(h)
        for layer in self.lins:
            h = self.act(layer(h))
        out: Tensor = self.lin(h)
        return out

    return forward


def _triplets(edge_in: Tensor, edge_out: Tensor, num_edges: int) -> TripletIndex:
    return TripletIndex.from_triplets(edge_in.to(torch.int64), edge_out.to(torch.int64), num_edges)


_SCHNET = "torch_geometric.nn.models.schnet"
_DIMENET = "torch_geometric.nn.models.dimenet"

#: compared with 2.5.3, 2.6.1, 2.7.0, 2.8.0 and 2.8.1
RULES = (
    Rule(
        class_name=f"{_SCHNET}.CFConv",
        package="torch_geometric",
        kernel="cfconv",
        known={"forward": frozenset({"0cf775bae716437e"}), "message": frozenset({"948387b6f3c74f34"})},
        make=_make_cfconv,
        check=message_passing_refusal,
        inherited=("aggregate", "update", "message_and_aggregate", "edge_update"),
    ),
    Rule(
        class_name=f"{_DIMENET}.InteractionBlock",
        package="torch_geometric",
        kernel="triplet_reduce",
        known={"forward": frozenset({"ab57e94ba06ac11f"})},
        make=_make_dimenet_interaction,
    ),
    Rule(
        class_name=f"{_DIMENET}.InteractionPPBlock",
        package="torch_geometric",
        kernel="cfconv",
        known={"forward": frozenset({"6f7d300216383f6c"})},
        make=make_dimenet_pp_interaction,
    ),
    Rule(
        class_name=f"{_DIMENET}.OutputBlock",
        package="torch_geometric",
        kernel="gated_edge_to_node",
        known={"forward": frozenset({"1542ee7242c2486a"})},
        make=make_dimenet_output,
    ),
    Rule(
        class_name=f"{_DIMENET}.OutputPPBlock",
        package="torch_geometric",
        kernel="gated_edge_to_node",
        known={"forward": frozenset({"2848f7568d480e43"})},
        make=make_dimenet_output,
    ),
)
