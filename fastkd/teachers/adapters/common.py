"""What several adapters need."""

from __future__ import annotations

import pickle
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from fastkd.data.batch import Batch, NeighborGraph
from fastkd.errors import CheckpointError, ConfigError


def mace_graph(batch: Batch, graph: NeighborGraph, keep: Tensor | None = None, suffix: str = "") -> dict[str, Tensor]:
    """Our graph as MACE and its relatives want it: vector = positions[receiver] − positions[sender] + shift.

    Args:
        batch: the structures.
        graph: one of its graphs.
        keep: [n_edges] bool, edges to hand on; None for all.
        suffix: of the names.
    """
    csr, unit = graph.csr, -graph.edge_shift.to(batch.positions.dtype)
    source, target = csr.edge_src, csr.edge_dst
    if keep is not None:
        source, target, unit = source[keep], target[keep], unit[keep]
    shifts = torch.einsum("ei,eij->ej", unit, batch.cell[batch.graph_index[target]])
    return {f"edge_index{suffix}": torch.stack([source, target]), f"shifts{suffix}": shifts, f"unit_shifts{suffix}": unit}


def licence_of(distribution: str) -> str:
    """Licence of an installed package and of the weights in it: what the package states, else the title of its licence text.

    Args:
        distribution: as pip calls it.
    """
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return ""
    facts: Any = found.metadata
    stated = str(facts.get("License-Expression") or facts.get("License") or "").strip().partition("\n")[0]
    texts = [file for file in found.files or () if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))]
    if not stated and texts:
        stated = next((line.strip() for line in (texts[0].read_text() or "").splitlines() if line.strip()), "")
    where = f", {texts[0].name}" if texts else ""
    return f"{stated or 'not stated'} ({distribution} {found.version}{where})"


def one_hot(indices: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """[n, classes] of a dtype."""
    return torch.nn.functional.one_hot(indices, classes).to(dtype)


def require_trust(checkpoint: str, *, trust_pickle: bool) -> None:
    """Refuse a file that is a pickle.

    Raises:
        ConfigError: if the user has not said that the file is to be trusted.
    """
    if not trust_pickle:
        raise ConfigError(
            f"{checkpoint} is a pickled module, and reading one can run any code; if you trust it, set teacher.options.trust_pickle=true"
        )


def load_pickled(checkpoint: str, *, trust_pickle: bool) -> torch.nn.Module:
    """A module that a package saved whole, on the CPU.

    Raises:
        ConfigError: if the user has not said that the file is to be trusted.
        CheckpointError: if it cannot be read, or holds no module.
    """
    require_trust(checkpoint, trust_pickle=trust_pickle)
    try:
        module = torch.load(checkpoint, map_location="cpu", weights_only=False)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise CheckpointError(f"{checkpoint} holds a {type(module).__name__}, not a whole module; save the model, not its state dict")
    return module
