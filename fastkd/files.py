"""Files that are either the old or the new one, never half of one, whenever the process dies or the disk fills up."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkd.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file in the same folder, flush it to the disk, and rename it to ``path``.

    Raises:
        CheckpointError: if the folder cannot be written; ``path`` then is what it was.
    """
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise CheckpointError(cannot_write(path, error)) from error
    except BaseException:
        _discard(temporary)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda temporary: _write_all(temporary, data))


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, tree: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, they are no JSON."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def cannot_write(path: Path, error: OSError) -> str:
    """What went wrong with a file, and how to mend it."""
    cure = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EACCES: "choose a folder you may write to, with run.dir=…",
        errno.EPERM: "choose a folder you may write to, with run.dir=…",
        errno.EROFS: "choose a folder that is not read-only, with run.dir=…",
        errno.ENOTDIR: "a part of the path is a file; choose another, with run.dir=…",
        errno.EEXIST: "a part of the path is a file; choose another, with run.dir=…",
    }.get(error.errno or 0, "choose another folder with run.dir=…")
    return f"cannot write {path}: {error.strerror or error}; {cure}"


def _write_all(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flush_folder(folder: Path) -> None:
    # makes the rename itself survive a power cut; not every system can open a folder
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
