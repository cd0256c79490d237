"""Small checkpoints in the layouts that OCP's and fairchem-core's trainers have written, for tests of their conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests import parity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
ENERGY = {"mean": torch.tensor(-0.75), "rmsd": torch.tensor(2.5)}
FORCES = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(1.5)}
#: as OCP has it for models whose forces are −dE/dx
SAME = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(2.5)}


#: as fairchem-core's registry and configs call each family
NAMES = {"painn": "painn", "schnet": "schnet", "gemnet_oc": "gemnet_oc", "dimenet": "dimenetplusplus"}
HEADS = {
    "painn": {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}},
    "gemnet_oc": {
        "energy": {"module": "gemnet_oc_energy_and_grad_force_head", "num_global_out_layers": 2},
        "forces": {"module": "gemnet_oc_force_head", "num_global_out_layers": 2},
    },
    "dimenet": {"energy": {"module": "dimenetplusplus_energy_and_force_head"}},
}
#: whose forces are derivatives
DERIVED = ("schnet", "dimenet")


def forces_of(family: str) -> dict[str, Tensor]:
    """The normaliser of forces that files of a family have here."""
    return SAME if family in DERIVED else FORCES


def reference(family: str) -> parity.ReferenceFile:
    """Weights, structures and reference outputs of one of OCP's models, a key of `NAMES`; the slabs, where neighbours are cut off."""
    file = {"gemnet_oc": "gemnetoc", "dimenet": "dimenetpp"}.get(family, family)
    return parity.read(FIXTURES / f"ocp_{file}_slabs.safetensors")


def weights(family: str) -> dict[str, Tensor]:
    """The state dict without projections, and with the scale factors of a PaiNN, not fitted."""
    file = reference(family)
    state = {name: value for name, value in file.state.items() if "_mapping." not in name}
    layers = file.config["num_layers"] if family == "painn" else 0
    return state | {f"upd_out_scalar_scale_{number}.scale_factor": torch.zeros((), dtype=torch.float64) for number in range(layers)}


def checkpoint(family: str, layout: str = "v1", *, state: dict[str, Tensor] | None = None, **changes: Any) -> dict[str, Any]:
    """What a trainer would have given to `torch.save`.

    Args:
        family: a key of `NAMES`.
        layout: ``v1`` (fairchem-core 1.x), ``hydra`` (its models of backbone and heads), ``legacy`` (OCP of 2021 to 2023).
        state: instead of the reference's.
        changes: keys of the file that are replaced, or left out if None.
    """
    config = dict(reference(family).config)
    tensors = weights(family) if state is None else state
    name = NAMES[family]
    model: Any = {"name": name, **config}
    optim: dict[str, Any] = {"lr_initial": 1e-4, "ema_decay": 0.999}
    contents: dict[str, Any] = {
        "epoch": 3.5,
        "step": 1200,
        "normalizers": {"energy": dict(ENERGY), "forces": dict(forces_of(family))},
        "elementrefs": {},
        # what evaluation leaves behind: numbers of numpy, and a path
        "val_metrics": {"energy_mae": {"metric": np.float64(0.25), "total": np.float32(2.0), "numel": 8}},
        "amp": None,
    }
    if layout == "hydra":
        model = {
            "name": "hydra",
            "backbone": {"model": f"{name}_backbone", **config},
            "heads": {key: dict(head) for key, head in HEADS[family].items()},
        }
        # what belongs to heads is said there
        model["backbone"].pop("num_global_out_layers", None)
        tensors = {hydra_name(name): value for name, value in tensors.items()}
    section: dict[str, Any] = {"model": model, "optim": optim, "cmd": {"checkpoint_dir": Path("/checkpoints/run")}}
    if layout == "legacy":
        section = {"model": name, "model_attributes": config, "optim": optim, "task": {"dataset": "trajectory_lmdb"}}
        names = {"energy": "target", "forces": "grad_target"}
        contents["normalizers"] = {
            names[key]: {"mean": value["mean"], "std": value["rmsd"]} for key, value in contents["normalizers"].items()
        }
        del contents["elementrefs"]
    wrapper = "module.module." if layout == "legacy" else "module."
    contents |= {"config": section, "state_dict": {wrapper + name: value for name, value in tensors.items()}, **changes}
    return {key: value for key, value in contents.items() if value is not None}


def hydra_name(name: str) -> str:
    heads = (("out_energy.", "energy"), ("out_forces.", "forces"), ("out_mlp_E.", "energy"), ("out_mlp_F.", "forces"))
    for start, head in heads:
        if name.startswith(start):
            return f"output_heads.{head}.{name}"
    return f"backbone.{name}"


def write(path: Path, contents: dict[str, Any]) -> Path:
    torch.save(contents, path)
    return path


def averages(model: nn.Module, seed: int = 0) -> dict[str, Any]:
    """What fairchem's `ExponentialMovingAverage.state_dict` gives, with averages that are not the weights."""
    generator = torch.Generator().manual_seed(seed)
    shadow = [p.detach() + 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters() if p.requires_grad]
    return {"decay": 0.999, "num_updates": None, "shadow_params": shadow, "collected_params": []}
