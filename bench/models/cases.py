"""Which models are measured, against whom, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from bench.models import gemnet, packages, plain
from bench.models.shapes import Structures
from bench.training_step import Pair

#: structures, dtype, device, seed, and whether to make a tiny model
Make = Callable[..., Pair]


@dataclass(frozen=True)
class Case:
    """A model and its twin."""

    name: str
    model: str  #: what it is, and how large
    peer: str  #: the package of the twin, or what the twin is
    kind: Literal["package", "plain twin"]
    make: Make
    shapes: tuple[str, ...]
    forces: Literal["gradient", "direct"] = "gradient"
    large: tuple[str, ...] = ()  #: more shapes for a GPU, which a CPU takes minutes for; there they are measured if asked for by name

    def pair(self, structures: Structures, dtype: torch.dtype, device: torch.device, seed: int, *, small: bool = False) -> Pair:
        """Both models with the same weights, and what to feed them."""
        return self.make(structures, dtype, device, seed, small=small)


PYG, SCHNETPACK, FAIRCHEM = "torch_geometric", "schnetpack", "fairchem-core 1.x"
PLAIN = "plain torch"
MOLECULES = ("ethanol", "organic", "droplet")
_published = partial(gemnet.make_pair, size="published")

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("schnet", "SchNet, 128 × 6", PYG, "package", packages.schnet_pyg, MOLECULES),
        Case("painn", "PaiNN, 128 × 3", SCHNETPACK, "package", packages.painn_schnetpack, MOLECULES),
        Case("schnet_oc", "SchNet, 1024/256 × 5, 6 Å", FAIRCHEM, "package", packages.schnet_fairchem, ("slab",)),
        Case("painn_oc_direct", "PaiNN, 256 × 4, 12 Å", FAIRCHEM, "package", packages.painn_fairchem, ("slab",), "direct"),
        Case("dimenet_pp", "DimeNet++, 128 × 4", PYG, "package", packages.dimenet_pyg, MOLECULES),
        Case("dimenet_pp_oc", "DimeNet++, 192 × 3", FAIRCHEM, "package", packages.dimenet_fairchem, ("slab",), large=("droplet",)),
        Case(
            "gemnet_oc",
            "GemNet-OC, 64/128 × 2, 6 Å",
            FAIRCHEM,
            "package",
            gemnet.make_pair,
            ("organic", "slab"),
            large=("ethanol", "droplet"),
        ),
        Case(
            "gemnet_oc_direct",
            "GemNet-OC, 64/128 × 2, 6 Å",
            FAIRCHEM,
            "package",
            partial(gemnet.make_pair, direct=True),
            ("organic", "slab"),
            "direct",
            large=("ethanol", "droplet"),
        ),
        Case("gemnet_oc_small", "GemNet-OC, 128/256 × 3, 12 Å", FAIRCHEM, "package", _published, ("one_slab",), large=("slab",)),
        Case(
            "gemnet_oc_small_direct",
            "GemNet-OC, 128/256 × 3, 12 Å",
            FAIRCHEM,
            "package",
            partial(_published, direct=True),
            ("one_slab",),
            "direct",
            large=("slab",),
        ),
        Case("mxmnet", "MXMNet, 128 × 6", PLAIN, "plain twin", plain.mxmnet, ("ethanol", "organic"), large=("droplet",)),
        Case("pamnet", "PAMNet, 128 × 6", PLAIN, "plain twin", plain.pamnet, ("ethanol", "organic"), large=("droplet",)),
        Case(
            "pamnet_s",
            "PAMNet-s, 128 × 6",
            PLAIN,
            "plain twin",
            partial(plain.pamnet, simple=True),
            ("ethanol", "organic"),
            large=("droplet",),
        ),
    )
}
