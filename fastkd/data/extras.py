"""Checks of what a structure may bring beside labels: tags, fixed atoms and bonds. Writer, reader and converters share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastkd.data.format import TAGS

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def tags_fault(tags: Array, atoms: int) -> str:
    """What is wrong with the tags of a structure, and how to mend it; empty if nothing is."""
    if tags.shape != (atoms,):
        return f"tags have shape {tags.shape}, {atoms} atoms need {(atoms,)}. Give one for each atom."
    bad = ~np.isin(tags, TAGS)
    if bad.any():
        return (
            f"the tag of atom {int(np.flatnonzero(bad)[0])} is {tags[bad][0]}, OC20's are 0 (fixed or below the surface), 1 (free slab) and "
            "2 (adsorbate). Mend its source, or leave tags out (fastkd convert --no-tags)."
        )
    return ""


def fixed_fault(fixed: Array, atoms: int) -> str:
    """What is wrong with the mask of fixed atoms of a structure, and how to mend it; empty if nothing is."""
    if fixed.shape != (atoms,):
        return f"fixed has shape {fixed.shape}, {atoms} atoms need {(atoms,)}. Give true or false for each atom."
    if fixed.dtype.kind not in "biu" or not np.isin(fixed, (0, 1)).all():
        return f"fixed holds {fixed.dtype}, but must be true or false for each atom. Mend its source."
    return ""


def bonds_fault(bonds: Array, atoms: int) -> str:
    """What is wrong with the bonds of a structure, and how to mend it; empty if nothing is."""
    if bonds.ndim != 2 or bonds.shape[1] != 2 or bonds.dtype.kind not in "iu":
        return f"bonds are {bonds.dtype} of shape {bonds.shape}, must be integers [n_bonds, 2]: two atoms of the structure for each bond."
    found = first_bad_bond(bonds, np.zeros(len(bonds), dtype=np.int64), np.array([atoms]))
    return "" if found is None else found[1]


def first_bad_bond(bonds: Array, structure: Ints, atoms: Ints) -> tuple[int, str] | None:
    """The first bond that cannot be, of one or many structures.

    Args:
        bonds: [n_bonds, 2] integer, atoms counted from 0 within their structure.
        structure: [n_bonds], the structure of each, ascending.
        atoms: number of atoms of each structure.

    Returns:
        Its place, and what is wrong with it and how to mend it; None if there is none.
    """
    if not len(bonds):
        return None
    pairs = np.sort(bonds.astype(np.int64), axis=1)
    # the lower atom of a pair stands first
    outside = (pairs[:, 0] < 0) | (pairs[:, 1] >= atoms[structure])
    itself = pairs[:, 0] == pairs[:, 1]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], structure))
    again = np.zeros(len(bonds), dtype=bool)
    again[order[1:]] = (pairs[order[1:]] == pairs[order[:-1]]).all(axis=1) & (structure[order[1:]] == structure[order[:-1]])
    bad = np.flatnonzero(outside | itself | again)
    if not len(bad):
        return None
    k = int(bad[0])
    size = int(atoms[structure[k]])
    name = f"the bond of atoms {int(bonds[k, 0])} and {int(bonds[k, 1])}"
    if outside[k]:
        return k, f"{name} leads out of the structure, whose atoms are 0 to {size - 1}. Count atoms from 0 within each structure."
    if itself[k]:
        return k, f"{name} joins an atom to itself. Leave it out."
    return k, f"{name} is there twice. List each pair once, in either order."
