"""Features out of any torch module: forward hooks on module paths, each with a declared kind, checked and brought into our layout.

Example:
    >>> capture = Capture(module, [Feature("blocks.2", "node"), Feature("blocks.2.vectors", "vector", layout="axes_last")])
    >>> with capture:
    ...     module(inputs)
    >>> capture.take(Sizes(atoms=7, edges=18, graphs=2), "teacher")["node"].shape
    torch.Size([7, 64])
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from fastkd.errors import ConfigError
from fastkd.teachers.output import CaptureKind

Layout = Literal["auto", "axes_first", "axes_last"]
_IRREP = re.compile(r"^(?:(\d+)x)?(\d+)([eo])$")
_EXPECTED = {
    "node": "[{atoms}, channels]",
    "edge": "[{edges}, channels]",
    "vector": "[{atoms}, 3, channels] (layout axes_first), [{atoms}, channels, 3] (axes_last) or [{atoms}, …] with irreps",
    "graph": "[{graphs}, channels]",
    "atom_energy": "[{atoms}] or [{atoms}, 1]",
}


@dataclass(frozen=True)
class Feature:
    """One feature to capture."""

    module: str  #: dotted path inside the teacher's module
    kind: CaptureKind
    output: str = ""  #: which item of a tuple (number), mapping or dataclass (key) the module returns; dots go deeper
    layout: str = "auto"  #: auto, axes_first, axes_last, or irreps such as ``128x0e+64x1o``
    width: int = 0  #: channels that must come; 0 takes what comes

    def __str__(self) -> str:
        return f"{self.module}{f'[{self.output}]' if self.output else ''} as {self.kind}"


@dataclass(frozen=True)
class Sizes:
    """What a batch holds."""

    atoms: int
    edges: int | None  #: of the teacher's graph; None if it makes its own
    graphs: int


class Capture:
    """Hooks on the modules of some features, there only inside the ``with`` block.

    Raises:
        ConfigError: if the module has no such submodule, naming near ones.
    """

    def __init__(self, module: nn.Module, features: Sequence[Feature], who: str = "teacher") -> None:
        self.features = tuple(features)
        modules = dict(module.named_modules())
        for feature in features:
            if feature.module not in modules:
                near = difflib.get_close_matches(feature.module, modules, n=3, cutoff=0.5)
                hint = f"near ones: {', '.join(near)}" if near else f"it begins with {', '.join(list(modules)[1:6])}"
                raise ConfigError(
                    f"{who} has no module {feature.module!r}; {hint}; `fastkd inspect teacher {who}` lists all that can be captured"
                )
        self._modules = {feature.module: modules[feature.module] for feature in features}
        self._who = who
        self._values: dict[int, Tensor] = {}  # by number of the feature
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._values = {}
        for number, feature in enumerate(self.features):
            self._handles.append(self._modules[feature.module].register_forward_hook(self._hook(number, feature)))
        return self

    def _hook(self, number: int, feature: Feature) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            # at once: some modules hand one dictionary on and on, and write into it; of several calls, the last counts
            self._values[number] = item_of(output, feature, self._who)

        return keep

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self, sizes: Sizes, who: str) -> dict[str, Tensor]:
        """What was captured, by kind, in our layouts; features of one kind are concatenated along channels, in their order.

        Returns:
            ``node`` [n_atoms, c], ``edge`` [n_edges, c], ``vector`` [n_atoms, 3, c], ``graph`` [n_graphs, c], ``atom_energy`` [n_atoms].

        Raises:
            ConfigError: naming module, what came and what was expected.
        """
        parts: dict[str, list[Tensor]] = {}
        for number, feature in enumerate(self.features):
            if number not in self._values:
                raise ConfigError(f"{who}: module {feature.module!r} was not called, so there is nothing to capture; choose another")
            parts.setdefault(feature.kind, []).append(shaped(self._values[number], feature, sizes, who))
        self._values = {}
        if len(parts.get("atom_energy", [])) > 1:
            raise ConfigError(f"{who}: atom_energy is declared for several modules; declare one")
        return {kind: values[0] if len(values) == 1 else torch.cat(values, dim=-1) for kind, values in parts.items()}


def item_of(output: Any, feature: Feature, who: str) -> Tensor:
    """The tensor that a feature means, in what its module returned.

    Raises:
        ConfigError: if there is no such item, or it is no tensor.
    """
    value = output
    for part in feature.output.split(".") if feature.output else ():
        items = dict(_items(value))
        if part not in items:
            raise ConfigError(f"{who}: module {feature.module!r} returned {describe(output)}, which has no item {feature.output!r}")
        value = items[part]
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"{who}: module {feature.module!r} returned {describe(value)}, not a tensor; say which item with output "
            f"({', '.join(name for name, _ in tensors_of(value)) or 'it holds no tensor'})"
        )
    return value


def tensors_of(output: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor in what a module returned, with the ``output`` that names it."""
    if isinstance(output, Tensor):
        return [(prefix, output)]
    return [found for name, item in _items(output) for found in tensors_of(item, f"{prefix}.{name}" if prefix else name)]


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, tuple | list):
        return [(str(number), item) for number, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(item.name, getattr(value, item.name)) for item in fields(value)]
    if callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__"):  # containers of torch_geometric and its kin
        return [(str(name), value[name]) for name in value.keys()]  # noqa: SIM118 - no dict
    return []


