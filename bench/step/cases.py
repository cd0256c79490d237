"""Teachers, students and terms: the pairs and strategies of Ekström Kelvinius et al. (arXiv:2306.14818) at the sizes of their public configs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastkd.config import TermConfig
from fastkd.models import presets
from fastkd.models.base import Potential
from fastkd.models.factory import ARCHITECTURES


@dataclass(frozen=True)
class Terms:
    """Some terms that run together."""

    name: str
    items: tuple[TermConfig, ...]

    @property
    def structural(self) -> bool:
        """Whether structures of features are compared, and not features."""
        return any(item.loss in ("cka", "lsp", "gsp") for item in self.items)


def _terms(name: str, *items: dict[str, Any]) -> Terms:
    return Terms(name, tuple(TermConfig(**item) for item in items))


N2N, E2N, V2V = {"kind": "n2n", "weight": 100.0}, {"kind": "e2n", "weight": 10.0}, {"kind": "v2v"}
FEATURES = (_terms("n2n", N2N), _terms("e2n", E2N), _terms("v2v", V2V), _terms("n2n+e2n+v2v", N2N, E2N, V2V))
VANILLA = _terms("vanilla", {"kind": "energy"}, {"kind": "forces", "weight": 100.0})
ATOMS = _terms("atom_energy", {"kind": "atom_energy", "weight": 200.0})
STRUCTURES = tuple(_terms(loss, {"kind": "n2n", "loss": loss}) for loss in ("cka", "lsp", "gsp"))


@dataclass(frozen=True)
class Pair:
    """A teacher and a student by the names of their presets, and the terms and structures to measure them with."""

    name: str
    text: str
    teacher: str
    student: str
    terms: tuple[Terms, ...]
    shapes: tuple[str, ...]
    large: tuple[str, ...] = ()  #: more shapes for a GPU, which a CPU takes minutes for; there they are measured if asked for by name

    def models(self, seed: int, *, small: bool = False) -> tuple[Potential, Potential]:
        """Teacher and student with random weights; ``small`` makes tiny ones with the same architecture."""
        torch.manual_seed(seed)
        teacher, student = (_model(name, small=small) for name in (self.teacher, self.student))
        for name, buffer in [*teacher.named_buffers(), *student.named_buffers()]:
            # those of a model that nobody has fitted are 1, which no operator could get wrong
            if name.endswith("factor"):
                buffer.fill_(0.5 + torch.rand(()).item())
        return teacher, student


#: Sizes of a tiny model, where its options have them.
TINY: dict[str, Any] = {
    **{"width": 10, "edge_width": 12, "filters": 10, "layers": 2, "radial": 8, "spherical": 3, "cutoff": 5.0},
    **dict.fromkeys(("triplet_in", "triplet_out", "pair_in", "pair_out"), 6),
    **dict.fromkeys(("quad_in", "quad_out", "radial_width", "circular_width", "spherical_width"), 4),
}


def _model(name: str, *, small: bool) -> Potential:
    preset = presets.find(name)
    options = preset.options
    if small:
        options = replace(options, **{key: value for key, value in TINY.items() if hasattr(options, key)})
    model: Potential = ARCHITECTURES[preset.architecture][0](options)
    return model


MOLECULES = ("ethanol", "organic")
_PAINN = (FEATURES[0], FEATURES[2], VANILLA, ATOMS)

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair("gemnet_painn", "GemNet-OC 128/256 × 4 → PaiNN 256 × 6", "gemnet_oc_coll", "painn_coll", FEATURES, MOLECULES),
        Pair(
            "painn_small",
            "PaiNN 256 × 6 → PaiNN 128 × 4",
            "painn_coll",
            "painn_coll_small",
            (*_PAINN, *STRUCTURES),
            MOLECULES,
        ),
        Pair("painn_schnet", "PaiNN 256 × 6 → SchNet 128 × 6", "painn_coll", "schnet_coll", FEATURES[:1], MOLECULES),
        Pair("oc20_gemnet_painn", "GemNet-OC 256/512 × 4 → PaiNN 512 × 6", "gemnet_oc_base", "painn_oc20", FEATURES, ("slab",)),
        Pair(
            "oc20_painn_small",
            "PaiNN 512 × 6 → PaiNN 256 × 4",
            "painn_oc20",
            "painn_oc20_small",
            (*_PAINN, *STRUCTURES),
            ("slab",),
        ),
        Pair("oc20_painn_schnet", "PaiNN 512 × 6 → SchNet 1024/256 × 5", "painn_oc20", "schnet_oc20", FEATURES[:1], ("slab",)),
        Pair(
            "oc20_gemnet_small",
            "GemNet-OC 256/512 × 4 → GemNet-OC 128/256 × 3",
            "gemnet_oc_base",
            "gemnet_oc_small",
            (_terms("e2e", {"kind": "e2e", "weight": 10000.0}),),
            ("one_slab",),
            large=("slab",),
        ),
    )
}
