"""Fitting the scale factors of GemNet-OC, and reading those of others.

A factor multiplies a sum or a product so that its variance is that of what went in, at initialisation. Factors are fitted once, before
training, in the order in which they are met: each sees what the ones before it have already scaled.

Example:
    >>> fit_scales(model, batches)  # a few batches of the training set
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.errors import CheckpointError, ConfigError, DataError
from fastkd.files import write_atomically, write_json

from .layers import ScaleFactor
from .model import GemNetOC


@dataclass(frozen=True)
class FittedScale:
    """One factor and what it was fitted to."""

    name: str
    variance_in: float  #: of the reference, mean over channels
    variance_out: float  #: before scaling
    factor: float  #: √(variance_in / variance_out)


class _Variance:
    """Mean of the variances over batches, each weighted by the number of rows it scales."""

    def __init__(self) -> None:
        self.total_in = self.total_out = 0.0
        self.samples = 0

    def __call__(self, x: Tensor, reference: Tensor) -> None:
        if x.shape[0] < 2 or reference.shape[0] < 2:
            return  # no variance
        count = x.shape[0]
        self.total_out += float(x.detach().double().var(dim=0).mean()) * count
        self.total_in += float(reference.detach().double().var(dim=0).mean()) * count
        self.samples += count


def fit_scales(model: GemNetOC, batches: Iterable[Batch], *, keep_fitted: bool = False) -> list[FittedScale]:
    """Fit all scale factors in place, as the reference does: one after the other, each over all batches.

    Args:
        model: freshly initialised; its factors are set, nothing else changes.
        batches: some tens of structures; every interaction must happen in them.
        keep_fitted: leave factors alone that are not 1.

    Returns:
        What was fitted, in the order in which the factors are met.

    Raises:
        DataError: if an interaction does not happen in the batches, or has no variance.
    """
    samples = list(batches)
    if not samples:
        raise DataError("scale factors are fitted to data, but there are no batches")
    training = model.training
    model.eval()
    try:
        order = _met(model, samples[0])
        chosen = [(name, scale) for name, scale in order if not keep_fitted or float(scale.factor) == 1.0]
        for _, scale in chosen:
            scale.factor.fill_(1.0)
        return [_fit(model, name, scale, samples) for name, scale in chosen]
    finally:
        model.train(training)


def _fit(model: GemNetOC, name: str, scale: ScaleFactor, samples: list[Batch]) -> FittedScale:
    seen = _Variance()
    _observe([(scale, seen)], model, samples)
    if not seen.samples:
        raise DataError(f"{name}: this interaction does not happen in the batches given; use larger structures or other tags")
    variance_in, variance_out = seen.total_in / seen.samples, seen.total_out / seen.samples
    if not variance_in > 0 or not variance_out > 0:
        raise DataError(f"{name}: variances are {variance_in} and {variance_out}; a factor needs both above zero")
    factor = math.sqrt(variance_in / variance_out)
    scale.factor.fill_(factor)
    return FittedScale(name, variance_in, variance_out, factor)


def _met(model: GemNetOC, batch: Batch) -> list[tuple[str, ScaleFactor]]:
    """All factors with their names, in the order in which a forward pass meets them."""
    order: list[tuple[str, ScaleFactor]] = []
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, ScaleFactor)]

    def remember(entry: tuple[str, ScaleFactor]) -> Callable[[Tensor, Tensor], None]:
        def observe(x: Tensor, reference: Tensor) -> None:
            if entry not in order:
                order.append(entry)

        return observe

    _observe([(module, remember((name, module))) for name, module in named], model, [batch])
    return order


def _observe(observers: list[tuple[ScaleFactor, Callable[[Tensor, Tensor], None]]], model: GemNetOC, samples: list[Batch]) -> None:
    for scale, observer in observers:
        scale.observer = observer
    try:
        with torch.no_grad():
            for batch in samples:
                # forces would be a backward pass, and have no factors of their own
                model(batch, forces=model.force_mode == "direct")
    finally:
        for scale, _ in observers:
            scale.observer = None


_BLOCK = {
    "trip_interaction.scale_rbf": "edge_to_edge.radial_scale",
    "trip_interaction.scale_cbf_sum": "edge_to_edge.sum_scale",
    "atom_edge_interaction.scale_rbf": "atom_to_edge.radial_scale",
    "atom_edge_interaction.scale_cbf_sum": "atom_to_edge.sum_scale",
    "edge_atom_interaction.scale_rbf": "edge_to_atom.radial_scale",
    "edge_atom_interaction.scale_cbf_sum": "edge_to_atom.sum_scale",
    "quad_interaction.scale_rbf": "quadruplets.radial_scale",
    "quad_interaction.scale_cbf": "quadruplets.circular_scale",
    "quad_interaction.scale_sbf_sum": "quadruplets.sum_scale",
    "atom_interaction.scale_rbf_sum": "atom_to_atom.sum_scale",
    "atom_update.scale_sum": "atom_update.scale",
}
_OUTPUT = {"scale_sum": "atoms.scale", "scale_rbf_F": "edge_scale"}


def scale_name(name: str) -> str | None:
    """Our name of a scale factor of the reference, as its state dict or its scale files call it; None if it is none."""
    match = re.fullmatch(r"(int|out)_blocks\.(\d+)\.(.*?)(?:\.scale_factor)?", name)
    if match is None:
        return None
    kind, number, rest = match.groups()
    ours = (_BLOCK if kind == "int" else _OUTPUT).get(rest)
    return None if ours is None else f"{'blocks' if kind == 'int' else 'outputs'}.{number}.{ours}.factor"


def read_scales(path: str | Path) -> dict[str, float]:
    """The reference's scale file, JSON (or ``.pt`` with tensors), as our names and factors.

    Raises:
        CheckpointError: if the file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu") if path.suffix == ".pt" else json.loads(path.read_text())
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a readable scale file: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: a scale file maps names to numbers, this one holds a {type(content).__name__}")
    scales = {}
    for name, value in content.items():
        if name == "comment":  # the name of the model, in old files
            continue
        ours = scale_name(re.sub(r"^(module\.)+|^backbone\.", "", str(name)))
        if ours is None:
            raise CheckpointError(f"{path}: {name!r} is no scale factor of GemNet-OC")
        scales[ours] = float(value)
    return scales


