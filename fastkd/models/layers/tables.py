"""When a model's filters are tabulated, and when a table can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from fastkd_kernels.radial_conv.spline import SplineGrid
from fastkd_kernels.radial_conv.tables import Network, TableBuilder
from fastkd_kernels.radial_specs import BasisSpec, EnvelopeSpec
from torch import Tensor

FilterMethod = Literal["auto", "table", "exact"]

Tables = tuple[SplineGrid, list[Tensor]]


class FilterTables:
    """The filters of all layers of a model as tables over the distance, or None where the networks themselves are better.

    ``auto`` takes tables in float32 when a batch has more distances than the grid has knots. In float64 whoever asks for it wants the
    networks themselves. Tables of weights that need no gradient, a frozen teacher's, are kept until the weights change.
    """

    def __init__(self, basis: BasisSpec, envelope: EnvelopeSpec, method: FilterMethod = "auto") -> None:
        self.method = method
        self._builder = TableBuilder(basis, envelope)
        self._kept: tuple[object, Tables] | None = None

    def __call__(self, networks: Sequence[Network], length: Tensor) -> Tables | None:
        """Tables for a batch with these distances.

        Args:
            networks: one per layer.
            length: [n_units] Å; its number and dtype matter, not its values.
        """
        if self.method == "exact" or (self.method == "auto" and length.dtype == torch.float64):
            return None
        weights = [tensor for network in networks for tensor in network if isinstance(tensor, Tensor)]
        if self.method == "auto" and weights[0].dtype != length.dtype:
            return None
        frozen = not (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))
        state = (length.dtype, length.device, *((weight.data_ptr(), weight._version) for weight in weights))
        if frozen and self._kept is not None and self._kept[0] == state:
            return self._kept[1]
        grid = self._builder.grid(networks, length.dtype)
        if grid is None or (self.method == "auto" and length.shape[0] <= grid.knots and not frozen):
            return None
        tables = grid, self._builder.build(networks, grid, length.dtype)
        self._kept = (state, tables) if frozen else None
        return tables

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
