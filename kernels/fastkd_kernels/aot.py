"""Compile every Triton kernel for GPUs that are not here, and say what each needs: registers, shared memory, spills, bytes, seconds.

What a kernel is compiled for comes from ``KERNELS`` in the ``cases.py`` of its folder. Pointers count as 16-byte aligned, as torch's are.
It exits with 1 if a kernel does not compile or spills without a reason, and with 2 if it cannot begin.

Example::

    python -m fastkd_kernels.aot --targets sm_90 gfx942 --only segment --json aot.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .registry import AotKernel, all_kernels

TARGETS: tuple[str, ...] = ("sm_80", "sm_90", "sm_100", "gfx942")

_CUDA_TARGET = re.compile(r"sm_(\d+)")
_HIP_TARGET = re.compile(r"gfx[0-9a-f]+")
_REGISTER_BYTES = 4


class CompilerError(Exception):
    """The machine or the command line does not allow ahead-of-time compilation; the message says how to mend it."""


@dataclass(frozen=True)
class Usage:
    """What the compiled kernel asks of the device."""

    registers: int  #: per thread
    shared: int  #: bytes per program
    spills: int  #: bytes per thread that go to memory for want of registers


@dataclass(frozen=True)
class Result:
    """One kernel on one target. Where it did not compile, ``error`` says why and the numbers are 0."""

    kernel: str
    target: str
    registers: int = 0
    shared: int = 0  #: bytes per program
    spills: int = 0  #: bytes per thread
    binary: int = 0  #: bytes
    seconds: float = 0.0
    error: str = ""
    spill_reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether this fails the run: no binary, or spills that nobody has accounted for."""
        return bool(self.error) or (self.spills > 0 and not self.spill_reason)


def gpu_target(name: str) -> Any:
    """Triton's `GPUTarget` for a name such as ``sm_90`` or ``gfx942``.

    Raises:
        CompilerError: if the name is of no known form.
    """
    from triton.backends.compiler import GPUTarget

    if match := _CUDA_TARGET.fullmatch(name):
        return GPUTarget("cuda", int(match[1]), 32)
    if _HIP_TARGET.fullmatch(name):
        # wavefronts have 64 lanes on CDNA (gfx9…), 32 on RDNA
        return GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
    raise CompilerError(f"unknown target {name!r}; name it like {', '.join(TARGETS)}")


def require_compiler() -> None:
    """Make sure that Triton is there and compiles.

    Raises:
        CompilerError: if it is missing, or only interprets.
    """
    if importlib.util.find_spec("triton") is None:
        raise CompilerError("triton is not installed; on Linux: pip install 'fastkd-kernels[gpu]'")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise CompilerError("TRITON_INTERPRET is set, so Triton would interpret and not compile; unset it and run again")


@contextmanager
def cache_directory(path: Path | None) -> Iterator[Path]:
    """Let Triton keep its files in ``path``, or in a temporary folder that goes afterwards."""
    import triton

    with tempfile.TemporaryDirectory(prefix="fastkd-aot-") as temporary, triton.knobs.cache.scope():
        folder = path or Path(temporary)
        triton.knobs.cache.dir = str(folder)
        yield folder


def compile_kernel(kernel: AotKernel, target: str) -> Result:
    """Compile one specialisation for one target; an error of the compiler is a result, not an exception.

    Raises:
        CompilerError: if the target is unknown.
    """
    import triton

    gpu = gpu_target(target)
    start = time.perf_counter()
    try:
        compiled = triton.compile(source(kernel), target=gpu, options={"num_warps": kernel.num_warps, **kernel.options})
        binary = compiled.asm["cubin" if gpu.backend == "cuda" else "hsaco"]
        usage = cuda_usage(compiled) if gpu.backend == "cuda" else amd_usage(compiled.asm["amdgcn"])
    except Exception as error:  # noqa: BLE001, RUF100 - compilers raise whatever they like
        return Result(kernel.name, target, seconds=time.perf_counter() - start, error=f"{type(error).__name__}: {error}".strip())
    seconds = time.perf_counter() - start
    return Result(kernel.name, target, **asdict(usage), binary=len(binary), seconds=seconds, spill_reason=kernel.spill_reason)


def source(kernel: AotKernel) -> Any:
    """Triton's source of a specialisation. A type may end in ``:16`` for a number that is a multiple of 16; pointers need not say so.

    Raises:
        ValueError: if signature and constants do not name each argument of the kernel once.
    """
    from triton.compiler import ASTSource

    function = kernel.load()
    given = [*kernel.signature, *kernel.constants]
    if sorted(given) != sorted(function.arg_names):
        raise ValueError(
            f"{kernel.name}: the kernel takes {', '.join(function.arg_names)}; signature and constants name {', '.join(given)}"
        )
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(function.arg_names):
        kind, _, multiple = kernel.signature.get(name, "constexpr").partition(":")
        signature[name] = kind
        if kind.startswith("*") or multiple:
            attributes[(position,)] = [["tt.divisibility", int(multiple or 16)]]
    return ASTSource(function, signature, kernel.constants, attributes)