def write_scales(model: nn.Module, path: str | Path) -> None:
    """The scale factors of a GemNet-OC as a scale file of the reference, which `load_scales` and OCP's models read.

    Args:
        model: whose factors are written.
        path: ``.json``, or ``.pt`` with tensors; replaced as a whole if it exists.

    Raises:
        ConfigError: for another suffix.
        CheckpointError: if the file cannot be written.
    """
    path = Path(path)
    scales = {_foreign_name(name): float(module.factor) for name, module in model.named_modules() if isinstance(module, ScaleFactor)}
    if scale_file_suffix(path) == ".json":
        write_json(path, scales)
    else:
        tensors = {name: torch.tensor(value) for name, value in scales.items()}
        write_atomically(path, lambda temporary: torch.save(tensors, temporary))


def scale_file_suffix(path: Path) -> str:
    """``.json`` or ``.pt``.

    Raises:
        ConfigError: if the file is called otherwise.
    """
    if path.suffix not in (".json", ".pt"):
        raise ConfigError(f"{path}: a scale file ends in .json or .pt")
    return path.suffix


def _foreign_name(name: str) -> str:
    kind, number, rest = name.split(".", 2)
    table, prefix = (_BLOCK, "int") if kind == "blocks" else (_OUTPUT, "out")
    theirs = next(key for key, ours in table.items() if ours == rest)
    return f"{prefix}_blocks.{number}.{theirs}"


def load_scales(model: nn.Module, path: str | Path) -> None:
    """Set the scale factors of a GemNet-OC from a scale file of the reference, in place.

    Raises:
        CheckpointError: if the file cannot be read, or does not hold exactly the factors of this model.
    """
    scales = read_scales(path)
    own = {f"{name}.factor": module for name, module in model.named_modules() if isinstance(module, ScaleFactor)}
    missing, unknown = sorted(set(own) - set(scales)), sorted(set(scales) - set(own))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which this model lacks"
        raise CheckpointError(f"{path}: {what}; the file is of a model with other blocks or interactions")
    for name, value in scales.items():
        own[name].factor.fill_(value)
