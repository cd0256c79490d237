"""PaiNN and SchNet of the Open Catalyst Project: constructor arguments and state dict → our models.

OCP's messages split into (scalar, vector, direction) and its edge vectors point from destination to source; ours split into
(scalar, direction, vector) and point the other way. Rows of the weights are permuted and negated accordingly, so that all features
come out equal, signs included. Projections used for distillation are no part of a student here: they are returned apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .base import MAX_ATOMIC_NUMBER
from .foreign import ForeignModel, fill, renamed, without_wrapper
from .painn import PaiNN, PaiNNOptions
from .schnet import SchNet, SchNetOptions

#: What OCP's graphs are cut to where a config does not say.
DEFAULT_MAX_NEIGHBORS = 50
DISTILLATION_MAPS = ("n2n", "n2e", "v2v", "e2e")

_PAINN_NAMES = (
    (r"message_layers\.(\d+)\.x_layernorm\.", r"messages.\1.norm."),
    (r"message_layers\.(\d+)\.x_proj\.", r"messages.\1.context."),
    (r"message_layers\.(\d+)\.rbf_proj\.", r"messages.\1.filter."),
    (r"update_layers\.(\d+)\.vec_proj\.", r"updates.\1.vector_mix."),
    (r"update_layers\.(\d+)\.xvec_proj\.", r"updates.\1.context."),
    (r"out_energy\.", r"energy_head."),
    (r"out_forces\.output_network\.(\d+)\.vec1_proj\.", r"force_head.\1.norm_mix."),
    (r"out_forces\.output_network\.(\d+)\.vec2_proj\.", r"force_head.\1.vector_mix."),
    (r"out_forces\.output_network\.(\d+)\.update_net\.", r"force_head.\1.gate."),
)
_SCHNET_NAMES = (
    (r"interactions\.(\d+)\.mlp\.0\.", r"interactions.\1.filter.first."),
    (r"interactions\.(\d+)\.mlp\.2\.", r"interactions.\1.filter.second."),
    (r"interactions\.(\d+)\.conv\.lin1\.", r"interactions.\1.before."),
    (r"interactions\.(\d+)\.conv\.lin2\.", r"interactions.\1.after."),
    (r"interactions\.(\d+)\.lin\.", r"interactions.\1.last."),
    (r"lin1\.", r"energy_head.0."),
    (r"lin2\.", r"energy_head.2."),
)


def load_painn(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForeignModel:
    """OCP's PaiNN.

    Args:
        config: its constructor arguments; those that are missing take OCP's defaults.
        state: its state dict, in any floating dtype.

    Raises:
        CheckpointError: if an argument asks for a variant that is not supported, or tensors are missing, left over or misshapen.
    """
    state = without_wrapper(state)
    for key, supported in (("rbf", "gaussian"), ("envelope", "polynomial")):
        name = dict(config.get(key) or {}).get("name", supported)
        if name != supported:
            raise CheckpointError(f"OCP PaiNN with {key} {name!r} is not supported, only {supported!r}")
    regress = config.get("regress_forces", True)
    direct = bool(regress and config.get("direct_forces", True))
    if regress and not direct:
        # the reference differentiates the sum of all features there, not the energy
        raise CheckpointError("OCP PaiNN with direct_forces=False has forces that are no derivative of its energy; they are not supported")
    layers = int(config.get("num_layers", 6))
    scales = [state.pop(f"upd_out_scalar_scale_{i}.scale_factor", torch.zeros(())) for i in range(layers)]
    options = PaiNNOptions.ocp(
        width=int(config.get("hidden_channels", 512)),
        layers=layers,
        radial=int(config.get("num_rbf", 128)),
        cutoff=float(config.get("cutoff", 12.0)),
    )
    changes: dict[str, Any] = {"envelope_exponent": int(dict(config.get("envelope") or {}).get("exponent", 5))}
    embedding = state.pop("atom_emb.embeddings.weight", None)
    if embedding is not None:
        changes |= {"first_element": 1, "last_element": embedding.shape[0]}
    changes["forces"] = "direct" if direct else "conservative"
    changes["fitted_scales"] = any(bool(scale != 0) for scale in scales)
    options = PaiNNOptions(**{**vars(options), **changes})
    state.pop("radial_basis.rbf.offset", None)
    maps = _pop_maps(state)
    ours = renamed(state, _PAINN_NAMES)
    for i in range(layers):
        for name, sign in ((f"messages.{i}.context.2", 1.0), (f"messages.{i}.filter", -1.0)):
            for part in ("weight", "bias"):
                _swap_parts(ours, f"{name}.{part}", sign)
    if options.fitted_scales:
        ours["scales"] = torch.stack([torch.where(scale == 0, torch.ones_like(scale), scale).reshape(()) for scale in scales])
    model = PaiNN(options)
    fill(model, ours, embedding, 1, _PAINN_NAMES)
    return ForeignModel(model, int(config.get("max_neighbors", DEFAULT_MAX_NEIGHBORS)), symmetric=True, maps=maps)


def load_schnet(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForeignModel:
    """OCP's SchNet, which is PyTorch Geometric's. Arguments and errors as `load_painn`."""
    state = without_wrapper(state)
    readout = config.get("readout", "add")
    if readout not in ("add", "sum", "mean"):
        raise CheckpointError(f"OCP SchNet with readout {readout!r} is not supported, only 'add' and 'mean'")
    embedding = state.pop("embedding.weight", None)
    options = SchNetOptions(
        width=int(config.get("hidden_channels", 128)),
        filters=int(config.get("num_filters", 128)),
        layers=int(config.get("num_interactions", 6)),
        radial=int(config.get("num_gaussians", 50)),
        cutoff=float(config.get("cutoff", 10.0)),
        readout="mean" if readout == "mean" else "sum",
        last_element=MAX_ATOMIC_NUMBER if embedding is None else embedding.shape[0] - 1,
    )
    state.pop("distance_expansion.offset", None)
    maps = _pop_maps(state)
    # the reference lists the filter network twice, as the block's and as the convolution's
    ours = renamed({name: value for name, value in state.items() if ".conv.nn." not in name}, _SCHNET_NAMES)
    model = SchNet(options)
    fill(model, ours, embedding, 0, _SCHNET_NAMES)
    # the reference takes no other limit, whatever its config says
    return ForeignModel(model, DEFAULT_MAX_NEIGHBORS, symmetric=False, maps=maps)


def _pop_maps(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
    maps = {}
    for name in DISTILLATION_MAPS:
        weight, bias = (state.pop(f"{name}_mapping.{part}", None) for part in ("weight", "bias"))
        if weight is not None:
            maps[name] = (weight, bias)
    return maps


def schnet_name(name: str) -> str:
    """Our name of a parameter of PyTorch Geometric's SchNet."""
    if name == "embedding.weight":
        return name
    return next(iter(renamed({name: torch.empty(0)}, _SCHNET_NAMES)))


def _swap_parts(state: dict[str, Tensor], name: str, direction_sign: float) -> None:
    """Rows (scalar, vector, direction) → (scalar, ±direction, vector)."""
    if name in state:
        scalar, vector, direction = state[name].chunk(3)
        state[name] = torch.cat([scalar, direction_sign * direction, vector])
