"""What produced a run: versions, commit, command, hardware. No names of people or machines, no absolute paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("fastkd", "fastkd-kernels", "torch", "triton", "numba", "numpy", "h5py", "ase", "vesin", "pydantic", "safetensors")
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "FASTKD_BACKEND", "TRITON_INTERPRET")


def describe_environment(command: list[str] | None = None) -> dict[str, Any]:
    """Versions, commit, command and hardware, ready for JSON."""
    arguments = sys.argv if command is None else command
    return {
        "command": [Path(arguments[0]).name, *arguments[1:]] if arguments else [],
        "versions": {"python": platform.python_version()} | {name: version for name in _PACKAGES if (version := _version(name))},
        "git": _commit(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any] | None:
    """Commit of the source tree this package runs from, and whether it has changes; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
