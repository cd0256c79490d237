"""Units at the border: everything inside is eV and Å."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ase import units as ase_units

from fastkd.errors import DataError

#: One of each unit in eV, in Å.
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
    "hartree": ase_units.Hartree,
    "rydberg": ase_units.Rydberg,
}
LENGTH_UNITS = {"Å": 1.0, "bohr": ase_units.Bohr, "nm": 10.0}
ALIASES = {"ev": "eV", "mev": "meV", "ha": "hartree", "Ha": "hartree", "Hartree": "hartree", "Ry": "rydberg", "A": "Å", "Angstrom": "Å",
           "angstrom": "Å", "Ang": "Å", "\u212b": "Å", "Bohr": "bohr", "a0": "bohr"}  # fmt: skip


def energy_unit(name: str, where: str) -> float:
    """One ``name`` in eV. Raises DataError for a unit that is not known."""
    return _factor(name, ENERGY_UNITS, "energy", where)


def length_unit(name: str, where: str) -> float:
    """One ``name`` in Å. Raises DataError for a unit that is not known."""
    return _factor(name, LENGTH_UNITS, "length", where)


def _factor(name: str, known: dict[str, float], kind: str, where: str) -> float:
    unit = ALIASES.get(name, name)
    if unit in known:
        return known[unit]
    candidates = {candidate.lower(): candidate for candidate in [*known, *(a for a, u in ALIASES.items() if u in known)]}
    near = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.4)
    hint = f" Did you mean {ALIASES.get(candidates[near[0]], candidates[near[0]])}?" if near else ""
    raise DataError(f"{where}: unknown {kind} unit {name!r}. Known: {', '.join(known)}.{hint}")


@dataclass(frozen=True)
class Units:
    """Units of a source of data."""

    energy: str = "eV"
    length: str = "Å"
    forces: str = ""  #: such as hartree/bohr; empty: energy unit per length unit

    def factors(self, where: str) -> dict[str, float]:
        """What to multiply each property with to have eV and Å.

        Raises:
            DataError: if a unit is not known.
        """
        energy, length = energy_unit(self.energy, where), length_unit(self.length, where)
        forces = energy / length
        if self.forces:
            # the last slash is the one of "per length": kcal/mol/Å
            per_energy, slash, per_length = self.forces.rpartition("/")
            if not slash:
                raise DataError(
                    f"{where}: unknown force unit {self.forces!r}. It must be an energy per length, such as eV/Å or hartree/bohr."
                )
            forces = energy_unit(per_energy, where) / length_unit(per_length, where)
        return {"positions": length, "cell": length, "energy": energy, "forces": forces, "stress": energy / length**3}
