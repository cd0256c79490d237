"""CKA between the layers of some models on structures of a data file: the passes over the data, and nothing of files or arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastkd.analysis.cka import BatchSums, Estimator, Layer, LayerSums, Similarity
from fastkd.data.batch import Batch
from fastkd.data.dataset import StructureDataset
from fastkd.errors import ConfigError, DataError
from fastkd.models.base import MAX_ATOMIC_NUMBER
from fastkd.teachers.layers import KINDS, LayerReader, Layers

#: Layers of a pass that are kept for the next one; beyond that they are computed again.
KEPT_BYTES = 1 << 30

Names = dict[str, tuple[Layer, ...]]


@dataclass(frozen=True)
class CKASettings:
    """How similarities are estimated."""

    estimators: tuple[Estimator, ...] = ("full", "minibatch")
    batch_size: int = 16  #: structures per batch, which the minibatch estimator's variance depends on
    resamples: int = 1000  #: of the bootstrap; 0 for no intervals
    seed: int = 0  #: of the order of structures and of the bootstrap
    kinds: tuple[str, ...] = ()  #: empty: all that there are
    by_element: bool = False  #: take means element by element (node, edge)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Similarities of all layers, and what could not be compared."""

    similarities: tuple[Similarity, ...]
    structures: int
    atoms: int
    notes: tuple[str, ...] = ()

    def of(self, kind: str, estimator: str) -> Similarity | None:
        """One of them, if it is there."""
        found = (item for item in self.similarities if (item.kind, item.estimator) == (kind, estimator))
        return next(found, None)


@dataclass(eq=False)
class _Stream:
    """Layers of all models, batch after batch, as often as wanted."""

    readers: Mapping[str, LayerReader]
    dataset: StructureDataset
    batches: Sequence[Sequence[int]]
    device: torch.device
    free: int  #: bytes that may be kept
    kept: dict[int, dict[str, Layers]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Layers]]]:
        for number, indices in enumerate(self.batches):
            batch = self.dataset.batch(indices).to(self.device)
            found = self.kept.get(number)
            if found is None:
                found = {model: reader(batch) for model, reader in self.readers.items()}
                size = sum(value.numel() * value.element_size() for layers in found.values() for value in _tensors(layers))
                if size <= self.free:
                    self.kept[number] = found
                    self.free -= size
            yield batch, found


