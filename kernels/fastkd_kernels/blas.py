"""Matrix products on a CPU whose bits do not depend on the number of threads.

BLAS divides a product among its threads, and a row that falls into another thread's share may be summed in another order. So a
product here always runs on one thread of BLAS. Cores are kept busy one level above: work is cut into tiles by the shapes alone, tiles
run on a few threads of our own, and what has to be summed over tiles is summed in the order of the tiles.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

#: Multiply-adds below which handing tiles to other threads costs more than it saves (about 80 µs of one core).
THREADED_WORK = 8_000_000

#: Tiles that are handed out at a time, for each thread.
AHEAD = 4
#: Most multiply-adds of a block of rows in `mm`.
BLOCK_WORK = 12_000_000

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Products inside run on the calling thread alone; threads that already use torch keep their setting."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def steady(backend: str) -> AbstractContextManager[None]:
    """For plain torch that stands in for a kernel: one thread where the backend promises the same bits for any number of them."""
    return one_thread() if backend == "numba" else nullcontext()


def each_tile(parts: Sequence[Part], run: Callable[[Part], Result], collect: Callable[[Result], None] | None = None, *, work: int) -> None:
    """``run`` each part, on several threads if that pays, and give the results to ``collect`` in the order of the parts.

    Args:
        parts: the tiles; they must follow from shapes, never from the number of threads.
        run: computes one tile; must write nothing that another tile reads or writes. It sees one thread of torch.
        collect: called on the calling thread, which sees one thread of torch as well.
        work: multiply-adds of all tiles together.
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1 or work < THREADED_WORK:
        with one_thread():
            for part in parts:
                result = run(part)
                if collect is not None:
                    collect(result)
        return
    # grad mode and inference mode are settings of a thread
    inference = torch.is_inference_mode_enabled()

    def tile(part: Part) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return run(part)

    pool, running = _pool(threads), deque[Future[Result]]()
    # sums of tiles are small: a team of threads for each would cost more than it saves
    with one_thread():
        try:
            for part in parts:
                running.append(pool.submit(tile, part))
                # results that wait for their turn take memory; a few, so that a thread that is held up holds up no other
                if len(running) >= AHEAD * threads:
                    _take(running, collect)
            while running:
                _take(running, collect)
        finally:
            # after an error in one tile the others must not write any more
            wait(running)


class Spare:
    """Tensors of one kind, used again from tile to tile; as many are made as are in use at a time. Fresh memory costs as much as a product."""

    def __init__(self, like: Tensor, *shape: int) -> None:
        self._like, self.shape = like, shape
        self._free: deque[Tensor] = deque()

    def take(self) -> Tensor:
        """One that nobody uses; its contents are arbitrary."""
        try:
            return self._free.pop()
        except IndexError:
            return self._like.new_empty(self.shape)

    def give(self, tensor: Tensor) -> None:
        """Take back what `take` gave."""
        self._free.append(tensor)


def mm(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Overwrite ``out`` with a · b, or add that to it; large products in blocks of rows, which follow from the shapes."""
    count, work = a.shape[0], a.shape[0] * a.shape[1] * b.shape[1]
    if work <= BLOCK_WORK:
        with one_thread():
            _mm(a, b, out, add)
        return
    size = -(-count // -(-work // BLOCK_WORK))
    parts = [slice(first, last) for first, last in pairwise([*range(0, count, size), count])]
    each_tile(parts, lambda part: _mm(a[part], b, out[part], add), work=work)


def _mm(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    if add:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


def _take(running: deque[Future[Result]], collect: Callable[[Result], None] | None) -> None:
    result = running[0].result()
    running.popleft()
    if collect is not None:
        collect(result)


_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
_MAKING = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each use one thread of torch; made once a process, because a forked process has none of its parent's."""
    key = os.getpid(), threads
    pool = _POOLS.get(key)
    if pool is None:
        with _MAKING:
            pool = _POOLS.get(key)
            if pool is None:
                _POOLS[key] = pool = _started(threads)
    return pool


def _started(threads: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastkd", initializer=_use_one_thread)
    # all of them start now, so that the setting can be given back: torch hands the last one on to threads that are new to it
    barrier = threading.Barrier(threads)
    wait([pool.submit(barrier.wait) for _ in range(threads)])
    torch.set_num_threads(before)
    return pool


def _use_one_thread() -> None:
    # a thread takes over the process's setting when torch first asks for it; what is set after that stays
    torch.get_num_threads()
    torch.set_num_threads(1)
