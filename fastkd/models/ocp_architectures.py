"""The architectures whose checkpoints of OCP and fairchem-core 1.x can be converted, and what each needs for it.

Example:
    >>> sorted(ARCHITECTURES)
    ['dimenet_pp', 'gemnet_oc', 'painn', 'schnet']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .base import Potential
from .dimenet_pp_weights import load_dimenet_pp_ocp
from .foreign import ForeignModel, listed, without_wrapper
from .gemnet_oc import GemNetOC
from .gemnet_oc.layers import ScaleFactor
from .gemnet_oc.load import load_gemnet_oc, same_parameter
from .gemnet_oc.scales import scale_name
from .ocp import load_painn, load_schnet
from .painn import PaiNN

#: for names that no file has
_NONE = r"(?!)"


@dataclass(frozen=True)
class OcpArchitecture:
    """What is needed to convert one architecture."""

    load: Callable[[Mapping[str, Any], Mapping[str, Tensor]], ForeignModel]  #: constructor arguments, state dict
    names: tuple[str, ...]  #: as configs call it
    marker: str  #: regular expression of a tensor that no other architecture has
    #: regular expression of entries of a state dict that are no parameter of the optimiser's: buffers, and second names of parameters
    not_trained: str
    ignored: str = _NONE  #: regular expression of tensors that say nothing about predictions
    scale_forces: Callable[[Potential, float], None] | None = None  #: multiplies the output of a head for forces
    same: Callable[[str], str] = str  #: equal for all names under which a file lists one and the same parameter


ARCHITECTURES: dict[str, OcpArchitecture] = {}


def register(name: str, architecture: OcpArchitecture) -> None:
    """Let checkpoints of an architecture be converted.

    Raises:
        ValueError: if the name is taken.
    """
    if name in ARCHITECTURES:
        raise ValueError(f"checkpoints of {name!r} are converted already")
    ARCHITECTURES[name] = architecture


def _scale_painn_forces(model: Potential, factor: float) -> None:
    assert isinstance(model, PaiNN)
    with torch.no_grad():
        model.force_head[-1].vector_mix.weight.mul_(factor)  # the last layer is linear in it


def _load_gemnet(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ForeignModel:
    """With all scale factors or none: files of 2022 have them beside, where they may be those of another model."""
    foreign = load_gemnet_oc(config, state)
    factors = {f"{name}.factor" for name, module in foreign.model.named_modules() if isinstance(module, ScaleFactor)}
    given = {scale_name(name) for name in without_wrapper(state)}
    if missing := sorted(factors - given) if factors & given else []:
        raise CheckpointError(
            f"{len(missing)} of {len(factors)} scale factors are missing: {listed(missing)} (by our names); "
            "those that are there belong to a model with other blocks or interactions"
        )
    return foreign


def _scale_gemnet_forces(model: Potential, factor: float) -> None:
    assert isinstance(model, GemNetOC)
    with torch.no_grad():
        model.force_head.weight.mul_(factor)


register(
    "painn",
    OcpArchitecture(
        load_painn,
        ("painn", "painn_backbone"),
        r"message_layers\.0\.x_proj\.0\.weight",
        not_trained=r"radial_basis\..*|.*\.scale_factor",
        scale_forces=_scale_painn_forces,
    ),
)
register(
    "schnet",
    OcpArchitecture(
        load_schnet,
        ("schnet", "schnetwrap"),
        r"interactions\.0\.conv\.lin1\.weight",
        not_trained=r"distance_expansion\.offset|atomic_mass|initial_atomref|interactions\.\d+\.conv\.nn\..*",
        ignored=r"atomic_mass|initial_atomref",
    ),
)
register(
    "gemnet_oc",
    OcpArchitecture(
        _load_gemnet,
        ("gemnet_oc", "gemnet_oc_backbone", "gemnetoc", "gemnetocbackbone"),
        r"int_blocks\.0\.trip_interaction\.dense_ba\.linear\.weight",
        not_trained=r".*\.rbf\.offset|.*\.scale_factor",
        scale_forces=_scale_gemnet_forces,
        same=same_parameter,
    ),
)
register(
    "dimenet_pp",
    OcpArchitecture(
        load_dimenet_pp_ocp,
        ("dimenetplusplus", "dimenetplusplus_backbone", "dimenetpluspluswrap", "dimenetpluspluswrapbackbone"),
        r"output_blocks\.0\.lin_up\.weight",
        not_trained=_NONE,
    ),
)
