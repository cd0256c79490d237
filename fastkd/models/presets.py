"""Named sizes of published models: name → architecture and options.

A preset is a plain entry of `PRESETS`; an architecture adds its own with `register`. The counts are of trainable parameters, table of
elements included, and a test builds every preset and counts.

Example:
    >>> PRESETS["painn_coll_small"].options.width
    128
    >>> model = make("painn_coll_small")
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from fastkd.errors import ConfigError

from .gemnet_oc import GemNetOCOptions
from .painn import PaiNNOptions
from .schnet import SchNetOptions


@dataclass(frozen=True)
class Preset:
    """A published model without its weights."""

    architecture: str  #: a key of `fastkd.models.factory.ARCHITECTURES`
    options: Any  #: of that architecture
    parameters: int  #: how many the published model has
    source: str  #: where the sizes are from


PRESETS: dict[str, Preset] = {}

#: keys of the config's `model` section that follow from a preset, if its options have them
CONFIG_KEYS = ("width", "layers", "radial", "cutoff")


def register(name: str, preset: Preset) -> None:
    """Add a preset.

    Raises:
        ValueError: if the name is taken.
    """
    if name in PRESETS:
        raise ValueError(f"there is a preset {name!r} already")
    PRESETS[name] = preset


def find(name: str) -> Preset:
    """A preset by name.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"there is no preset {name!r}; {hint}known: {', '.join(PRESETS)}")


def make(name: str) -> Any:
    """A new model with the options of a preset and random weights, drawn from torch's current generator.

    Raises:
        ConfigError: if there is no preset of that name.
    """
    from .factory import ARCHITECTURES

    preset = find(name)
    return ARCHITECTURES[preset.architecture][0](preset.options)


def config_values(name: str) -> dict[str, Any]:
    """What a preset says about the config's `model` section: kind, forces, and those of `CONFIG_KEYS` that its options have.

    Raises:
        ConfigError: if there is no preset of that name.
    """
    preset = find(name)
    # options without a choice of forces are those of conservative models
    fixed = {"kind": preset.architecture, "forces": getattr(preset.options, "forces", "conservative")}
    return fixed | {key: getattr(preset.options, key) for key in CONFIG_KEYS if hasattr(preset.options, key)}


def _painn(width: int, layers: int) -> PaiNNOptions:
    """OCP's PaiNN: 128 Gaussians, 12 Å, 50 neighbours, elements H to Bi."""
    ocp = PaiNNOptions.ocp(width, layers, radial=128, cutoff=12.0)
    return PaiNNOptions(**{**vars(ocp), "first_element": 1, "last_element": 83, "max_neighbors": 50, "mirrored": True})


def _schnet(**sizes: Any) -> SchNetOptions:
    """OCP's SchNet: 50 neighbours; its table has a row for padding and goes to Es."""
    return SchNetOptions(first_element=0, last_element=99, max_neighbors=50, **sizes)


_PAPER = "Ekström Kelvinius et al. 2023, arXiv:2306.14818; sizes from its public configs"

register("painn_oc20", Preset("painn", _painn(512, 6), 20_073_475, _PAPER))
register("painn_oc20_small", Preset("painn", _painn(256, 4), 3_689_475, _PAPER))
register("painn_coll", Preset("painn", _painn(256, 6), 5_334_531, _PAPER))
register("painn_coll_small", Preset("painn", _painn(128, 4), 1_029_635, _PAPER))
register("schnet_oc20", Preset("schnet", _schnet(width=1024, filters=256, layers=5, radial=200, cutoff=6.0), 9_088_513, _PAPER))
register("schnet_coll", Preset("schnet", _schnet(width=128, filters=128, layers=6, radial=50, cutoff=12.0), 455_809, _PAPER))
register("gemnet_oc_base", Preset("gemnet_oc", GemNetOCOptions.base(), 38_864_384, _PAPER))
register("gemnet_oc_small", Preset("gemnet_oc", GemNetOCOptions.small(), 8_753_408, _PAPER))
register("gemnet_oc_coll", Preset("gemnet_oc", GemNetOCOptions.coll(), 11_197_184, _PAPER))
