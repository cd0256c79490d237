"""The data of one run, as the loop wants it: an endless stream of training batches, and fixed batches to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from fastkd.config import Config
from fastkd.data.batch import Batch
from fastkd.data.card import make_card
from fastkd.data.dataset import StructureDataset
from fastkd.data.mixture import JoinedFiles, mixing_weights
from fastkd.data.reader import DataFile
from fastkd.data.reference import References, compositions, energy_spread, fit_reference, force_rms, make_references
from fastkd.data.sampler import BatchSampler, Caps
from fastkd.data.select import elements, select
from fastkd.errors import ConfigError, DataError
from fastkd.models.base import Potential
from fastkd.teachers import BaseTeacher

#: Architectures with a plane of bonds.
_WITH_LOCAL_EDGES = ("mxmnet", "pamnet", "pamnet_s")
#: Structures that a teacher is tried on before a run.
SAMPLE = 3


class TrainingBatches:
    """Endless training batches; the state is the sampler's."""

    def __init__(self, dataset: StructureDataset, sampler: BatchSampler, device: torch.device, synthetic_weight: float = 1.0) -> None:
        self._dataset, self._sampler, self._device, self._ratio = dataset, sampler, device, synthetic_weight

    def __next__(self) -> Batch:
        batch = self._dataset.batch(next(self._sampler))
        source = self._dataset.source
        if self._ratio != 1.0 and isinstance(source, JoinedFiles):
            weight = mixing_weights(source.second(batch.structure_index), self._ratio)
            batch = replace(batch, weight=weight.to(batch.positions.dtype))
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def peek(self) -> Batch:
        """The next batch, which will come again."""
        state = self._sampler.state_dict()
        batch = next(self)
        self._sampler.load_state_dict(state)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)


