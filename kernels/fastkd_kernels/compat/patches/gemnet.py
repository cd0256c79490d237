"""fairchem-core 1.x: GemNet-OC.

Its interactions write neighbours into matrices padded to the largest number of neighbours, Kmax, and multiply. Each of them is
`triplet_reduce` on one of four indices (b → a are edges, c → a another edge into the same atom):

    edge to edge, atom to edge   input edge b → a (or atom b)     → output edge c → a
    edge to atom, second sum     (edge, spherical component)       → atom
    atom to atom                 atom b                            → atom a
    quadruplets                  triplet d → b → a                 → output edge c → a

The bases come unpadded then: within a forward of the model, `BasisEmbedding` hands on the basis of each triplet, and of each edge, as it is.
Atom updates and output blocks are `gated_edge_to_node`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...triplet_reduce.op import triplet_reduce
from ...triplet_reduce.triplets import TripletIndex
from .gate import Rule, difference, full_name, is_kind
from .gated import DENSE, gated_sum, hooked
from .scope import Scope, alike

_OC, _PACKAGE = "fairchem.core.models.gemnet_oc", "fairchem-core"
MODELS: tuple[str, ...] = (f"{_OC}.gemnet_oc.GemNetOC",)
_OTHER_GEMNETS = ("gemnet", "gemnet_gp")
_STEPS = ("atom_update_block.AtomUpdateBlock", "efficient.EfficientInteractionBilinear")
LEFT: dict[str, str] = {
    f"fairchem.core.models.{package}.layers.{step}": "GemNet of another kind than GemNet-OC"
    for package in _OTHER_GEMNETS
    for step in _STEPS
}


def _make_basis_embedding(scope: Scope) -> Callable[..., Any]:
    def forward(
        self: Any,
        rad_basis: Tensor,
        sph_basis: Tensor | None = None,
        idx_rad_outer: Tensor | None = None,
        idx_rad_inner: Tensor | None = None,
        idx_sph_outer: Tensor | None = None,
        idx_sph_inner: Tensor | None = None,
        num_atoms: int | None = None,
    ) -> Any:
        padded = idx_rad_inner is not None or idx_sph_inner is not None
        if not scope.is_open or not padded or (sph_basis is not None and idx_sph_inner is None):
            return type(self).forward(self, rad_basis, sph_basis, idx_rad_outer, idx_rad_inner, idx_sph_outer, idx_sph_inner, num_atoms)
        if sph_basis is None:
            return rad_basis @ self.weight.T  # [edges, interm]
        radial = rad_basis @ self.weight.flatten(1)
        return radial.unflatten(1, (-1, sph_basis.shape[1])), sph_basis  # [edges, interm, spherical], [triplets, spherical]

    return forward


def _make_triplet_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(
        self: Any,
        m: Tensor,
        bases: Any,
        idx: Any,
        id_swap: Tensor,
        expand_idx: Tensor | None = None,
        idx_agg2: Tensor | None = None,
        idx_agg2_inner: Tensor | None = None,
        agg2_out_size: int | None = None,
    ) -> Tensor:
        radial, spherical = bases["cir"]
        if spherical.dim() == 3 or hooked(self.mlp_cbf):
            _must_be_padded(self, spherical)
            plain: Tensor = type(self).forward(self, m, bases, idx, id_swap, expand_idx, idx_agg2, idx_agg2_inner, agg2_out_size)
            return plain
        message = self.dense_ba(m)
        if expand_idx is not None:
            message = message[expand_idx]
        message = self.down_projection(self.scale_rbf(message * self.mlp_rbf(bases["rad"]), ref=message))
        summed = _onto_edges(scope, message, spherical, idx["in"], idx["out"], radial, idx_agg2, agg2_out_size)
        x = self.mlp_cbf.bilinear(summed.flatten(1))
        x = self.scale_cbf_sum(x, ref=_reference(self.scale_cbf_sum, message, idx["in"]))
        if not self.symmetric_mp:
            out: Tensor = self.up_projection_ca(x[id_swap] if self.swap_output else x)
            return out
        return _both_ways(self, x, id_swap)

    return forward


def _make_quadruplet_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, m: Tensor, bases: Any, idx: Any, id_swap: Tensor) -> Tensor:
        radial, spherical = bases["sph"]
        if spherical.dim() == 3 or hooked(self.mlp_sbf):
            _must_be_padded(self, spherical)
            plain: Tensor = type(self).forward(self, m, bases, idx, id_swap)
            return plain
        message = self.dense_db(m)
        message = self.down_projection(self.scale_rbf(message * self.mlp_rbf(bases["rad"]), ref=message))
        message = message[idx["triplet_in"]["in"]]
        message = self.scale_cbf(message * self.mlp_cbf(bases["cir"]), ref=message)
        summed = _onto_edges(scope, message, spherical, idx["trip_in_to_quad"], idx["out"], radial)
        x = self.mlp_sbf.bilinear(summed.flatten(1))
        x = self.scale_sbf_sum(x, ref=_reference(self.scale_sbf_sum, message, idx["trip_in_to_quad"]))
        if not self.symmetric_mp:
            out: Tensor = self.up_projection_ca(x)
            return out
        return _both_ways(self, x, id_swap)

    return forward


def _make_pair_interaction(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, h: Tensor, rad_basis: Tensor, edge_index: Tensor, target_neighbor_idx: Tensor) -> Tensor:
        if rad_basis.dim() == 3:
            plain: Tensor = type(self).forward(self, h, rad_basis, edge_index, target_neighbor_idx)
            return plain
        atoms = h.shape[0]
        projected, radial = alike(self.down_projection(h), rad_basis)
        edges = scope.shared(_triplets, (edge_index[0], edge_index[1]), atoms, atoms)
        summed = triplet_reduce(projected, radial, edges, backend=scope.backend)
        x = self.scale_rbf_sum(self.bilinear(summed.flatten(1)), ref=_reference(self.scale_rbf_sum, projected, edge_index[0]))
        out: Tensor = self.up_projection(x)
        return out

    return forward


def _make_atom_update(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, h: Tensor, m: Tensor, basis_rad: Tensor, idx_atom: Tensor) -> Tensor:
        x = self.scale_sum(gated_sum(scope, m, basis_rad, self.dense_rbf, idx_atom, h.shape[0]), ref=m)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = x
        return out

    return forward


def _make_output(scope: Scope) -> Callable[..., Any]:
    def forward(self: Any, h: Tensor, m: Tensor, basis_rad: Tensor, idx_atom: Tensor) -> tuple[Tensor, Tensor | int]:
        x = self.scale_sum(gated_sum(scope, m, basis_rad, self.dense_rbf, idx_atom, h.shape[0]), ref=m)
        for layer in self.seq_energy_pre:
            x = layer(x)
        if self.seq_energy2 is not None:
            x = (x + h) * self.inv_sqrt_2
            for layer in self.seq_energy2:
                x = layer(x)
        if not self.direct_forces:
            return x, 0
        edge = m
        for layer in self.seq_forces:
            edge = layer(edge)
        return x, self.scale_rbf_F(edge * self.dense_rbf_F(basis_rad), ref=edge)

    return forward


def _onto_edges(
    scope: Scope,
    message: Tensor,
    spherical: Tensor,
    index_in: Tensor,
    index_out: Tensor,
    radial: Tensor,
    index_atom: Tensor | None = None,
    num_atoms: int | None = None,
) -> Tensor:
    """Σ over triplets of message ⊗ spherical, times the radial basis of the output edge, and perhaps Σ over the edges of each atom.

    Returns:
        [edges or atoms, interm, features].
    """
    message, spherical, radial = alike(message, spherical, radial)
    edges, components = radial.shape[0], radial.shape[2]
    triplets = scope.shared(_triplets, (index_in, index_out), edges, message.shape[0])
    summed = triplet_reduce(message, spherical, triplets, backend=scope.backend)  # [edges, spherical, features]
    if index_atom is None or num_atoms is None:
        return radial @ summed
    # each component of each edge is a row of its own, with a radial basis of its own
    rows = scope.shared(_components, (index_atom,), components, num_atoms)
    return triplet_reduce(summed.flatten(0, 1), radial.transpose(1, 2).flatten(0, 1), rows, backend=scope.backend)


def _both_ways(block: Any, x: Tensor, id_swap: Tensor) -> Tensor:
    """What an edge gets from its own sum and from that of the edge in the opposite direction."""
    out: Tensor = (block.up_projection_ca(x) + block.up_projection_ac(x)[id_swap]) * block.inv_sqrt_2
    return out


def _reference(scale: Any, message: Tensor, index: Tensor) -> Tensor | None:
    """What a scaling factor compares with, a tensor of the size of all triplets, and only looks at while it is fitted."""
    return message[index] if scale.stats is not None else None


def _must_be_padded(block: nn.Module, spherical: Tensor) -> None:
    if spherical.dim() != 3:
        name = type(block).__name__
        raise ValueError(f"hooks were put on the bilinear layer of a patched {name}, which a fused kernel does not call; unpatch the model")


def _triplets(index_in: Tensor, index_out: Tensor, num_out: int, num_in: int) -> TripletIndex:
    return TripletIndex.from_triplets(index_in.to(torch.int64), index_out.to(torch.int64), num_out, num_in=num_in)


def _components(index_atom: Tensor, components: int, num_atoms: int) -> TripletIndex:
    rows = index_atom.shape[0] * components
    return _triplets(torch.arange(rows, device=index_atom.device), index_atom.repeat_interleave(components), num_atoms, rows)


def _bilinear(name: str) -> Callable[[nn.Module], str | None]:
    """Whether the layer of that name, whose work the kernel does, is the one that was compared."""

    def check(module: nn.Module) -> str | None:
        layer = getattr(module, name)
        if full_name(type(layer)) != f"{_OC}.layers.efficient.EfficientInteractionBilinear":
            return f"{name} is a {type(layer).__name__}, not an EfficientInteractionBilinear"
        different = difference(layer, {"forward": frozenset({"5188362f7a57784f", "66186ef388406c45"})}, _PACKAGE)
        return different or (f"hooks on {name}, which a fused kernel does not call" if hooked(layer) else None)

    return check


def _gate(module: nn.Module) -> str | None:
    """Whether the gate of an atom update, if it is a `Dense`, is the one that was compared; anything else is called, not fused."""
    layer: Any = module.dense_rbf
    if full_name(type(layer)) != DENSE or hooked(layer):
        return None
    return difference(layer, {"forward": frozenset({"8f45b13dfe997816"})}, _PACKAGE)


#: who makes the bases and hands them on, and so must not mind that they come unpadded
_CARRIERS = {
    MODELS[0]: {
        "get_bases": frozenset({"562a93c8f635c6b9"}),
        "forward": frozenset({"0bd3df8f19cced15", "127df840f6a91a15", "8ce737c39a9f7ffa"}),
    },
    f"{_OC}.layers.interaction_block.InteractionBlock": {"forward": frozenset({"64eaa0ce5cac9a86"})},
}
#: who takes them, and so must be replaced too
_TAKERS = tuple(f"{_OC}.layers.interaction_block.{step}Interaction" for step in ("Triplet", "Quadruplet", "Pair"))


def _bases_are_safe(model: nn.Module) -> str | None:
    """Why bases must not come unpadded in this model, if so."""
    for module in model.modules():
        for kind, known in _CARRIERS.items():
            if is_kind(module, kind) and (different := difference(module, known, _PACKAGE)) is not None:
                return f"in {type(module).__name__}, which hands on bases: {different}"
        if any(is_kind(module, kind) for kind in _TAKERS) and full_name(type(module)) not in _TAKERS:
            return f"a {type(module).__name__} takes bases, and is not known"
    return None


def _rule(
    file: str,
    name: str,
    kernel: str,
    digest: str,
    make: Callable[[Scope], Callable[..., Any]],
    check: Callable[[nn.Module], str | None] = lambda module: None,
) -> Rule:
    known = {"forward": frozenset({digest})}
    class_name = f"{_OC}.layers.{file}.{name}"
    if kernel != "triplet_reduce":
        return Rule(class_name, _PACKAGE, kernel, known, make, check)
    # bases come unpadded within the model alone
    return Rule(class_name, _PACKAGE, kernel, known, make, check, inside=MODELS[0], around=_bases_are_safe)


#: compared with 1.0.0, 1.3.0, 1.5.0, 1.8.0, 1.9.0 and 1.10.0
RULES: tuple[Rule, ...] = (
    _rule("efficient", "BasisEmbedding", "triplet_reduce", "eb48559c9f1d1093", _make_basis_embedding),
    _rule("interaction_block", "TripletInteraction", "triplet_reduce", "9f3f56a0456561dd", _make_triplet_interaction, _bilinear("mlp_cbf")),
    _rule(
        "interaction_block",
        "QuadrupletInteraction",
        "triplet_reduce",
        "5807455135fd56b2",
        _make_quadruplet_interaction,
        _bilinear("mlp_sbf"),
    ),
    _rule("interaction_block", "PairInteraction", "triplet_reduce", "9e3941d5cc1e3523", _make_pair_interaction),
    _rule("atom_update_block", "AtomUpdateBlock", "gated_edge_to_node", "196d2ce1ec39d24d", _make_atom_update, _gate),
    _rule("atom_update_block", "OutputBlock", "gated_edge_to_node", "8a60cb4bc77d5b82", _make_output, _gate),
)
