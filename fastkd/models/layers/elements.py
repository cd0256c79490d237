"""The learned vector of each element."""

from __future__ import annotations

from torch import Tensor, nn


class ElementTable(nn.Embedding):
    """One row per atomic number from ``first`` to ``last``; an atom of another element is an error, which `Potential` reports.

    Its only tensor is ``weight`` [last − first + 1, width]: tables of other packages start at other elements, and have other ends.
    """

    def __init__(self, first: int, last: int, width: int) -> None:
        if not 0 <= first <= last:
            raise ValueError(f"a table of elements from {first} to {last} has no rows")
        super().__init__(last - first + 1, width)
        self.first, self.last = first, last

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """[n_atoms] int64 → [n_atoms, width]."""
        return super().forward(atomic_numbers - self.first if self.first else atomic_numbers)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, elements {self.first} to {self.last}"
