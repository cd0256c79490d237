"""Which structures form the next batch: endless, seeded, capped by structures, atoms and edges, and resumable.

The order of an epoch is a permutation that depends on seed, pool and epoch alone, so the state is a few integers, and a resumed run
draws exactly the batches that it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.errors import DataError

#: Sets the random numbers of synthetic structures apart from those of the other pools.
SYNTHETIC = 2


@dataclass(frozen=True)
class Caps:
    """Limits of a batch; 0 means none."""

    structures: int = 8
    atoms: int = 0
    edges: int = 0


class Pool:
    """An endless sequence of structures: all of them in a new random order, epoch after epoch."""

    def __init__(self, indices: Sequence[int], seed: int, number: int) -> None:
        if not len(indices):
            raise DataError("there are no structures to draw batches from. Check the split and the numbers of structures in `data`.")
        self._indices = np.asarray(indices, dtype=np.int64)
        self._seed, self._number = seed, number
        self.epoch = self.position = 0
        self._order = self._shuffled()

    def _shuffled(self) -> npt.NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, self._number, self.epoch])))
        return self._indices[generator.permutation(len(self._indices))]

    def peek(self) -> int:
        """The next structure, without taking it."""
        return int(self._order[self.position])

    def take(self) -> int:
        """The next structure."""
        index = self.peek()
        self.position += 1
        if self.position == len(self._order):
            self.go_to(self.epoch + 1, 0)
        return index

    def go_to(self, epoch: int, position: int) -> None:
        """Any place in the sequence."""
        self.epoch, self.position = epoch, position
        self._order = self._shuffled()


class BatchSampler:
    """Endless lists of structure numbers.

    Args:
        labelled: structures with labels.
        unlabelled: structures without.
        caps: limits of a batch.
        seed: of the order.
        labelled_fraction: share of each batch that is drawn from ``labelled``; 0 shuffles both into one pool.
        size: ``size(index) -> (atoms, edges)`` of a structure; needed for caps on atoms or edges.
        synthetic: structures that are mixed in at random.
        synthetic_fraction: q, the probability of each draw to be one of these; the sum of the sampling weights of all ``synthetic``.

    Raises:
        DataError: if there is nothing to draw from, or a structure alone exceeds a cap.
    """

    def __init__(
        self,
        labelled: Sequence[int],
        unlabelled: Sequence[int] = (),
        *,
        caps: Caps,
        seed: int,
        labelled_fraction: float = 0.0,
        size: Callable[[int], tuple[int, int]] | None = None,
        synthetic: Sequence[int] = (),
        synthetic_fraction: float = 0.0,
    ) -> None:
        if labelled_fraction > 0 and len(unlabelled):
            self._pools = [Pool(labelled, seed, 0), Pool(unlabelled, seed, 1)]
            # at least one of each kind in every full batch; batches of one alternate in the long run
            whole = int(np.clip(round(labelled_fraction * caps.structures), 1, max(caps.structures - 1, 1)))
            self._share = Fraction(whole, caps.structures) if caps.structures > 1 else Fraction(labelled_fraction).limit_denominator(1000)
        else:
            self._pools = [Pool([*labelled, *unlabelled], seed, 0)]
            self._share = Fraction(1)
        self._seed, self._synthetic_fraction = seed, synthetic_fraction
        self._synthetic = Pool(synthetic, seed, SYNTHETIC) if synthetic_fraction > 0 else None
        self._drawn = self._drawn_synthetic = 0
        self._caps = caps
        self._size = size if caps.atoms or caps.edges else None
        if (caps.atoms or caps.edges) and size is None:
            raise ValueError("caps on atoms or edges need the size of structures")

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        batch: list[int] = []
        atoms = edges = 0
        for _ in range(self._caps.structures):
            pool = self._next_pool()
            if self._size is not None:
                more_atoms, more_edges = self._size(pool.peek())
                self._refuse_giant(pool.peek(), more_atoms, more_edges)
                atoms, edges = atoms + more_atoms, edges + more_edges
                if batch and (0 < self._caps.atoms < atoms or 0 < self._caps.edges < edges):
                    break
            batch.append(pool.take())
            if pool is self._synthetic:
                self._drawn_synthetic += 1
            else:
                self._drawn += 1
        return batch

    def _next_pool(self) -> Pool:
        if self._synthetic is not None:
            # of the number of the draw alone: a structure that did not fit into a batch is drawn again for the next
            source = np.random.PCG64(np.random.SeedSequence([self._seed, SYNTHETIC, self._drawn + self._drawn_synthetic]))
            if np.random.Generator(source).random() < self._synthetic_fraction:
                return self._synthetic
        # spread evenly over all that was ever drawn, so that the share is kept when caps end batches early
        from_labelled = math.floor((self._drawn + 1) * self._share) > math.floor(self._drawn * self._share)
        return self._pools[0 if from_labelled else -1]

    def _refuse_giant(self, index: int, atoms: int, edges: int) -> None:
        for what, size, cap in (("atoms", atoms, self._caps.atoms), ("edges", edges, self._caps.edges)):
            if 0 < cap < size:
                raise DataError(
                    f"structure {index} alone has {size} {what}, but data.batch_{what} is {cap}. Raise the cap or remove the structure."
                )

    def state_dict(self) -> dict[str, Any]:
        """Where it is: a few integers."""
        state: dict[str, Any] = {"pools": [[pool.epoch, pool.position] for pool in self._pools], "drawn": self._drawn}
        if self._synthetic is not None:
            state["synthetic"] = [self._synthetic.epoch, self._synthetic.position, self._drawn_synthetic]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        if len(state["pools"]) != len(self._pools):
            raise ValueError(f"the sampler has {len(self._pools)} pools, its saved state has {len(state['pools'])}")
        if (self._synthetic is None) != ("synthetic" not in state):
            raise ValueError("with synthetic structures a run cannot go on from a state without, nor the other way round")
        for pool, (epoch, position) in zip(self._pools, state["pools"], strict=True):
            pool.go_to(int(epoch), int(position))
        # a single pool does not need it, so a state may lack it
        self._drawn = int(state.get("drawn", 0))
        if self._synthetic is not None:
            epoch, position, drawn = state["synthetic"]
            self._synthetic.go_to(int(epoch), int(position))
            self._drawn_synthetic = int(drawn)
