"""Reference energies: what is subtracted per element so that a network learns interactions and not the mass of electrons.

Example:
    >>> reference = fit_reference(compositions, energies, where="water.h5")
    >>> interaction = energies - compositions @ reference.energies
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from fastkd.data.structure import Structure
from fastkd.errors import ConfigError, DataError

MAX_ATOMIC_NUMBER = 118

#: eV per atom. After subtraction a molecule or crystal is bound by a few eV per atom; more means references of another kind.
ABSURD_ENERGY = 30.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class References:
    """Energy of each element, eV, by atomic number [119]; 0 for elements that are not there."""

    energies: Floats
    known: npt.NDArray[np.bool_]  #: [119], elements that the data has
    how: str  #: fit, none or given


def compositions(structures: Sequence[Structure]) -> Floats:
    """Number of atoms of each element: [n_structures, 119]."""
    counts = np.zeros((len(structures), MAX_ATOMIC_NUMBER + 1))
    for number, structure in enumerate(structures):
        counts[number] = np.bincount(structure.atomic_numbers, minlength=MAX_ATOMIC_NUMBER + 1)
    return counts


def fit_reference(counts: Floats, energy: Floats, prior: Floats | None = None) -> References:
    """Least squares of energy on composition; of all solutions, the one nearest to ``prior`` where compositions do not determine one.

    A single molecule determines only the sum over its atoms. The totals do not care how it is shared among the elements, but the energies of
    single atoms do: a student that is compared with its teacher atom by atom takes the teacher's references as ``prior``.

    Args:
        counts: [n, 119].
        energy: total energies, [n] eV.
        prior: energies by atomic number, [119] eV; zero if None.
    """
    known = np.asarray(counts.any(axis=0), dtype=np.bool_)
    start = np.zeros(MAX_ATOMIC_NUMBER + 1) if prior is None else np.where(known, prior, 0.0)
    energies = start.copy()
    if known.any():
        energies[known] += np.linalg.lstsq(counts[:, known], energy - counts @ start, rcond=1e-10)[0]
    return References(energies, known, "fit")


def make_references(setting: str | Mapping[str, float], structures: Sequence[Structure], energy: Floats, where: str) -> References:
    """References as ``data.reference_energies`` asks for: ``fit``, ``none`` or energies by symbol.

    Args:
        setting: of the config.
        structures: labelled training structures.
        energy: their total energies, [n] eV.
        where: the file, for messages.

    Raises:
        ConfigError: if a symbol is no element, or one of the data's elements is not given.
        DataError: if what is left after subtraction is absurd, as with references of another level of theory.
    """
    counts = compositions(structures)
    known = np.asarray(counts.any(axis=0), dtype=np.bool_)
    if setting == "fit":
        references = fit_reference(counts, energy)
    elif setting == "none":
        references = References(np.zeros(MAX_ATOMIC_NUMBER + 1), known, "none")
    else:
        assert isinstance(setting, Mapping)
        references = References(_given(setting, known), known, "given")
    if len(energy) and references.how != "none":
        per_atom = (energy - counts @ references.energies) / counts.sum(axis=1)
        worst = int(np.abs(per_atom).argmax())
        if abs(per_atom[worst]) > ABSURD_ENERGY:
            raise DataError(
                f"{where}: {per_atom[worst]:+.1f} eV per atom are left after subtracting the reference energies ({references.how}), "
                f"more than {ABSURD_ENERGY:.0f}. The references belong to another level of theory, or the unit of energy is wrong; "
                "try data.reference_energies=fit, or convert again with --energy-unit."
            )
    return references


def _given(setting: Mapping[str, float], known: npt.NDArray[np.bool_]) -> Floats:
    energies = np.zeros(MAX_ATOMIC_NUMBER + 1)
    for symbol, value in setting.items():
        if symbol not in number_of or symbol == "X":
            raise ConfigError(f"data.reference_energies.{symbol}: {symbol!r} is no element; keys are symbols such as H, C, O.")
        energies[number_of[symbol]] = value
    absent = [chemical_symbols[number] for number in np.flatnonzero(known) if chemical_symbols[number] not in setting]
    if absent:
        raise ConfigError(f"data.reference_energies lacks {', '.join(absent)}, which the data has. Add it, or use 'fit'.")
    return energies


def energy_spread(energy: Floats, counts: Floats, references: References) -> float:
    """√⟨(E − E₀)² / n⟩ in eV, the scale of the energies of single atoms where there are no forces to tell it (1 where E₀ says it all).

    That of n independent atoms, whose sum varies by √n times as much as each of them: this project's choice.

    Args:
        energy: total energies of labelled structures, [n] eV.
        counts: their compositions, [n, 119].
        references: E₀ of each element.
    """
    if not len(energy):
        return 1.0
    spread = float(np.sqrt(np.mean(np.square(energy - counts @ references.energies) / counts.sum(axis=1))))
    return spread if spread > 1e-6 else 1.0


def force_rms(structures: Sequence[Structure], *, free_atoms: bool = True) -> float:
    """Root mean square of force components, eV/Å: the scale of energies that a network should work in (1 where there are no forces).

    Args:
        structures: with forces, as far as they have any.
        free_atoms: leave out atoms that are held fixed.
    """
    forces = [
        s.forces[~np.asarray(s.fixed, dtype=bool)] if free_atoms and s.fixed is not None else s.forces
        for s in structures
        if s.forces is not None
    ]
    squares = [np.square(part, dtype=np.float64).mean() for part in forces if len(part)]
    rms = float(np.sqrt(np.mean(squares))) if squares else 1.0
    return rms if rms > 1e-6 else 1.0
