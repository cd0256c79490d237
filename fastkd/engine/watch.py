"""How alike the distilled layers are while a student trains: CKA of each feature term on a fixed sample of validation structures.

Scalars are compared within elements, vectors without centring (`fastkd.analysis.cka`). The teacher is asked once, at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.analysis.cka import LayerSums
from fastkd.data.batch import Batch
from fastkd.distill import Terms
from fastkd.distill.terms import FeatureTerm
from fastkd.models.base import Potential
from fastkd.teachers import BaseTeacher, Committee, Need


class PairWatch:
    """The distilled pairs of a run on some structures.

    Args:
        terms: of the run; those on features are watched.
        teacher: asked here and never again.
        batches: with the neighbour graphs of student and teacher, on the student's device.
    """

    def __init__(self, terms: Terms, teacher: BaseTeacher, batches: Sequence[Batch]) -> None:
        self._terms = {name: term for name, term in terms.terms.items() if isinstance(term, FeatureTerm)}
        self._batches = tuple(batches)
        asked: dict[str, list[str]] = {}
        for name, term in self._terms.items():
            asked.setdefault(term.teacher, []).append(name)
        self._targets: list[dict[str, Tensor]] = []
        for batch in self._batches:
            targets: dict[str, Tensor] = {}
            for who, names in asked.items():
                source = teacher.members[who] if isinstance(teacher, Committee) else teacher
                output = source(batch, frozenset[Need]().union(*(self._terms[name].needs for name in names)))
                targets |= {name: self._terms[name].teacher_feature(output).detach() for name in names}
            self._targets.append(targets)

    @property
    def units(self) -> dict[str, str]:
        """Column of metrics.csv → unit."""
        return {f"cka_{name}": "1" for name in self._terms}

    def measure(self, student: Potential) -> dict[str, float]:
        """CKA of each pair, by column; NaN where a layer does not vary. The student is left in the mode it was in."""
        sums: dict[str, LayerSums] = {}
        was_training = student.training
        student.eval()
        try:
            with torch.no_grad():
                for batch, targets in zip(self._batches, self._targets, strict=True):
                    prediction = student(batch, forces=False, create_graph=False)
                    for name, target in targets.items():
                        pair = [self._terms[name].student_feature(prediction), target]
                        if name not in sums:
                            sums[name] = LayerSums([layer.shape[-1] for layer in pair], centred=target.dim() == 2)
                        sums[name].add(pair, batch.atomic_numbers)
        finally:
            student.train(was_training)
        return {f"cka_{name}": float(found.cka()[0, 1]) for name, found in sums.items()}