def compare_layers(
    readers: Mapping[str, LayerReader],
    dataset: StructureDataset,
    indices: Sequence[int],
    settings: CKASettings,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """CKA between all layers of some models.

    Args:
        readers: by name; layers are ordered by model, in this order.
        dataset: with the neighbour graph of every model's cutoff.
        indices: of the structures.
        settings: see `CKASettings`.
        device: where sums are made.
        progress: called with the batches done and to do.

    Raises:
        ConfigError: if a kind is asked for that fewer than two layers have.
        DataError: if there are no structures, or too few atoms.
    """
    if not len(indices):
        raise DataError("there is no structure to compare layers on")
    # neighbours in a file are often frames of one trajectory: a batch of them would be nearly one structure
    order = np.random.default_rng(settings.seed).permutation(np.asarray(indices))
    parts = np.array_split(order, max(1, round(len(order) / settings.batch_size)))
    stream = _Stream(readers, dataset, [part.tolist() for part in parts], torch.device(device), KEPT_BYTES)
    first = dataset.batch(stream.batches[0]).to(stream.device)
    for reader in readers.values():
        reader.start(first)
    _, layers = next(iter(stream))
    names, notes = _shared(layers, settings.kinds)
    full = {kind: LayerSums(_widths(layers, kind, chosen), centred=kind != "vector") for kind, chosen in names.items()}
    mini = {kind: BatchSums(centred=kind != "vector") for kind in names}
    atoms = 0
    passes = 2 if "full" in settings.estimators and settings.resamples else 1
    for turn in range(passes):
        for number, (batch, found) in enumerate(stream):
            for kind, chosen in names.items():
                values = [found[layer.model].values[kind][layer.name].to(stream.device) for layer in chosen]
                _require_usable(values, chosen, found, kind)
                group = _element_of(batch, found, kind, chosen) if settings.by_element else None
                if turn:
                    full[kind].add_influence(values, _structure_of(batch, found, kind, chosen), batch.num_graphs, group)
                    continue
                if "full" in settings.estimators:
                    full[kind].add(values, group)
                if "minibatch" in settings.estimators:
                    mini[kind].add(values, group)
            atoms += 0 if turn else batch.num_atoms
            if progress is not None:
                progress(turn * len(parts) + number + 1, passes * len(parts))
    results = []
    for kind, chosen in names.items():
        if "full" in settings.estimators:
            results.append(_full(kind, chosen, full[kind], settings))
        if "minibatch" in settings.estimators:
            results.append(_minibatch(kind, chosen, mini[kind], settings))
    return Comparison(tuple(results), len(indices), atoms, tuple(notes))


def _full(kind: str, layers: tuple[Layer, ...], sums: LayerSums, settings: CKASettings) -> Similarity:
    value = sums.cka()
    nothing = np.full_like(value, np.nan)
    low, high, units = sums.interval(settings.resamples, settings.seed) if settings.resamples else (nothing, nothing, 0)
    return Similarity(kind, "full", layers, value, low, high, sums.rows, units, settings.by_element and kind != "vector")


def _minibatch(kind: str, layers: tuple[Layer, ...], sums: BatchSums, settings: CKASettings) -> Similarity:
    value = sums.cka()
    if not value.size:
        raise DataError(
            f"no batch has the four rows of {kind} features that the minibatch estimator needs; take more structures per batch (--batch-size)"
        )
    low, high, units = sums.interval(settings.resamples, settings.seed)
    return Similarity(kind, "minibatch", layers, value, low, high, sums.rows, units, settings.by_element and kind != "vector")


def _shared(layers: Mapping[str, Layers], kinds: Sequence[str]) -> tuple[Names, list[str]]:
    """Layers of each kind that can be compared, and what was left out."""
    names: Names = {}
    notes: list[str] = []
    for kind in KINDS:
        if kinds and kind not in kinds:
            continue
        having = [model for model, found in layers.items() if found.values.get(kind)]
        if kind == "edge" and having:
            # the last one is the teacher, whose edges count
            strange = [model for model in having[:-1] if not layers[model].same_edges(layers[having[-1]])]
            if strange:
                notes.append(f"edge features of {', '.join(strange)} belong to another graph than those of {having[-1]} (cutoff, limits)")
            having = [model for model in having if model not in strange]
        chosen = tuple(Layer(model, name) for model in having for name in layers[model].values[kind])
        if len(chosen) >= 2:
            names[kind] = chosen
        elif kind in kinds:
            why = f" ({notes[-1]})" if notes else ""
            offers = "; ".join(f"{model}: {', '.join(found.values) or 'none'}" for model, found in layers.items())
            raise ConfigError(f"fewer than two layers of kind {kind} can be compared{why}; there are {offers}")
    if not names:
        raise ConfigError("the models have no two layers of one kind in common; there is nothing to compare")
    return names, notes


def _widths(layers: Mapping[str, Layers], kind: str, chosen: Sequence[Layer]) -> list[int]:
    return [layers[layer.model].values[kind][layer.name].shape[-1] for layer in chosen]


def _require_usable(values: Sequence[Tensor], layers: Sequence[Layer], found: Mapping[str, Layers], kind: str) -> None:
    for value, layer in zip(values, layers, strict=True):
        if value.shape[0] != values[0].shape[0]:
            raise DataError(f"{layer} has {value.shape[0]} rows of kind {kind}, {layers[0]} has {values[0].shape[0]}: their graphs differ")
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"{layer}: {kind} features are not finite; look for overlapping atoms, or weights that diverged")
    if kind == "edge" and any(not found[layer.model].same_edges(found[layers[-1].model]) for layer in layers):
        raise DataError("the models' graphs have the same edges in some structures only; leave out --kind edge")


def _structure_of(batch: Batch, found: Mapping[str, Layers], kind: str, layers: Sequence[Layer]) -> Tensor:
    if kind != "edge":
        return batch.graph_index
    edges = found[layers[-1].model].edges
    assert edges is not None
    return batch.graph_index[edges.edge_dst.to(batch.graph_index.device)]


def _element_of(batch: Batch, found: Mapping[str, Layers], kind: str, layers: Sequence[Layer]) -> Tensor:
    """What distinguishes rows by elements alone: that of each atom, or those of both ends of each edge."""
    numbers = batch.atomic_numbers
    if kind != "edge":
        return numbers
    edges = found[layers[-1].model].edges
    assert edges is not None
    return numbers[edges.edge_dst.to(numbers.device)] * (MAX_ATOMIC_NUMBER + 1) + numbers[edges.edge_src.to(numbers.device)]


def _tensors(layers: Layers) -> Iterator[Tensor]:
    for values in layers.values.values():
        yield from values.values()
    if layers.direction is not None:
        yield layers.direction
