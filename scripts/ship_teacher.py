"""Copy a finished teacher run into the package: weights, description, config, training log and test errors.

    python scripts/ship_teacher.py runs/teacher [--out fastkd/assets/teacher]

`make teacher` trains and then calls this. Refuses a run that is not finished, and weights over 5 MB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

#: File in the run folder → file in the package.
FILES = {
    "model.safetensors": "model.safetensors",
    "model.json": "model.json",
    "config.yaml": "config.yaml",
    "metrics.csv": "training_log.csv",
    "summary.json": "test_errors.json",
}
MAX_BYTES = 5_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("--out", type=Path, default=Path("fastkd/assets/teacher"))
    args = parser.parse_args()
    missing = [name for name in FILES if not (args.run / name).is_file()]
    if missing:
        print(f"{args.run} is not a finished run: it lacks {', '.join(missing)}. Finish it with run.resume=true.", file=sys.stderr)
        return 2
    size = (args.run / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        print(f"{args.run}/model.safetensors has {size:,} bytes, more than {MAX_BYTES:,}: train a smaller teacher.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for source, target in FILES.items():
        shutil.copyfile(args.run / source, args.out / target)
    print(f"shipped {args.run} as {args.out} ({size:,} bytes of weights)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
