"""Errors of a model on labelled structures, with everything the bootstrap and the parity plots need kept per structure.

Units of the summary are those of the field's tables: energies in meV per atom, forces in meV/Å per component.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastkd_kernels import segment_reduce
from numpy.typing import NDArray

from fastkd.data.batch import Batch
from fastkd.engine.files import write_atomically
from fastkd.errors import DataError
from fastkd.models.base import Potential

MEV = 1000.0
#: Units of `Metrics`, by field.
UNITS = {
    "energy_mae": "meV/atom",
    "energy_rmse": "meV/atom",
    "forces_mae": "meV/Å",
    "forces_rmse": "meV/Å",
    "force_cosine": "1",
    "structures": "1",
    "atoms": "1",
}


@dataclass(frozen=True)
class Metrics:
    """Errors over a set of structures; forces per component."""

    energy_mae: float  #: meV/atom
    energy_rmse: float  #: meV/atom
    forces_mae: float  #: meV/Å
    forces_rmse: float  #: meV/Å
    force_cosine: float  #: mean over atoms of the cosine between predicted and true force
    structures: int
    atoms: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions and labels of a set, structure after structure."""

    energy: NDArray[np.float64]  #: [n_structures] eV
    energy_label: NDArray[np.float64]  #: [n_structures] eV
    forces: NDArray[np.float64]  #: [n_atoms, 3] eV/Å
    forces_label: NDArray[np.float64]  #: [n_atoms, 3] eV/Å
    atom_ptr: NDArray[np.int64]  #: [n_structures + 1]
    atomic_numbers: NDArray[np.int64]  #: [n_atoms]
    structure_index: NDArray[np.int64]  #: [n_structures], position in the data set

    def save(self, path: Path) -> None:
        """Write as ``.npz`` with an entry ``units`` (JSON text)."""
        units = '{"energy": "eV", "energy_label": "eV", "forces": "eV/Å", "forces_label": "eV/Å"}'

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez(handle, units=np.array(units), **vars(self))

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in cls.__dataclass_fields__})


def predict(
    model: Potential, batches: Iterable[Batch], *, forces: bool = True, prepare: Callable[[Batch], Batch] | None = None
) -> Predictions:
    """Predictions and labels for batches, as arrays in float64.

    Args:
        model: left in the mode it was in.
        batches: collated with the model's neighbour graph.
        forces: False fills predicted forces with zeros.
        prepare: moves a batch to the model's device and dtype.

    Raises:
        DataError: if there are no structures.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Any]] = {name: [] for name in ("energy", "energy_label", "forces", "forces_label", "counts", "numbers", "index")}
    try:
        for original in batches:
            batch = prepare(original) if prepare else original
            with torch.no_grad():
                prediction = model(batch, forces=forces)
            predicted = torch.zeros_like(batch.forces) if prediction.forces is None else prediction.forces
            for name, value in zip(
                parts,
                (prediction.energy, batch.energy, predicted, batch.forces, batch.atom_ptr.diff(), batch.atomic_numbers, batch.structure_index),
                strict=True,
            ):
                parts[name].append(value.detach().cpu().numpy())
    finally:
        model.train(was_training)
    if not parts["energy"]:
        raise DataError("there are no structures to evaluate; check the name of the split and data.systems")
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return Predictions(
        energy=joined["energy"].astype(np.float64),
        energy_label=joined["energy_label"].astype(np.float64),
        forces=joined["forces"].astype(np.float64),
        forces_label=joined["forces_label"].astype(np.float64),
        atom_ptr=np.concatenate([[0], np.cumsum(joined["counts"])]).astype(np.int64),
        atomic_numbers=joined["numbers"].astype(np.int64),
        structure_index=joined["index"].astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class StructureErrors:
    """Errors of each structure, for resampling: sums over its components, so that any subset can be averaged exactly."""

    energy: NDArray[np.float64]  #: [n] eV per atom, predicted minus label
    force_absolute: NDArray[np.float64]  #: [n] eV/Å, Σ |ΔF| over components
    force_square: NDArray[np.float64]  #: [n] (eV/Å)², Σ ΔF² over components
    force_cosine: NDArray[np.float64]  #: [n] Σ over atoms of cos(F, F_label)
    atoms: NDArray[np.int64]  #: [n]


def structure_errors(predictions: Predictions) -> StructureErrors:
    """Errors per structure."""
    atoms = np.diff(predictions.atom_ptr)
    starts = predictions.atom_ptr[:-1]
    error = predictions.forces - predictions.forces_label
    norms = np.linalg.norm(predictions.forces, axis=1) * np.linalg.norm(predictions.forces_label, axis=1)
    # an atom without any force has no direction; it counts as 0
    cosine = np.divide((predictions.forces * predictions.forces_label).sum(1), norms, out=np.zeros_like(norms), where=norms > 0)
    return StructureErrors(
        energy=(predictions.energy - predictions.energy_label) / atoms,
        force_absolute=np.add.reduceat(np.abs(error).sum(1), starts),
        force_square=np.add.reduceat((error**2).sum(1), starts),
        force_cosine=np.add.reduceat(cosine, starts),
        atoms=atoms,
    )


def summarize(errors: StructureErrors) -> Metrics:
    """Averages over structures: energies per structure, forces per component, cosines per atom."""
    atoms = int(errors.atoms.sum())
    return Metrics(
        energy_mae=float(np.abs(errors.energy).mean() * MEV),
        energy_rmse=float(np.sqrt((errors.energy**2).mean()) * MEV),
        forces_mae=float(errors.force_absolute.sum() / (3 * atoms) * MEV),
        forces_rmse=float(np.sqrt(errors.force_square.sum() / (3 * atoms)) * MEV),
        force_cosine=float(errors.force_cosine.sum() / atoms),
        structures=len(errors.atoms),
        atoms=atoms,
    )


def evaluate(model: Potential, batches: Iterable[Batch], *, prepare: Callable[[Batch], Batch] | None = None) -> Metrics:
    """Errors of a model on labelled batches, see `predict` and `Metrics`."""
    return summarize(structure_errors(predict(model, batches, prepare=prepare)))


def inference_rate(model: Potential, batches: list[Batch], repeats: int) -> float:
    """Atoms per second of energies and forces: the median of ``repeats`` timed passes, after one that is not counted."""
    atoms = sum(batch.num_atoms for batch in batches)
    seconds = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        for batch in batches:
            with torch.no_grad():
                model(batch, forces=True)
        if batches[0].positions.device.type == "cuda":
            torch.cuda.synchronize(batches[0].positions.device)
        if repeat:
            seconds.append(time.perf_counter() - started)
    return atoms / float(np.median(seconds))
