"""Other packages' model files without the rest of those packages: only what the models' own modules import has to be there.

`schnetpack` and `fairchem-core` are installed without their dependencies (``make peers``). Their top-level packages import trainers, loggers and compiled
extensions that the models do not use, so the packages are opened without running their ``__init__``, and what is missing gets a stand-in
written in plain torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def schnetpack() -> ModuleType:
    """``schnetpack.representation``."""
    _open("schnetpack")
    return importlib.import_module("schnetpack.representation")


def fairchem(model: str) -> ModuleType:
    """A module of ``fairchem.core.models``."""
    if importlib.util.find_spec("fairchem") is None or importlib.util.find_spec("fairchem.core") is None:
        pytest.skip("needs fairchem-core 1.x: make peers")
    pytest.importorskip("torch_geometric")
    stand_ins = {
        "torch_scatter": {"scatter": scatter, "segment_coo": segment_coo, "segment_csr": segment_csr},
        "torch_sparse": {"SparseTensor": SparseTensor},
        "lmdb": {},
        "huggingface_hub": {"hf_hub_download": None},
    }
    with _standing_in(stand_ins):
        try:
            return importlib.import_module(f"fairchem.core.models.{model}")
        except ModuleNotFoundError as error:
            pytest.skip(f"fairchem-core without {error.name}")


def _open(package: str) -> None:
    spec = importlib.util.find_spec(package) if package not in sys.modules else None
    if package not in sys.modules:
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip(f"needs {package}: make peers")
        module = ModuleType(package)
        module.__path__ = list(spec.submodule_search_locations)
        module.__spec__ = spec
        sys.modules[package] = module


@contextmanager
def _standing_in(stand_ins: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules that exist for the time of an import, and for nobody else."""
    missing = [name for name in stand_ins if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(stand_ins[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


# torch_scatter and torch_sparse, as far as the models use them


def scatter(src: Tensor, index: Tensor, dim: int = 0, out: None = None, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    assert out is None
    size = int(dim_size) if dim_size is not None else (int(index.max()) + 1 if index.numel() else 0)
    moved = src.movedim(dim, 0)
    result = moved.new_zeros(size, *moved.shape[1:])
    if reduce in ("sum", "add"):
        result = result.index_add(0, index, moved)
    elif reduce == "mean":
        count = moved.new_zeros(size).index_add(0, index, moved.new_ones(index.shape[0])).clamp(min=1)
        result = result.index_add(0, index, moved) / count.view(-1, *[1] * (moved.dim() - 1))
    else:
        result = result.scatter_reduce(0, index, moved, {"min": "amin", "max": "amax"}[reduce], include_self=False)
    return result.movedim(0, dim)


def segment_coo(src: Tensor, index: Tensor, out: None = None, dim_size: int | None = None, reduce: str = "sum") -> Tensor:
    return scatter(src, index, 0, out, dim_size, reduce)


def segment_csr(src: Tensor, indptr: Tensor, out: None = None, reduce: str = "sum") -> Tensor:
    index = torch.repeat_interleave(torch.arange(indptr.shape[0] - 1, device=indptr.device), indptr.diff())
    return scatter(src[indptr[0] : indptr[-1]], index, 0, out, indptr.shape[0] - 1, reduce)


class SparseTensor:
    """Rows of (column, value), sorted; several entries at one place are allowed."""

    def __init__(self, row: Tensor, col: Tensor, value: Tensor | None, sparse_sizes: tuple[int, int]) -> None:
        order = torch.argsort(row * max(sparse_sizes[1], 1) + col, stable=True)
        self._row, self._col, self._value = row[order], col[order], None if value is None else value[order]
        self._sizes = sparse_sizes
        self.storage = SimpleNamespace(row=lambda: self._row, col=lambda: self._col, value=lambda: self._value)

    def __getitem__(self, rows: Tensor) -> SparseTensor:
        count = torch.bincount(self._row, minlength=self._sizes[0])
        start = count.cumsum(0) - count
        new_row = torch.repeat_interleave(torch.arange(rows.shape[0], device=rows.device), count[rows])
        inner = torch.arange(new_row.shape[0], device=rows.device) - torch.repeat_interleave(
            count[rows].cumsum(0) - count[rows], count[rows]
        )
        entry = start[rows][new_row] + inner
        value = None if self._value is None else self._value[entry]
        return SparseTensor._sorted(new_row, self._col[entry], value, (rows.shape[0], self._sizes[1]))

    @classmethod
    def _sorted(cls, row: Tensor, col: Tensor, value: Tensor | None, sizes: tuple[int, int]) -> SparseTensor:
        new = cls(row[:0], col[:0], None, sizes)
        new._row, new._col, new._value = row, col, value
        return new

    def set_value(self, value: None) -> SparseTensor:
        return SparseTensor._sorted(self._row, self._col, value, self._sizes)

    def set_value_(self, value: Tensor, layout: str) -> None:
        assert layout == "coo"
        self._value = value

    def sum(self, dim: int) -> Tensor:
        assert dim == 1
        assert self._value is None
        return torch.bincount(self._row, minlength=self._sizes[0]).to(torch.float32)

    def coo(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._row, self._col, self._value

    def sparse_sizes(self) -> tuple[int, int]:
        return self._sizes