def describe(value: Any) -> str:
    """An output in a few words, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    items = _items(value)
    shown = ", ".join(f"{name}: {list(item.shape) if isinstance(item, Tensor) else type(item).__name__}" for name, item in items[:6])
    return f"a {type(value).__name__}" + (f" ({shown})" if items else "")


def shaped(value: Tensor, feature: Feature, sizes: Sizes, who: str) -> Tensor:
    """A captured tensor in our layout.

    Raises:
        ConfigError: if its shape is not that of its kind.
    """
    rows = {"edge": sizes.edges, "graph": sizes.graphs}.get(feature.kind, sizes.atoms)
    if rows is None:
        raise ConfigError(
            f"{who}: {feature}: edges have an order only if the teacher reads our graph; declare its cutoff, or drop the feature"
        )
    found: Tensor | None = None
    irreps = parse_irreps(feature.layout, who) if feature.layout not in ("auto", "axes_first", "axes_last") else None
    if value.dim() and value.shape[0] == rows:
        if feature.kind == "atom_energy":
            found = value.reshape(rows) if value.numel() == rows else None
        elif irreps is not None:
            found = _from_irreps(value, irreps, feature.kind)
        elif feature.kind == "vector":
            found = _vector(value, feature.layout)
        elif value.dim() == 2 or (value.dim() == 3 and 1 in value.shape[1:]):
            found = value.reshape(rows, -1)
    if found is None:
        wanted = _EXPECTED[feature.kind].format(atoms=sizes.atoms, edges=sizes.edges, graphs=sizes.graphs)
        got = f"{list(value.shape)}" + (f" with layout {feature.layout}" if feature.layout != "auto" else "")
        raise ConfigError(
            f"{who}: module {feature.module!r} gives {got}, but kind {feature.kind} needs {wanted} "
            f"(a batch of {sizes.atoms} atoms, {'its own' if sizes.edges is None else sizes.edges} edges, {sizes.graphs} structures)"
        )
    if feature.width and feature.kind != "atom_energy" and found.shape[-1] != feature.width:
        raise ConfigError(f"{who}: module {feature.module!r} gives {found.shape[-1]} channels, but width = {feature.width} was declared")
    return found


def _vector(value: Tensor, layout: str) -> Tensor | None:
    if value.dim() == 2 and value.shape[1] == 3:
        return value[:, :, None]
    if value.dim() != 3:
        return None
    first, last = value.shape[1] == 3, value.shape[2] == 3
    if layout == "axes_last" or (layout == "auto" and last and not first):
        return value.transpose(1, 2) if last else None
    return value if first else None


def parse_irreps(text: str, who: str = "layout") -> list[tuple[int, int, str]]:
    """``128x0e+64x1o`` as (multiplicity, l, parity) in order, the notation of e3nn.

    Raises:
        ConfigError: if it is no list of irreps.
    """
    found = []
    for part in text.replace(" ", "").split("+"):
        match = _IRREP.match(part)
        if match is None:
            raise ConfigError(f"{who}: layout = {text!r} must be auto, axes_first, axes_last, or irreps such as 128x0e+64x1o")
        found.append((int(match[1] or 1), int(match[2]), match[3]))
    return found


def is_irreps(text: str) -> bool:
    """Whether a text is in the notation of irreps."""
    return bool(text) and all(_IRREP.match(part) for part in text.replace(" ", "").split("+"))


def irreps_width(text: str) -> int:
    """Numbers per row of flattened irreps."""
    return sum(mul * (2 * degree + 1) for mul, degree, _ in parse_irreps(text))


def _from_irreps(value: Tensor, irreps: Sequence[tuple[int, int, str]], kind: str) -> Tensor | None:
    """Scalars (0e) or polar vectors (1o, components x, y, z as e3nn orders them) of flattened irreps, [n, Σ mul · (2l + 1)]."""
    if value.dim() != 2 or value.shape[1] != sum(mul * (2 * degree + 1) for mul, degree, _ in irreps):
        return None
    wanted = (1, "o") if kind == "vector" else (0, "e")
    parts, first = [], 0
    for mul, degree, parity in irreps:
        size = mul * (2 * degree + 1)
        if (degree, parity) == wanted:
            block = value[:, first : first + size].reshape(len(value), mul, 2 * degree + 1)
            parts.append(block.transpose(1, 2) if kind == "vector" else block[:, :, 0])
        first += size
    return torch.cat(parts, dim=-1) if parts else None
