"""Named sizes of published models: name → architecture and options.

A preset is a plain entry of `PRESETS`; an architecture adds its own with `register`. The counts are of trainable parameters of the
published model, table of elements included, and a test builds every preset and counts.

Example:
    >>> PRESETS["painn_coll_small"].options.width
    128
    >>> model = make("painn_coll_small")
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

from fastkd.errors import ConfigError

from .dimenet_pp import DimeNetPPOptions
from .gemnet_oc import GemNetOCOptions
from .mxmnet import MXMNetOptions
from .painn import PaiNNOptions
from .pamnet import PAMNetOptions
from .schnet import SchNetOptions


@dataclass(frozen=True)
class Preset:
    """A published model without its weights."""

    architecture: str  #: a key of `fastkd.models.factory.ARCHITECTURES`
    options: Any  #: of that architecture
    parameters: int  #: how many the published model has
    source: str  #: where the sizes are from
    extra_rows: int = 0  #: rows of our table of elements that the published one lacks
    unused: int = 0  #: parameters of the published model that it never uses, and ours lacks


PRESETS: dict[str, Preset] = {}

#: keys of the config's `model` section that follow from a preset, if its options have them
CONFIG_KEYS = ("width", "layers", "radial", "cutoff", "local", "smooth")


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
    kind = "pamnet_s" if getattr(preset.options, "simple", False) else preset.architecture
    # options without a choice of forces are those of conservative models
    fixed = {"kind": kind, "forces": getattr(preset.options, "forces", "conservative")}
    own = {item.name for item in fields(preset.options)}
    return fixed | {key: getattr(preset.options, key) for key in CONFIG_KEYS if key in own}


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


def _dimenet_ocp(width: int, output_width: int) -> DimeNetPPOptions:
    """OCP's DimeNet++: 3 blocks, 6 Å, 50 neighbours, angles left out of the forces."""
    return replace(DimeNetPPOptions.ocp(width, 3, output_width), max_neighbors=50)


_DIMENET = "Gasteiger et al. 2020, arXiv:2011.14115; counted on PyTorch Geometric's, whose table has 95 rows"
_OCP = "fairchem-core 1.10's configs/oc20/s2ef; counted on its DimeNetPlusPlusWrap, whose table has 95 rows"
_MXMNET = "Zhang, Liu and Xie 2020, arXiv:2011.07457; counted on the authors' code, which embeds five elements"
_PAMNET = "Zhang, Liu and Xie 2023, Sci. Rep. 13, 19171; counted on the authors' code, which embeds five elements"

# our files hold no bonds: covalent radii stand in for QM9's, and for trajectories PAMNet's recipe for PDBbind, made smooth
_TRAJECTORY: dict[str, Any] = {"cutoff": 6.0, "local": "distance", "local_distance": 2.0, "local_cutoff": 2.0, "smooth": True}
_MULTIPLEX_ROWS = 114
#: a layer for the 18 features of PDBbind's atoms
_PDBBIND = 18 * 128

for _data in ("qm9", "md17"):
    register(f"dimenet_pp_{_data}", Preset("dimenet_pp", DimeNetPPOptions(), 1_885_830, _DIMENET, extra_rows=24))
register("dimenet_pp_oc20", Preset("dimenet_pp", _dimenet_ocp(192, 192), 1_810_182, _OCP, extra_rows=24))
register("dimenet_pp_oc20_large", Preset("dimenet_pp", _dimenet_ocp(512, 384), 10_718_342, _OCP, extra_rows=24))
for _data, _settings in (("qm9", {}), ("md17", _TRAJECTORY)):
    register(f"mxmnet_{_data}", Preset("mxmnet", MXMNetOptions(**_settings), 3_773_862, _MXMNET, _MULTIPLEX_ROWS))
    register(f"pamnet_{_data}", Preset("pamnet", PAMNetOptions(**_settings), 3_581_100, _PAMNET, _MULTIPLEX_ROWS, _PDBBIND))
    register(f"pamnet_s_{_data}", Preset("pamnet", PAMNetOptions(simple=True, **_settings), 3_573_292, _PAMNET, _MULTIPLEX_ROWS))
