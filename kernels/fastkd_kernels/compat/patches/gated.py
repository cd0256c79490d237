"""The gated sum of edges onto nodes, Σ edge ∘ gate(basis), common to DimeNet and GemNet."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...edge_to_node.op import edge_to_node
from ...gated_edge_to_node.op import gated_edge_to_node
from ...graph import CSRGraph
from .gate import full_name, replaced
from .scope import Scope, alike


def gated_sum(scope: Scope, edge: Tensor, basis: Tensor, gate: nn.Module, index: Tensor, num_nodes: int) -> Tensor:
    """Sum onto node ``index`` of edge ∘ gate(basis); the gate is fused if it is no more than a product with a matrix."""
    graph = scope.shared(_incoming, (index,), num_nodes)
    weight = matrix(gate)
    if weight is None:
        edge, gates = alike(edge, gate(basis))
        return edge_to_node(edge * gates, graph, backend=scope.backend)
    edge, basis, weight = alike(edge, basis, weight)
    return gated_edge_to_node(edge, basis, weight, graph, backend=scope.backend)


#: GemNet's linear layer with an activation; its forward is compared when a model is patched
DENSE = "fairchem.core.models.gemnet_oc.layers.base_layers.Dense"


def matrix(layer: nn.Module) -> Tensor | None:
    """The weight of a linear map without bias, activation or anybody watching it, else None."""
    inner: Any = layer
    if full_name(type(layer)) == DENSE:
        inner = layer.linear if type(layer._activation) is nn.Identity else None
    if type(inner) is not nn.Linear or inner.bias is not None or any(hooked(module) for module in layer.modules()):
        return None
    return inner.weight


def hooked(module: nn.Module) -> bool:
    """Whether somebody would miss a call of the module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or replaced(module, "forward")


def _incoming(index: Tensor, num_nodes: int) -> CSRGraph:
    # only the ends of the edges matter
    return CSRGraph.from_edges(index, index, num_nodes)
