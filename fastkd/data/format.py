"""The HDF5 data format, version 1: what is in a file, and what makes one valid. Described for strangers in docs/file-format.md.

One long array per property and ``atom_ptr``, as in a CSR matrix: structure i owns rows ``atom_ptr[i]:atom_ptr[i + 1]`` of every
per-atom array. Bonds are counted in the same way by ``bond_ptr``. Units and provenance are attributes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np

FORMAT_NAME = "fastkd"
SCHEMA_VERSION = 1

#: What an atom without a tag counts as: free slab, so that nothing is left out.
DEFAULT_TAG = 1
#: Tags of OC20: 0 fixed or below the surface, 1 free slab, 2 adsorbate.
TAGS = (0, 1, 2)


@dataclass(frozen=True)
class Field:
    """One array of a file."""

    per: Literal["atom", "structure", "bond"]
    shape: tuple[int, ...]  #: of one row
    kind: Literal["integer", "float", "bool", "text"]
    unit: str
    store: str  #: dtype we write; readers accept any of the kind
    required: bool = False
    label: bool = False  #: may be NaN, where a structure has no label
    fill: int = 0  #: integers of structures that have none, in a file where others have some


FIELDS: dict[str, Field] = {
    "atomic_numbers": Field("atom", (), "integer", "1", "uint8", required=True),
    "positions": Field("atom", (3,), "float", "Å", "float32", required=True),
    "forces": Field("atom", (3,), "float", "eV/Å", "float32", label=True),
    "energy": Field("structure", (), "float", "eV", "float64", label=True),
    "cell": Field("structure", (3, 3), "float", "Å", "float64"),
    "pbc": Field("structure", (3,), "bool", "1", "bool"),
    "stress": Field("structure", (3, 3), "float", "eV/Å³", "float64", label=True),
    "split": Field("structure", (), "text", "1", "text"),
    "system": Field("structure", (), "text", "1", "text"),
    "time_fs": Field("structure", (), "float", "fs", "float64"),
    # hashed after all others, so that files without them keep their hash
    "tags": Field("atom", (), "integer", "1", "int8", fill=DEFAULT_TAG),
    "fixed": Field("atom", (), "bool", "1", "bool"),
    "bonds": Field("bond", (2,), "integer", "1", "int32"),
}

#: Rows hashed or copied at a time.
BLOCK_ROWS = 1 << 16


def content_hash(file: h5py.File) -> str:
    """SHA-256 over names, shapes and values of all arrays, in the order of `FIELDS`; dtypes and compression do not matter."""
    digest = hashlib.sha256(f"{FORMAT_NAME} v{SCHEMA_VERSION}".encode())
    _hash_array(digest, "atom_ptr", file["atom_ptr"], "<i8")
    for name, field in FIELDS.items():
        if name in file:
            if field.per == "bond":
                _hash_array(digest, "bond_ptr", file["bond_ptr"], "<i8")
            kinds = {"integer": "<i8", "float": "<f8", "bool": "|u1", "text": None}
            _hash_array(digest, name, file[name], kinds[field.kind])
    return digest.hexdigest()


def _hash_array(digest: Any, name: str, dataset: h5py.Dataset, dtype: str | None) -> None:
    digest.update(f"{name} {tuple(dataset.shape)}".encode())
    for first in range(0, dataset.shape[0], BLOCK_ROWS):
        rows = dataset[first : first + BLOCK_ROWS]
        if dtype is None:
            # every text ends with a zero byte, so that neither blocks nor empty texts matter
            digest.update(b"".join(bytes(item) + b"\0" for item in rows))
        else:
            digest.update(np.ascontiguousarray(rows, dtype=dtype).tobytes())
