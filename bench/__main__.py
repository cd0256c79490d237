"""``python -m bench``: every benchmark of this folder, one after another, each in a process of its own.

Results go to ``runs/bench/*.json`` (``--out``). A benchmark checks its results against its peers before it prints a speed. On a GPU
machine, ``python -m bench.gpu --out DIR`` runs the GPU tests and the checks as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = {
    "kernels": ("bench.kernels", "every op in three modes against plain torch, torch.compile and its peers"),
    "models": ("bench.models", "every model against its public implementation: forces, and a training step"),
    "step": ("bench.step", "what a step of distillation costs, against the student's own and against generic operators"),
    "schnet_pyg": ("bench.bench_schnet_pyg", "a SchNet training step against torch_geometric's SchNet"),
    "painn_schnetpack": ("bench.bench_painn_schnetpack", "a PaiNN training step against schnetpack's PaiNN"),
    "patches": ("bench.bench_patches", "a training step of other packages' models, plain and patched"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = "; ".join(f"{name}: {text}" for name, (_, text) in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help=help_text)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.names or BENCHMARKS:
        module, text = BENCHMARKS[name]
        print(f"== {name}: {text}", flush=True)
        command = [sys.executable, "-m", module, "--json", str(args.out / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
