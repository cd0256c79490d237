"""Checkpoints of the Open Catalyst Project and fairchem-core 1.x → our models, whole: weights, averages, scales, normalisers, config.

What such a file holds (``BaseTrainer.save``): ``state_dict``, ``config``, ``normalizers``, and by version ``elementrefs``, ``ema`` and
``scale_dict``. We do with them what the reference does when it predicts (``BaseTrainer.load_checkpoint``, ``OCPTrainer.predict``):

- names lose the ``module.`` of data-parallel wrappers, and the ``backbone.`` and ``output_heads.<name>.`` of "hydra" models;
- the moving averages in ``ema`` replace the weights if the config sets ``optim.ema_decay``. Files written for inference, such as
  ``best_checkpoint.pt``, have no ``ema``: there the averages are the weights already;
- ``scale_dict``, or a scale file that is given, replaces fitted scale factors;
- E = σ_E · out + μ_E + Σ references, F = σ_F · out.

Other architectures take part through `fastkd.models.ocp_architectures.register`.

Example:
    >>> converted = load_checkpoint(read_file(Path("painn_all.pt")))  # doctest: +SKIP
    >>> save_model(converted.model, "teachers/painn_all", converted.provenance)  # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .base import Potential
from .foreign import ForeignModel, Value, listed, without_wrapper
from .foreign_file import read_file
from .ocp_architectures import ARCHITECTURES, OcpArchitecture

_SCALE = ".scale_factor"


@dataclass(frozen=True, eq=False)
class Converted:
    """A model, and what its file said."""

    model: Potential
    provenance: dict[str, Any]  #: for `save_model`; fits JSON
    notes: tuple[str, ...]  #: what the user should know, a sentence each


def load_checkpoint(contents: Mapping[str, Any], *, use_ema: bool = True, scale_file: Path | None = None) -> Converted:
    """Convert what `read_file` gave.

    Args:
        contents: the file's dictionary.
        use_ema: take the moving averages where the reference would.
        scale_file: fitted scale factors, ``.json`` or ``.pt``, for files whose config names such a file but that lack the numbers.

    Raises:
        CheckpointError: saying what is missing or not supported, and how to mend it.
    """
    state, config = _state_and_config(contents)
    state = _without_hydra(without_wrapper(state))
    notes: list[str] = []
    name, options = _model_config(config)
    architecture = ARCHITECTURES[_architecture(name, state)]
    averaged = use_ema and _use_averages(contents, config, state, architecture, notes)
    state = {key: value for key, value in state.items() if not re.fullmatch(architecture.ignored, key)}
    _set_scales(state, contents, options, scale_file, notes)
    foreign = architecture.load(options, state)
    model = foreign.model
    notes += foreign.notes
    _limit_graph(model, foreign, options, notes)
    gives_forces = foreign.has_forces and bool(options.get("regress_forces", True))
    normalizers = _set_energies(model, architecture, contents, config, notes, gives_forces=gives_forces)
    if foreign.maps:
        notes.append(f"left out: {listed(sorted(foreign.maps))}, projections that only distillation used")
    provenance = {
        "package": "OCP / fairchem-core 1.x",
        "weights": "moving averages (ema)" if averaged else "as stored (state_dict)",
        "normalizers": normalizers,
        "model_config": _plain({"name": name, **options}),
        **{key: contents[key] for key in ("epoch", "step") if isinstance(contents.get(key), int | float)},
    }
    return Converted(model, provenance, tuple(notes))


def _state_and_config(contents: Mapping[str, Any]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    state, config = contents.get("state_dict"), contents.get("config")
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        raise CheckpointError(
            f"this is a bare state dict of {len(contents)} tensors, without the config that says which model they belong to; make a file of "
            "{'state_dict': ..., 'config': {'model': {'name': 'painn', ...}}} with torch.save, or load it in Python with fastkd.models.ocp"
        )
    missing = [name for name, value in (("state_dict", state), ("config", config)) if not isinstance(value, Mapping) or not value]
    if missing:
        raise CheckpointError(
            f"{' and '.join(missing)} missing: this is no checkpoint of OCP or fairchem-core 1.x, nor cut short by its writer's options; "
            f"it holds {listed([str(key) for key in contents]) or 'nothing'}. A checkpoint.pt or best_checkpoint.pt of its trainer holds both"
        )
    assert isinstance(state, Mapping)
    assert isinstance(config, Mapping)
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"state_dict holds what is no tensor: {listed(foreign)}")
    return dict(state), config


def _without_hydra(state: Mapping[str, Value]) -> dict[str, Value]:
    """Backbone and heads side by side, as they were before there were "hydra" models."""
    merged: dict[str, str] = {}
    for name in state:
        other = merged.setdefault(re.sub(r"^(backbone|output_heads\.[^.]+)\.", "", name), name)
        if other != name:
            raise CheckpointError(
                f"a model of several heads of one kind is not supported: it holds both {other!r} and {name!r}. "
                "Save a checkpoint with one head for energies and at most one for forces"
            )
    return {new: state[name] for new, name in merged.items()}


def _model_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments, in the three layouts that configs have had."""
    model = config.get("model")
    if isinstance(model, str):
        return model, dict(config.get("model_attributes") or {})
    if not isinstance(model, Mapping):
        raise CheckpointError(f"config has no 'model' section; it holds {listed([str(key) for key in config])}")
    options = dict(model)
    name = str(options.pop("name", config.get("model_name", "")))
    backbone = options.get("backbone")
    if isinstance(backbone, Mapping):
        # some arguments are those of heads: loaders find them in "heads"
        options = {**backbone, "heads": dict(options.get("heads") or {})}
        return str(options.pop("model", name)), options
    if name == "hydra":
        raise CheckpointError(
            "config.model is a hydra model without a backbone: its backbone came from another checkpoint (finetune_config); "
            "copy the 'backbone' and 'heads' sections of that one's config into this one"
        )
    return name, options


