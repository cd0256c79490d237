"""The rule by which an index is spread over the values it belongs to."""

from __future__ import annotations

from torch import Tensor


def broadcast(src: Tensor, other: Tensor, dim: int) -> Tensor:
    """View ``src`` in the shape of ``other``.

    A one-dimensional ``src`` runs along ``dim``; any other starts at the first dimension. Missing dimensions are added, those of size 1 expanded.
    """
    if dim < 0:
        dim = other.dim() + dim
    if src.dim() == 1:
        for _ in range(dim):
            src = src.unsqueeze(0)
    for _ in range(src.dim(), other.dim()):
        src = src.unsqueeze(-1)
    return src.expand(other.size())
