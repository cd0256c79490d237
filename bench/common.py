"""What every benchmark shares: interleaved timing, and what a result must say about where it came from.

Speeds are ratios of medians measured side by side: providers take turns within one process, so that a change of the machine's
mood hits all of them alike.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "fastkd",
    "fastkd-kernels",
    "torch",
    "triton",
    "numba",
    "numpy",
    "torch-geometric",
    "schnetpack",
    "torch-scatter",
    "pyg-lib",
    "cuequivariance-torch",
)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, and the 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        ordered = sorted(seconds)
        return cls(statistics.median(ordered), ordered[len(ordered) // 5], ordered[(4 * len(ordered)) // 5])

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ms ({self.low * 1e3:.2f} to {self.high * 1e3:.2f})"


def interleaved(
    providers: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 3, synchronize: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time each provider ``repeats`` times, in turns A B A B …, after ``warmup`` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(warmup + repeats):
            for name, call in providers.items():
                synchronize()
                start = time.perf_counter()
                call()
                synchronize()
                if repeat >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in seconds.items()}


def provenance(seed: int, device: torch.device | None = None) -> dict[str, Any]:
    """Device, versions, commit and seed of a result; without a device, that of the GPU if there is one."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": COMMIT,
        "seed": seed,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """The processor's own name for itself, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit of this checkout, with '+' if files differ from it; 'unknown' outside a checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


#: Of the code that runs, which was read when it was imported: a checkout may move on under a long benchmark.
COMMIT = commit()


def write_json(
    path: Path | None, name: str, rows: list[dict[str, Any]], seed: int, *, device: torch.device | None = None, **more: Any
) -> None:
    """Write ``{"benchmark", "provenance", "rows"}`` and ``more``; nothing without a path. Timings become plain numbers (seconds)."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{key: asdict(value) if isinstance(value, Timing) else value for key, value in row.items()} for row in rows]
    document = {"benchmark": name, "provenance": provenance(seed, device), **more, "rows": plain}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
