"""Many computations at once, each written as if it were alone: what all of them wait for is computed in one call.

ASE's optimisers and dynamics ask for the forces of one structure and go on with the answer. A teacher is much faster on a batch. So each trajectory runs in a thread
of its own until it asks; when all that are left have asked, the calling thread answers all. Threads never compute side by side, so that answers, and which
of them come together, depend on nothing but the tasks.

Example:
    >>> together([lambda ask: ask(1) + ask(2), lambda ask: ask(3)], lambda asked: [10 * x for x in asked])
    [30, 30]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def together(
    tasks: Sequence[Callable[[Callable[[Question], Answer]], Result]], serve: Callable[[list[Question]], Sequence[Answer | Exception]]
) -> list[Result]:
    """Run tasks that ask, and answer them in batches.

    Args:
        tasks: each is called with ``ask``, which takes a question and gives its answer.
        serve: from the questions of all tasks that wait, in their order, to answers; an exception is raised where that task asked.

    Returns:
        What the tasks returned, in their order.

    Raises:
        Exception: the first that a task did not catch, or what ``serve`` raises, when all threads have ended.
    """
    lobby: _Lobby[Question, Answer, Result] = _Lobby(len(tasks))
    threads = [threading.Thread(target=lobby.run, args=(slot, task), daemon=True) for slot, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    try:
        while waiting := lobby.waiting():
            lobby.answer(dict(zip(waiting, serve(list(waiting.values())), strict=True)))
    finally:
        lobby.close()
        for thread in threads:
            thread.join()
    for slot in sorted(lobby.errors):
        raise lobby.errors[slot]
    return [lobby.results[slot] for slot in range(len(tasks))]


class _Closed(Exception):  # noqa: N818 - nobody sees it
    """Nobody answers any more."""


class _Lobby(Generic[Question, Answer, Result]):
    def __init__(self, tasks: int) -> None:
        self._alive = set(range(tasks))
        self._asked: dict[int, Question] = {}
        self._answers: dict[int, Answer | Exception] = {}
        self._closed = False
        self._changed = threading.Condition()
        self.results: dict[int, Result] = {}
        self.errors: dict[int, BaseException] = {}

    def run(self, slot: int, task: Callable[[Callable[[Question], Answer]], Result]) -> None:
        try:
            self.results[slot] = task(lambda question: self._ask(slot, question))
        except _Closed:
            pass
        except BaseException as error:
            self.errors[slot] = error
        with self._changed:
            self._alive.discard(slot)
            self._changed.notify_all()

    def _ask(self, slot: int, question: Question) -> Answer:
        with self._changed:
            self._asked[slot] = question
            self._changed.notify_all()
            self._changed.wait_for(lambda: slot in self._answers or self._closed)
            if slot not in self._answers:
                raise _Closed
            answer = self._answers.pop(slot)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def waiting(self) -> dict[int, Question]:
        """The questions of all tasks that are left, when each of them has one; empty when none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._alive == self._asked.keys())
            return dict(sorted(self._asked.items()))

    def answer(self, answers: dict[int, Answer | Exception]) -> None:
        with self._changed:
            self._asked.clear()
            self._answers.update(answers)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
