"""A teacher from what ``teacher.path`` says.

| path | teacher |
|---|---|
| ``embedded`` | the one that ships with fastkd |
| folder, or ``.safetensors`` file | a model of fastkd |
| ``module:package.file:function`` | what the function returns: a `ForeignModule`, or a potential of ours |
| ``ase:package.file:function`` | an ASE calculator that the function returns: labels only |
| ``so3lr``, ``sevennet``, ``chgnet``, ``mace:FILE``, ``schnetpack:FILE``, ``fairchem:FILE`` | an adapter for a package |

Example:
    >>> teacher = load_teacher("module:my_models.teacher:make", options={"weights": "net.pt"})
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fastkd.errors import CheckpointError, ConfigError
from fastkd.models import Potential, load_model
from fastkd.models.factory import read_header
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.hooks import Feature
from fastkd.teachers.teacher import Teacher

EMBEDDED = "embedded"
MODULE, ASE = "module:", "ase:"
#: name → (file in fastkd.teachers.adapters, packages that must be there, whether it needs a checkpoint after a colon)
ADAPTERS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "so3lr": ("so3lr", ("so3krates-torch",), False),
    "sevennet": ("sevennet", ("sevenn",), False),
    "chgnet": ("chgnet", ("chgnet",), False),
    "mace": ("mace", ("mace-torch",), True),
    "schnetpack": ("schnetpack", ("schnetpack",), True),
    "fairchem": ("fairchem", ("fairchem-core",), True),
}


def load_teacher(
    path: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    features: Sequence[Feature] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> BaseTeacher:
    """A teacher from its path (see the table above).

    Args:
        path: folder, file, ``embedded``, ``module:…``, ``ase:…`` or the name of an adapter.
        options: keyword arguments of the factory or the adapter.
        features: to capture in a foreign module, in place of those that it offers by itself.
        device: where it should live.
        dtype: of its weights; None keeps them as they are.

    Raises:
        CheckpointError: if there is nothing at the path, or no model of fastkd.
        ConfigError: if a factory cannot be imported or called, a package is missing, or options or features do not fit.
    """
    name, options = str(path), dict(options or {})
    if name.startswith(ASE):
        from fastkd.teachers.ase import AseTeacher

        if features:
            raise ConfigError("teacher.features: an ASE calculator gives labels only; use module:… or an adapter for features")
        return AseTeacher(called(import_factory(name, ASE), name, options), source=name, factory_options=options)
    if name.startswith(MODULE):
        return _foreign(called(import_factory(name, MODULE), name, options), name, features, options).to(device, dtype)
    adapter, _, checkpoint = name.partition(":")
    if adapter in ADAPTERS:
        return _adapted(adapter, checkpoint, name, options, features).to(device, dtype)
    if options or features:
        raise ConfigError(
            f"teacher.options and teacher.features are for foreign teachers; {name} is a model of fastkd, which knows its own"
        )
    if name == EMBEDDED:
        with resources.as_file(resources.files("fastkd") / "assets" / "teacher") as folder:
            return _load(folder, EMBEDDED).to(device, dtype)
    return _load(Path(path), name).to(device, dtype)


def is_foreign(path: str) -> bool:
    """Whether a path names somebody else's model."""
    return path.startswith((ASE, MODULE)) or path.partition(":")[0] in ADAPTERS


def import_factory(path: str, prefix: str) -> Callable[..., Any]:
    """The function that ``prefix`` + ``package.file:function`` names; the working directory is looked in too.

    Raises:
        ConfigError: if there is no such thing, or importing it fails.
    """
    module_name, colon, attribute = path.removeprefix(prefix).partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{path!r}: write {prefix}package.file:function, for example {prefix}my_models.teacher:make")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)  # last, so that no file of the user's shadows an installed package
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ConfigError(f"{path}: {module_name} has no {attribute!r}") from None
    except ImportError as error:
        raise ConfigError(f"{path}: cannot import {module_name}: {error}; install it, or start from the folder that holds it") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"{path}: {attribute} is a {type(found).__name__}, not a function that makes a teacher")
    return found  # type: ignore[no-any-return]


def called(factory: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Any:
    """What a factory returns for ``teacher.options``.

    Raises:
        ConfigError: if the options do not fit its arguments.
    """
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f"teacher.options do not fit {name}: {error}") from None
    except ValueError:
        pass  # built in C, without a signature
    return factory(**options)


def _foreign(made: Any, name: str, features: Sequence[Feature], options: Mapping[str, Any]) -> BaseTeacher:
    from fastkd.teachers.torch_module import ForeignModule, ModuleTeacher

    if isinstance(made, BaseTeacher):
        return made
    if isinstance(made, Potential):
        return Teacher(made, name)
    if not isinstance(made, ForeignModule):
        mend = "wrap it in fastkd.teachers.ForeignModule, which says how it is called (docs/distillation.md)"
        raise ConfigError(f"{name} returned a {type(made).__name__}, not a ForeignModule; {mend}")
    return ModuleTeacher(made, name, features, options)


def _adapted(adapter: str, checkpoint: str, name: str, options: dict[str, Any], features: Sequence[Feature]) -> BaseTeacher:
    file, packages, needs_checkpoint = ADAPTERS[adapter]
    if needs_checkpoint and not checkpoint:
        raise ConfigError(f"teacher.path = {name!r}: {adapter} needs a checkpoint: {adapter}:FILE")
    if checkpoint and needs_checkpoint and not Path(checkpoint).exists():
        raise CheckpointError(f"{name}: there is no file {checkpoint}")
    module = importlib.import_module(f"fastkd.teachers.adapters.{file}")
    options = ({"checkpoint": checkpoint} if checkpoint else {}) | options
    try:
        made = called(module.make, name, options)
    except ImportError as error:
        raise ConfigError(
            f"{name} needs {', '.join(packages)}: {error}; install it with pip install 'fastkd[{adapter}]' (docs/distillation.md, Teachers)"
        ) from error
    if isinstance(made, BaseTeacher):
        return made
    return _foreign(made, name, features, options)


def _load(path: Path, source: str) -> Teacher:
    if not path.exists():
        mend = "make it with `make teacher`" if source == EMBEDDED else "teacher.path names a folder with model.safetensors and model.json"
        raise CheckpointError(f"there is no teacher at {path}: {mend}")
    model = load_model(path)
    provenance = read_header(path).get("provenance", {})
    return Teacher(model, source, str(provenance.get("licence", "")))
