"""Every operator against its float64 reference on this device: value, gradient and gradient of the gradient, with the limits.

Each op of `registry.all_cases` runs on every backend that this device has, in every dtype, on several shapes; the worst of each is
printed. It exits with 1 if an error passes `tolerances.TOLERANCES` or is not finite, and with 2 if what was asked for cannot run.

Example::

    python -m fastkd_kernels.check --device cuda --only cfconv --json check.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .backends import BACKENDS, Backend
from .registry import OpCase, Shape, all_cases
from .testing import SHAPES, Errors, available_backends, dtype_name, errors
from .tolerances import TOLERANCES

DTYPES: dict[str, torch.dtype] = {dtype_name(dtype): dtype for dtype in TOLERANCES}

#: On a GPU also a batch of a usual size, where offsets, ragged tiles and many programs meet.
LARGE_SHAPES: tuple[Shape, ...] = (Shape(500, 12_000, 128), Shape(64, 3_000, 300))

#: Triton's interpreter runs each program in Python.
SMALL_SHAPES: tuple[Shape, ...] = (Shape(5, 0, 3), Shape(1, 3, 1), Shape(3, 40, 5), Shape(6, 31, 33))


class CannotCheckError(Exception):
    """What was asked for cannot run here; the message says how to mend it."""


@dataclass(frozen=True)
class Row:
    """The worst of all shapes for one op, backend and dtype; ``problem`` where it raised."""

    case: str
    backend: str
    dtype: str
    errors: tuple[float, float, float]
    limits: tuple[float, float, float]
    shape: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        within = all(math.isfinite(error) and error <= limit for error, limit in zip(self.errors, self.limits, strict=True))
        return within and not self.problem


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one.

    Raises:
        CannotCheckError: if the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CannotCheckError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device


def shapes_for(device: torch.device, backend: str) -> tuple[Shape, ...]:
    """Small ones in Triton's interpreter, larger ones as well on a GPU."""
    if device.type != "cpu":
        return SHAPES + LARGE_SHAPES
    return SMALL_SHAPES if backend == "triton" else SHAPES


def check_case(case: OpCase, backend: str, dtype: torch.dtype, device: torch.device, seed: int) -> Row:
    """One op on one backend in one dtype; an exception is a result, so that the other ops are still checked."""
    worst: Errors | None = None
    for shape in shapes_for(device, backend):
        try:
            found = errors(case, shape, dtype, backend, seed=seed, device=device)
        except Exception as error:  # noqa: BLE001, RUF100 - whatever a backend raises is what is to be reported
            problem = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return Row(case.name, backend, dtype_name(dtype), (math.nan,) * 3, TOLERANCES[dtype].by_order, str(shape), problem)
        if worst is None or _badness(found) > _badness(worst):
            worst = found
    assert worst is not None  # noqa: S101, RUF100 - there is at least one shape
    return Row(case.name, backend, dtype_name(dtype), worst.by_order, worst.limits, str(worst.shape))


def run(
    cases: Iterable[OpCase], backends: Sequence[Backend], dtypes: Sequence[torch.dtype], device: torch.device, seed: int
) -> Iterator[Row]:
    """Rows as they are found, in the order op, backend, dtype."""
    for case in cases:
        for backend in backends:
            for dtype in dtypes:
                if backend in available_backends(device, dtype):
                    yield check_case(case, backend, dtype, device, seed)


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
    for package in ("fastkd-kernels", "triton", "numba", "numpy"):
        present = package == "fastkd-kernels" or importlib.util.find_spec(package) is not None
        try:
            found[package] = metadata.version(package) if present else "not installed"
        except metadata.PackageNotFoundError:
            found[package] = "version unknown"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is returned."""
    options = _parser().parse_args(arguments)
    try:
        device = resolve_device(options.device)
        backends = _wanted_backends(options.backend, device)
        cases = _wanted_cases(options.only)
    except CannotCheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # this is a program of its own, and inputs are small: waking a second thread costs more than it saves
    start, about = time.perf_counter(), versions(device)
    print(", ".join(f"{name} {version}" for name, version in about.items()) + f", backends {' '.join(backends)}, seed {options.seed}")
    dtypes = [DTYPES[name] for name in options.dtype]
    # wide enough for the longest name, so that rows can be printed as they come
    width = max((len(case.name) for case in cases), default=4) + 2
    print(_line(width, "op", "backend", "dtype", "value", "gradient", "gradient of gradient", "", "worst shape"))
    rows = []
    for row in run(cases, backends, dtypes, device, options.seed):
        rows.append(row)
        cells = (f"{error:.1e} ≤ {limit:.0e}" for error, limit in zip(row.errors, row.limits, strict=True))
        print(_line(width, row.case, row.backend, row.dtype, *cells, "ok" if row.ok else "FAIL", row.shape, row.problem), flush=True)
    failed = [row for row in rows if not row.ok]
    print(
        f"{len(rows)} checks, {len(failed)} failed, {time.perf_counter() - start:.0f} s. Errors are ‖got − exact‖ / ‖exact‖, worst tensor."
    )
    if options.json:
        _write_json(options.json, about, options.seed, rows)
    return 1 if failed or not rows else 0


def _badness(found: Errors) -> float:
    """How near to its limit the worst order is; not a number counts as infinitely bad."""
    parts = [error / limit if math.isfinite(error) else math.inf for error, limit in zip(found.by_order, found.limits, strict=True)]
    return max(parts)


def _line(width: int, name: str, backend: str, dtype: str, *cells: str) -> str:
    *numbers, verdict, shape, problem = cells if len(cells) == 6 else (*cells, "")
    return f"{name:<{width}}{backend:<11}{dtype:<10}{''.join(f'{number:<22}' for number in numbers)}{verdict:<6}{shape}  {problem}".rstrip()


def _wanted_backends(names: Sequence[str] | None, device: torch.device) -> tuple[Backend, ...]:
    available = available_backends(device)
    for name in names or ():
        if name not in available:
            hint = "; set TRITON_INTERPRET=1 to run it in Triton's interpreter" if name == "triton" and device.type == "cpu" else ""
            raise CannotCheckError(f"backend {name!r} is not available on {device}, only {', '.join(available)}{hint}")
    return tuple(backend for backend in available if names is None or backend in names)


def _wanted_cases(fragments: Sequence[str] | None) -> list[OpCase]:
    cases = list(all_cases())
    chosen = [case for case in cases if fragments is None or any(fragment in case.name for fragment in fragments)]
    if not chosen:
        raise CannotCheckError(f"no op has {' or '.join(fragments or ())} in its name; there are {', '.join(case.name for case in cases)}")
    return chosen


def _write_json(path: Path, about: dict[str, str], seed: int, rows: Sequence[Row]) -> None:
    # JSON has no inf and nan, so they are written as strings
    def number(value: float) -> float | str:
        return value if math.isfinite(value) else str(value)

    found: list[dict[str, Any]] = [
        {**vars(row), "errors": [number(error) for error in row.errors], "limits": list(row.limits), "ok": row.ok} for row in rows
    ]
    document = {"versions": about, "seed": seed, "interpreter": os.environ.get("TRITON_INTERPRET") == "1", "checks": found}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastkd_kernels.check", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto, the GPU if there is one)")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, help="default: every one that this device has")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ops whose name has one of these in it")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
