"""Run pytorch_scatter's own tests against our drop-in for it, `fastkd_kernels.compat.torch_scatter`.

    git clone https://github.com/rusty1s/pytorch_scatter            # anywhere; nothing of it is built or installed
    python scripts/pytorch_scatter_suite.py pytorch_scatter         # its folder test/, on this device
    python scripts/pytorch_scatter_suite.py pytorch_scatter -- -k csr -x

The drop-in is installed by a pytest plugin (this file, handed over with ``-p``) before the tests are collected. From the checkout come the tests and
``torch_scatter/testing.py``, a list of dtypes and devices that they import; its package itself is never imported. Exits with pytest's status,
which is not 0 if a test failed or none was found.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

CLONE = "git clone https://github.com/rusty1s/pytorch_scatter"
CHECKOUT = "PYTORCH_SCATTER_CHECKOUT"
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_configure() -> None:
    """In the plugin: from here on, ``import torch_scatter`` is ours."""
    from fastkd_kernels.compat import torch_scatter

    module = torch_scatter.install()
    path = Path(os.environ[CHECKOUT]) / "torch_scatter" / "testing.py"
    spec = importlib.util.spec_from_file_location("torch_scatter.testing", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    testing = importlib.util.module_from_spec(spec)
    sys.modules["torch_scatter.testing"] = testing
    spec.loader.exec_module(testing)
    print(f"torch_scatter {module.__version__} from {module.__file__}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """In the plugin: counts for each file of tests, and the reason of each skip."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    reasons: collections.Counter[str] = collections.Counter()
    for outcome in OUTCOMES:
        for report in terminalreporter.getreports(outcome):
            counts[report.nodeid.split("::")[0]][outcome] += 1
            if outcome == "skipped":
                reasons[str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)] += 1
    terminalreporter.section("counts")
    for name, counter in (*sorted(counts.items()), ("all", sum(counts.values(), collections.Counter()))):
        terminalreporter.line(f"{name}: " + ", ".join(f"{counter[outcome]} {outcome}" for outcome in OUTCOMES if counter[outcome]))
    for reason, number in reasons.items():
        terminalreporter.line(f"{number} skipped: {reason}")


def main() -> int:
    """Run the suite in this process."""
    import pytest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help=f"folder of a checkout of pytorch_scatter, made by: {CLONE}")
    parser.add_argument("pytest_arguments", nargs="*", help="handed to pytest, after --")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    tests = checkout / "test"
    if not tests.is_dir() or not (checkout / "torch_scatter" / "testing.py").is_file():
        print(f"{checkout} is no checkout of pytorch_scatter: test/ or torch_scatter/testing.py is missing", file=sys.stderr)
        print(f"get one with: {CLONE}", file=sys.stderr)
        return 2
    os.environ[CHECKOUT] = str(checkout)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # importlib: tests of equal names in two folders, and no sys.path entry through which the checkout's own package could be found
    own = ["-p", Path(__file__).stem, "--import-mode=importlib", f"--rootdir={tests}", "-p", "no:cacheprovider", "-p", "no:warnings"]
    return int(pytest.main([*own, "-c", os.devnull, "-q", str(tests), *arguments.pytest_arguments]))


if __name__ == "__main__":
    sys.exit(main())
