"""Features in fewer bits: how they are kept in a file, how they come back, and what that costs in accuracy, measured.

Energies, stresses and numbers of edges always keep their own dtype: energies hold thousands of eV, and they are few. Forces and energies of
atoms keep it too, unless they are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastkd.errors import ConfigError, DataError
from fastkd.teachers.output import Need, TeacherOutput, split_need

OWN = "own"
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FEATURES = ("node", "vector", "edge", "edge_sum", "edge_vector_sum", "graph_feature")
_IF_NAMED = ("forces", "atom_energy")


def dtypes_of(asked: str | Mapping[str, str], needs: Iterable[Need], *, strict: bool = True) -> dict[Need, str]:
    """The dtype that each need is kept in, ``own`` for that of the teacher.

    Args:
        asked: one for all features, or by need (``node``, ``node@regular_2``); a name without a layer counts for all layers.
        needs: all that are kept.
        strict: everything named must be kept; of an ensemble, each of whose members keeps something else, it need not.

    Raises:
        ConfigError: if something is named that is not kept, or must keep its own dtype.
    """
    needs = sorted(needs)
    if isinstance(asked, str):
        return {need: asked if split_need(need)[0] in _FEATURES else OWN for need in needs}
    for name in asked:
        if split_need(name)[0] not in (*_FEATURES, *_IF_NAMED):
            raise ConfigError(f"teacher.cache_dtype names {name!r}; a dtype can be chosen for {', '.join((*_FEATURES, *_IF_NAMED))}")
        if strict and not any(name in (need, split_need(need)[0]) for need in needs):
            raise ConfigError(f"teacher.cache_dtype names {name!r}, which no term asks of the teacher; it is asked for {', '.join(needs)}")
    return {need: asked.get(need, asked.get(split_need(need)[0], OWN)) for need in needs}


def narrow(value: Tensor, dtype: str, name: str) -> Tensor:
    """Values in the dtype that they are kept in.

    Raises:
        DataError: if a number is too large for it.
    """
    if dtype == OWN or not value.is_floating_point():
        return value
    stored = value.to(DTYPES[dtype])
    if not bool(torch.equal(stored.isfinite(), value.isfinite())):
        largest = float(value[value.isfinite()].abs().max())
        raise DataError(f"{name} of the teacher reaches {largest:.3g}, which {dtype} cannot hold; set teacher.cache_dtype=bfloat16 or own")
    return stored


def to_array(value: Tensor) -> npt.NDArray[np.generic]:
    """As NumPy keeps it; bfloat16, which NumPy does not know, as its bits in int16."""
    value = value.contiguous()
    array: npt.NDArray[np.generic] = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
    return array


def from_array(array: npt.NDArray[np.generic], stored: str, live: str) -> Tensor:
    """Back again, in the dtype that the teacher had."""
    value = torch.from_numpy(array)
    if stored == "bfloat16":
        value = value.view(torch.bfloat16)
    return value.to(getattr(torch, live))


def dtype_name(value: Tensor) -> str:
    """``float32``, ``int64``, …"""
    return str(value.dtype).removeprefix("torch.")


@dataclass
class Error:
    """By how much what is kept differs from what was said; sums over all numbers."""

    difference: float = 0.0  #: Σ (kept − said)²
    norm: float = 0.0  #: Σ said²
    largest: float = 0.0  #: max |kept − said|

    def add(self, said: Tensor, kept: Tensor) -> None:
        """Count some numbers."""
        if not said.is_floating_point() or kept.dtype == said.dtype or not said.numel():
            return
        delta = kept.double() - said.double()
        self.difference += float(delta.square().sum())
        self.norm += float(said.double().square().sum())
        self.largest = max(self.largest, float(delta.abs().max()))

    def join(self, other: Error) -> None:
        """Count those of another part."""
        self.difference, self.norm = self.difference + other.difference, self.norm + other.norm
        self.largest = max(self.largest, other.largest)

    @property
    def relative(self) -> float:
        """‖kept − said‖ / ‖said‖; 0 where every bit is kept."""
        return math.sqrt(self.difference / self.norm) if self.norm else 0.0


def rounded(output: TeacherOutput, dtypes: Mapping[Need, str]) -> TeacherOutput:
    """An output as it comes back from a cache with these dtypes."""
    changed: dict[str, Tensor] = {}
    for need, dtype in dtypes.items():
        value = output.get(need)
        if value is not None:
            changed[need] = narrow(value, dtype, need).to(value.dtype)
    layers = dict(output.layers) | {need: value for need, value in changed.items() if "@" in need}
    everything = {name: getattr(output, name) for name in output.__dataclass_fields__} | {"layers": layers}
    return TeacherOutput(**everything | {need: value for need, value in changed.items() if "@" not in need})
