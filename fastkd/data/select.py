"""Which structures of a data file a run uses for what.

Example:
    >>> data = open_data_file("embedded")
    >>> chosen = select(data, DataConfig(labelled=50, unlabelled=1000), seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols

from fastkd.config import DataConfig
from fastkd.data.reader import DataFile
from fastkd.errors import ConfigError, DataError

EMBEDDED = "embedded"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Selection:
    """Numbers of structures, ascending."""

    labelled: Ints  #: to train on, with labels
    unlabelled: Ints  #: to train on, without
    val: Ints
    test: Ints

    @property
    def train(self) -> Ints:
        """All training structures, ascending."""
        return np.sort(np.concatenate([self.labelled, self.unlabelled]))


def data_path(path: str) -> Path:
    """Where the data is; ``embedded`` is the file that ships with fastkd."""
    return Path(str(resources.files("fastkd") / "assets" / "xtb_md.h5")) if path == EMBEDDED else Path(path)


def open_data_file(path: str) -> DataFile:
    """Open and check a data file, every number included.

    Raises:
        DataError: if it is not there, or not as it should be.
    """
    data = DataFile(data_path(path))
    try:
        data.check_values()
    except BaseException:
        data.close()
        raise
    return data


def select(data: DataFile, config: DataConfig, seed: int, *, forces: bool = True) -> Selection:
    """Choose structures as the config says; the same seed chooses the same, whatever else changes.

    Labels are an energy and forces, or without ``forces`` an energy alone, whether or not there are forces beside it.

    The first ``labelled`` structures of a random order of the training split have labels, the next ``unlabelled`` are used without: a run
    with more structures contains those of a run with fewer.

    Raises:
        DataError: if a split or system is empty or unknown, labels are missing, or elements are tested that were never trained on.
        ConfigError: if more structures are asked for than there are, none of a split has forces and they are wanted, or one split is to be
            trained on and tested.
    """
    for key in ("val_split", "test_split"):
        if getattr(config, key) == config.train_split:
            raise ConfigError(
                f"data.train_split and data.{key} are both {config.train_split!r}: what is tried must not be trained on; name another"
            )
    systems = _in_systems(data, config)
    missing = np.zeros(len(data), dtype=bool)
    missing[data.missing_labels(forces=forces)] = True
    val = _thinned(_split(data, config.val_split, "data.val_split", systems), config.val_size)
    test = _thinned(_split(data, config.test_split, "data.test_split", systems), config.test_size)
    for name, indices in (("val", val), ("test", test)):
        _refuse_missing(data, indices, missing, f"the {name} split", forces=forces)

    train = _split(data, config.train_split, "data.train_split", systems)
    if config.allow_missing_labels:
        with_labels, without = train[~missing[train]], train[missing[train]]
    else:
        _refuse_missing(data, train, missing, "the training split", forces=forces)
        with_labels, without = train, train[:0]
    order = np.random.default_rng([seed, 0]).permutation(with_labels)
    labelled = order[: config.labelled] if config.labelled else order
    rest = np.concatenate([np.random.default_rng([seed, 1]).permutation(without), order[len(labelled) :]])
    if config.labelled > len(order) or config.unlabelled > len(rest):
        raise ConfigError(
            f"data.labelled={config.labelled} and data.unlabelled={config.unlabelled} ask for more than the {len(order)} structures with and "
            f"{len(without)} without labels in split {config.train_split!r} of {data.path}. Ask for fewer."
        )
    if not len(labelled) and not config.unlabelled:
        if forces and len(without) and _on_energies(data, without):
            _refuse_missing(data, train, missing, "the training split", forces=forces)
        raise DataError(
            f"{data.path}: split {config.train_split!r} has no structure with labels. Label some, or give a teacher and data.unlabelled."
        )
    chosen = Selection(np.sort(labelled), np.sort(rest[: config.unlabelled]), val, test)
    _refuse_new_elements(data, chosen)
    return chosen


def _in_systems(data: DataFile, config: DataConfig) -> npt.NDArray[np.bool_]:
    if not config.systems:
        return np.ones(len(data), dtype=bool)
    known = sorted(set(data.systems.tolist()) - {""})
    unknown = [name for name in config.systems if name not in known]
    if unknown:
        raise DataError(f"{data.path} has no system {unknown[0]!r} (data.systems). It has {', '.join(known) or 'none with a name'}.")
    return np.isin(data.systems, config.systems)


def _split(data: DataFile, name: str, key: str, systems: npt.NDArray[np.bool_]) -> Ints:
    indices = np.flatnonzero((data.splits == name) & systems).astype(np.int64)
    if not len(indices):
        found = {str(split): int(count) for split, count in zip(*np.unique(data.splits[systems], return_counts=True), strict=True) if split}
        have = ", ".join(f"{split} ({count})" for split, count in found.items()) or "no split names; convert with --split 0.8,0.1,0.1"
        raise DataError(f"{data.path}: split {name!r} ({key}) is empty. It has {have}.")
    return indices


def _thinned(indices: Ints, size: int) -> Ints:
    if not size or size >= len(indices):
        return indices
    return indices[np.linspace(0, len(indices) - 1, size).round().astype(np.int64)]


def _refuse_missing(data: DataFile, indices: Ints, missing: npt.NDArray[np.bool_], where: str, *, forces: bool) -> None:
    bad = indices[missing[indices]]
    if not len(bad):
        return
    if forces and len(bad) == len(indices) and _on_energies(data, indices):
        raise ConfigError(
            f"{data.path}: the structures of {where} have energies and no forces, which loss.forces_weight > 0 is for; set "
            "loss.forces_weight=0 to train on energies alone, or label them (fastkd label)."
        )
    shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    mend = " Without forces they are labels with loss.forces_weight=0." if forces and _on_energies(data, bad) else ""
    raise DataError(
        f"{data.path}: {len(bad)} structures of {where} have no energy{' or forces' if forces else ''}, or NaN (numbers {shown}). Remove or "
        f"label them; training structures may stay without with data.allow_missing_labels=true.{mend}"
    )


def _on_energies(data: DataFile, indices: Ints) -> bool:
    """Whether structures that lack a label lack nothing but forces."""
    return not np.isin(indices, data.missing_labels(forces=False)).any()


def _refuse_new_elements(data: DataFile, chosen: Selection) -> None:
    trained = elements(data, chosen.train)
    for name, indices in (("val", chosen.val), ("test", chosen.test)):
        new = elements(data, indices) - trained
        if new:
            symbols = ", ".join(chemical_symbols[number] for number in sorted(new))
            raise DataError(
                f"{data.path}: the {name} split has {symbols}, which no training structure has. Change data.{name}_split or data.systems."
            )


def elements(data: DataFile, indices: Ints) -> set[int]:
    """Atomic numbers that occur in some structures."""
    numbers = data.rows("atomic_numbers")
    atoms = np.zeros(len(numbers), dtype=bool)
    for index in indices.tolist():
        atoms[data.atom_ptr[index] : data.atom_ptr[index + 1]] = True
    return set(np.unique(numbers[atoms]).tolist())
