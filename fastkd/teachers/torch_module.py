"""Any `torch.nn.Module` as a teacher: an adapter says how it is called and what comes out, hooks say what it offers.

A factory, named ``module:package.file:function`` in ``teacher.path``, returns a `ForeignModule`. Ten lines are enough:

Example:
    >>> def make(weights: str = "net.pt") -> ForeignModule:
    ...     net = Net.from_file(weights)
    ...     return ForeignModule(
    ...         net,
    ...         inputs=lambda batch, needs: Call(batch.atomic_numbers, batch.positions, batch.graph_index),
    ...         outputs=lambda out, batch: Outputs(energy=out["energy"], forces=out["forces"]),
    ...         units=Units("kcal/mol", "Å"),
    ...         features=[Feature("blocks.2", "node")],
    ...         differentiates=True,  # its forces are gradients that it takes itself
    ...     )
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.data.units import Units
from fastkd.errors import ConfigError, DataError
from fastkd.models.base import MAX_ATOMIC_NUMBER
from fastkd.teachers.base import BaseTeacher, all_elements
from fastkd.teachers.hessian import EXACT, exact_rows
from fastkd.teachers.hooks import Capture, Feature, Sizes
from fastkd.teachers.output import CaptureKind, Need, Offer, TeacherOutput
from fastkd.teachers.teacher import edges_to_atoms, state_hash, unit_vectors

_EDGE_NEEDS = frozenset({"edge", "edge_sum", "edge_vector_sum"})
#: Largest relative change of a vector feature against its rotated self; far above rounding, far below a wrong layout.
ROTATION_TOLERANCE = 0.05


@dataclass(frozen=True)
class Call:
    """Arguments of a foreign module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a foreign module said, in its own units; shapes are ours. None where it says nothing."""

    energy: Tensor | None = None  #: [n_graphs] or [n_graphs, 1], total
    forces: Tensor | None = None  #: [n_atoms, 3]
    atom_energy: Tensor | None = None  #: [n_atoms] or [n_atoms, 1]
    stress: Tensor | None = None  #: [n_graphs, 3, 3]
    features: Mapping[CaptureKind, Tensor] = field(default_factory=dict)  #: in our layouts; most come from hooks instead


@dataclass(eq=False)
class ForeignModule:
    """How a foreign module is called, what it returns, and in which units. Attributes may be changed until a teacher is made of it."""

    module: nn.Module
    #: from our batch (in the module's dtype, device and length unit) and what is asked for, to the module's arguments
    inputs: Callable[[Batch, frozenset[Need]], Call]
    #: from what the module returned, and the same batch, to named outputs
    outputs: Callable[[Any, Batch], Outputs]
    name: str = ""  #: how tables call it; empty: the class of the module
    #: Å; ``inputs`` then finds ``batch.graph(cutoff)``. None: the module, or ``inputs``, finds neighbours itself
    cutoff: float | None = None
    units: Units = field(default_factory=Units)
    #: ``module``: `Outputs.forces`; ``gradient``: −dE/dx, taken here; ``none``: it has no forces
    forces: Literal["module", "gradient", "none"] = "module"
    #: whether calling the module needs autograd because it differentiates its energy itself: always, or depending on what is asked for
    differentiates: bool | Callable[[frozenset[Need]], bool] = False
    #: energy of single atoms by symbol (or [119] by atomic number), in the module's unit; None if it has none or nobody knows
    reference_energy: Mapping[str, float] | Tensor | None = None
    #: which outputs hold the reference energies: of those that do not, ``energy`` gets them added, of those that do, ``atom_energy`` loses them
    references_in: frozenset[str] = frozenset({"energy"})
    elements: Sequence[str | int] | None = None  #: it knows; None: all
    periodic: Literal["any", "never", "always"] = "any"  #: structures it can take
    features: Sequence[Feature] = ()  #: it offers, unless the config declares others
    licence: str = ""
    only_dtype: torch.dtype | None = None  #: the only one that its own code works in
    identity: str = ""  #: what makes it different from another with the same weights, such as the name of a head


class ModuleTeacher(BaseTeacher):
    """A foreign module as a teacher: frozen, in evaluation mode, with autograd only where forces or features need it.

    Args:
        foreign: the module and how to call it. The module is taken over: set to evaluation mode, its parameters frozen.
        source: where it came from, for messages.
        features: to capture in place of those that ``foreign`` offers.
        factory_options: how it was made; modules with other options must not share a cache.

    Raises:
        ConfigError: if a module path does not exist.
    """

    def __init__(
        self, foreign: ForeignModule, source: str, features: Sequence[Feature] = (), factory_options: Mapping[str, Any] | None = None
    ) -> None:
        self.foreign, self.source, self.licence = foreign, source, foreign.licence
        self.module = foreign.module.eval().requires_grad_(False)
        self.features = tuple(features or foreign.features)
        self.cutoff = None if foreign.cutoff is None else float(foreign.cutoff)
        self._capture = Capture(self.module, self.features, source)
        factors = foreign.units.factors(source)
        self._energy, self._length, self._forces = factors["energy"], factors["positions"], factors["forces"]
        self._stress = factors["stress"]
        self.reference_energy = reference_table(foreign.reference_energy, self._energy)
        self.known_element = element_table(foreign.elements)
        self.energy_scale = torch.ones((), dtype=torch.float64)
        self.num_parameters = sum(parameter.numel() for parameter in self.module.parameters())
        declared = f"{source} {foreign.identity} {foreign.units} {self.features} {sorted(foreign.references_in)} {foreign.forces} "
        # the text of an object that has none of its own holds an address, which differs from process to process
        declared += f"{re.sub(' at 0x[0-9a-f]+', '', str(sorted((factory_options or {}).items())))} {None if self.reference_energy is None else self.reference_energy.tolist()}"
        self.hash = hashlib.sha256((state_hash(self.module) + declared).encode()).hexdigest()
        hessian = ("difference", EXACT) if foreign.forces == "gradient" else ("difference",)
        name = f"teacher ({foreign.name or type(self.module).__name__})"
        self.offer = Offer(name, reference_energy=self.reference_energy, hessian=hessian)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the module in place.

        Raises:
            ConfigError: if the module's code works in another dtype only.
        """
        if dtype is not None and self.foreign.only_dtype not in (None, dtype):
            raise ConfigError(f"{self.source} works in {self.foreign.only_dtype} only; leave teacher.dtype at auto")
        self.module.to(device=device, dtype=dtype)
        return self

    def __call__(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Outputs and features for a batch; they are checked, converted to eV and Å, and come back to the batch's device.

        Raises:
            ConfigError: if something has another shape than was declared.
            DataError: if the batch holds what the teacher cannot take.
        """
        home = batch.positions.device
        self._refuse(batch)
        batch = batch.to(device=self.device if self.device != home else None, dtype=self.dtype)
        values = self._ask(batch, needs)
        with torch.no_grad(), torch.autocast(home.type, enabled=False):
            output = self._collect(batch, needs, values)
        return output if self.device == home else output.to(home)

    def start(self, batch: Batch) -> None:
        """Ask for everything once: shapes, kinds and channels, and that vector features turn with the structure."""
        self._refuse(batch)
        batch = batch.to(device=self.device, dtype=self.dtype)
        everything: frozenset[Need] = frozenset({"energy", "forces", "atom_energy", "stress"})
        values = self._ask(batch, everything)
        outputs = frozenset(name for name in everything if name in values)
        widths: dict[str, int] = {kind: int(values[kind].shape[-1]) for kind in ("node", "edge", "vector", "graph") if kind in values}
        if "forces" in values:
            self.energy_scale = values["forces"].double().square().mean().sqrt().cpu().clamp(min=1e-3)
        if "vector" in values:
            self._require_turning(batch, values["vector"])
        if self.foreign.forces != "none" and "forces" not in outputs:
            raise ConfigError(f"{self.source}: forces are declared ({self.foreign.forces}), but none came; declare forces='none'")
        rule = f"all neighbours within {self.cutoff:g} Å" if "edge" in widths and self.cutoff is not None else ""
        self.offer = replace(self.offer, widths=widths, outputs=outputs, cutoff=self.cutoff, edge_rule=rule)

    def hessian_rows(self, batch: Batch, method: str) -> Tensor:
        """See `BaseTeacher.hessian_rows`; ``exact`` where the forces are gradients taken here, and the module can be differentiated twice."""
        rows = batch.hessian_rows
        if method != EXACT or rows is None or self.foreign.forces != "gradient":
            return super().hessian_rows(batch, method)
        home = batch.positions.device
        self._refuse(batch)
        batch = batch.to(device=self.device if self.device != home else None, dtype=self.dtype)
        with torch.enable_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            batch = replace(batch, positions=batch.positions.detach() / self._length, cell=batch.cell / self._length)
            positions = batch.positions.clone().requires_grad_(True)
            batch = replace(batch, positions=positions)
            call = self.foreign.inputs(batch, frozenset({"energy"}))
            energy = self.foreign.outputs(self.module(*call.args, **call.kwargs), batch).energy
            if energy is None or not energy.requires_grad:
                raise ConfigError(f"{self.source}: forces = gradient, but the energy does not depend on batch.positions through autograd")
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True, materialize_grads=True)
            found = exact_rows(-slope, positions, rows.to(positions.device), batch, create_graph=False)
        return (found * (self._energy / self._length**2)).to(home)

    def _refuse(self, batch: Batch) -> None:
        periodic = bool(batch.pbc.any())
        if self.foreign.periodic == "never" and periodic:
            raise DataError(f"{self.source} takes molecules only, but the data is periodic; choose another teacher or other data")
        if self.foreign.periodic == "always" and not bool(batch.pbc.all()):
            raise DataError(f"{self.source} takes crystals only, but a structure is not periodic in all directions; choose another teacher")

    def _sizes(self, batch: Batch) -> Sizes:
        return Sizes(batch.num_atoms, None if self.cutoff is None else batch.graph(self.cutoff).num_edges, batch.num_graphs)

    def _ask(self, batch: Batch, needs: frozenset[Need]) -> dict[str, Tensor]:
        """Everything the module says, by name, in eV and Å and our shapes, as ordinary tensors without a graph."""
        foreign = self.foreign
        gradient = foreign.forces == "gradient" and "forces" in needs
        inside = foreign.differentiates(needs) if callable(foreign.differentiates) else foreign.differentiates
        # autograd where somebody takes a gradient; else the mode that keeps no books at all
        mode = torch.enable_grad() if gradient or inside else torch.inference_mode()
        with mode, torch.autocast(batch.positions.device.type, enabled=False), self._capture:
            if self._length != 1.0:
                batch = replace(batch, positions=batch.positions / self._length, cell=batch.cell / self._length)
            if gradient:
                batch = replace(batch, positions=batch.positions.detach().clone().requires_grad_(True))
            call = foreign.inputs(batch, needs)
            said = foreign.outputs(self.module(*call.args, **call.kwargs), batch)
            forces = said.forces
            if gradient:
                if said.energy is None or not said.energy.requires_grad:
                    raise ConfigError(
                        f"{self.source}: forces = gradient, but the energy does not depend on batch.positions through autograd"
                    )
                (slope,) = torch.autograd.grad(said.energy.sum(), batch.positions, allow_unused=True)
                forces = torch.zeros_like(batch.positions) if slope is None else -slope
        with torch.no_grad():
            values: dict[str, Tensor] = dict(self._capture.take(self._sizes(batch), self.source)) | dict(said.features)
            for name, value in (("energy", said.energy), ("forces", forces), ("atom_energy", said.atom_energy), ("stress", said.stress)):
                if value is not None and not (name == "forces" and foreign.forces == "none"):
                    values[name] = value
            values = {name: _ordinary(value) for name, value in values.items()}
            return self._converted(batch, values)

    def _converted(self, batch: Batch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Shapes checked, units ours, reference energies in ``energy`` and not in ``atom_energy``."""
        shapes = {
            "energy": (batch.num_graphs,),
            "forces": (batch.num_atoms, 3),
            "atom_energy": (batch.num_atoms,),
            "stress": (batch.num_graphs, 3, 3),
        }
        factors = {"energy": self._energy, "forces": self._forces, "atom_energy": self._energy, "stress": self._stress}
        for name, shape in shapes.items():
            if name not in values:
                continue
            value = values[name]
            squeezed = value.reshape(shape) if value.numel() == torch.Size(shape).numel() and value.dim() <= len(shape) + 1 else value
            if tuple(squeezed.shape) != shape:
                raise ConfigError(f"{self.source}: {name} has shape {list(value.shape)}, expected {list(shape)} for this batch")
            exact = squeezed.double() if name in ("energy", "atom_energy") else squeezed
            values[name] = exact * factors[name] if factors[name] != 1.0 else exact
        if self.reference_energy is not None:
            reference = self.reference_energy.to(batch.positions.device)[batch.atomic_numbers]
            if "energy" in values and "energy" not in self.foreign.references_in:
                values["energy"] = values["energy"].index_add(0, batch.graph_index, reference)
            if "atom_energy" in values and "atom_energy" in self.foreign.references_in:
                values["atom_energy"] = values["atom_energy"] - reference
        if "atom_energy" in values:
            values["atom_energy"] = values["atom_energy"].to(self.dtype)
        return values

    def _collect(self, batch: Batch, needs: frozenset[Need], values: dict[str, Tensor]) -> TeacherOutput:
        wanted: dict[str, Any] = {
            name: values.get(name) for name in ("energy", "forces", "atom_energy", "stress", "node", "vector") if name in needs
        }
        if "graph_feature" in needs:
            wanted["graph_feature"] = values.get("graph")
        lacking = [name for name, value in wanted.items() if value is None] + sorted(need for need in needs if "@" in need)
        if needs & _EDGE_NEEDS and "edge" not in values:
            lacking.append("edge")
        if lacking:
            raise ValueError(f"{self.offer.name} does not offer {', '.join(lacking)}")
        graph = None if self.cutoff is None else batch.graph(self.cutoff)
        if graph is not None and needs & {*_EDGE_NEEDS, "degree"}:
            if needs & _EDGE_NEEDS:
                wanted |= edges_to_atoms(values["edge"], graph.csr, unit_vectors(batch, graph), needs)
                wanted["edge_shift"] = graph.edge_shift
            wanted["degree"] = graph.csr.edge_ptr.diff() if "degree" in needs else None
        return TeacherOutput(graph=None if graph is None else graph.csr, cutoff=self.cutoff, **wanted)

    def _require_turning(self, batch: Batch, before: Tensor) -> None:
        """Vectors of a turned and mirrored structure are the turned and mirrored vectors; a wrong layout or kind does not get past this."""
        turn = -torch.tensor([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]], dtype=self.dtype, device=self.device)
        after = self._ask(replace(batch, positions=batch.positions @ turn.T, cell=batch.cell @ turn.T), frozenset({"vector"}))["vector"]
        expected = torch.einsum("ab,nbc->nac", turn, before.to(self.dtype))
        error = (after.to(self.dtype) - expected).norm() / expected.norm().clamp(min=torch.finfo(self.dtype).tiny)
        if not float(error) < ROTATION_TOLERANCE:
            modules = ", ".join(repr(feature.module) for feature in self.features if feature.kind == "vector")
            raise ConfigError(
                f"{self.source}: module {modules} was declared kind vector, but does not turn with the structure when that is turned "
                f"and mirrored (relative error {float(error):.2g}); its layout is another (axes_first, axes_last, irreps), or it is no vector"
            )


def reference_table(energies: Mapping[str, float] | Tensor | None, unit: float) -> Tensor | None:
    """Reference energies as [119] float64 in eV, from symbols or atomic numbers and a unit in eV."""
    if energies is None:
        return None
    table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    if isinstance(energies, Tensor):
        count = min(len(energies), len(table))
        table[:count] = energies[:count].detach().double().cpu()
    else:
        for symbol, energy in energies.items():
            if symbol not in atomic_numbers:
                raise ConfigError(f"reference energies: {symbol!r} is no element")
            table[atomic_numbers[symbol]] = float(energy)
    return table * unit


def element_table(elements: Sequence[str | int] | None) -> Tensor:
    """[119] bool, true for some elements by symbol or atomic number, or for all."""
    if elements is None:
        return all_elements()
    known = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.bool)
    known[[atomic_numbers[item] if isinstance(item, str) else int(item) for item in elements]] = True
    return known


def _ordinary(value: Tensor) -> Tensor:
    """The same numbers as a tensor that autograd may meet later."""
    with contextlib.suppress(RuntimeError):
        value = value.detach()
    return value.clone() if value.is_inference() else value
