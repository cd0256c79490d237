"""What can be captured in a teacher: every submodule with its class, the shapes that come out of it on a sample, and a guessed kind."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.teachers.base import BaseTeacher
from fastkd.teachers.hooks import Sizes, irreps_width, is_irreps, tensors_of
from fastkd.teachers.output import CaptureKind, Need
from fastkd.teachers.sample import sample_batch
from fastkd.teachers.teacher import Teacher
from fastkd.teachers.torch_module import ModuleTeacher

#: Enough to have every submodule called.
_ASKED: frozenset[Need] = frozenset({"energy"})


@dataclass(frozen=True)
class Capturable:
    """One tensor that a submodule returns."""

    module: str  #: dotted path, for ``teacher.features.N.module``
    output: str  #: for ``teacher.features.N.output``
    kind: CaptureKind | None  #: guessed from the shape; None if it fits none
    shape: tuple[int, ...]
    layout: str  #: axes_first, axes_last or irreps where that matters and is known
    class_name: str


@dataclass(frozen=True)
class Inspection:
    """A teacher and what can be captured in it."""

    facts: dict[str, str]
    found: list[Capturable]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"facts": self.facts, "capturable": [asdict(item) for item in self.found]}

    def text(self, width: int = 140) -> str:
        """Facts and table as lines of text."""
        stream = io.StringIO()
        console = Console(file=stream, width=width, highlight=False, color_system=None, markup=False)
        facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in self.facts.items():
            facts.add_row(name, value)
        console.print(facts)
        if self.found:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for column in ("module", "output", "kind", "shape", "layout", "class"):
                table.add_column(column, overflow="fold")
            for item in self.found:
                table.add_row(item.module, item.output, item.kind or "–", str(list(item.shape)), item.layout, item.class_name)
            console.print()
            console.print(table)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def inspect_teacher(teacher: BaseTeacher, batch: Batch | None = None) -> Inspection:
    """Run a teacher on a batch and list what its submodules return.

    Args:
        teacher: any.
        batch: holds the teacher's graph; None takes two small made-up structures.

    Raises:
        ConfigError: if the teacher's outputs or declared features are not what was declared.
    """
    module = _module(teacher)
    if batch is None:
        periodic = isinstance(teacher, ModuleTeacher) and teacher.foreign.periodic == "always"
        batch = sample_batch(teacher.known_element, teacher.cutoff, periodic=periodic)
    found: list[Capturable] = []
    if module is not None:
        found = _look(module, teacher, batch)
    teacher.start(batch)
    sizes = _sizes(teacher, batch)
    known = int(teacher.known_element.sum())
    facts = {
        "teacher": f"{teacher.source} ({teacher.offer.name.partition('(')[2].rstrip(')')})",
        "predicts": ", ".join(sorted(teacher.offer.outputs)) or "nothing",
        "offers": str(teacher.offer),
        "cutoff": "finds neighbours itself" if teacher.cutoff is None else f"{teacher.cutoff:g} Å",
        "elements": f"{known} known",
        "reference energies": "not known" if teacher.reference_energy is None else "known [eV]",
        "parameters": f"{teacher.num_parameters:,} ({teacher.dtype}, {teacher.device})".replace("torch.", ""),
        "licence": teacher.licence or "not stated",
        "sample": f"{sizes.atoms} atoms, {'its own' if sizes.edges is None else sizes.edges} edges, {sizes.graphs} structures",
    }
    return Inspection(facts, found)


def guess_kind(shape: tuple[int, ...], sizes: Sizes, layout: str = "") -> tuple[CaptureKind | None, str]:
    """Kind and layout of a tensor by its shape; counts of atoms, edges and structures should differ for this."""
    rows, rest = (shape[0], shape[1:]) if shape else (-1, ())
    kind: CaptureKind | None = None
    found = ""
    if rows == sizes.atoms:
        kind, found = _kind_of_atoms(rest, layout)
    elif rows == sizes.edges and len(rest) == 1:
        kind = "edge"
    elif rows == sizes.graphs and len(rest) == 1:
        kind = "graph"
    return kind, found


def _kind_of_atoms(rest: tuple[int, ...], layout: str) -> tuple[CaptureKind | None, str]:
    if rest in ((), (1,)):
        return "atom_energy", ""
    if len(rest) == 1 and layout:
        return "node", layout
    if rest == (3,):
        return "vector", "axes_first"  # one vector per atom
    if len(rest) == 2 and 3 in rest:
        return "vector", "axes_first" if rest[0] == 3 else "axes_last"
    return ("node", "") if len(rest) == 1 or (len(rest) == 2 and 1 in rest) else (None, "")


def _look(module: nn.Module, teacher: BaseTeacher, batch: Batch) -> list[Capturable]:
    """Hooks on everything for one call."""
    found: dict[tuple[str, str], Capturable] = {}
    sizes = _sizes(teacher, batch)

    # some modules hand one dictionary on and on: only what a module has added to it is its own
    before: dict[str, list[Tensor]] = {}

    def remember(path: str) -> Any:
        def hook(_: nn.Module, arguments: Any) -> None:
            before[path] = [value for argument in arguments if not isinstance(argument, Tensor) for _, value in tensors_of(argument)]

        return hook

    def note(path: str, owner: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            irreps = str(getattr(owner, "irreps_out", "") or "").replace(" ", "")
            for name, value in tensors_of(output):
                if not value.is_floating_point() or any(value is known for known in before.get(path, ())):
                    continue
                fits = value.dim() == 2 and is_irreps(irreps) and value.shape[1] == irreps_width(irreps)
                kind, guessed = guess_kind(tuple(value.shape), sizes, irreps if fits else "")
                found[path, name] = Capturable(path, name, kind, tuple(value.shape), guessed, type(owner).__name__)

        return hook

    parts = [(path, part) for path, part in module.named_modules() if path and "._compiled" not in path]
    handles = [part.register_forward_pre_hook(remember(path)) for path, part in parts]
    handles += [part.register_forward_hook(note(path, part)) for path, part in parts]
    try:
        with torch.random.fork_rng(devices=[]):
            teacher(batch, _ASKED & teacher.offer.outputs or frozenset({"node"}))
    finally:
        for handle in handles:
            handle.remove()
    return [item for item in found.values() if item.shape]


def _sizes(teacher: BaseTeacher, batch: Batch) -> Sizes:
    return Sizes(batch.num_atoms, None if teacher.cutoff is None else batch.graph(teacher.cutoff).num_edges, batch.num_graphs)


def _module(teacher: BaseTeacher) -> nn.Module | None:
    if isinstance(teacher, ModuleTeacher):
        return teacher.module
    return teacher.potential if isinstance(teacher, Teacher) else None
