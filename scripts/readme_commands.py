"""Run the README's commands: every ``console`` block, line by line, so that the README cannot go stale.

Lines that start with ``$ `` are commands; a block whose first line is ``# not run`` is shown only. Commands run with the project's own
environment first on the PATH, in a scratch folder's copy of nothing: they name their own outputs under ``runs/``.

    python scripts/readme_commands.py [README.md ...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of all console blocks of a Markdown text that are meant to run."""
    found = []
    for block in BLOCK.findall(text):
        lines = block.splitlines()
        if lines and lines[0].strip() == "# not run":
            continue
        found += [line[2:].strip() for line in lines if line.startswith("$ ")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "README.md"])
    args = parser.parse_args()
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    failed = 0
    for command in [command for file in args.files for command in commands(file.read_text(encoding="utf-8"))]:
        print(f"$ {command}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, shell=True, cwd=ROOT, env=environment, check=False).returncode
        print(f"  exit {code}, {time.perf_counter() - start:.1f} s", flush=True)
        failed += code != 0
    if failed:
        print(f"{failed} command(s) of the README failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
