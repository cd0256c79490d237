"""Ctrl-C and SIGTERM ask the loop to stop after the step it is in; a second one stops the process at once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - not an error: the run can go on later
    """The run was asked to stop, and its checkpoint is written."""

    def __init__(self, signal_number: int, run_dir: Path, step: int) -> None:
        self.signal_number = signal_number
        self.run_dir = run_dir
        self.step = step
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal_number


class StopRequest:
    """Within the context, remembers the first SIGINT or SIGTERM in ``received``; handlers are put back at the end.

    Outside the main thread signals cannot be handled, and none is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            # print() may be interrupted by itself in a handler; a raw write may not
            os.write(2, b"\nstopping after this step; once more stops at once, without a checkpoint\n")
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