def _architecture(name: str, state: Mapping[str, Tensor]) -> str:
    """By the config's name, else by the tensors."""
    for key, architecture in ARCHITECTURES.items():
        if name.rsplit(".", 1)[-1].lower() in architecture.names:
            if any(re.fullmatch(architecture.marker, tensor) for tensor in state):
                return key
            raise CheckpointError(
                f"config says the model is {name!r}, but its tensors are missing: state_dict holds {listed(sorted(state))}"
            )
    if name == "":
        for key, architecture in ARCHITECTURES.items():
            if any(re.fullmatch(architecture.marker, tensor) for tensor in state):
                return key
    known = ", ".join(sorted({item for architecture in ARCHITECTURES.values() for item in architecture.names}))
    raise CheckpointError(f"checkpoints of the model {name!r} are not supported; supported are {known}")


def _use_averages(
    contents: Mapping[str, Any], config: Mapping[str, Any], state: dict[str, Tensor], architecture: OcpArchitecture, notes: list[str]
) -> bool:
    """Put the moving averages in place of the weights they belong to, in place; they are a list in the order of the model's parameters."""
    ema = contents.get("ema")
    optim = config.get("optim")
    if not isinstance(ema, Mapping):
        return False
    if not (isinstance(optim, Mapping) and optim.get("ema_decay")):
        notes.append("the file holds moving averages, but its config has no optim.ema_decay: not used, as the reference would not")
        return False
    averages = list(ema.get("shadow_params") or [])
    parameters: dict[str, list[str]] = {}
    for name in state:
        if not re.fullmatch(architecture.not_trained, name):
            parameters.setdefault(architecture.same(name), []).append(name)
    names = [first for first, *_ in parameters.values()]
    if len(averages) != len(names) or any(a.shape != state[name].shape for a, name in zip(averages, names, strict=True)):
        raise CheckpointError(
            f"the {len(averages)} moving averages in 'ema' do not fit the {len(names)} parameters of state_dict; "
            "--no-ema converts the weights of the last step instead"
        )
    for aliases, average in zip(parameters.values(), averages, strict=True):
        state.update(dict.fromkeys(aliases, average))
    return True


def _set_scales(
    state: dict[str, Tensor], contents: Mapping[str, Any], options: Mapping[str, Any], scale_file: Path | None, notes: list[str]
) -> None:
    """Fitted scale factors from the file itself, or from a scale file, into the state dict, in place."""
    scales = contents.get("scale_dict") or {}
    if scale_file is not None:
        scales = _read_scales(scale_file)
    scales = _without_hydra(without_wrapper(scales))
    slots = [name.removesuffix(_SCALE) for name in state if name.endswith(_SCALE)]
    if scales:
        absent = [name for name in slots if name not in scales]
        if absent:
            raise CheckpointError(f"scale factors of {listed(absent)} are missing; there are those of {listed(sorted(scales))}")
        unknown = [name for name in scales if slots and name not in slots]
        if unknown:
            notes.append(f"scale factors of {listed(unknown)} belong to no part of the model and are left out")
        for name, value in scales.items():
            if name not in unknown:
                like = next(iter(state.values()))
                state[name + _SCALE] = torch.as_tensor(value, dtype=like.dtype).reshape(())
    # before they are fitted they are 0, and were 1 in files of 2022
    elif options.get("scale_file") and all(float(state[name + _SCALE]) in (0, 1) for name in slots):
        raise CheckpointError(
            f"config names the scale file {str(options['scale_file'])!r}, and the factors are in neither state_dict nor scale_dict: "
            "give that file with --scale-file"
        )


