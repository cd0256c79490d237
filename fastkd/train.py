"""``python -m fastkd.train [config.yaml] [a.b=c ...]``: a thin door to ``fastkd train``."""

from __future__ import annotations

import sys

from fastkd.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], program="python -m fastkd.train"))
