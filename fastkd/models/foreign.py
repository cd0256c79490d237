"""What loaders of other packages' weights share: names, tables of elements, and saying what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fastkd.errors import CheckpointError

from .base import Potential

Value = TypeVar("Value")
#: (pattern at the start of a foreign name, what stands there in ours)
Rules = Sequence[tuple[str, str]]

_OWN = ("reference_energy", "known_element", "energy_scale", "energy_offset")
_TABLE = "embedding.weight"
#: How many names a message lists.
_LISTED = 8


@dataclass(frozen=True, eq=False)
class ForeignModel:
    """A model from elsewhere, and what came with it."""

    model: Potential
    max_neighbors: int  #: per atom; the nearest are kept
    symmetric: bool  #: whether the reference makes its graph undirected again after cutting it
    maps: dict[str, tuple[Tensor, Tensor | None]]  #: distillation map → (weight, bias), applied to the student's feature
    notes: tuple[str, ...] = field(default=())  #: what the user should know, a sentence each
    has_forces: bool = True  #: False if the reference gives no forces, whatever its config says


def without_wrapper(state: Mapping[str, Value]) -> dict[str, Value]:
    """Without the ``module.`` that data-parallel wrappers put before names."""
    return {re.sub(r"^(module\.)+", "", name): value for name, value in state.items()}


def renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The tensors under our names.

    Raises:
        CheckpointError: listing those that no rule is for.
    """
    ours, unknown = {}, []
    for name, value in state.items():
        for pattern, replacement in rules:
            new, count = re.subn("^" + pattern, replacement, name)
            if count:
                ours[new] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"unexpected tensor{'s' * (len(unknown) > 1)} {listed(unknown)} in the foreign state dict")
    return ours


def foreign_name(name: str, rules: Rules) -> str:
    """What one of our names is called there; our own name if no rule says."""
    for pattern, replacement in rules:
        ours = re.escape(replacement).replace(r"\\1", r"(\d+)")
        theirs = pattern.replace(r"\.", ".").replace(r"(\d+)", r"\1")
        new, count = re.subn("^" + ours, theirs, name)
        if count:
            return new
    return name


def listed(names: Sequence[str]) -> str:
    """The first few names in quotes, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def fill(model: Potential, state: Mapping[str, Tensor], embedding: Tensor | None, first_element: int, rules: Rules = ()) -> None:
    """Load everything; only the elements of the foreign table are known, which may be shorter than ours.

    Args:
        model: takes the dtype of the table, and is in eval mode afterwards.
        state: by our names, without the table of elements.
        embedding: that table, [n, width].
        first_element: atomic number of its first row.
        rules: how names were changed, to call what is missing by its name there.

    Raises:
        CheckpointError: listing what is missing, left over or misshapen.
    """
    if embedding is None:
        raise CheckpointError("the table of element embeddings is missing in the foreign state dict")
    own = model.state_dict()
    expected = [name for name in own if name not in (*_OWN, _TABLE)]
    missing = [foreign_name(name, rules) for name in expected if name not in state]
    extra = [foreign_name(name, rules) for name in state if name not in expected]
    problems = [f"{len(names)} {what}: {listed(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
    if problems:
        raise CheckpointError(f"foreign state dict does not fit its config; tensors {'; '.join(problems)}")
    table = torch.zeros_like(own[_TABLE], dtype=embedding.dtype)
    first_row = first_element - int(getattr(model.embedding, "first", 0))
    rows = slice(first_row, first_row + embedding.shape[0])
    if embedding.shape[1] != table.shape[1] or first_row < 0 or rows.stop > table.shape[0]:
        raise CheckpointError(
            f"foreign state dict does not fit its config: element embeddings are {list(embedding.shape)}, expected at most {list(table.shape)}"
        )
    table[rows] = embedding
    model.know_elements(range(max(1, first_element), first_element + embedding.shape[0]))
    kept = {name: model.state_dict()[name] for name in _OWN}
    model.to(embedding.dtype)
    try:
        model.load_state_dict({**state, _TABLE: table, **kept})
    except RuntimeError as error:
        raise CheckpointError(f"foreign state dict does not fit its config: {error}") from error
    model.eval()
