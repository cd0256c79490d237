"""What the layers of one forward share: the sorted edges, built once and dropped at its end.

Nothing outlives the forward of the model, so an index that is rewritten between two batches, in whatever way, cannot be mistaken for
the old one. Within a forward, an entry is found by the identity of its index tensors and their version counters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...graph import CSRGraph

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    tensors: tuple[Tensor, ...]  # held, so that no other tensor can take their identity
    versions: tuple[int | None, ...]
    extra: tuple[Any, ...]
    value: Any

    def fits(self, tensors: tuple[Tensor, ...], extra: tuple[Any, ...]) -> bool:
        same = len(tensors) == len(self.tensors) and all(_same(a, b) for a, b in zip(tensors, self.tensors, strict=True))
        return same and extra == self.extra and self.versions == _versions(tensors)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same memory, seen in the same way; ``edge_index[1]`` is a new object each time it is taken."""
    if a is b or a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.stride() != b.stride():
        return a is b
    return type(a) is type(b) is Tensor and not torch.compiler.is_compiling() and a.data_ptr() == b.data_ptr()


def _versions(tensors: tuple[Tensor, ...]) -> tuple[int | None, ...]:
    if torch.compiler.is_compiling():
        return ()
    return tuple(None if tensor.is_inference() else tensor._version for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Scope:
    """One per patched model, for its settings and what its layers share."""

    backend: str | None
    _local: threading.local = field(default_factory=threading.local)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """For the duration of one forward of the model."""
        outer = getattr(self._local, "entries", None)
        self._local.entries = []
        try:
            yield
        finally:
            self._local.entries = outer

    @property
    def is_open(self) -> bool:
        """Whether a forward of the model is under way."""
        return getattr(self._local, "entries", None) is not None

    def shared(self, build: Callable[..., T], tensors: tuple[Tensor, ...], *extra: Any) -> T:
        """``build(*tensors, *extra)``, once per forward; outside of one, every time."""
        entries: list[_Entry] | None = getattr(self._local, "entries", None)
        if entries is None:
            return build(*tensors, *extra)
        key = (build, *extra)
        for entry in entries:
            if entry.fits(tensors, key):
                found: T = entry.value
                return found
        value = build(*tensors, *extra)
        entries.append(_Entry(tensors, _versions(tensors), key, value))
        return value

    def graph(self, source: Tensor, target: Tensor, num_nodes: int) -> CSRGraph:
        """Edges source → target."""
        return self.shared(_graph, (source, target), num_nodes)

    def graph_of_pair(self, edge_index: Tensor, num_nodes: int, flow: str) -> CSRGraph:
        """Edges of an index [2, n_edges] in the convention of PyTorch Geometric.

        Raises:
            ValueError: if it is not a dense integer tensor of that shape.
        """
        if type(edge_index) is not Tensor or edge_index.layout != torch.strided or edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"a patched layer needs a dense edge_index [2, n_edges], got {type(edge_index).__name__} {_shape(edge_index)}")
        return self.shared(_graph_of_pair, (edge_index,), num_nodes, flow)


def _shape(value: Any) -> str:
    return str(list(getattr(value, "shape", [])))


def _graph(source: Tensor, target: Tensor, num_nodes: int) -> CSRGraph:
    return CSRGraph.from_edges(source.to(torch.int64), target.to(torch.int64), num_nodes)


def _graph_of_pair(edge_index: Tensor, num_nodes: int, flow: str) -> CSRGraph:
    first, second = edge_index.unbind(0)
    source, target = (first, second) if flow == "source_to_target" else (second, first)
    return _graph(source, target, num_nodes)


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In their common dtype, as plain torch would bring them to when it multiplies; under autocast they may differ."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
