"""``python -m fastkd COMMAND``: the same as ``fastkd COMMAND``."""

from __future__ import annotations

import sys

from fastkd.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m fastkd"))
