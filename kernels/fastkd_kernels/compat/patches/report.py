"""What `patch` did to a model, and how to take it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


class PatchError(ValueError):
    """The model cannot be patched, or unpatched, exactly; it was left as it was."""


@dataclass(frozen=True)
class Replaced:
    """A module whose forward runs on a fused kernel."""

    name: str  #: in ``model.named_modules()``
    class_name: str
    kernel: str


@dataclass(frozen=True)
class Left:
    """A module that passes messages and keeps its own forward."""

    name: str
    class_name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Report:
    """Print it; `undo` restores the model."""

    model_class: str
    packages: tuple[str, ...]  #: name and version of those whose modules were replaced
    backend: str | None  #: as given to `patch`; None means by device and dtype
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    _undo: Callable[[], None] = field(repr=False)

    def undo(self) -> None:
        """Give every replaced module its own forward again.

        Raises:
            PatchError: if a module is no longer patched, or something else replaced its forward since; nothing is changed then.
        """
        self._undo()

    def __str__(self) -> str:
        backend = self.backend or "chosen by device and dtype"
        rows = [("replaced", "", "", "")] + [("", r.name, r.class_name, r.kernel) for r in self.replaced]
        if self.left:
            rows += [("left", "", "", "")] + [("", r.name, r.class_name, r.reason) for r in self.left]
        widths = [max(len(row[i]) for row in rows) for i in (1, 2)]
        lines = [head or f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {what}" for head, name, kind, what in rows]
        return "\n".join([f"{self.model_class} ({', '.join(self.packages)}), backend {backend}", *lines])