def cuda_usage(compiled: Any) -> Usage:
    """Registers and stack from the binary by ``cuobjdump``; where there is a stack, the spills in it from ``ptxas``."""
    import triton

    with tempfile.TemporaryDirectory(prefix="fastkd-aot-") as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        registers, stack = parse_cuobjdump(_run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)))
        spills = 0
        if stack:
            ptx = Path(folder, "kernel.ptx")
            ptx.write_text(compiled.asm["ptx"])
            arch = re.search(r"^\.target\s+(\w+)", compiled.asm["ptx"], re.MULTILINE)
            if arch is None:
                raise ValueError("the PTX does not name its target")
            blackwell = compiled.metadata.target.arch >= 100
            ptxas = triton.knobs.nvidia.ptxas_blackwell if blackwell else triton.knobs.nvidia.ptxas
            spills = parse_ptxas(_run(ptxas.path, "-v", f"--gpu-name={arch[1]}", str(ptx), "-o", str(Path(folder, "again.cubin"))))
    return Usage(registers, int(compiled.metadata.shared), spills)


def parse_cuobjdump(text: str) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, a thread, from ``cuobjdump -res-usage``."""
    return _number(r"\bREG:(\d+)", text), _number(r"\bSTACK:(\d+)", text) + _number(r"\bLOCAL:(\d+)", text)


def parse_ptxas(text: str) -> int:
    """Bytes of spill stores and loads a thread from ``ptxas -v``."""
    return _number(r"(\d+) bytes spill stores", text) + _number(r"(\d+) bytes spill loads", text)


def amd_usage(amdgcn: str) -> Usage:
    """What the metadata at the end of AMD assembly says. A spilled scalar register counts like a vector register, four bytes."""
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", amdgcn) + _number(r"\.sgpr_spill_count:\s*(\d+)", amdgcn)
    shared = _number(r"\.group_segment_fixed_size:\s*(\d+)", amdgcn)
    return Usage(_number(r"\.vgpr_count:\s*(\d+)", amdgcn), shared, _REGISTER_BYTES * spilled)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's report has nothing like {pattern!r}; its beginning: {text[:200]!r}")
    return int(match[1])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    # ptxas reports on the error stream
    return done.stdout + done.stderr


def compile_all(
    kernels: Iterable[AotKernel], targets: Sequence[str], report: Callable[[Result], None] = lambda result: None, jobs: int = 1
) -> list[Result]:
    """Each kernel for each target; ``report`` sees each result as it comes, in order, from ``jobs`` processes."""
    tasks = [(kernel, target) for kernel in kernels for target in targets]
    results = []
    with _pool(tasks, jobs) as results_in_order:
        for result in results_in_order:
            results.append(result)
            report(result)
    return results


#: What forked processes find: kernels hold functions, which cannot be sent.
_TASKS: list[tuple[AotKernel, str]] = []


def _compile_task(number: int) -> Result:
    return compile_kernel(*_TASKS[number])


@contextmanager
def _pool(tasks: list[tuple[AotKernel, str]], jobs: int) -> Iterator[Iterator[Result]]:
    """Results of the tasks in their order."""
    if jobs == 1 or len(tasks) < 2 * jobs:
        yield (compile_kernel(*task) for task in tasks)
        return
    _TASKS[:] = tasks
    try:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
            yield pool.map(_compile_task, range(len(tasks)))
    except BrokenProcessPool:
        raise CompilerError(
            "a compiling process died, for want of memory perhaps; run again with --jobs 1 to see at which kernel"
        ) from None
    finally:
        _TASKS.clear()


def summary(results: Sequence[Result]) -> str:
    """One line on how it went."""
    failed = sum(bool(result.error) for result in results)
    spilling = [result for result in results if result.spills]
    open_spills = sum(result.failed for result in spilling)
    seconds = sum(result.seconds for result in results)
    return (
        f"{len(results)} compilations of {seconds:.0f} s in all: {failed} failed, {len(spilling)} with spills, "
        f"{open_spills} of these without a stated reason"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastkd_kernels.aot", description="Compile every Triton kernel for GPUs that need not be present."
    )
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="NAME", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument("--only", metavar="NAME", help="kernels whose name contains this")
    parser.add_argument("--jobs", type=_positive, default=_cores(), metavar="N", help="processes (default: one a core, %(default)s here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="keep Triton's cache there (default: a temporary folder)")
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _print_row(width: int, result: Result) -> None:
    numbers = f"{result.registers:>9}{result.shared:>9}{result.spills:>8}{result.binary:>9}" if not result.error else f"{'failed':>35}"
    print(f"{result.kernel:<{width}}  {result.target:<7}{numbers}{result.seconds:>9.2f}", flush=True)
    if result.error:
        print(f"    {result.error}", flush=True)
    elif result.spills:
        print(f"    spills: {result.spill_reason or 'no reason stated'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        require_compiler()
        for target in arguments.targets:
            gpu_target(target)
        kernels = [kernel for kernel in all_kernels() if not arguments.only or arguments.only in kernel.name]
        if not kernels:
            raise CompilerError(f"no kernel's name contains {arguments.only!r}")
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import triton

    width = max(len(kernel.name) for kernel in kernels)
    print(f"triton {triton.__version__}; shared memory and binary in bytes, spills in bytes a thread")
    print(f"{'kernel':<{width}}  {'target':<7}{'registers':>9}{'shared':>9}{'spills':>8}{'binary':>9}{'seconds':>9}")
    try:
        with cache_directory(arguments.cache_dir):
            results = compile_all(kernels, arguments.targets, lambda result: _print_row(width, result), arguments.jobs)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(results))
    if arguments.json is not None:
        content = {"triton": triton.__version__, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
