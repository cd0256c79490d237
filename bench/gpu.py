"""``python -m bench.gpu --out DIR``: everything that needs a GPU, in one command of less than nine minutes.

The tests marked ``gpu``, ``python -m fastkd_kernels.check``, and the benchmarks, each op in a process of its own so that one that fails or
hangs does not take the others with it. Every part has a time limit; logs and JSON files are in DIR even if parts fail. The goals are printed
last. Exit code: 0 if every part ended well, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 520.0  #: seconds; a part starts only if time is left
MODELS = 110.0  #: seconds for whole models against their public implementations
STEPS = 90.0  #: seconds for what a step of distillation costs
GRACE = 8.0  #: seconds between asking a part to stop and ending it


@dataclass(frozen=True)
class Part:
    """One command, its log, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    needs: str = ""  #: a module without which the part is left out


def parts(out: Path, device: str, shares: tuple[float, float, float]) -> Iterator[Part]:
    """Tests, checks, benchmarks; the benchmarks share what is left."""
    python = sys.executable
    tests, checks, benchmarks = shares
    if files := gpu_tests():
        # a warning of another version of torch is no failure here
        options = ("-W", "default", "-v", "--tb=short", "--no-header", "-p", "no:cacheprovider", f"--junitxml={out / 'pytest.xml'}")
        yield Part("pytest", (python, "-m", "pytest", "-m", "gpu", *options, *files), tests, needs="pytest")
    yield Part("check", (python, "-m", "fastkd_kernels.check", "--device", device, "--json", str(out / "check.json")), checks)
    options = ("--device", device, "--seconds", "1", "--budget", f"{0.7 * MODELS:.0f}", "--json", str(out / "models.json"))
    yield Part("models", (python, "-m", "bench.models", *options), MODELS, needs="pytest")
    options = (
        "--device",
        device,
        "--seconds",
        "0.5",
        "--repeats",
        "21",
        "--budget",
        f"{0.8 * STEPS:.0f}",
        "--json",
        str(out / "step.json"),
    )
    yield Part("step", (python, "-m", "bench.step", *options), STEPS)
    from bench.kernels.cases import find_ops

    names = [op.name for op, case in find_ops() if case is not None]
    for number, name in enumerate(names):
        # the first ones are what the goals are about, and have several shapes and torch.compile to do
        limit = benchmarks * (0.25 if number < 2 else 0.12)
        options = ("--device", device, "--ops", name, "--seconds", "0.6", "--repeats", "31", "--budget", f"{0.7 * limit:.0f}")
        yield Part(f"bench-{name}", (python, "-m", "bench.kernels", *options, "--json", str(out / f"bench-{name}.json")), limit)


def gpu_tests() -> list[str]:
    """Test files that have the marker, so that others need not be importable here."""
    found = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    return [str(path.relative_to(ROOT)) for path in found]


def run_part(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run a part with its output in ``<name>.log``; stopped after ``seconds``."""
    start = time.monotonic()
    log = out / f"{part.name}.log"
    if part.needs and importlib.util.find_spec(part.needs) is None:
        log.write_text(f"left out: {part.needs} is not installed\n", encoding="utf-8")
        return {"name": part.name, "rc": None, "seconds": 0.0, "note": f"{part.needs} is not installed"}
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [environment.get("PYTHONPATH")])])
    environment["PYTHONUNBUFFERED"] = "1"
    with log.open("w", encoding="utf-8") as stream:
        # a session of its own, so that compilers that it started are stopped with it
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, text=True
        )
        note = ""
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            note = f"stopped after {seconds:.0f} s"
            _stop(process)
    return {"name": part.name, "rc": process.returncode, "seconds": round(time.monotonic() - start, 1), "note": note}


def _stop(process: subprocess.Popen[str]) -> None:
    # pytest writes its summary when it is interrupted
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
            return


def last_lines(log: Path, count: int = 6) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line[:180]}" for line in lines)


def collect(out: Path, names: str) -> list[dict[str, Any]]:
    """Rows of all benchmarks in files of these names, also of those that were stopped."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob(names)):
        with contextlib.suppress(ValueError):
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of logs and JSON files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--total", type=float, default=TOTAL, help=f"seconds for everything (default: {TOTAL:.0f})")
    parser.add_argument("--limits", type=float, nargs=3, default=(170.0, 100.0, 250.0), metavar=("TESTS", "CHECKS", "BENCHMARKS"))
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts whose name has one of these in it")
    args = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT / "kernels")]
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    start, done = time.monotonic(), []
    for part in parts(out, args.device, tuple(args.limits)):
        if args.only and not any(name in part.name for name in args.only):
            continue
        left = args.total - (time.monotonic() - start) - GRACE
        if left < 5:
            result: dict[str, Any] = {"name": part.name, "rc": None, "seconds": 0.0, "note": "no time left"}
        else:
            result = run_part(part, out, min(part.limit, left))
        done.append(result)
        print(f"{result['name']:<28}exit {result['rc']!s:<6}{result['seconds']:>7.1f} s  {result['note']}", flush=True)
        if result["rc"] != 0 and (out / f"{part.name}.log").exists():
            print(last_lines(out / f"{part.name}.log"), flush=True)
        (out / "summary.json").write_text(json.dumps({"parts": done}, indent=1) + "\n", encoding="utf-8")
    from bench.kernels import goals
    from bench.models import goals as model_goals
    from bench.step import goals as step_goals

    rows, models, steps = collect(out, "bench-*.json"), collect(out, "models.json"), collect(out, "step.json")
    reports = [
        goals.report(rows) if rows else "",
        model_goals.report(models) if models else "",
        step_goals.report(steps) if steps else "",
    ]
    report = "\n".join(filter(None, reports))
    if report:
        print(report)
    summary = {"parts": done, "rows": len(rows) + len(models) + len(steps), "goals": report.splitlines()}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0 if done and all(result["rc"] == 0 for result in done) else 1


if __name__ == "__main__":
    sys.exit(main())
