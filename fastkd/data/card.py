"""The data card: what a file holds, shown before anybody trains on it, with what looks wrong.

Example:
    >>> print(make_card(open_data_file("embedded")).text())
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table

from fastkd.data.format import TAGS
from fastkd.data.neighbors import find_neighbors
from fastkd.data.reader import DataFile
from fastkd.data.reference import References, compositions, fit_reference
from fastkd.data.select import Selection, elements
from fastkd.data.structure import Structure

Ints = npt.NDArray[np.int64]

#: eV/Å. Larger forces are rare outside of collisions, and often a wrong unit.
LARGE_FORCE = 50.0
#: Structures of each split that are looked at; of more, evenly spaced ones.
MAX_STRUCTURES = 20_000
_ORDER = {"train": 0, "val": 1, "test": 2}
#: Structures whose neighbours are counted.
_SAMPLED = 200


@dataclass(frozen=True)
class DataCard:
    """Facts about data, by group, and warnings."""

    title: str
    facts: dict[str, str]
    splits: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"title": self.title, "facts": self.facts, "splits": self.splits, "warnings": self.warnings}

    def text(self, width: int = 118) -> str:
        """The card as lines of text."""
        stream = io.StringIO()
        console = Console(file=stream, width=width, highlight=False, color_system=None, markup=False)  # units stand in [brackets]
        facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title=self.title, title_justify="left", title_style="bold")
        for name, value in self.facts.items():
            facts.add_row(name, value)
        console.print(facts)
        if self.splits:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for number, column in enumerate(self.splits[0]):
                table.add_column(column, justify="left" if number == 0 else "right")
            for row in self.splits:
                table.add_row(*(str(value) for value in row.values()))
            console.print(table)
        for warning in self.warnings:
            console.print(f"warning: {warning}")
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def make_card(
    data: DataFile,
    selection: Selection | None = None,
    references: References | None = None,
    cutoffs: tuple[float, ...] = (5.0,),
    *,
    forces: bool | None = None,
) -> DataCard:
    """Describe a file, or what a run has chosen of it.

    Args:
        data: the file.
        selection: what a run uses; None describes the splits of the whole file.
        references: subtracted before energies are described; None fits them to the described structures with labels.
        cutoffs: for which to count neighbours, Å.
        forces: whether a structure without forces counts as unlabelled; None: unless the file has energies alone.
    """
    groups = _groups(data, selection)
    used = np.unique(np.concatenate(list(groups.values()))) if groups else np.arange(0)
    looked_at = {name: _thinned(indices) for name, indices in groups.items()}
    everything = np.unique(np.concatenate(list(looked_at.values()))) if groups else used
    structures = dict(zip(everything.tolist(), data.read(everything), strict=True))
    labelled = [s for s in structures.values() if np.isfinite(s.energy)]
    if references is None:
        references = fit_reference(compositions(labelled), np.array([s.energy for s in labelled], dtype=np.float64))
    chosen = list(structures.values())
    # of all forces of a file there is one pass
    without = {"energy": data.missing_labels(forces=False), "forces": data.missing_labels()}
    facts = {
        "structures": f"{len(data):,} in the file, {len(used):,} used" if selection else f"{len(data):,}",
        "level of theory": data.level_of_theory or "not stated",
        "units": "energy eV, length Å, forces eV/Å",
        "labels": _labels(without, used),
        "systems": _systems(data.systems[used]),
        "elements": ", ".join(chemical_symbols[number] for number in sorted(elements(data, used))) or "none",
        "atoms": _range(np.diff(data.atom_ptr)[used]),
        "periodic": f"{int(data.rows('pbc')[used].any(axis=1).sum()) if 'pbc' in data.fields else 0:,} structures",
        **_extras(data, used),
        "reference energies": _references(references),
        "content hash": data.content_hash[:16] or "none",
        "licence": data.licence or "not stated",
    }
    if len(everything) < len(used):
        facts["statistics"] = f"of energies and forces: from at most {MAX_STRUCTURES:,} structures of each split, evenly spaced"
    # a file of energies lacks nothing; one without any label lacks both
    on_energies = len(without["forces"]) == len(data) > len(without["energy"])
    with_forces = not on_energies if forces is None else forces
    missing = np.zeros(len(data), dtype=bool)
    missing[without["forces" if with_forces else "energy"]] = True
    lacking = "energy or forces" if with_forces else "energy"
    warnings = _warnings(data, int(missing[used].sum()), lacking, looked_at, structures)
    for cutoff in cutoffs:
        facts[f"neighbours in {cutoff:g} Å"], alone = _neighbors(chosen, cutoff)
        if alone:
            warnings.append(
                f"{alone:,} of the atoms looked at have no neighbour in {cutoff:g} Å: a model cannot see them; check the length unit"
            )
    rows = []
    for name, indices in groups.items():
        counts = {"structures": len(indices), "atoms": int(np.diff(data.atom_ptr)[indices].sum()), "labels": int((~missing[indices]).sum())}
        rows.append(_split_row(name, counts, [structures[i] for i in looked_at[name].tolist()], references))
    return DataCard(f"Data: {data.path.name}", facts, rows, warnings)


def _labels(without: dict[str, Ints], used: Ints) -> str:
    energies, forces = (len(used) - int(np.isin(used, without[key]).sum()) for key in ("energy", "forces"))
    return f"{energies:,} energies, {f'{forces:,} of them with forces' if forces else 'no forces'}"


def _extras(data: DataFile, used: Ints) -> dict[str, str]:
    """Tags, fixed atoms and bonds of some structures, as far as the file has them."""
    facts = {}
    atoms = np.zeros(int(data.atom_ptr[-1]), dtype=bool)
    for index in used.tolist():
        atoms[data.atom_ptr[index] : data.atom_ptr[index + 1]] = True
    if "tags" in data.fields:
        counts = np.bincount(data.rows("tags")[atoms].astype(np.int64), minlength=len(TAGS))
        facts["tags"] = f"{counts[0]:,} atoms below the surface (0), {counts[1]:,} of the free slab (1), {counts[2]:,} adsorbate (2)"
    if "fixed" in data.fields:
        facts["fixed"] = f"{int(data.rows('fixed')[atoms].sum()):,} of {int(atoms.sum()):,} atoms"
    if data.bond_ptr is not None:
        facts["bonds"] = _range(np.diff(data.bond_ptr)[used])
    return facts


def _thinned(indices: Ints) -> Ints:
    if len(indices) <= MAX_STRUCTURES:
        return indices
    return indices[np.linspace(0, len(indices) - 1, MAX_STRUCTURES).round().astype(np.int64)]


def _groups(data: DataFile, selection: Selection | None) -> dict[str, Ints]:
    if selection is None:
        # in the usual order, then as they come
        names = sorted(dict.fromkeys(data.splits.tolist()), key=lambda name: _ORDER.get(name, len(_ORDER)))
        return {name or "(no split)": np.flatnonzero(data.splits == name) for name in names}
    named = {"train": selection.labelled, "unlabelled": selection.unlabelled, "val": selection.val, "test": selection.test}
    return {name: indices for name, indices in named.items() if len(indices)}


def _split_row(name: str, counts: dict[str, int], structures: list[Structure], references: References) -> dict[str, Any]:
    energy = np.array([s.energy for s in structures]) - compositions(structures) @ references.energies
    per_atom = energy / np.array([s.num_atoms for s in structures])
    per_atom = per_atom[np.isfinite(per_atom)]
    norms = [np.linalg.norm(s.forces, axis=1) for s in structures if s.forces is not None]
    force = np.concatenate(norms) if norms else np.zeros(0)
    show = name != "unlabelled"
    return {
        "split": name,
        "structures": f"{counts['structures']:,}",
        "atoms": f"{counts['atoms']:,}",
        "labels": f"{counts['labels']:,}" if show else "hidden",
        "E − E₀ [eV/atom]": f"{per_atom.mean():+.3f} ± {per_atom.std():.3f}" if show and len(per_atom) else "–",
        "|F| mean": f"{force.mean():.2f}" if show and len(force) else "–",
        "|F| rms": f"{np.sqrt(np.square(force).mean()):.2f}" if show and len(force) else "–",
        "|F| max [eV/Å]": f"{force.max():.2f}" if show and len(force) else "–",
    }


def _warnings(data: DataFile, missing: int, lacking: str, groups: dict[str, Ints], structures: dict[int, Structure]) -> list[str]:
    warnings = []
    if not data.level_of_theory:
        warnings.append(
            "the file does not state its level of theory; convert again with --level-of-theory, so that nobody mixes it with another"
        )
    if missing:
        warnings.append(f"{_have(missing)} no {lacking}")
    large = [i for i, s in structures.items() if s.forces is not None and np.abs(s.forces).max() > LARGE_FORCE]
    if large:
        warnings.append(f"{_have(len(large))} forces above {LARGE_FORCE:g} eV/Å (first: number {large[0]}); check the unit")
    seen: dict[bytes, str] = {}
    for name, indices in groups.items():
        for index in indices.tolist():
            s = structures[index]
            key = s.atomic_numbers.tobytes() + np.asarray(s.positions, np.float32).tobytes()
            if seen.setdefault(key, name) != name:
                warnings.append(f"structure {index} of {name} is also in {seen[key]}: the error on {name} would look too small")
                return warnings
    return warnings


def _have(count: int) -> str:
    return "1 structure has" if count == 1 else f"{count:,} structures have"


def _neighbors(structures: list[Structure], cutoff: float) -> tuple[str, int]:
    sample = structures[:: max(1, len(structures) // _SAMPLED)]
    degrees = [np.bincount(find_neighbors(s.positions, s.cell, s.pbc, cutoff).dst, minlength=s.num_atoms) for s in sample]
    counts = np.concatenate(degrees) if degrees else np.zeros(1, dtype=int)
    return f"{counts.mean():.1f} on average, {counts.min()} to {counts.max()}", int((counts == 0).sum()) if degrees else 0


def _systems(systems: npt.NDArray[np.str_]) -> str:
    names, counts = np.unique(systems, return_counts=True)
    listed = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True) if name]
    return ", ".join(listed[:8]) + (f", and {len(listed) - 8} more" if len(listed) > 8 else "") or "no names"


def _range(values: Ints) -> str:
    return f"{values.min()} to {values.max()} per structure, {values.sum():,} in all" if len(values) else "none"


def _references(references: References) -> str:
    listed = [f"{chemical_symbols[n]} {references.energies[n]:.3f}" for n in np.flatnonzero(references.known)]
    return f"{', '.join(listed)} eV ({references.how})"
