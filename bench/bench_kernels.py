"""Every op of fastkd_kernels against plain torch: forward, backward and twice backward, interleaved in one process.

    python -m bench.bench_kernels [--only cfconv painn] [--compile] [--threads 1 2] [--json FILE]

Speeds are printed for an op only if its three orders agree with float64 in the same command. Providers: the fastest backend of this
device, plain eager torch (the reference), and with ``--compile`` the reference through torch.compile (forward only: it has no
double backward).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastkd_kernels.registry import OpCase, Shape, all_cases
from fastkd_kernels.testing import errors, sample

from bench.common import Timing, interleaved, write_json

#: Nodes, edges, width: a batch of 32 ethanol molecules, one of 8 proteins of 166 atoms, a dense one.
SHAPES = (Shape(288, 2304, 128), Shape(1328, 43_000, 128), Shape(2000, 60_000, 128))
SMOKE_SHAPES = (Shape(72, 576, 32),)
MODES = ("forward", "backward", "double backward")


def provider(function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], mode: str) -> Callable[[], Any]:
    """One call that does the forward pass and, by mode, the gradient, and the gradient of its square."""

    def call() -> Any:
        if mode == "forward":
            with torch.no_grad():
                return function(*inputs)
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum(output.square().sum() for output in outputs)
        gradients = torch.autograd.grad(total, inputs, create_graph=mode == "double backward")
        if mode == "backward":
            return gradients
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)

    return call


def bench_case(
    case: OpCase, shape: Shape, mode: str, *, compile_reference: bool, repeats: int, device: torch.device, seed: int
) -> dict[str, Any]:
    """Time one op in one mode; the row of the table."""
    made = sample(case, shape, torch.float32, seed, device)
    providers = {
        "ours": provider(lambda *x: case.function(*x, *made.extra), made.inputs, mode),
        "eager": provider(lambda *x: case.reference(*x, *made.extra), made.inputs, mode),
    }
    if compile_reference and mode == "forward":
        compiled = torch.compile(lambda *x: case.reference(*x, *made.extra), dynamic=True)
        providers["compiled"] = provider(compiled, made.inputs, mode)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timings = interleaved(providers, repeats=repeats, synchronize=synchronize)
    return {"op": case.name, "shape": str(shape), "mode": mode, "threads": torch.get_num_threads(), **timings}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ops whose name has one of these in it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the reference")
    parser.add_argument("--smoke", action="store_true", help="one small shape: shows that the benchmark runs, says nothing about speed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device, rows, failed = torch.device(args.device), [], []
    cases = [case for case in all_cases() if not args.only or any(part in case.name for part in args.only)]
    print(f"{'op':<26}{'shape':<20}{'mode':<17}{'threads':<9}{'ours':<32}{'eager':<32}speed-up")
    for case in cases:
        gate = errors(case, Shape(20, 160, 64), torch.float32, None, seed=args.seed, device=device)
        if not gate.ok:
            failed.append(case.name)
            print(f"{case.name:<26}no speed: its errors are too large ({gate})")
            continue
        for threads in args.threads:
            torch.set_num_threads(threads)
            for shape in SMOKE_SHAPES if args.smoke else SHAPES:
                for mode in MODES:
                    row = bench_case(case, shape, mode, compile_reference=args.compile, repeats=args.repeats, device=device, seed=args.seed)
                    rows.append(row)
                    print(_line(row), flush=True)
    write_json(args.json, "kernels", rows, args.seed)
    return 1 if failed or not rows else 0


def _line(row: dict[str, Any]) -> str:
    ours, eager = row["ours"], row["eager"]
    assert isinstance(ours, Timing)
    extra = f"  compiled {row['compiled']}, {row['compiled'].median / ours.median:.2f}×" if "compiled" in row else ""
    speed = f"{eager.median / ours.median:.2f}×{extra}"
    return f"{row['op']:<26}{row['shape']:<20}{row['mode']:<17}{row['threads']:<9}{ours!s:<32}{eager!s:<32}{speed}"


if __name__ == "__main__":
    sys.exit(main())
