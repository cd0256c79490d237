"""Exponential moving average of the weights; evaluations and the shipped model use it.

The decay ramps up with the number of updates n as min(decay, (1 + n) / (10 + n)), so that the random initial weights are soon
forgotten (the rule of Szegedy et al. 2016's reference code; OCP uses it too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Moving average of named parameters, in their own dtype and on their device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = dict(parameters)
        self.values: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        # the same tensors as lists: one fused call per step instead of one per parameter
        self._shadow = list(self.values.values())
        self._live = [parameter.detach() for parameter in self._parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average toward the current weights, after an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        self.updates += 1
        torch._foreach_lerp_(self._shadow, self._live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters hold the average; after it, their own values, to the bit."""
        kept = [value.clone() for value in self._live]
        torch._foreach_copy_(self._live, self._shadow)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(state["values"][name])
