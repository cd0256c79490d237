"""Errors of predictions, as pure functions of arrays. All follow the definitions used for OC20 and in the distillation papers.

Symbols: S structures, n_s atoms of structure s, N atoms in all; E in eV, F in eV/Å; predictions carry a hat.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

#: Thresholds of `efwt`: eV, and eV/Å per component (OC20).
EFWT_ENERGY = 0.02
EFWT_FORCES = 0.03


def energy_mae(energy: Array, energy_pred: Array) -> float:
    """Per system: (1/S) Σ_s |Ê_s − E_s|, eV. Both [n_structures]."""
    return float(np.abs(energy_pred - energy).mean())


def energy_mae_per_atom(energy: Array, energy_pred: Array, natoms: Ints) -> float:
    """(1/S) Σ_s |Ê_s − E_s| / n_s, eV/atom. All [n_structures]."""
    return float((np.abs(energy_pred - energy) / natoms).mean())


def energy_rmse_per_atom(energy: Array, energy_pred: Array, natoms: Ints) -> float:
    """√( (1/S) Σ_s ((Ê_s − E_s) / n_s)² ), eV/atom. All [n_structures]."""
    return float(np.sqrt((((energy_pred - energy) / natoms) ** 2).mean()))


def forces_mae(forces: Array, forces_pred: Array) -> float:
    """Per component: (1/3N) Σ_i Σ_a |F̂_ia − F_ia|, eV/Å. Both [n_atoms, 3]."""
    return float(np.abs(forces_pred - forces).mean())


def forces_rmse(forces: Array, forces_pred: Array) -> float:
    """Per component: √( (1/3N) Σ_i Σ_a (F̂_ia − F_ia)² ), eV/Å. Both [n_atoms, 3]."""
    return float(np.sqrt(((forces_pred - forces) ** 2).mean()))


def forces_cosine(forces: Array, forces_pred: Array) -> float:
    """Mean over atoms of F̂_i · F_i / (‖F̂_i‖ ‖F_i‖), in [−1, 1]; an atom on which either force vanishes counts 0. Both [n_atoms, 3]."""
    norms = np.linalg.norm(forces, axis=1) * np.linalg.norm(forces_pred, axis=1)
    dots = (forces * forces_pred).sum(1)
    return float(np.divide(dots, norms, out=np.zeros_like(norms), where=norms > 0).mean())


def efwt(
    energy: Array, energy_pred: Array, forces: Array, forces_pred: Array, natoms: Ints, free: NDArray[np.bool_] | None = None
) -> float:
    """Energy and forces within threshold: share of structures with |Ê − E| < 0.02 eV and max_ia |F̂_ia − F_ia| < 0.03 eV/Å, in [0, 1].

    ``free`` [n_atoms] says whose forces count; where none of a structure's do, its energy decides.
    """
    starts = np.concatenate([[0], np.cumsum(natoms)[:-1]])
    errors = np.abs(forces_pred - forces).max(1)
    worst = np.maximum.reduceat(errors if free is None else np.where(free, errors, 0.0), starts)
    return float(((np.abs(energy_pred - energy) < EFWT_ENERGY) & (worst < EFWT_FORCES)).mean())


@dataclass(frozen=True)
class Metrics:
    """Errors on one set of structures, in eV and Å; those of forces are NaN where the structures have no forces."""

    energy_mae: float  #: eV, per system
    energy_mae_per_atom: float  #: eV/atom
    energy_rmse_per_atom: float  #: eV/atom
    forces_mae: float  #: eV/Å, per component
    forces_rmse: float  #: eV/Å, per component
    forces_cosine: float  #: 1
    efwt: float  #: 1

    def asdict(self) -> dict[str, float]:
        """Name → value."""
        return asdict(self)

    def measured(self) -> dict[str, float]:
        """Name → value, of those that are there."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


METRIC_UNITS = {
    "energy_mae": "eV",
    "energy_mae_per_atom": "eV/atom",
    "energy_rmse_per_atom": "eV/atom",
    "forces_mae": "eV/Å",
    "forces_rmse": "eV/Å",
    "forces_cosine": "1",
    "efwt": "1",
}


def compute_metrics(
    energy: Array,
    energy_pred: Array,
    forces: Array | None,
    forces_pred: Array | None,
    natoms: Ints,
    free: NDArray[np.bool_] | None = None,
) -> Metrics:
    """All metrics at once, in float64.

    Args:
        energy: labels, [n_structures] eV.
        energy_pred: predictions, [n_structures] eV.
        forces: labels, [n_atoms, 3] eV/Å, structures end to end; None where there are energies alone.
        forces_pred: predictions, [n_atoms, 3] eV/Å, or None.
        natoms: atoms of each structure, [n_structures], each at least 1.
        free: [n_atoms] bool, atoms whose forces count, as OCP's ``eval_on_free_atoms``; None for all.

    Raises:
        ValueError: if there is no structure, shapes do not fit together, or no atom is free.
    """
    energy, energy_pred = (np.asarray(a, dtype=np.float64) for a in (energy, energy_pred))
    natoms = np.asarray(natoms)
    atoms = (int(natoms.sum()), 3)
    if forces is None or forces_pred is None:
        if forces is not None or forces_pred is not None or not (len(natoms) and natoms.min() > 0):
            raise ValueError("need forces and predicted forces or neither, of at least one structure")
        if not energy.shape == energy_pred.shape == natoms.shape:
            raise ValueError(f"need energies [n_structures], got {energy.shape} and {energy_pred.shape}, natoms {natoms.shape}")
        errors = energy_mae(energy, energy_pred), energy_mae_per_atom(energy, energy_pred, natoms)
        return Metrics(*errors, energy_rmse_per_atom(energy, energy_pred, natoms), *(math.nan,) * 4)
    forces, forces_pred = (np.asarray(a, dtype=np.float64) for a in (forces, forces_pred))
    if not (
        len(natoms)
        and natoms.min() > 0
        and energy.shape == energy_pred.shape == natoms.shape
        and forces.shape == forces_pred.shape == atoms
    ):
        raise ValueError(
            f"need energies [n_structures] and forces [n_atoms, 3] of at least one structure, got energies {energy.shape} and "
            f"{energy_pred.shape}, forces {forces.shape} and {forces_pred.shape}, natoms {natoms.shape} with {atoms[0]} atoms in all"
        )
    if free is not None and (free.shape != atoms[:1] or not free.any()):
        raise ValueError(f"free has shape {free.shape} with {int(free.sum())} free atoms, need one of {atoms[:1]} with some")
    some, some_pred = (forces, forces_pred) if free is None else (forces[free], forces_pred[free])
    return Metrics(
        energy_mae(energy, energy_pred),
        energy_mae_per_atom(energy, energy_pred, natoms),
        energy_rmse_per_atom(energy, energy_pred, natoms),
        forces_mae(some, some_pred),
        forces_rmse(some, some_pred),
        forces_cosine(some, some_pred),
        efwt(energy, energy_pred, forces, forces_pred, natoms, free),
    )
