"""From any source to a data file, in one pass and in bounded memory.

Example:
    >>> report = convert(Path("water.extxyz"), Path("water.h5"), level_of_theory="GFN2-xTB")
    >>> report.structures, report.content_hash[:8]
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastkd.data.convert.ase_files import read_ase, read_ase_db
from fastkd.data.convert.npz import npz_facts, npz_splits, read_npz
from fastkd.data.convert.source import SourceFacts, SourceOptions
from fastkd.data.convert.splits import SplitPlan
from fastkd.data.reader import DataFile
from fastkd.data.structure import Structure
from fastkd.data.units import Units
from fastkd.data.writer import DataWriter
from fastkd.errors import DataError

#: Names of properties listed in a note, at most.
_LISTED = 12


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    structures: int
    atoms: int
    with_energy: int
    with_forces: int
    splits: dict[str, int]  #: structures by split; "" counts those that belong to none
    content_hash: str


def convert(
    source: Path,
    out: Path,
    *,
    level_of_theory: str = "",
    units: Units | None = None,
    options: SourceOptions | None = None,
    plan: SplitPlan | None = None,
    licence: str = "",
    overwrite: bool = False,
    positions_dtype: str = "float32",
    allow_missing_labels: bool = False,
    forces: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Convert one file.

    Args:
        source: extxyz or anything else that ASE reads, an ASE database (.db), or npz.
        out: the data file to write.
        level_of_theory: how labels were computed; empty takes what the source says.
        units: of the source; None takes what the source says, else eV and Å.
        options: where labels are, and which structures are wanted.
        plan: how to split; None keeps the splits of the source.
        licence: of the data.
        overwrite: replace an existing file.
        positions_dtype: float32 or float64.
        allow_missing_labels: keep structures that lack an energy or forces.
        forces: without, energies alone are labels, and forces are left away if there are any.
        progress: called with the number of structures so far.

    Raises:
        DataError: if the source cannot be read or is empty, lacks labels, a unit is unknown, or the file cannot be written.
    """
    options, plan = options or SourceOptions(), plan or SplitPlan()
    if out.exists() and source.exists() and out.samefile(source):
        raise DataError(f"{out} is the source itself. Choose another name for the data file.")
    facts = source_facts(source)
    units = _agreed_units(source, units, facts)
    seen: set[str] = set()
    systems: list[str] = []
    labels = _Labels()
    writer = DataWriter(
        out,
        level_of_theory=level_of_theory or facts.level_of_theory,
        units=units,
        licence=licence,
        provenance=provenance(source, units, options, plan),
        overwrite=overwrite,
        positions_dtype=positions_dtype,
    )
    with writer:
        for number, structure in zip(_numbers(options.select), structures_of(source, options, seen), strict=False):
            writer.append(structure if forces else replace(structure, forces=None), f"{source}, structure {number}")
            systems.append(structure.system)
            labels.count(structure, number)
            if progress is not None:
                progress(len(systems))
        if not systems:
            raise DataError(f"{source} has no structures" + (" in the part that --select takes." if options.select != slice(None) else "."))
        if not allow_missing_labels:
            labels.require(source, len(systems), seen, ("energy", "forces") if forces else ("energy",))
        if plan.members:
            writer.set_splits(npz_splits(source, plan.members, len(systems)))
        elif not plan.given:
            writer.set_splits(plan.assign(systems))
    with DataFile(out) as data:
        return Report(
            structures=len(data),
            atoms=int(data.atom_ptr[-1]),
            with_energy=labels.found["energy"],
            with_forces=labels.found["forces"] if forces else 0,
            splits=dict(Counter(data.splits.tolist())),
            content_hash=data.content_hash,
        )


def _numbers(part: slice) -> Iterator[int]:
    """Numbers in the source of the structures that ``part`` takes."""
    return itertools.count(part.start or 0, part.step or 1)


class _Labels:
    """Counts energies and forces on the way, and remembers who first had none."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._first_without: dict[str, int] = {}

    def count(self, structure: Structure, number: int) -> None:
        for label, there in (("energy", math.isfinite(structure.energy)), ("forces", structure.forces is not None)):
            self.found[label] += there
            if not there:
                self._first_without.setdefault(label, number)

    def require(self, source: Path, structures: int, seen: set[str], wanted: Sequence[str]) -> None:
        """Raise DataError if there are not as many energies, or forces, as structures."""
        for label, first in self._first_without.items():
            if label not in wanted:
                continue
            names = sorted(seen)
            has = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "") if names else "nothing else"
            if not self.found[label]:
                what = f"no structure has {label}; the source has {has}. If one of them is the {label}, name it with --{label}-key;"
            else:
                missing = structures - self.found[label]
                what = f"{missing:,} of {structures:,} structures have no finite {label} (first: {first}). Mend the source;"
            alone = " --no-forces takes energies alone;" if label == "forces" else ""
            raise DataError(f"{source}: {what}{alone} --allow-missing-labels keeps structures without labels, for distillation.")


def structures_of(source: Path, options: SourceOptions, seen: set[str]) -> Iterator[Structure]:
    """Structures of a source, read by what its name ends with; names of properties that it has are added to ``seen``.

    Raises:
        DataError: if it cannot be read.
    """
    suffix = source.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        raise DataError(f"{source} is HDF5. If it is one of fastkd's data files, use it as it is; fastkd inspect {source} checks it.")
    if suffix == ".npz":
        return read_npz(source, options, seen)
    return (read_ase_db if suffix == ".db" else read_ase)(source, options, seen)


def source_facts(source: Path) -> SourceFacts:
    """Units and level of theory that a source states."""
    return npz_facts(source) if source.suffix.lower() == ".npz" else SourceFacts()


def _agreed_units(source: Path, units: Units | None, facts: SourceFacts) -> Units:
    if units is None or facts.units is None:
        chosen = units or facts.units or Units()
        chosen.factors("the command line" if units else str(source))
        return chosen
    asked, stated = units.factors("the command line"), facts.units.factors(str(source))
    if any(not math.isclose(asked[name], stated[name], rel_tol=1e-6) for name in ("energy", "positions")):
        raise DataError(
            f"{source} states that it is in {facts.units.energy} and {facts.units.length}, but {units.energy} and {units.length} were asked for. "
            "Leave out --energy-unit and --length-unit, or mend the file."
        )
    return units


def provenance(source: Path, units: Units, options: SourceOptions, plan: SplitPlan) -> dict[str, Any]:
    """How the file was made: the source by name and size, units, keys and split."""
    chosen: dict[str, Any] = {name: value for name, value in vars(options).items() if isinstance(value, str) and value}
    if not options.tags:
        chosen["tags"] = False
    if options.select != slice(None):
        chosen["select"] = [options.select.start, options.select.stop, options.select.step]
    split = {name: value for name, value in vars(plan).items() if value} if plan.members or not plan.given else {}
    return {
        "source": source.name,
        "source_bytes": source.stat().st_size if source.is_file() else 0,
        "units": {name: value for name, value in vars(units).items() if value},
        "options": chosen,
        "split": split,
        "versions": {name: version(name) for name in ("ase", "numpy")},
    }
