"""The package leaves this repository in three ways: as a wheel, as a copy in somebody's package, as a repository of a kernel hub.

Each must work with torch alone, and any number of them side by side in one process.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest

from .test_package import BLOCK, RUN_ALL

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "kernels" / "fastkd_kernels"

LOAD = """
import importlib, importlib.util, json, sys
from pathlib import Path

def load(variant):
    "As the hub's loader does: under the name in the metadata, from a path."
    name = json.loads((Path(variant) / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, Path(variant) / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""

THREE_ORDERS = """
import torch

def orders(kernels, **options):
    generator = torch.Generator().manual_seed(0)
    graph = kernels.CSRGraph.from_edges(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), num_nodes=3)
    x, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64).requires_grad_() for n in (3, 4))
    value = kernels.cfconv(x, weight, graph, **options)
    first = torch.autograd.grad(value.square().sum(), (x, weight), create_graph=True)
    return [value, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))]

def namespaces():
    return {name.split("::")[0] for name in torch._C._dispatch_get_all_op_names() if "::cfconv." in name or name.endswith("::cfconv")}
"""


def script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_hub = script("make_hub")


def run(source: str, *arguments: object, path: Path | None = None, **environment: str) -> str:
    """Output of a program in a process of its own; ``path`` comes first in its ``sys.path``."""
    env = os.environ | environment
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(path), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The repository of two versions."""
    made = [tmp_path_factory.mktemp("hub") for _ in range(2)]
    for out, unique in zip(made, ("1a2b3c4", "5d6e7f8"), strict=True):
        make_hub.make(out, repo_id="somebody/fastkd-kernels", variants=("cuda", "cpu"), unique=unique)
    return made


def test_the_package_imports_itself_relatively() -> None:
    # an absolute import would reach the installed package from a copy
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not any(name.split(".")[0].startswith("fastkd") for name in names), file


def test_two_versions_from_a_hub_beside_the_installed_package(hubs: list[Path]) -> None:
    source = """
import fastkd_kernels
copies = [fastkd_kernels, *map(load, sys.argv[1:])]
results = [orders(copy, backend="reference") for copy in copies]
for result in results[1:]:
    assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
assert len({copy.backends.NAMESPACE for copy in copies}) == 3
assert namespaces() == {copy.backends.NAMESPACE for copy in copies}, namespaces()
for copy in copies[1:]:
    assert copy.backends.resolve(None, torch.zeros(1)) == "reference"
    try:
        orders(copy, backend="numba")
    except ValueError as error:
        assert "this copy of the kernels is built without it" in str(error)
    else:
        raise AssertionError("numba is not in this copy")
# classes are those of each copy, and a graph of one is a graph for the other: both are plain tensors
assert copies[1].CSRGraph is not copies[2].CSRGraph
print(*sorted(namespaces()))
"""
    printed = run(LOAD + THREE_ORDERS + source, *(hub / "build/torch-cpu" for hub in hubs)).split()
    assert printed == ["_fastkd_kernels_cpu_1a2b3c4", "_fastkd_kernels_cpu_5d6e7f8", "fastkd"]


def test_every_operator_of_a_hub_copy_runs(hubs: list[Path]) -> None:
    # numba is installed here, and must not be missed
    source = "copy = load(sys.argv[1])\n" + RUN_ALL.replace("import fastkd_kernels\n", "").replace(
        "from fastkd_kernels import backends\nfrom fastkd_kernels.registry import",
        "backends = copy.backends\nregistry = importlib.import_module(copy.__name__ + '.registry')\nShape, all_cases = registry.Shape, registry.all_cases\n#",
    ).replace('and not backends.installed("triton")', "").replace('and "triton" not in sys.modules', "")
    assert int(run(LOAD + source, hubs[0] / "build/torch-cpu").split()[-1]) > 10


@pytest.mark.triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter only")
def test_the_triton_kernels_of_a_hub_copy(hubs: list[Path]) -> None:
    source = """
copy = load(sys.argv[1])
for ours, exact in zip(orders(copy, backend="triton"), orders(copy, backend="reference"), strict=True):
    torch.testing.assert_close(ours, exact)
"""
    run(LOAD + THREE_ORDERS + source, hubs[0] / "build/torch-cuda")


def test_the_card_tells_the_truth(hubs: list[Path]) -> None:
    card = (hubs[0] / "README.md").read_text(encoding="utf-8")
    _, front, _ = card.split("---\n", 2)
    assert {"library_name: kernels", "license: mit", "- kernel"} <= set(front.splitlines())
    (example,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    stub = "import types\nsys.modules['kernels'] = types.SimpleNamespace(get_kernel=lambda *a, **k: load(sys.argv[1]))\n"
    run(LOAD + stub + example + "\nassert weight.grad.isfinite().all()", hubs[0] / "build/torch-cpu")


def test_layout_of_a_hub_repository(hubs: list[Path]) -> None:
    hub = hubs[0]
    build = tomllib.loads((hub / "build.toml").read_text(encoding="utf-8"))
    assert build["general"]["name"].replace("-", "_") == "fastkd_kernels"
    assert build["general"]["backends"] == ["cuda", "cpu"]
    assert "torch-noarch" in build
    assert (hub / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (hub / "torch-ext/fastkd_kernels/cfconv/op.py").exists()
    # the builder writes this one
    assert not (hub / "torch-ext/fastkd_kernels/_ops.py").exists()
    for backend in ("cuda", "cpu"):
        variant = hub / f"build/torch-{backend}"
        metadata = json.loads((variant / "metadata.json").read_text(encoding="utf-8"))
        assert metadata["id"] == f"_fastkd_kernels_{backend}_1a2b3c4"
        assert metadata["backend"] == {"type": backend}
        files = {path.relative_to(variant).as_posix(): path for path in variant.rglob("*") if path.is_file()}
        files.pop("metadata.json")
        digest = {name: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for name, path in files.items()}
        assert metadata["digest"] == {"algorithm": "sha256", "files": digest}
        assert not any("numba_" in name or name.startswith("cpu") for name in files)
        # older loaders look for a package of this name in the variant; it is the same module, not registered twice
        assert "fastkd_kernels/__init__.py" in files
    assert (hub / "build/torch-cpu/cfconv/README.md").exists()


def test_older_loaders_find_the_package_inside(hubs: list[Path]) -> None:
    source = """
spec = importlib.util.spec_from_file_location("some_name_of_the_loader", Path(sys.argv[1]) / "fastkd_kernels/__init__.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
orders(module)
assert namespaces() == {"_fastkd_kernels_cpu_1a2b3c4"}, namespaces()
assert "CSRGraph" in module.__all__
"""
    run(LOAD + THREE_ORDERS + source, hubs[0] / "build/torch-cpu")


def test_the_unique_name_follows_from_the_contents(tmp_path: Path) -> None:
    files = make_hub.sources()
    unique = make_hub.unique_id(files)
    assert re.fullmatch("[0-9a-f]{7}", unique)
    assert make_hub.unique_id(files) == unique
    assert make_hub.unique_id(files | {"graph.py": b"other"}) != unique
    (tmp_path / "mine.txt").write_text("not ours", encoding="utf-8")
    with pytest.raises(SystemExit, match="neither empty nor a kernel repository"):
        make_hub.make(tmp_path, repo_id="a/b", variants=("cpu",), unique=None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_copy_inside_of_another_package(tmp_path: Path) -> None:
    vendored = tmp_path / "theirs" / "vendored"
    shutil.copytree(SOURCE, vendored / "fastkd_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (vendored, vendored.parent):
        (folder / "__init__.py").touch()
    source = """
import fastkd_kernels
from theirs.vendored import fastkd_kernels as copy
assert copy.backends.NAMESPACE == "theirs_vendored_fastkd_kernels"
for ours, exact in zip(orders(copy, backend="reference"), orders(fastkd_kernels, backend="reference"), strict=True):
    assert torch.equal(ours, exact)
assert namespaces() == {"fastkd", "theirs_vendored_fastkd_kernels"}, namespaces()
assert all(module.startswith("theirs.") for module in (copy.cfconv.__module__, copy.CSRGraph.__module__))
"""
    run(THREE_ORDERS + source, path=tmp_path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel of ``./kernels``, built from a copy so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    build = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder / "wheel"),
        "./kernels",
    ]
    done = subprocess.run([sys.executable, *build], capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_folder_with_its_readme(site: Path) -> None:
    def names(folder: Path) -> set[str]:
        kept = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".py", ".md", ".typed"))
        return {path.as_posix() for path in kept}

    assert names(site / "fastkd_kernels") == names(SOURCE)
    assert {"py.typed", "cfconv/README.md", "cfconv/op.py"} <= names(site / "fastkd_kernels")
    (metadata,) = site.glob("*.dist-info/METADATA")
    needs = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needs if "extra ==" not in line] == ["Requires-Dist: torch>=2.10"]


def test_the_wheel_works_with_torch_alone(site: Path) -> None:
    """Every module that is not a kernel's own imports, and every public function runs, where numba, triton and h5py cannot be imported."""
    block = BLOCK.replace('("numba", "triton")', '("numba", "triton", "h5py", "ase", "fastkd", "torch_geometric")')
    modules = """
import importlib, inspect, pkgutil
import fastkd_kernels
assert fastkd_kernels.__file__.startswith(sys.argv[1]), fastkd_kernels.__file__
found = [module.name for module in pkgutil.walk_packages(fastkd_kernels.__path__, "fastkd_kernels.")]
for name in found:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # kernels and their launchers
        assert error.name in ("numba", "triton"), name
        assert name.endswith((".cpu", ".cpu_math", "_launch")) or name.rpartition(".")[2].startswith(("numba_", "triton_")), name
called = set()
sys.setprofile(lambda frame, event, argument: called.add(frame.f_code) if event == "call" else None)
"""
    # what no case calls
    radial = """
from fastkd_kernels import *
basis, envelope = BasisSpec("gaussian", 8, 4.0), EnvelopeSpec("cosine", 4.0)
mlp = FilterMLP(torch.randn(6, 8), torch.randn(6), torch.randn(5, 6), torch.randn(5), "silu")
graph = CSRGraph.from_edges(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), 3)
assert cfconv_radial(torch.randn(3, 5), torch.tensor([1.0, 1.0, 2.0, 2.0]), basis, mlp, envelope, graph).shape == (3, 5)
linear = FilterLinear(torch.randn(15, 8), torch.randn(15))
edge_vector = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 2.0, 0], [0, -2.0, 0]])
for method in ("exact", "table"):
    message = painn_message_radial(torch.randn(3, 15), None, edge_vector, basis, linear, envelope, graph, method=method)
    assert message[1].shape == (3, 3, 5)
length, towards = edge_vector.norm(dim=1), edge_vector / edge_vector.norm(dim=1, keepdim=True)
message = painn_message_exact(torch.randn(3, 15), None, length, towards, basis, linear, envelope, graph)
assert message[1].shape == (3, 3, 5)
builder = TableBuilder(basis, envelope)
grid = builder.grid([mlp], torch.float32)
assert tabulate(basis, FilterLinear(torch.randn(5, 8), torch.randn(5)), envelope, grid).shape[1] == 5
sys.setprofile(None)
functions = {name: value for name in fastkd_kernels.__all__ if inspect.isfunction(value := getattr(fastkd_kernels, name))}
left_out = [name for name, value in functions.items() if value.__code__ not in called]
assert not left_out, left_out
"""
    assert "ran" in run(block + modules + RUN_ALL + radial, site, path=site)
