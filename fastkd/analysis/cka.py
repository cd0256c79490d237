"""Linear CKA between all layers of some models at once, streamed: no matrix over pairs of atoms is ever made.

Two estimators of the similarity of features X [n, c] and Y [n, d] of the same n rows:

* **full**: ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) with centred columns over all rows (Kornblith et al., ICML 2019). Exact; biased upwards where c or d is
  not small against n. `LayerSums` adds up the cross-covariances of all layers in float64, batch after batch.
* **minibatch**: Σ_b HSIC₁(K_b, L_b) / √(Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b)) over batches b, with the unbiased HSIC₁ of Song et al.
  (JMLR 2012) as Nguyen, Raghu and Kornblith (ICLR 2021, eq. 3) put it. `BatchSums` evaluates it from c × d matrices instead of Grams.

Vector features [n, 3, c] count as 3 n rows and are *not* centred: the mean over all orientations of anything that turns with its structure is
zero, and a sample mean in its place would make the result depend on how structures happen to lie. Their unbiased form is
HSIC(i, j) = (‖Σ_a A_a‖² − Σ_a ‖A_a‖²) / (n (n − 1)) with A_a = V_aᵀ W_a of atom a: pairs of an atom with itself are left out.

**Within elements.** Scalar features of atoms differ mostly from element to element, so that even an embedding that knows nothing of any neighbour
looks like a teacher's last layer. Given the element of each row (a pair of elements for edges), means are taken element by element: what is
compared is how features vary among atoms of one element. The minibatch form then sums n_z HSIC₁ over the elements z of a batch.

Example:
    >>> sums = LayerSums(widths=(64, 64, 128), centred=True)
    >>> for layers in batches:
    ...     sums.add(layers)  # three tensors [n_rows, width]
    >>> sums.cka()[0, 2]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Estimator = Literal["full", "minibatch"]
CONFIDENCE = 0.95
#: Rows below which HSIC₁ is undefined: it divides by n − 3.
MIN_ROWS = 4
#: Spread of a layer, relative to its mean, that is only rounding: it then counts as constant.
ROUNDING = 1e-13
#: Units (structures, batches) below which an interval would say nothing.
MIN_UNITS = 5


@dataclass(frozen=True)
class Layer:
    """One layer of one model."""

    model: str  #: before, student or teacher
    name: str

    def __str__(self) -> str:
        return f"{self.model} {self.name}"


@dataclass(frozen=True, eq=False)
class Similarity:
    """CKA between all layers of one kind of feature."""

    kind: str  #: node, vector or edge
    estimator: Estimator
    layers: tuple[Layer, ...]
    value: Floats  #: [n_layers, n_layers]; NaN where a layer is constant
    low: Floats  #: end of the 95 % interval; NaN where there is none
    high: Floats
    rows: int  #: atoms, atoms × 3 or edges that were compared
    units: int  #: structures (full) or batches (minibatch) that were resampled
    by_element: bool = False  #: whether what only tells elements apart was taken off

    def between(self, a: str, b: str) -> Similarity | None:
        """The part with layers of model ``a`` as rows and of ``b`` as columns, ``value`` [n_a, n_b]; None if one has no layer."""
        first, second = (np.array([layer.model == model for layer in self.layers], dtype=bool) for model in (a, b))
        if not first.any() or not second.any():
            return None
        cut = np.ix_(first, second)
        return replace(self, value=self.value[cut], low=self.low[cut], high=self.high[cut])

    def names(self, model: str) -> tuple[str, ...]:
        """Layers of one model, in order."""
        return tuple(layer.name for layer in self.layers if layer.model == model)


class LayerSums:
    """Centred cross-covariances of all layers, added up in float64, and what each structure contributes to their norms.

    Args:
        widths: channels of each layer.
        centred: whether column means are taken off (scalars), or known to be zero (vectors, whose rows are atom × axis).
    """

    def __init__(self, widths: Sequence[int], *, centred: bool) -> None:
        self.widths, self.centred = tuple(widths), centred
        self.rows = 0
        total = sum(self.widths)
        self._groups: dict[int, tuple[int, Tensor]] = {}  # rows and mean [Σ width] of each
        self._moment = torch.zeros(total, total, dtype=torch.float64)
        self._influence: list[Floats] = []

    def add(self, layers: Sequence[Tensor], group: Tensor | None = None) -> None:
        """First pass: one batch.

        Args:
            layers: each [n_rows, width] or [n_atoms, 3, width].
            group: [n_rows] int64, the element of each row; None centres all rows together.
        """
        rows = flat(layers)
        if not rows.shape[0]:
            return
        self._moment = self._moment.to(rows.device)
        for key, own in _split(rows, group if self.centred else None):
            count = own.shape[0]
            mean = own.mean(0) if self.centred else torch.zeros_like(own[0])
            part = own - mean
            before, known = self._groups.get(key, (0, torch.zeros_like(mean)))
            # of two parts: the sums of both, and what the distance of their means adds (Chan, Golub and LeVeque 1983)
            step, together = mean - known, before + count
            self._moment += part.T @ part
            if self.centred and before:
                self._moment += torch.outer(step, step) * (before * count / together)
            self._groups[key] = together, known + step * (count / together)
        self.rows += rows.shape[0]

    def _less_mean(self, rows: Tensor, group: Tensor | None) -> Tensor:
        if not self.centred:
            return rows
        if group is None:
            return rows - self._groups[0][1]
        keys = torch.tensor(sorted(self._groups), device=group.device)
        means = torch.stack([self._groups[key][1] for key in keys.tolist()])
        return rows - means[torch.searchsorted(keys, group)]

    def norms(self) -> Floats:
        """‖X_iᵀ X_j‖² of centred features, [n_layers, n_layers]."""
        edges = np.cumsum((0, *self.widths))
        size = len(self.widths)
        found = np.zeros((size, size))
        for i in range(size):
            for j in range(i, size):
                block = self._moment[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
                found[i, j] = found[j, i] = float(block.square().sum())
        for i in range(size):
            own = slice(edges[i], edges[i + 1])
            level = sum(count * float(mean[own].square().sum()) for count, mean in self._groups.values())
            if float(self._moment.diagonal()[own].sum()) <= ROUNDING**2 * level:
                found[i], found[:, i] = 0.0, 0.0
        return found

    def cka(self) -> Floats:
        """[n_layers, n_layers] in [0, 1]; NaN where a layer does not vary."""
        return normalised(self.norms())

    def add_influence(self, layers: Sequence[Tensor], structure: Tensor, structures: int, group: Tensor | None = None) -> None:
        """Second pass, over the same batches: how much each structure contributes.

        Args:
            layers: as in `add`.
            structure: [n_rows] int64 (of [n_atoms] for vectors), the structure of each row within the batch.
            structures: in the batch.
            group: as in `add`.
        """
        rows = self._less_mean(flat(layers), group)
        repeat = rows.shape[0] // max(structure.shape[0], 1)
        index = structure.repeat_interleave(repeat) if repeat > 1 else structure
        edges = [0, *np.cumsum(self.widths).tolist()]
        size = len(self.widths)
        found = torch.zeros(structures, size, size, dtype=torch.float64, device=rows.device)
        for i in range(size):
            # ⟨X_iᵀ X_j, x_i ⊗ x_j⟩ of each row, for every j
            product = (rows[:, edges[i] : edges[i + 1]] @ self._moment[edges[i] : edges[i + 1]]) * rows
            by_layer = torch.stack([product[:, edges[j] : edges[j + 1]].sum(1) for j in range(size)], dim=1)
            found[:, i] = _sum_by(index, by_layer, structures)
        self._influence.append(found.cpu().numpy())

    def interval(self, resamples: int, seed: int) -> tuple[Floats, Floats, int]:
        """95 % bootstrap interval over structures, and how many there are.

        Every resample draws structures with replacement. The logarithm of CKA is taken to first order in how often each was drawn, with its
        exact derivative: 2 H_ij − H_ii − H_jj, H being a structure's share of ‖X_iᵀ X_j‖². What is left out shrinks as one over the number
        of structures, and spares a covariance matrix for every resample.
        """
        share = np.concatenate(self._influence)  # [n_structures, n_layers, n_layers]
        norms = self.norms()
        share = share / np.where(norms > 0, norms, 1.0)
        own = np.einsum("sii->si", share)
        slope = 2 * share - own[:, :, None] - own[:, None, :]
        units, size = len(slope), len(self.widths)
        if units < MIN_UNITS or not resamples:
            nothing = np.full((size, size), np.nan)
            return nothing, nothing.copy(), units
        drawn = _draws(units, resamples, seed) - 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = np.log(self.cka())[None] + (drawn @ slope.reshape(units, -1)).reshape(resamples, size, size)
        low, high = _quantiles(np.minimum(np.exp(replicates), 1.0))
        return low, high, units


class BatchSums:
    """HSIC₁ between all layers, batch by batch.

    Args:
        centred: True for scalars; False for vectors, whose mean is known to be zero.
    """

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred
        self.rows = self.left_out = 0  # rows in batches, and in parts that were too small
        self._hsic: list[Floats] = []

    def add(self, layers: Sequence[Tensor], group: Tensor | None = None) -> None:
        """One batch; parts with fewer than 4 rows (2 atoms for vectors) are left out.

        Args:
            layers: each [n_rows, width] or [n_atoms, 3, width].
            group: [n_rows] int64, the element of each row; None compares all rows with each other.
        """
        least = MIN_ROWS if self.centred else 2
        axes, total = (1 if self.centred else 3), 0
        sums: Tensor | None = None
        for _, index in _split(torch.arange(layers[0].shape[0], device=layers[0].device), group if self.centred else None):
            count = index.shape[0]
            if count < least:
                self.left_out += count * axes
                continue
            hsic = (hsic_1 if self.centred else hsic_vector)([layer[index].double() for layer in layers])
            sums = count * hsic if sums is None else sums + count * hsic
            total += count
        if sums is None:
            return
        self.rows += total * axes
        # products round differently on the two sides of the diagonal
        self._hsic.append((0.5 * (sums + sums.T) / total).cpu().numpy())

    def cka(self) -> Floats:
        """[n_layers, n_layers]; may leave [0, 1] by its own uncertainty. NaN where a layer does not vary."""
        return normalised(np.mean(self._hsic, axis=0)) if self._hsic else np.full((0, 0), np.nan)

    def interval(self, resamples: int, seed: int) -> tuple[Floats, Floats, int]:
        """95 % bootstrap interval over batches of structures, exact, and how many there are."""
        hsic = np.stack(self._hsic)
        units, size = hsic.shape[:2]
        if units < MIN_UNITS or not resamples:
            nothing = np.full((size, size), np.nan)
            return nothing, nothing.copy(), units
        drawn = _draws(units, resamples, seed) / units
        replicates = normalised((drawn @ hsic.reshape(units, -1)).reshape(resamples, size, size))
        return *_quantiles(replicates), units


def hsic_1(layers: Sequence[Tensor]) -> Tensor:
    """Unbiased HSIC₁ of linear kernels between all pairs of layers, [n_layers, n_layers], from each [n ≥ 4, c] in float64.

    [tr K̃L̃ + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃L̃1] / (n (n−3)), K̃ and L̃ with zero diagonals; shifts of X and Y do not matter.
    """
    n = layers[0].shape[0]
    # a shift changes nothing but rounding
    layers = [layer - layer.mean(0) for layer in layers]
    diagonal = torch.stack([layer.square().sum(1) for layer in layers], dim=1)
    sums = torch.stack([layer @ layer.sum(0) for layer in layers], dim=1) - diagonal  # K̃1
    trace = _norms(layers) - diagonal.T @ diagonal
    total = sums.sum(0)
    return (trace + torch.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums.T @ sums)) / (n * (n - 3))


def hsic_vector(layers: Sequence[Tensor]) -> Tensor:
    """(‖Σ_a A_a‖² − Σ_a ‖A_a‖²) / (n (n−1)) with A_a = V_aᵀ W_a, between all pairs of layers, from each [n ≥ 2, 3, c] in float64."""
    n = layers[0].shape[0]
    own = torch.stack([(layer @ layer.transpose(1, 2)).reshape(-1) for layer in layers], dim=1)  # V_a V_aᵀ, [9 n, n_layers]
    return (_norms([layer.reshape(3 * n, -1) for layer in layers]) - own.T @ own) / (n * (n - 1))


def normalised(hsic: Floats) -> Floats:
    """h_ij / √(h_ii h_jj) over the last two axes; NaN where an h_ii is not positive."""
    own = np.einsum("...ii->...i", hsic)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.where(own > 0, own, np.nan)
        # the root of the product: exactly 1 for a layer with itself
        found: Floats = hsic / np.sqrt(own[..., :, None] * own[..., None, :])
    return found


def flat(layers: Sequence[Tensor]) -> Tensor:
    """Layers side by side in float64, [n_rows, Σ width]; vectors [n_atoms, 3, width] become three rows for each atom."""
    return torch.cat([layer.reshape(-1, layer.shape[-1]).double() for layer in layers], dim=1)


def _split(rows: Tensor, group: Tensor | None) -> list[tuple[int, Tensor]]:
    """Rows of each group, by its number; one group 0 if there are none."""
    if group is None:
        return [(0, rows)]
    return [(key, rows[group == key]) for key in torch.unique(group).tolist()]


def _norms(layers: Sequence[Tensor]) -> Tensor:
    found = layers[0].new_zeros(len(layers), len(layers))
    for i, first in enumerate(layers):
        for j in range(i, len(layers)):
            found[i, j] = found[j, i] = (first.T @ layers[j]).square().sum()
    return found


def _sum_by(index: Tensor, values: Tensor, groups: int) -> Tensor:
    # a product with ones instead of an atomic addition: the same bits every time, on a GPU too
    chosen = torch.nn.functional.one_hot(index, groups).to(values.dtype)
    return chosen.T @ values


def _draws(units: int, resamples: int, seed: int) -> Floats:
    """How often each unit was drawn, [n_resamples, n_units]."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)


def _quantiles(replicates: Floats) -> tuple[Floats, Floats]:
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high
