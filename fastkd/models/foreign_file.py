"""Reading files that other packages wrote: PyTorch checkpoints without running any code of theirs, and npz.

Example:
    >>> contents = read_file(Path("checkpoint.pt"))  # doctest: +SKIP
"""

from __future__ import annotations

import pickle
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from fastkd.errors import CheckpointError

_START = 16  #: bytes that tell what a file is


def read_file(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, with tensors on the CPU.

    Nothing in the file is run: besides what torch allows on its own, only numbers of numpy and paths are let through.

    Raises:
        CheckpointError: if the file is missing, truncated, of another format, or holds objects that are more than data.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}: give the checkpoint itself, such as checkpoint.pt")
    if path.suffix == ".npz":
        return _read_npz(path)
    with path.open("rb") as handle:
        start = handle.read(_START)
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is truncated: it begins like a PyTorch checkpoint, but its end is missing; copy or download it again"
        )
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download failed; fetch it again")
    try:
        with torch.serialization.safe_globals(_harmless()):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_not_data(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError, UnicodeDecodeError, AttributeError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint ({reason}); copy or download it again") from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, where a checkpoint is a dictionary; is it the right file?")
    return dict(contents)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is truncated or not an npz file of numbers ({error}); copy it again") from error


def _harmless() -> list[Any]:
    """Classes and functions that make data and nothing else, under the names that files of any age know them by."""
    scalar = np.float64(0).__reduce__()[0]
    rebuild = np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1", "U1")}
    named: list[Any] = [(scalar, f"{package}.multiarray.scalar") for package in ("numpy.core", "numpy._core")]
    named += [(rebuild, f"{package}.multiarray._reconstruct") for package in ("numpy.core", "numpy._core")]
    named += [(PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")]
    return [*named, np.dtype, np.ndarray, *dtypes, defaultdict, dict, list]


def _not_data(path: Path, error: Exception) -> str:
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError):
        found = []
    if not found:
        reason = str(error).split("\n")[0]
        return f"{path} is truncated or not a PyTorch checkpoint ({reason}); copy or download it again"
    return (
        f"{path} holds more than data: {', '.join(sorted(found))}. fastkd never runs code from a file. Where you trust it, load it in the "
        "package that wrote it, and save a dictionary of the state dict and the config with torch.save"
    )
