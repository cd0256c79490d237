"""What all numba kernels share: one loop compiled serial and threaded, and tensors handed over as arrays.

numba is imported here and in the ``numba_kernels`` modules only, so that ``import fastkd_kernels`` needs torch alone.

Threads: a kernel runs threaded only when torch may use more than one thread *and* there is enough work to pay for waking them;
on small batches, or on a machine whose cores are shared, one thread is faster. Each output row is owned by one thread in either
version, in the same order, so that the number of threads never changes a bit of the result.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

#: Multiply-adds below which waking a second thread costs more than it saves (about 50 µs of one core).
THREADED_WORK = 400_000

#: Bytes that do not fit into a second-level cache, and bytes that fit into a third-level one.
EDGES_BEYOND, NODES_WITHIN = 2**21, 2**24

Array = np.ndarray[Any, Any]

# Reassociation and contraction let the compiler use vector units; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


class Kernel:
    """A loop over ``numba.prange``, compiled twice: serial and threaded. Both are cached on disk, under names of their own.

    Args:
        loop: the function.
        one_code: run the threaded version on one thread too. Products and sums that the compiler joins into one instruction, which rounds
            once, need not be the same in both versions; where much arithmetic stands in a row's loop they are not.
    """

    def __init__(self, loop: Callable[..., None], *, one_code: bool = False) -> None:
        self.__doc__ = loop.__doc__
        self._one_code = one_code
        helpers = _helpers(loop)
        self._serial = numba.njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(_renamed(loop, f"alone_{helpers}"))
        self._threaded = numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy", parallel=True)(
            _renamed(loop, f"threaded_{helpers}")
        )

    def __call__(self, *args: Any, work: int) -> None:
        """Run on arrays; ``work`` is the number of multiply-adds, which decides between the two versions."""
        threads = threads_for(work)
        if threads == 1 and not self._one_code:
            self._serial(*args)
        else:
            _start_threads()
            numba.set_num_threads(threads)
            self._threaded(*args)


@lru_cache(maxsize=1)
def _start_threads() -> None:
    """Once: numba's threads may be those of the same OpenMP as torch's, whose number their start would change."""
    before = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(before)


def threads_for(work: int) -> int:
    """How many threads a kernel with so many multiply-adds runs on."""
    return 1 if work < THREADED_WORK else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def streams(order: Array, edge_rows: Array, node_rows: Array) -> bool:
    """Whether a sum over edges into nodes should read the edges in their own order, and add to nodes that stay in a cache.

    Rows of edges that lie in memory in another order than the nodes that own them are fetched one by one, and the memory waits. If they
    do not fit into a cache and all nodes do, going through them as they lie is two to four times faster. Each node still
    gets its edges in ascending order, so that the bits are the same.
    """
    if edge_rows.nbytes < EDGES_BEYOND or node_rows.nbytes > NODES_WITHIN:
        return False
    return not _ascending(order)


def shares(ptr: Array, work: int) -> Array:
    """First nodes of runs of nodes with about equal numbers of edges, one run a thread, and the end: [threads + 1]."""
    threads = threads_for(work)
    goals = np.arange(1, threads) * (int(ptr[-1]) / threads)
    return np.concatenate([[0], np.searchsorted(ptr, goals), [ptr.size - 1]]).astype(np.int64)


@numba.njit(cache=True)
def _ascending(order):  # type: ignore[no-untyped-def]
    for k in range(order.size):  # noqa: SIM110 - numba has no all() of a generator
        if order[k] != k:
            return False
    return True


def _helpers(loop: Callable[..., None]) -> str:
    """A digest of the other files of this package that the loop's file takes functions from, and of those that they take from.

    numba's disk cache looks at the loop's own file alone: without this in the name, a kernel would go on with helpers as they were when it
    was compiled.
    """
    package, first = __name__.split(".", maxsplit=1)[0], loop.__module__
    modules: set[str] = set()
    waiting = [first]
    while waiting:
        module = sys.modules[waiting.pop()]
        named = {getattr(value, "__module__", None) for value in vars(module).values()} - modules
        found = {name for name in named if isinstance(name, str) and name.split(".")[0] == package and name in sys.modules}
        modules |= found
        waiting += found
    total = hashlib.sha256()
    for name in sorted(modules - {first}):
        total.update(name.encode() + _source(name))
    for name, value in sorted(vars(sys.modules[first]).items()):
        # constants of other files, which do not say where they are from
        if isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("__"):
            total.update(f"{name} {value!r}".encode())
    return total.hexdigest()[:12]


@lru_cache(maxsize=64)
def _source(module: str) -> bytes:
    file = sys.modules[module].__file__
    return Path(file).read_bytes() if file and Path(file).is_file() else b""


def _renamed(function: Callable[..., None], suffix: str) -> Callable[..., None]:
    # numba's disk cache is keyed by the function's name, not by its compile options
    copy = types.FunctionType(
        function.__code__, function.__globals__, f"{function.__name__}_{suffix}", function.__defaults__, function.__closure__
    )
    copy.__qualname__ = f"{function.__qualname__}_{suffix}"
    copy.__module__ = function.__module__
    return copy


def arrays(*tensors: Tensor) -> list[Array]:
    """Contiguous arrays that share the tensors' memory where they already are contiguous; autograd hands over strided gradients."""
    # the bodies of operators run without grad, where most tensors require none and each call saved counts on small molecules
    return [(tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy() for tensor in tensors]
