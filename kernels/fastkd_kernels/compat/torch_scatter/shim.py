"""Under the name of upstream's package: after `install`, ``import torch_scatter`` finds this one, in anybody's code."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "torch_scatter"
#: The interface is that of this release; the rest says whose it is.
VERSION = "2.1.2+fastkd"

_SUBMODULES = ("composite", "scatter", "segment_coo", "segment_csr", "utils")
_replaced: dict[str, ModuleType] = {}


def install(*, force: bool = False) -> ModuleType:
    """Serve ``torch_scatter`` and its submodules from here, until `uninstall`.

    Call it before the packages that look for ``torch_scatter`` at their import (PyTorch Geometric does) are imported. What has imported another
    ``torch_scatter`` already keeps it.

    Args:
        force: also if another ``torch_scatter`` is imported already, which `uninstall` puts back.

    Returns:
        The module that ``import torch_scatter`` finds. Calling again changes nothing.

    Raises:
        RuntimeError: if another ``torch_scatter`` is imported and ``force`` is false.
    """
    present = sys.modules.get(NAME)
    if present is not None and is_ours(present):
        return present
    if present is not None and not force:
        raise RuntimeError(f"another {NAME} is imported already, from {getattr(present, '__file__', None)}; pass force=True to replace it")
    ours = _facade()
    for name in [name for name in sys.modules if _belongs(name)]:
        _replaced[name] = sys.modules.pop(name)
    sys.modules[NAME] = ours
    sys.modules.update({f"{NAME}.{name}": module for name, module in _submodules().items()})
    return ours


def uninstall() -> None:
    """Take back what `install` did; nothing happens if it is not in force."""
    present = sys.modules.get(NAME)
    if present is None or not is_ours(present):
        return
    for name in [name for name in sys.modules if _belongs(name)]:
        del sys.modules[name]
    sys.modules.update(_replaced)
    _replaced.clear()


@contextlib.contextmanager
def installed(*, force: bool = False) -> Iterator[ModuleType]:
    """`install` for a while. Where it was in force before, it stays."""
    present = sys.modules.get(NAME)
    before = present is not None and is_ours(present)
    try:
        yield install(force=force)
    finally:
        if not before:
            uninstall()


def is_ours(module: ModuleType) -> bool:
    """Whether a module is one that `install` made."""
    return getattr(module, "__version__", None) == VERSION and getattr(module, "__spec__", None) is _SPEC


def _belongs(name: str) -> bool:
    return name == NAME or name.startswith(f"{NAME}.")


# a package without a place on disk: a submodule that is not listed here is not found, rather than loaded a second time
_SPEC = ModuleSpec(NAME, loader=None, is_package=True)


def _facade() -> ModuleType:
    interface = importlib.import_module(__package__)
    module = ModuleType(NAME, interface.__doc__)
    module.__spec__, module.__path__, module.__file__ = _SPEC, [], interface.__file__
    module.__dict__.update({"__version__": VERSION, "__all__": list(interface.FUNCTIONS)})
    # submodules first: functions of the same name hide them, as upstream
    for name in (*_SUBMODULES, *interface.FUNCTIONS):
        setattr(module, name, getattr(interface, name))
    return module


def _submodules() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f".{name}", __package__) for name in _SUBMODULES}
