"""Predictions of a model on labelled structures, and how fast it makes them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastkd.analysis.runs import Predictions
from fastkd.data.batch import Batch
from fastkd.errors import DataError
from fastkd.models.base import Potential


def predict(model: Potential, batches: Iterable[Batch]) -> Predictions:
    """Predictions and labels, structure after structure.

    Args:
        model: is left in the mode it was in.
        batches: on the model's device and in its dtype, each with the neighbour graph of ``model.cutoff``.

    Raises:
        DataError: if there is no structure, or one without labels.
    """
    was_training = model.training
    model.eval()
    columns: dict[str, list[Tensor]] = {}
    try:
        for batch in batches:
            if not bool(batch.labelled.all()):
                number = int(batch.structure_index[~batch.labelled][0])
                raise DataError(f"structure {number} has no labels, so it cannot be evaluated on; take it out of the split")
            with torch.no_grad():
                prediction = model(batch, forces=True, create_graph=False)
            found = {
                "structure_index": batch.structure_index,
                "natoms": batch.atom_ptr.diff(),
                "energy": batch.energy,
                "energy_pred": prediction.energy,
                "forces": batch.forces.double(),
                "forces_pred": prediction.forces.double(),
                "atomic_numbers": batch.atomic_numbers,
            }
            for name, value in found.items():
                columns.setdefault(name, []).append(value.detach())
    finally:
        model.train(was_training)
    if not columns:
        raise DataError("there is no structure to evaluate on; check the name of the split, and data.systems")
    return Predictions(**{name: torch.cat(parts).cpu().numpy() for name, parts in columns.items()})


def inference_rate(model: Potential, batches: Sequence[Batch], repeats: int) -> float:
    """Atoms per second of energies and forces: the median of ``repeats`` timed passes, after one that is not counted."""
    was_training = model.training
    model.eval()
    seconds = []
    try:
        for repeat in range(repeats + 1):
            started = time.perf_counter()
            for batch in batches:
                with torch.no_grad():
                    model(batch, forces=True, create_graph=False)
            if batches[0].positions.device.type == "cuda":
                torch.cuda.synchronize(batches[0].positions.device)
            if repeat:
                seconds.append(time.perf_counter() - started)
    finally:
        model.train(was_training)
    return sum(batch.num_atoms for batch in batches) / float(np.median(seconds))