def _read_scales(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        try:
            scales = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read the scale file {path}: {error}") from error
    else:
        scales = read_file(path)
    scales = {name: value for name, value in scales.items() if name != "comment"} if isinstance(scales, dict) else {}
    wrong = [name for name, value in scales.items() if not isinstance(value, int | float | Tensor)]
    if not scales or wrong:
        raise CheckpointError(
            f"{path} is no scale file: it must map names of scale factors to numbers" + (f", and {listed(wrong)} has none" if wrong else "")
        )
    return scales


def _limit_graph(model: Potential, foreign: ForeignModel, options: Mapping[str, Any], notes: list[str]) -> None:
    """Let the model keep as many neighbours as it was trained with, whatever graph it is given."""
    own: Any = getattr(model, "options", None)
    names = {item.name for item in fields(own)} if own is not None else set()
    if "max_neighbors" in names and own.max_neighbors == 0:
        mirrored = {"mirrored": foreign.symmetric} if "mirrored" in names else {}
        vars(model)["options"] = replace(own, max_neighbors=foreign.max_neighbors, **mirrored)
    if options.get("use_pbc") is False:
        notes.append(
            "trained without periodic images: the reference keeps the first neighbours its search finds, we the nearest; "
            "the two agree where no atom has more than the limit"
        )


def _set_energies(
    model: Potential,
    architecture: OcpArchitecture,
    contents: Mapping[str, Any],
    config: Mapping[str, Any],
    notes: list[str],
    *,
    gives_forces: bool,
) -> dict[str, dict[str, float]]:
    """Normalisers and element references, in place; what the normalisers were, for the provenance."""
    normalizers = _normalizers(contents, config, notes)
    energy, forces = normalizers.get("energy", {"mean": 0.0, "std": 1.0}), normalizers.get("forces", {"mean": 0.0, "std": 1.0})
    for label, values in (("energy", energy), ("forces", forces)):
        if not (values["std"] > 0 and math.isfinite(values["std"]) and math.isfinite(values["mean"])):
            raise CheckpointError(
                f"the normaliser of {label} is mean {values['mean']:g}, deviation {values['std']:g}: that cannot be undone"
            )
    if forces["mean"] != 0:
        raise CheckpointError(
            f"forces were normalised with the mean {forces['mean']:g}; a force that is the same everywhere is not supported"
        )
    model.energy_scale.fill_(energy["std"])
    model.energy_offset.fill_(energy["mean"])
    ratio = forces["std"] / energy["std"]
    if gives_forces and not math.isclose(ratio, 1, rel_tol=1e-6):
        if model.force_mode == "direct" and architecture.scale_forces is not None:
            architecture.scale_forces(model, ratio)
        else:
            raise CheckpointError(
                f"energies were normalised by {energy['std']:g} and forces by {forces['std']:g}: the reference's forces are {ratio:g} times "
                "the derivative of its energy, which a conservative model cannot give. Only files with one number for both can be converted"
            )
    references = _element_references(contents)
    if references is not None:
        model.reference_energy[: references.numel()] += references
        model.reference_energy[0] = 0
    return normalizers


def _normalizers(contents: Mapping[str, Any], config: Mapping[str, Any], notes: list[str]) -> dict[str, dict[str, float]]:
    """energy, forces → mean and standard deviation (eV, eV/Å), under the names of any version."""
    found = {}
    for key, values in dict(contents.get("normalizers") or {}).items():
        label = {"target": "energy", "grad_target": "forces"}.get(key, str(key))
        spread = values.get("rmsd", values.get("std")) if isinstance(values, Mapping) else None
        if spread is None or "mean" not in values:
            raise CheckpointError(f"normalizers.{key} has no mean, or neither rmsd nor std")
        if label in ("energy", "forces"):
            found[label] = {"mean": _number(values["mean"], f"normalizers.{key}.mean"), "std": _number(spread, f"normalizers.{key}.std")}
        else:
            notes.append(f"the normaliser of {label!r} is left out: we predict energies and forces")
    dataset = config.get("dataset")
    dataset = dataset[0] if isinstance(dataset, list) and dataset else dataset
    dataset = dataset.get("train", dataset) if isinstance(dataset, Mapping) else {}
    if not found and isinstance(dataset, Mapping) and dataset.get("normalize_labels"):
        notes.append("the file has no normalizers; those of its config's dataset section are used")
        for label, prefix in (("energy", "target"), ("forces", "grad_target")):
            if f"{prefix}_std" in dataset:
                found[label] = {"mean": float(dataset.get(f"{prefix}_mean", 0)), "std": float(dataset[f"{prefix}_std"])}
    if isinstance(dataset, Mapping) and dataset.get("lin_ref"):
        notes.append(
            f"its data set took the element references of {str(dataset['lin_ref'])!r} off the energies; they are not in the file, and neither "
            "the reference nor we add them"
        )
    if not found:
        notes.append("the file has no normalisers: what the network gives is taken to be eV and eV/Å")
    return found


def _element_references(contents: Mapping[str, Any]) -> Tensor | None:
    tables = dict(contents.get("elementrefs") or {})
    if "energy" not in tables:
        return None
    table = tables["energy"].get("element_references") if isinstance(tables["energy"], Mapping) else None
    if not isinstance(table, Tensor) or table.numel() > 119:
        raise CheckpointError("elementrefs.energy has no table element_references of at most 119 numbers")
    return table.double().flatten()


def _number(value: Any, where: str) -> float:
    if isinstance(value, Tensor):
        value = value.double().flatten()
        if value.numel() != 1:
            raise CheckpointError(f"{where} holds {value.numel()} numbers; only one for all is supported")
    return float(value[0] if isinstance(value, Tensor | list | tuple) else value)


def _plain(value: Any) -> Any:
    """Fit for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
