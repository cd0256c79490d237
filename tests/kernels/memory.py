"""How much memory a call takes beyond its inputs, and how much it may take.

A new op gets its test by one line in `CEILINGS`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from fastkd_kernels import backends
from fastkd_kernels.registry import OpCase, Shape, all_cases
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.kernels.cases import BenchOp, Problem, make_problem
from bench.kernels.shapes import BenchShape


@dataclass(frozen=True)
class Ceiling:
    """Most memory that forward + force + force training may take at one time, in numbers per edge, results included.

    Few nodes and many edges make everything that is not on edges negligible.

    Args:
        name: of the op's case; one that this version does not have is skipped.
        largest: numbers per edge of the largest tensor that may be made, as a function of the width.
        peak: the same for all tensors alive at one time.
        first: numbers of the inputs that depend on positions; all if None.
    """

    name: str
    largest: Callable[[int], int]
    peak: Callable[[int], int]
    first: tuple[int, ...] | None = None


CEILINGS: tuple[Ceiling, ...] = (
    # the gradients by w [E, F], of first and second order, are asked for
    Ceiling("cfconv", lambda width: width, lambda width: 2 * width),
    # those by edge [E, D] and direction [E, 3]
    Ceiling("edge_to_node_both", lambda width: width, lambda width: 2 * (width + 3)),
    # those by weight [E, 3F] and direction [E, 3]
    Ceiling("painn_message", lambda width: 3 * width, lambda width: 2 * (3 * width + 3)),
    # scalars only: lengths or vectors, and what is made of them
    # sixteen weights of rows, a knot and a fraction, shared by all layers, are most of it
    Ceiling("radial_conv", lambda width: 16, lambda width: 40, first=(0, 1)),
    Ceiling("cfconv_exact", lambda width: 8, lambda width: 24, first=(0, 1)),
    Ceiling("painn_exact", lambda width: 8, lambda width: 24, first=(0, 1, 2)),
    Ceiling("painn_radial", lambda width: 16, lambda width: 48, first=(0, 1, 2)),
)


def find_case(name: str) -> OpCase | None:
    """The case of that name, or the first of its variants ``name[…]``."""
    return next((case for case in all_cases() if case.name == name or case.name.startswith(f"{name}[")), None)


def problem_for(ceiling: Ceiling, case: OpCase, shape: Shape, device: str = "cpu") -> Problem:
    """Random input with one step of training on forces, as the benchmarks make it."""
    op = BenchOp(ceiling.name, (), first=ceiling.first)
    return make_problem(op, case, BenchShape("memory", shape), torch.float32, torch.device(device), 0)


class Recorder(TorchDispatchMode):
    """Bytes of every tensor that is made inside of it: the largest one, and the most that lived at one time.

    An operator of ours would hide what its body allocates, because under a dispatch mode it is one opaque call. So inside of this mode the
    body is run in the open, by `backends.runs_directly`, as it is in eager mode. Memory that numba or a C++ operator of torch takes
    for itself and gives back is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.largest_name = ""
        self._sizes: dict[int, int] = {}
        self._open = mock.patch.object(backends, "runs_directly", return_value=True)

    def __enter__(self) -> Recorder:
        self._open.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._open.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                self._add(leaf, str(func))
        return result

    def _add(self, tensor: torch.Tensor, made_by: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[storage._cdata] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        if size > self.largest:
            self.largest, self.largest_name = size, f"{made_by} {list(tensor.shape)}"
        # torch keeps this Python object for as long as the memory itself is in use
        weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def record(call: Callable[[], Any]) -> Recorder:
    """What a call allocates; its results live until the end of it."""
    with Recorder() as recorder:
        kept = call()
    del kept
    return recorder
