"""The package imports and computes with torch alone, and says clearly which backend cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastkd_kernels
import pytest
import torch
from fastkd_kernels import backends
from fastkd_kernels.registry import OP_FOLDERS

# what a machine without the two packages looks like: not importable, and no spec to be found
BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("numba", "triton") else find_spec(name, package)
"""

RUN_ALL = """
import torch
import fastkd_kernels
from fastkd_kernels import backends
from fastkd_kernels.registry import Shape, all_cases

assert not backends.installed("numba") and not backends.installed("triton")
assert backends.resolve(None, torch.zeros(1)) == "reference"
for case in all_cases():
    sample = case.make(Shape(5, 12, 3), torch.float64, torch.Generator().manual_seed(0))
    inputs = [tensor.requires_grad_() for tensor in sample.inputs]
    outputs = case.function(*inputs, *sample.extra)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients), case.name
assert "numba" not in sys.modules and "triton" not in sys.modules
print("ran", len(list(all_cases())))
"""


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300, check=False)


def test_import_needs_torch_alone() -> None:
    done = run("import sys, fastkd_kernels; assert not {'numba', 'triton', 'fastkd', 'h5py', 'ase'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_every_operator_runs_where_numba_and_triton_are_missing() -> None:
    done = run(BLOCK + RUN_ALL)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0


COMPAT = """
import torch
import fastkd_kernels.compat
assert "fastkd_kernels.compat.torch_scatter" not in sys.modules
from fastkd_kernels.compat import patch, torch_scatter

assert torch_scatter.scatter(torch.ones(3), torch.tensor([0, 2, 2])).tolist() == [1, 0, 2]
try:
    patch(torch.nn.Linear(2, 2))
except ValueError as error:
    print(error)
assert not {"numba", "triton", "torch_geometric", "schnetpack", "fairchem"} & set(sys.modules)
"""


def test_compat_needs_torch_alone() -> None:
    done = run(BLOCK + COMPAT)
    assert done.returncode == 0, done.stderr
    assert "nothing to patch in Linear" in done.stdout


def test_compat_is_not_taken_for_an_operator() -> None:
    assert "compat" not in OP_FOLDERS


def test_a_missing_package_is_named() -> None:
    done = run(BLOCK + "import torch\nfrom fastkd_kernels import backends\nbackends.resolve('numba', torch.zeros(1))")
    assert done.returncode == 1
    assert "backend 'numba' was asked for, but the package 'numba' is not installed" in done.stderr


def test_functions_are_not_hidden_by_their_folders() -> None:
    # a folder and its function share a name; importing a module of the folder must not put the folder in the function's place
    for name in fastkd_kernels.__all__:
        assert callable(getattr(fastkd_kernels, name)), name


def test_argument_before_environment_before_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backends.resolve(None, tensor) == "numba"
    assert backends.resolve(None, tensor.bfloat16()) == "reference"
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    assert backends.resolve(None, tensor) == "reference"
    assert backends.resolve("numba", tensor) == "numba"
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "")
    assert backends.resolve(None, tensor) == "numba"


def test_backends_that_cannot_run_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="unknown backend 'cuda'; choose one of triton, numba, reference"):
        backends.resolve("cuda", torch.zeros(1))
    with pytest.raises(ValueError, match="runs float32 and float64 on a CPU"):
        backends.resolve("numba", torch.zeros(1, dtype=torch.bfloat16))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before the start"):
        backends.resolve("triton", torch.zeros(1))
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        fastkd_kernels.segment_reduce(torch.zeros(2), torch.tensor([0, 2]))


_CACHED = """
from fastkd_kernels.cpu import Kernel
from .helpers import factor{constant}

def _loop(out):
    for n in range(out.size):
        out[n] = factor(out[n]) * {name}

loop = Kernel(_loop)
"""
_HELPERS = """
import numba

AMOUNT = {amount}

@numba.njit
def factor(x):
    return {factor} * x
"""


def test_compiled_kernels_on_disk_follow_the_files_they_take_helpers_from(tmp_path):
    """numba's own cache sees changes of the kernel's file alone."""
    pytest.importorskip("numba")
    shutil.copytree(Path(fastkd_kernels.__file__).parent, tmp_path / "fastkd_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "fastkd_kernels" / "cached"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "numba_kernels.py").write_text(_CACHED.format(constant=", AMOUNT", name="AMOUNT"))
    program = "import numpy; from fastkd_kernels.cached.numba_kernels import loop; a = numpy.ones(1); loop(a, work=0); print(a[0])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for amount, factor in ((1.0, 2.0), (1.0, 3.0), (5.0, 3.0)):
        (package / "helpers.py").write_text(_HELPERS.format(amount=amount, factor=factor))
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        assert float(run.stdout) == amount * factor
