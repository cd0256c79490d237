"""Models from configs, and checkpoints: safetensors for tensors, JSON for everything else, never a pickle.

A checkpoint is one ``.safetensors`` file that carries its JSON in the header, so that it is replaced as a whole; the same JSON is
written next to it for people to read.

Example:
    >>> save_model(model, "runs/mine", {"trained_by": "make teacher"})  # model.safetensors and model.json
    >>> model = load_model("runs/mine")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import fastkd_kernels
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import fastkd
from fastkd.config import ModelConfig
from fastkd.errors import CheckpointError, ConfigError
from fastkd.files import write_bytes, write_text

from . import presets
from .base import Potential
from .dimenet_pp import DimeNetPP, DimeNetPPOptions
from .gemnet_oc import GemNetOC, GemNetOCOptions, load_scales
from .mxmnet import MXMNet, MXMNetOptions
from .painn import PaiNN, PaiNNOptions
from .pamnet import PAMNet, PAMNetOptions
from .schnet import SchNet, SchNetOptions

FORMAT = "fastkd-model"
SCHEMA_VERSION = 1
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å"}
DEFAULT_NAME = "model.safetensors"
SUFFIX = ".safetensors"

#: architecture → (model, its options)
ARCHITECTURES: dict[str, tuple[type[Potential], type[Any]]] = {
    "painn": (PaiNN, PaiNNOptions),
    "schnet": (SchNet, SchNetOptions),
    "dimenet_pp": (DimeNetPP, DimeNetPPOptions),
    "gemnet_oc": (GemNetOC, GemNetOCOptions),
    "mxmnet": (MXMNet, MXMNetOptions),
    "pamnet": (PAMNet, PAMNetOptions),
}


def build_model(config: ModelConfig) -> Potential:
    """A new model with random weights, drawn from torch's current generator.

    Raises:
        ConfigError: if the architecture lacks what is asked of it.
        CheckpointError: if the file of scale factors cannot be read, or is of another model.
    """
    model = _new(config)
    if model.tables is not None:
        model.tables.method = config.filters
    if config.scale_file:
        if not isinstance(model, GemNetOC):
            raise ConfigError(f"model.scale_file: only GemNet-OC has scale factors, this is a {type(model).__name__}; leave it out")
        load_scales(model, config.scale_file)
    return model


def _new(config: ModelConfig) -> Potential:
    if config.preset:
        return cast("Potential", presets.make(config.preset))
    if config.kind not in ("painn", "gemnet_oc") and config.forces == "direct":
        raise ConfigError(f"model.forces: {config.kind} has no force head of its own; use model.forces=conservative or model.kind=painn")
    shared: dict[str, Any] = {"width": config.width, "layers": config.layers, "radial": config.radial, "cutoff": config.cutoff}
    try:
        return _build(config, shared)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _build(config: ModelConfig, shared: dict[str, Any]) -> Potential:
    if config.kind == "schnet":
        return SchNet(SchNetOptions(filters=config.width, **shared))
    if config.kind == "dimenet_pp":
        # the proportions of the paper
        return DimeNetPP(DimeNetPPOptions(triplet_width=max(1, config.width // 2), output_width=2 * config.width, **shared))
    if config.kind == "gemnet_oc":
        # edges are twice as wide as atoms in every model of the papers
        return GemNetOC(GemNetOCOptions(edge_width=2 * config.width, forces=config.forces, **shared))
    if config.kind == "mxmnet":
        return MXMNet(MXMNetOptions(local=config.local, smooth=config.smooth, **shared))
    if config.kind in ("pamnet", "pamnet_s"):
        return PAMNet(PAMNetOptions(local=config.local, smooth=config.smooth, simple=config.kind == "pamnet_s", **shared))
    return PaiNN(PaiNNOptions(forces=config.forces, **shared))


def model_config_dict(model: Potential) -> dict[str, Any]:
    """Architecture and options: all that makes the model again but its tensors. Ready for JSON.

    Raises:
        TypeError: if the class of the model is not one of `ARCHITECTURES`.
    """
    for name, (model_class, _) in ARCHITECTURES.items():
        if type(model) is model_class:
            return {"architecture": name, "options": asdict(cast("Any", model).options)}
    raise TypeError(f"a {type(model).__name__} cannot be saved: it is none of {', '.join(ARCHITECTURES)}")


def save_model(model: Potential, path: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint; a reader sees the old one or the new one, never half of one.

    Args:
        model: any model of `ARCHITECTURES`.
        path: a file that ends in ``.safetensors``, or a folder, which then holds ``model.safetensors``.
        extra: provenance, kept as it is under ``provenance``; must fit JSON.

    Returns:
        The file that was written; its JSON lies beside it.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    file = _checkpoint_file(Path(path))
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **model_config_dict(model),
        "units": UNITS,
        "elements": list(symbols(model).values()),
        "versions": {"fastkd": fastkd.__version__, "fastkd_kernels": fastkd_kernels.__version__, "torch": str(torch.__version__)},
        "provenance": dict(extra or {}),
    }
    text = json.dumps(header, indent=2, ensure_ascii=False)
    write_bytes(file, save(_apart(model.state_dict()), metadata={"fastkd": text}))
    write_text(file.with_suffix(".json"), text + "\n")
    return file


def load_model(path: str | Path) -> Potential:
    """Read a checkpoint that `save_model` wrote; the model comes back on the CPU, in the dtype it was saved in, in eval mode.

    Raises:
        CheckpointError: if the file is missing, truncated, not a checkpoint of fastkd, or of a newer version.
    """
    file = _checkpoint_file(Path(path))
    header = read_header(file)
    with safe_open(str(file), framework="pt") as handle:
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (a handle is no dict)
    architecture, options = header.get("architecture"), header.get("options", {})
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{file}: unknown architecture {architecture!r}; this version of fastkd knows {', '.join(ARCHITECTURES)}")
    model_class, options_class = ARCHITECTURES[architecture]
    unknown = set(options) - {item.name for item in fields(options_class)}
    if unknown:
        raise CheckpointError(f"{file}: unknown option {min(unknown)!r} of {architecture}; the file is from another version of fastkd")
    generator_state = torch.get_rng_state()  # initial weights are overwritten at once: drawing them must leave no trace
    try:
        model: Potential = model_class(options_class(**options))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: options do not make a model: {error}") from error
    finally:
        torch.set_rng_state(generator_state)
    dtypes = {state[name].dtype for name, _ in model.named_parameters() if name in state}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: tensors do not fit the options: {error}") from error
    return model.eval()


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON of a checkpoint: format, architecture, options, units, elements, versions, provenance.

    Raises:
        CheckpointError: as `load_model`.
    """
    file = _checkpoint_file(Path(path))
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: expected a {SUFFIX} file, or a folder with {DEFAULT_NAME}")
    try:
        with safe_open(str(file), framework="pt") as handle:
            text = (handle.metadata() or {}).get("fastkd")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error}); copy it again, or train anew") from error
    if text is None:
        raise CheckpointError(f"{file} holds tensors, but was not written by fastkd; foreign models have loaders of their own")
    header: dict[str, Any] = json.loads(text)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{file} is a {header.get('format')!r}, not a {FORMAT!r}")
    version = header.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(f"{file} has schema version {version}; this fastkd reads up to {SCHEMA_VERSION}: update fastkd")
    return header


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, none sharing memory with another, as the file format wants it; blocks that share weights have them under each name."""
    apart, seen = {}, set()
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        apart[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return apart


def _checkpoint_file(path: Path) -> Path:
    return path if path.suffix == SUFFIX else path / DEFAULT_NAME


def symbols(model: Potential) -> dict[int, str]:
    """Atomic number → symbol of the elements that a model knows."""
    from ase.data import chemical_symbols

    return {z: chemical_symbols[z] for z in model.known_element.nonzero().flatten().tolist()}
