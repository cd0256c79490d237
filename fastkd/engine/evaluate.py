"""Predictions of a model on labelled structures, and how fast it makes them.

Forces are predicted where every structure has some to compare with; otherwise energies alone, which need no gradient.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastkd.analysis.runs import Predictions
from fastkd.data.batch import Batch
from fastkd.errors import DataError
from fastkd.models.base import Potential, Prediction
from fastkd.teachers import BaseTeacher, Need, TeacherOutput


@contextlib.contextmanager
def frozen(model: Potential | BaseTeacher, *, forces: bool = True) -> Iterator[Callable[[Batch], Prediction | TeacherOutput]]:
    """A function from a batch to energies (and forces) without gradients; a model is put back into the mode it was in."""
    if isinstance(model, BaseTeacher):
        needs = frozenset[Need]({"energy", "forces"} if forces else {"energy"})
        yield lambda batch: model(batch, needs)
        return
    was_training = model.training
    model.eval()

    def ask(batch: Batch) -> Prediction:
        with torch.no_grad():
            return model(batch, forces=forces, create_graph=False)  # type: ignore[no-any-return]

    try:
        yield ask
    finally:
        model.train(was_training)


def have_forces(batches: Sequence[Batch]) -> bool:
    """Whether all structures of some batches have forces, so that errors of forces can be measured on them."""
    return all(bool(batch.with_forces.all()) for batch in batches)


def can_test(teacher: BaseTeacher, batches: Sequence[Batch]) -> bool:
    """Whether a teacher predicts what the labels of some batches are: energies, and forces where there are any."""
    return "energy" in teacher.offer.outputs and ("forces" in teacher.offer.outputs or not have_forces(batches))


def predict(model: Potential | BaseTeacher, batches: Iterable[Batch], *, free_atoms: bool = True) -> Predictions:
    """Predictions and labels, structure after structure.

    Args:
        model: ours, which is left in the mode it was in, or any teacher for which `can_test` holds.
        batches: on the model's device and in its dtype, each with the neighbour graph of ``model.cutoff``.
        free_atoms: where the data tells fixed atoms, leave them out of force errors.

    Raises:
        DataError: if there is no structure, or one without labels, or none of the atoms is free.
    """
    columns: dict[str, list[Tensor]] = {}
    batches = list(batches)
    forces = have_forces(batches)
    told = False
    with frozen(model, forces=forces) as ask:
        for batch in batches:
            if not bool(batch.labelled.all()):
                number = int(batch.structure_index[~batch.labelled][0])
                raise DataError(f"structure {number} has no labels, so it cannot be evaluated on; take it out of the split")
            prediction = ask(batch)
            assert prediction.energy is not None
            found = {
                "structure_index": batch.structure_index,
                "natoms": batch.atom_ptr.diff(),
                "energy": batch.energy,
                "energy_pred": prediction.energy,
                "atomic_numbers": batch.atomic_numbers,
            }
            if forces:
                assert prediction.forces is not None
                found |= {
                    "forces": batch.forces.double(),
                    "forces_pred": prediction.forces.double(),
                    "free": torch.ones_like(batch.atomic_numbers, dtype=torch.bool) if batch.free is None else batch.free,
                }
            told |= forces and free_atoms and batch.free is not None
            for name, value in found.items():
                columns.setdefault(name, []).append(value.detach())
    if not columns:
        raise DataError("there is no structure to evaluate on; check the name of the split, and data.systems")
    if not told:
        columns.pop("free", None)
    predictions = Predictions(**{name: torch.cat(parts).cpu().numpy() for name, parts in columns.items()})
    if predictions.free is not None and not predictions.free.any():
        raise DataError(
            "every atom to evaluate on is fixed, so there is no force error; evaluate on all atoms (train.eval_on_free_atoms=false, or "
            "fastkd eval --no-free-atoms)"
        )
    return predictions


def inference_rate(model: Potential | BaseTeacher, batches: Sequence[Batch], repeats: int) -> float:
    """Atoms per second, of energies and, where `have_forces`, forces: the median of ``repeats`` timed passes, after one that is not counted."""
    seconds = []
    with frozen(model, forces=have_forces(batches)) as ask:
        for repeat in range(repeats + 1):
            started = time.perf_counter()
            for batch in batches:
                ask(batch)
            if batches[0].positions.device.type == "cuda":
                torch.cuda.synchronize(batches[0].positions.device)
            if repeat:
                seconds.append(time.perf_counter() - started)
    return sum(batch.num_atoms for batch in batches) / float(np.median(seconds))
