"""SchNetPack 2: the representations SchNet (`cfconv`) and PaiNN (`painn_message`).

SchNetPack's edges run from ``idx_j`` to ``idx_i``, its vectors are those of the messages, and its blocks are in our order (scalar, direction, vector).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...cfconv.op import cfconv
from ...painn_message.op import painn_message
from .gate import Rule
from .scope import Scope, alike

MODELS = ("schnetpack.representation.schnet.SchNet", "schnetpack.representation.painn.PaiNN")
_NO_KERNEL = "message passing of a class that no kernel is known for"
LEFT = {
    "schnetpack.representation.field_schnet.FieldSchNetFieldInteraction": _NO_KERNEL,
    "schnetpack.representation.field_schnet.NuclearMagneticMomentInteraction": _NO_KERNEL,
    "schnetpack.nn.so3.SO3Convolution": _NO_KERNEL,
}


def _make_schnet_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, f_ij: Tensor, idx_i: Tensor, idx_j: Tensor, rcut_ij: Tensor) -> Tensor:
        features, filters = alike(self.in2f(x), self.filter_network(f_ij) * rcut_ij[:, None])
        graph = scope.graph(idx_j, idx_i, features.shape[0])
        out: Tensor = self.f2out(cfconv(features, filters, graph, backend=scope.backend))
        return out

    return forward


def _make_painn_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(
        self: Any, q: Tensor, mu: Tensor, Wij: Tensor, dir_ij: Tensor, idx_i: Tensor, idx_j: Tensor, n_atoms: int
    ) -> tuple[Tensor, Tensor]:
        width = self.n_atom_basis
        context = self.interatomic_context_net(q).reshape(n_atoms, 3 * width)
        phi, vector, filters, direction = alike(context, mu, Wij.reshape(-1, 3 * width), dir_ij)
        graph = scope.graph(idx_j, idx_i, n_atoms)
        d_scalar, d_vector = painn_message(phi, vector, filters, direction, graph, backend=scope.backend)
        return q + d_scalar[:, None], mu + d_vector

    return forward


#: compared with 2.0.4, 2.1.0 and 2.1.1
RULES = (
    Rule(
        class_name="schnetpack.representation.schnet.SchNetInteraction",
        package="schnetpack",
        kernel="cfconv",
        known={"forward": frozenset({"756c6c3d664dbb60"})},
        make=_make_schnet_interaction,
    ),
    Rule(
        class_name="schnetpack.representation.painn.PaiNNInteraction",
        package="schnetpack",
        kernel="painn_message",
        known={"forward": frozenset({"9d77fa86e1ada2ea"})},
        make=_make_painn_interaction,
    ),
)
