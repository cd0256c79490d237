"""Tasks that ask: who is answered when, and what becomes of errors."""

from __future__ import annotations

import threading

import pytest

from fastkd.engine.together import together


def test_all_that_wait_are_answered_in_one_call() -> None:
    served: list[list[int]] = []

    def serve(asked: list[int]) -> list[int]:
        served.append(asked)
        return [10 * question for question in asked]

    def task(start: int, count: int):
        def run(ask) -> int:
            return sum(ask(start + k) for k in range(count))

        return run

    assert together([task(1, 3), task(5, 1), task(7, 2)], serve) == [60, 50, 150]
    assert served == [[1, 5, 7], [2, 8], [3]]


def test_without_tasks_or_questions_nobody_is_asked() -> None:
    def serve(asked: list[int]) -> list[int]:
        raise AssertionError(asked)

    assert together([], serve) == []
    assert together([lambda ask: 1, lambda ask: 2], serve) == [1, 2]


def test_an_answer_may_be_an_error_for_one_task() -> None:
    def careful(ask) -> str:
        try:
            return str(ask(0))
        except ZeroDivisionError:
            return "caught"

    def serve(asked: list[int]) -> list[float | Exception]:
        return [ZeroDivisionError() if question == 0 else 1 / question for question in asked]

    assert together([careful, lambda ask: ask(2)], serve) == ["caught", 0.5]


def test_what_a_task_does_not_catch_comes_out_when_the_others_are_done() -> None:
    ended = []

    def failing(ask) -> None:
        ask(1)
        raise KeyError("mine")

    def fine(ask) -> None:
        for k in range(3):
            ask(k)
        ended.append(True)

    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"):
        together([failing, fine], lambda asked: asked)
    assert ended
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whoever_answers_may_fail_and_no_thread_is_left(error: type[BaseException]) -> None:
    def serve(asked: list[int]) -> list[int]:
        raise error

    before = threading.active_count()
    with pytest.raises(error):
        together([lambda ask: ask(1)] * 3, serve)
    assert threading.active_count() == before
