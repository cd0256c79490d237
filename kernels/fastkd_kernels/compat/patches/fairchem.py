"""fairchem-core 1.x (Open Catalyst Project): PaiNN (`painn_message`) and DimeNet++; SchNet there is torch_geometric's.

PaiNN's blocks are (scalar, vector, direction) and carry the constants 1/√3 and 1/√F. Both are brought into our form where it is cheap: the
order of the edge filter by permuting the rows of the linear map that makes it, and order and constants of the node features after theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...painn_message.op import painn_message
from .gate import Rule
from .gated import hooked
from .pyg import make_dimenet_output, make_dimenet_pp_interaction, message_passing_refusal, observed
from .scope import Scope, alike

_PAINN = "fairchem.core.models.painn.painn"
_DIMENET = "fairchem.core.models.dimenet_plus_plus"
MODELS = (f"{_PAINN}.PaiNN", f"{_DIMENET}.DimeNetPlusPlus")
LEFT: dict[str, str] = {}


def _make_painn_message(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, vec: Tensor, edge_index: Tensor, edge_rbf: Tensor, edge_vector: Tensor) -> tuple[Tensor, Tensor]:
        if observed(self):
            plain: tuple[Tensor, Tensor] = type(self).forward(self, x, vec, edge_index, edge_rbf, edge_vector)
            return plain
        scalar, along_vector, along_direction = self.x_proj(self.x_layernorm(x)).chunk(3, dim=-1)
        context = torch.cat([scalar, along_direction * self.inv_sqrt_h, along_vector * (self.inv_sqrt_3 * self.inv_sqrt_h)], dim=-1)
        phi, vector, filters, direction = alike(context, vec, _filters(self.rbf_proj, edge_rbf), edge_vector)
        graph = scope.graph_of_pair(edge_index, x.shape[0], self.flow)
        return painn_message(phi, vector, filters, direction, graph, backend=scope.backend)

    return forward


def _filters(linear: nn.Module, basis: Tensor) -> Tensor:
    """The edge filter in our order of blocks."""
    if type(linear) is nn.Linear and not hooked(linear):
        # rows of the small matrix instead of columns of the large result
        return nn.functional.linear(basis, _swapped(linear.weight, 0), None if linear.bias is None else _swapped(linear.bias, 0))
    return _swapped(linear(basis), -1)


def _swapped(blocks: Tensor, dim: int) -> Tensor:
    scalar, vector, direction = blocks.chunk(3, dim=dim)
    return torch.cat([scalar, direction, vector], dim=dim)


#: compared with 1.0.0, 1.3.0, 1.5.0, 1.8.0, 1.9.0 and 1.10.0
RULES = (
    Rule(
        class_name=f"{_PAINN}.PaiNNMessage",
        package="fairchem-core",
        kernel="painn_message",
        known={
            "forward": frozenset({"66ad6d216643f77b"}),
            "message": frozenset({"a9c39bdc50fe74f4"}),
            "aggregate": frozenset({"793fcadbacf32c27"}),
            "update": frozenset({"85097bf8e1fb9346"}),
        },
        make=_make_painn_message,
        check=message_passing_refusal,
        inherited=("message_and_aggregate", "edge_update"),
    ),
    Rule(
        class_name=f"{_DIMENET}.InteractionPPBlock",
        package="fairchem-core",
        kernel="cfconv",
        known={"forward": frozenset({"293bef14dc25ba87"})},
        make=make_dimenet_pp_interaction,
    ),
    Rule(
        class_name=f"{_DIMENET}.OutputPPBlock",
        package="fairchem-core",
        kernel="gated_edge_to_node",
        known={"forward": frozenset({"d4a36299f0cc7a23"})},
        make=make_dimenet_output,
    ),
)
