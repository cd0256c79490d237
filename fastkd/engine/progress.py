"""What a run says while it runs: a progress bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Seconds between updates of the bar, and between lines where there is no terminal.
REFRESH, LINE_EVERY = 0.25, 15.0


class Reporter:
    """Progress of one run; use as a context. Messages for people go to ``console`` (standard output by default)."""

    def __init__(self, label: str, steps: int, first: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._label, self._steps, self._first = label, steps, first
        self._note = ""
        self._started = self._shown = time.perf_counter()
        self._atoms_at_last = self._wait_at_last = 0.0
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console, transient=True)
            self._task = self._bar.add_task(label, total=steps, completed=first, status="")

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to say something; asked every step, so that losses are read only when they are shown."""
        return time.perf_counter() - self._shown >= (REFRESH if self._bar else LINE_EVERY)

    def show(self, step: int, loss: float, atoms: int, waited: float) -> None:
        """Show where the run is.

        Args:
            step: steps done.
            loss: of the last step.
            atoms: processed since the start of this process.
            waited: seconds spent waiting for data since then.
        """
        now = time.perf_counter()
        span = max(now - self._shown, 1e-9)
        rate, wait = (atoms - self._atoms_at_last) / span, 100 * (waited - self._wait_at_last) / span
        self._shown, self._atoms_at_last, self._wait_at_last = now, atoms, waited
        status = f"step {step}/{self._steps} · loss {loss:.4g}{self._note} · {rate:,.0f} atoms/s · data wait {wait:.0f} %"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
            return
        left = (now - self._started) / max(step - self._first, 1) * (self._steps - step)
        self.console.print(f"{self._label}: {status} · {left:.0f} s left", markup=False)

    def evaluated(
        self,
        energy_mae: float,
        forces_mae: float | None,
        teacher_ms: float | None = None,
        teacher_share: float | None = None,
        alike: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Take note of validation errors (meV/atom, and meV/Å where there are forces), a live teacher's cost and the CKA of watched pairs; every status shows them from now on."""
        self._note = f" · val {energy_mae:.2f} meV/atom" + (f", {forces_mae:.1f} meV/Å" if forces_mae is not None else "")
        if teacher_ms is not None:
            self._note += f" · teacher {teacher_ms:.1f} ms/batch ({teacher_share:.0f} % of a step)"
        if alike:
            self._note += " · " + ", ".join(f"{name.replace('cka_', 'CKA ')} {value:.2f}" for name, value in alike.items())

    def say(self, message: str) -> None:
        """Print a line of its own."""
        self.console.print(message, markup=False)
