"""Any ASE calculator as a teacher: energies and forces, and stress if it is asked for; it offers no features.

Example:
    >>> teacher = AseTeacher(EMT(), source="ase:ase.calculators.emt:EMT")
    >>> teacher(batch, frozenset({"energy", "forces"})).forces
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.errors import ConfigError, DataError
from fastkd.teachers.base import BaseTeacher, all_elements
from fastkd.teachers.output import Need, Offer, TeacherOutput

_LABELS: tuple[Need, ...] = ("energy", "forces", "stress")


class AseTeacher(BaseTeacher):
    """An ASE calculator, asked for one structure after the other in float64 on the CPU; what it does inside is its own business.

    Args:
        calculator: whose units are eV and Å, as ASE's convention is.
        source: where it came from, for messages.
        licence: of the method or its weights.
        factory_options: how it was made; calculators with other options must not share a cache.
        renew: gives a calculator for each structure, where one cannot serve them all.

    Raises:
        ConfigError: if it is no ASE calculator, or one without energies.
    """

    def __init__(
        self,
        calculator: Any,
        source: str,
        licence: str = "",
        factory_options: Mapping[str, Any] | None = None,
        renew: Callable[[], Any] | None = None,
    ) -> None:
        if not isinstance(calculator, BaseCalculator) and not hasattr(calculator, "get_potential_energy"):
            raise ConfigError(f"{source} returned a {type(calculator).__name__}, which is no ASE calculator")
        self._renew = renew
        self.calculator, self.source, self.licence = calculator, source, licence or str(getattr(calculator, "licence", ""))
        can = set(getattr(calculator, "implemented_properties", ("energy", "forces")))
        if "energy" not in can:
            raise ConfigError(
                f"{source}: the calculator {type(calculator).__name__} computes {', '.join(sorted(can)) or 'nothing'}, no energy"
            )
        self.offer = Offer(f"teacher ({type(calculator).__name__})", outputs=frozenset(name for name in _LABELS if name in can))
        options = dict(factory_options or {})
        identity = {
            "source": source,
            "class": f"{type(calculator).__module__}.{type(calculator).__qualname__}",
            "options": options,
            "files": _contents([source.partition(":")[2], *options.values()]),
            "parameters": _plain(getattr(calculator, "parameters", {})),
        }
        self.hash = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self.cutoff, self.num_parameters = None, 0
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.known_element = all_elements()
        self.reference_energy: Tensor | None = None
        self.energy_scale = torch.ones((), dtype=torch.float64)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A calculator lives where its factory put it."""
        return self

    def __call__(self, batch: Batch, needs: frozenset[Need]) -> TeacherOutput:
        """Labels of a batch.

        Raises:
            DataError: if the calculator fails, naming the structure.
            ValueError: if more than labels is asked for.
        """
        lacking = needs - self.offer.outputs
        if lacking:
            raise ValueError(f"{self.offer.name} gives {', '.join(sorted(self.offer.outputs))} only, not {', '.join(sorted(lacking))}")
        columns: dict[str, list[np.ndarray[Any, Any]]] = {need: [] for need in needs}
        pointers = batch.atom_ptr.tolist()
        arrays = [value.detach().cpu().numpy() for value in (batch.atomic_numbers, batch.positions, batch.cell, batch.pbc)]
        for graph, (first, last) in enumerate(pairwise(pointers)):
            numbers, positions = arrays[0][first:last], arrays[1][first:last].astype(np.float64)
            # tags, but no constraints: ASE would take the forces of fixed atoms away
            tags = None if batch.tags is None else batch.tags[first:last].cpu().numpy()
            atoms = Atoms(numbers, positions, cell=arrays[2][graph].astype(np.float64), pbc=arrays[3][graph], tags=tags)
            for need, value in self.labels(atoms, needs, f"structure {int(batch.structure_index[graph])}").items():
                columns[need].append(value)
        home = batch.positions.device
        return TeacherOutput(
            energy=torch.tensor(np.array(columns["energy"]), dtype=torch.float64, device=home) if "energy" in needs else None,
            forces=torch.from_numpy(np.concatenate(columns["forces"])).to(home) if "forces" in needs else None,
            stress=torch.from_numpy(np.stack(columns["stress"])).to(home) if "stress" in needs else None,
        )

    def labels(self, atoms: Atoms, needs: frozenset[Need], where: str) -> dict[str, Any]:
        """Labels of one structure: ``energy`` eV, ``forces`` [n, 3] eV/Å, ``stress`` [3, 3] eV/Å³.

        Raises:
            DataError: if the calculator fails, or its numbers are not finite or of another shape.
        """
        atoms.calc = self.calculator if self._renew is None else self._renew()
        try:
            found = {
                need: {
                    "energy": atoms.get_potential_energy,
                    "forces": atoms.get_forces,
                    "stress": lambda: atoms.get_stress(voigt=False),
                }[need]()
                for need in needs
            }
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except Exception as error:  # calculators raise anything at all
            raise DataError(f"{where}: the calculator of {self.source} failed: {type(error).__name__}: {error}") from error
        shapes = {"energy": (), "forces": (len(atoms), 3), "stress": (3, 3)}
        for need, value in found.items():
            found[need] = np.array(value, dtype=np.float64)  # a copy: calculators hand out their own arrays
            if found[need].shape != shapes[need]:
                raise DataError(f"{where}: {need} of {self.source} has shape {found[need].shape}, expected {shapes[need]}")
            if not np.isfinite(found[need]).all():
                raise DataError(f"{where}: {need} of {self.source} is not finite")
        return {str(need): value for need, value in found.items()}


def _contents(names: Iterable[object]) -> list[str]:
    """SHA-256 of those that name files, such as of weights: a file may be replaced under its name."""
    found = []
    for name in names:
        if isinstance(name, Mapping):
            found += _contents(name.values())
        elif isinstance(name, list | tuple):
            found += _contents(name)
        # an option may be any text, too long for a path for one
        with contextlib.suppress(OSError):
            if isinstance(name, str | Path) and Path(name).is_file():
                with Path(name).open("rb") as file:
                    found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _plain(parameters: Any) -> dict[str, str]:
    # the text of an object that has none of its own holds an address, which differs from process to process
    return {str(name): str(value) for name, value in dict(parameters).items() if " at 0x" not in str(value)}
