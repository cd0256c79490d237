"""When a model's filters are tabulated, and when a table can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fastkd_kernels.radial_conv.spline import SplineGrid
from fastkd_kernels.radial_conv.tables import Network, TableBuilder
from fastkd_kernels.radial_specs import BasisSpec, EnvelopeSpec
from torch import Tensor

FilterMethod = Literal["auto", "table", "exact"]

Tables = tuple[SplineGrid, list[Tensor]]


@dataclass(frozen=True, eq=False)
class _Kept:
    """Tables, and the weights that they were made of."""

    tables: Tables
    dtype: torch.dtype
    weights: list[Tensor]  #: copies on a CPU; elsewhere aliases, so that their memory becomes nobody else's
    versions: list[int | None]

    @classmethod
    def of(cls, tables: Tables, dtype: torch.dtype, weights: Sequence[Tensor]) -> _Kept:
        held = [weight.detach().clone() if weight.device.type == "cpu" else weight.detach() for weight in weights]
        return cls(tables, dtype, held, [_version(weight) for weight in weights])

    def fits(self, weights: Sequence[Tensor], length: Tensor) -> bool:
        """Whether the tables are still those of these weights.

        On a CPU the weights are compared, because what changes them through `Tensor.data` leaves no trace. Looking at values would make
        a GPU wait; there a change is known by the memory and its version.
        """
        if length.dtype != self.dtype or length.device != self.tables[1][0].device or len(weights) != len(self.weights):
            return False
        pairs = list(zip(weights, self.weights, strict=True))
        if any(now.dtype != then.dtype or now.device != then.device for now, then in pairs):
            return False
        if length.device.type == "cpu":
            return all(torch.equal(now, then) for now, then in pairs)
        versions = [_version(weight) for weight in weights]
        return None not in versions and versions == self.versions and all(now.data_ptr() == then.data_ptr() for now, then in pairs)


def _version(tensor: Tensor) -> int | None:
    # tensors of torch.inference_mode do not count their changes
    return None if tensor.is_inference() else tensor._version


class FilterTables:
    """The filters of all layers of a model as tables over the distance, or None where the networks themselves are better.

    ``auto`` takes tables in float32 when a batch has more distances than the grid has knots. In float64 whoever asks for it wants the
    networks themselves, and so does autocast, which changes the dtype of everything else. Tables of weights that need no gradient, a
    frozen teacher's, are kept until the weights change. (On a GPU a change in place through `Tensor.data` cannot be seen: write to
    parameters under `torch.no_grad` instead, or call `reset`.)
    """

    def __init__(self, basis: BasisSpec, envelope: EnvelopeSpec, method: FilterMethod = "auto") -> None:
        self.method = method
        self._builder = TableBuilder(basis, envelope)
        self._kept: _Kept | None = None

    def __call__(self, networks: Sequence[Network], length: Tensor) -> Tables | None:
        """Tables for a batch with these distances.

        Args:
            networks: one per layer.
            length: [n_units] Å; its number and dtype matter, not its values.
        """
        weights = [tensor for network in networks for tensor in network if isinstance(tensor, Tensor)]
        if self.method == "exact" or (self.method == "auto" and not _may_pay(weights[0], length)):
            return None
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            self._kept = None
            grid = self._builder.grid(networks, length.dtype)
            if grid is None or (self.method == "auto" and length.shape[0] <= grid.knots):
                return None
            return grid, self._builder.build(networks, grid, length.dtype)
        if self._kept is None or not self._kept.fits(weights, length):
            # what is kept may be used where gradients are wanted, whatever the mode is now
            with torch.inference_mode(False), torch.no_grad():
                tables = self._frozen(networks, length.dtype)
            self._kept = None if tables is None else _Kept.of(tables, length.dtype, weights)
        return None if self._kept is None else self._kept.tables

    def _frozen(self, networks: Sequence[Network], dtype: torch.dtype) -> Tables | None:
        found: Tables | None = None
        for _ in range(2):
            grid = self._builder.grid(networks, dtype)
            if grid is None:
                return None
            found = grid, self._builder.build(networks, grid, dtype)
            if self._builder.fits(found[1], dtype):
                break
        return found

    def reset(self) -> None:
        """Begin anew, for weights that have been loaded."""
        self._builder.reset()
        self._kept = None

    def state_dict(self) -> dict[str, Any]:
        """Which grids are in use, in numbers and text: with it, training goes on bit for bit."""
        return self._builder.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; an empty one, from before there were tables, begins anew."""
        if state:
            self._builder.load_state_dict(state)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}


def _may_pay(weight: Tensor, length: Tensor) -> bool:
    return length.dtype != torch.float64 and weight.dtype == length.dtype and not torch.is_autocast_enabled(length.device.type)