class RunData:
    """Everything that one run reads.

    Args:
        file: open data file.
        config: of the run; ``data`` chooses, ``run.seed`` draws.
        device: batches are handed out there.
        dtype: of batches.
        synthetic: file of ``augment.synthetic``, whose structures are mixed into training, and nowhere else.

    Raises:
        DataError: see `fastkd.data.select.select` and `fastkd.data.reference.make_references`; if the model wants bonds and there are none.
        ConfigError: if more structures are asked for than there are.
    """

    def __init__(self, file: DataFile, config: Config, device: torch.device, dtype: torch.dtype, synthetic: DataFile | None = None) -> None:
        self.file, self.config, self.device, self.dtype = file, config, device, dtype
        if config.model.kind in _WITH_LOCAL_EDGES and config.model.local == "bonds" and file.bond_ptr is None:
            raise DataError(
                f"{file.path} has no bonds, which model.local=bonds asks for; add them (docs/file-format.md), or set model.local=covalent"
            )
        self.selection = select(file, config.data, config.run.seed, forces=config.loss.forces_weight > 0)
        #: numbers of synthetic structures in `training`
        self.synthetic: np.ndarray[Any, np.dtype[np.int64]] = np.arange(0, dtype=np.int64)
        self.source: DataFile | JoinedFiles = file
        if synthetic is not None:
            self._check_synthetic(synthetic)
            self.source = JoinedFiles(file, synthetic)
            self.synthetic = np.arange(len(file), len(file) + len(synthetic), dtype=np.int64)
        self._datasets: dict[tuple[float, ...], StructureDataset] = {}
        labelled = file.read(self.selection.labelled)
        energy = np.array([structure.energy for structure in labelled], dtype=np.float64)
        self.references: References = make_references(config.data.reference_energies, labelled, energy, str(file.path))
        self._counts, self._energy = compositions(labelled), energy
        self.energy_scale = (
            force_rms(labelled, free_atoms=config.loss.train_on_free_atoms)
            if any(structure.forces is not None for structure in labelled)
            else energy_spread(energy, self._counts, self.references)
        )

    @property
    def hash(self) -> str:
        """Content hash of the file, or of both with synthetic structures."""
        return self.source.content_hash

    @cached_property
    def lacks_forces(self) -> bool:
        """Whether a training structure has no forces to look at, or may not show them."""
        return bool(len(self.selection.unlabelled)) or bool(np.isin(self.selection.labelled, self.file.missing_labels()).any())

    @property
    def training(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Numbers of all structures that training sees, ascending: the training split's, then the synthetic ones."""
        return np.concatenate([self.selection.train, self.synthetic])

    @property
    def training_sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Atoms of each structure in `training`."""
        own = np.diff(self.file.atom_ptr)[self.selection.train]
        other = np.diff(self.source.other.atom_ptr) if isinstance(self.source, JoinedFiles) else self.synthetic
        return np.concatenate([own, other]).astype(np.int64)

    def _check_synthetic(self, synthetic: DataFile) -> None:
        if not len(synthetic) or len(synthetic.missing_labels(forces=self.config.loss.forces_weight > 0)):
            raise DataError(f"{synthetic.path} (augment.synthetic) must hold structures, all with labels; make it with fastkd synthesize")
        if (synthetic.bond_ptr is None) != (self.file.bond_ptr is None):
            raise DataError(f"of {synthetic.path} (augment.synthetic) and {self.file.path} only one has bonds; give them to both, or none")
        refuse = elements(synthetic, np.arange(len(synthetic), dtype=np.int64)) - elements(self.file, self.selection.train)
        if refuse:
            names = ", ".join(chemical_symbols[number] for number in sorted(refuse))
            raise DataError(
                f"{synthetic.path} (augment.synthetic) has {names}, which no training structure has; leave these structures out"
            )

    @cached_property
    def card(self) -> str:
        """The data card of what this run uses."""
        return make_card(
            self.file, self.selection, self.references, (self.config.model.cutoff,), forces=self.config.loss.forces_weight > 0
        ).text()

    def dataset(self, *cutoffs: float) -> StructureDataset:
        """Structures with neighbour graphs of some cutoffs; labels of the unlabelled ones are hidden."""
        key = tuple(sorted(set(cutoffs)))
        if key not in self._datasets:
            self._datasets[key] = StructureDataset(self.source, key, dtype=self.dtype, unlabelled=self.selection.unlabelled.tolist())
        return self._datasets[key]

    def training_batches(self, *cutoffs: float) -> TrainingBatches:
        """The stream of training batches, with a neighbour graph for each cutoff."""
        data, dataset = self.config.data, self.dataset(*cutoffs)
        dataset.preload(self.training.tolist())

        def size(index: int) -> tuple[int, int]:
            (piece,) = dataset.pieces([index])
            return piece.num_atoms, max(piece.num_edges(cutoff) for cutoff in dataset.cutoffs)

        sampler = BatchSampler(
            self.selection.labelled.tolist(),
            self.selection.unlabelled.tolist(),
            caps=Caps(data.batch_size, data.batch_atoms, data.batch_edges),
            seed=self.config.run.seed,
            labelled_fraction=data.labelled_fraction,
            size=size,
            synthetic=self.synthetic.tolist(),
            synthetic_fraction=self.config.augment.synthetic_fraction if len(self.synthetic) else 0.0,
        )
        return TrainingBatches(dataset, sampler, self.device, self.config.augment.synthetic_weight)

    def teacher_batches(self, *cutoffs: float | None) -> Iterator[Batch]:
        """Every training structure once, in an order that depends on nothing but the selection; no cutoff, no neighbour graph."""
        return self._moved(self.dataset(*_given(cutoffs)), self.training)

    def sample(self, *cutoffs: float | None) -> Batch:
        """A few training structures, to look at what a teacher makes of them."""
        return self.dataset(*_given(cutoffs)).batch(self.selection.train[:SAMPLE].tolist()).to(self.device)

    def val_batches(self, cutoffs: Sequence[float] | None = None) -> list[Batch]:
        """The validation structures with the neighbour graph of the student, or graphs of other cutoffs, if any."""
        given = (self.config.model.cutoff,) if cutoffs is None else tuple(cutoffs)
        return list(self._moved(self.dataset(*given), self.selection.val))

    def val_sample(self, size: int, *cutoffs: float) -> list[Batch]:
        """At most so many validation structures, evenly spaced, with neighbour graphs of some cutoffs."""
        return list(self._moved(self.dataset(*cutoffs), evenly(self.selection.val, size)))

    def test_batches(self, *cutoffs: float | None) -> list[Batch]:
        """The test structures with neighbour graphs of some cutoffs, if any."""
        return list(self._moved(self.dataset(*_given(cutoffs)), self.selection.test))

    def apply_references(self, student: Potential, teacher: BaseTeacher | None) -> None:
        """Give a student its reference energies, energy scale and known elements.

        Fitted references are as near to the teacher's as the labels allow, so that energies of single atoms can be compared; without any
        label they are the teacher's.

        Raises:
            ConfigError: if there is no label, and the teacher's reference energies are not known.
        """
        known = teacher.reference_energy if teacher is not None else None
        if len(self.selection.labelled) or teacher is None:
            references = self.references
            if known is not None and references.how == "fit":
                references = fit_reference(self._counts, self._energy, prior=known.cpu().numpy())
            student.reference_energy.copy_(torch.from_numpy(references.energies))
            student.energy_scale.fill_(self.energy_scale)
        else:
            if known is None:
                raise ConfigError(
                    f"the reference energies of the teacher {teacher.source} are not known, and there is no label to fit them to; label some "
                    "structures with the teacher (fastkd label), and set data.labelled"
                )
            student.reference_energy.copy_(known)
            student.energy_scale.copy_(teacher.energy_scale)
            student.energy_offset.copy_(teacher.energy_offset)
        student.know_elements(elements(self.file, self.selection.train))

    def require_elements(self, known: Tensor, who: str) -> None:
        """Make sure that a model knows every element of the training and test structures.

        Raises:
            DataError: naming those it does not know.
        """
        present = elements(self.file, np.concatenate([self.selection.train, self.selection.test]))
        refuse_unknown_elements(sorted(present), known, who)

    def _moved(self, dataset: StructureDataset, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Batch]:
        for batch in dataset.batches(indices.tolist()):
            yield batch.to(self.device)


def evenly(indices: np.ndarray[Any, np.dtype[np.int64]], size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most ``size`` of some numbers, evenly spaced; all for 0."""
    if not size or size >= len(indices):
        return indices
    return indices[np.linspace(0, len(indices) - 1, size).round().astype(np.int64)]


def _given(cutoffs: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(cutoff for cutoff in cutoffs if cutoff is not None)


def refuse_unknown_elements(numbers: Sequence[int], known: Tensor, who: str) -> None:
    """Make sure that a model knows some elements.

    Args:
        numbers: atomic numbers.
        known: [119] bool, by atomic number.
        who: the model, for the message.

    Raises:
        DataError: naming those it does not know.
    """
    strange = [chemical_symbols[number] for number in numbers if not bool(known[number])]
    if strange:
        raise DataError(f"{who} was never trained on {', '.join(strange)}, which the data has; choose structures without, or another model")
