"""What all numba kernels share: one loop compiled serial and threaded, and tensors handed over as arrays.

numba is imported here and in the ``numba_kernels`` modules only, so that ``import fastkd_kernels`` needs torch alone.

Threads: a kernel runs threaded only when torch may use more than one thread *and* there is enough work to pay for waking them;
on small batches, or on a machine whose cores are shared, one thread is faster. Each output row is owned by one thread in either
version, in the same order, so that the number of threads never changes a bit of the result.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

#: Multiply-adds below which waking a second thread costs more than it saves (about 50 µs of one core).
THREADED_WORK = 400_000

# Reassociation and contraction let the compiler use vector units; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


class Kernel:
    """A loop over ``numba.prange``, compiled twice: serial and threaded. Both are cached on disk, under names of their own."""

    def __init__(self, loop: Callable[..., None]) -> None:
        self.__doc__ = loop.__doc__
        self._serial = numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy")(_renamed(loop, "serial"))
        self._threaded = numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy", parallel=True)(_renamed(loop, "threaded"))

    def __call__(self, *args: Any, work: int) -> None:
        """Run on arrays; ``work`` is the number of multiply-adds, which decides between the two versions."""
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if threads == 1 or work < THREADED_WORK:
            self._serial(*args)
        else:
            numba.set_num_threads(threads)
            self._threaded(*args)


def _renamed(function: Callable[..., None], suffix: str) -> Callable[..., None]:
    # numba's disk cache is keyed by the function's name, not by its compile options
    copy = types.FunctionType(
        function.__code__, function.__globals__, f"{function.__name__}_{suffix}", function.__defaults__, function.__closure__
    )
    copy.__qualname__ = f"{function.__qualname__}_{suffix}"
    copy.__module__ = function.__module__
    return copy


def arrays(*tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    """Contiguous arrays that share the tensors' memory where they already are contiguous; autograd hands over strided gradients."""
    # the bodies of operators run without grad, where most tensors require none and each call saved counts on small molecules
    return [(tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy() for tensor in tensors]
