"""Write the Triton-only kernel repository that Hugging Face's `kernels` loads: sources, built variants, card and licence.

    python scripts/make_hub.py OUT [--repo-id NAME/fastkd-kernels] [--variants cuda rocm cpu] [--unique 1a2b3c4]

OUT gets the layout of `kernel-builder` (``build.toml``, ``flake.nix``, ``torch-ext/fastkd_kernels``), so that it can be built there, and the
built variants themselves (``build/torch-cuda`` and so on), which for pure Python are copies. The numba kernels stay behind: on a CPU
such a copy runs the plain torch reference. Each variant registers its operators under a name of its own, made of what it
contains, so that several versions, and the installed package, run side by side in one process.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fastkd_kernels"
SOURCE = ROOT / "kernels" / PACKAGE
#: What a copy can be built for; `universal` is what old versions of `kernels` look for.
VARIANTS = ("cuda", "rocm", "cpu", "universal")

OPS = '''"""The operators' namespace of this build; written by `scripts/make_hub.py`."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """``op_name`` with the namespace of this build before it."""
    return f"{id}::{{op_name}}"
'''

# versions of `kernels` that want a package inside of the variant import this; the operators must not be registered twice
COMPAT = '''"""The package one folder above, for versions of `kernels` that look for it here."""

import importlib.util
import sys
from pathlib import Path

_NAME = "{id}"
if _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).parent.parent / "__init__.py")
    sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_NAME])
globals().update({{name: value for name, value in vars(sys.modules[_NAME]).items() if not name.startswith("__") or name == "__all__"}})
'''

BUILD = """[general]
name = "{name}"
version = {version}
edition = 5
license = "mit"
backends = [{backends}]

[general.hub]
repo-id = "{repo_id}"

[torch-noarch]
pyext = ["md", "py", "typed"]
"""

FLAKE = """{
  description = "fastkd-kernels";

  inputs.kernel-builder.url = "github:huggingface/kernels";

  outputs =
    { self, kernel-builder }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""

CARD = """---
library_name: kernels
license: mit
tags:
- kernel
- triton
- chemistry
- graph-neural-networks
---

# fastkd-kernels

Message passing and distillation losses for molecular graph networks: fused Triton kernels, deterministic to the bit, differentiable to every
order (training on forces differentiates twice). Needs Python 3.11, torch 2.10 and Triton 3.5.

```python
import torch
from kernels import get_kernel

kernels = get_kernel("{repo_id}", version={version}, trust_remote_code=True)

edge_src, edge_dst = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1])
graph = kernels.CSRGraph.from_edges(edge_src, edge_dst, num_nodes=3)  # once a batch, for every layer
features, weight = torch.randn(3, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)
message = kernels.cfconv(features, weight, graph)
(gradient,) = torch.autograd.grad(message.square().sum(), features, create_graph=True)
gradient.square().sum().backward()
```

On a GPU the Triton kernels run. On a CPU **this build runs the plain torch reference**: the numba kernels for CPUs are in the package
`fastkd-kernels`, not here, and `backend="numba"` is an error. The operators of this build are registered as `{id}::…`, so that other
versions and the installed package can be used in the same process.

## Functions

{functions}

Each folder of the sources has a README with the mathematics: value, gradient, gradient of the gradient, and the least bytes to move.
"""


def sources() -> dict[str, bytes]:
    """Files of the package by relative path, without what needs numba."""
    found = {}
    for path in sorted(SOURCE.rglob("*")):
        name = path.relative_to(SOURCE).as_posix()
        if path.suffix in (".py", ".md", ".typed") and name not in ("cpu.py", "cpu_math.py") and not path.name.startswith("numba_"):
            found[name] = path.read_bytes()
    return found


def unique_id(files: dict[str, bytes]) -> str:
    """Seven hexadecimal digits that follow from the contents: other sources, another namespace."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:7]


def variant_files(files: dict[str, bytes], variant: str, unique: str, version: int) -> dict[str, bytes]:
    """Everything in ``build/torch-<variant>``."""
    identity = f"_{PACKAGE}_{unique}" if variant == "universal" else f"_{PACKAGE}_{variant}_{unique}"
    built = files | {"_ops.py": OPS.format(id=identity).encode(), f"{PACKAGE}/__init__.py": COMPAT.format(id=identity).encode()}
    metadata: dict[str, object] = {"name": PACKAGE.replace("_", "-"), "id": identity, "version": version, "license": "mit"}
    # there is no backend for all of them; what a universal variant says here is not compared with the machine
    metadata |= {"python-depends": [], "backend": {"type": "cuda" if variant == "universal" else variant}}
    hashes = {name: base64.b64encode(hashlib.sha256(built[name]).digest()).decode() for name in sorted(built)}
    metadata["digest"] = {"algorithm": "sha256", "files": hashes}
    return built | {"metadata.json": (json.dumps(metadata, indent=1) + "\n").encode()}


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write each file below ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def public_functions() -> list[str]:
    """Names in ``__all__`` of the package, read and not imported."""
    text = (SOURCE / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'"(\w+)"', text[text.index("__all__ = [") : text.index("]", text.index("__all__ = ["))])


def make(out: Path, *, repo_id: str, variants: Sequence[str], unique: str | None) -> str:
    """Write the repository to ``out``, which must be empty or one written before; returns the unique part of its names."""
    if out.exists() and any(out.iterdir()) and not (out / "build.toml").exists():
        raise SystemExit(f"make_hub: {out} is neither empty nor a kernel repository: nothing was written")
    for folder in ("build", "torch-ext"):
        shutil.rmtree(out / folder, ignore_errors=True)
    files = sources()
    unique = unique or unique_id(files)
    version_text = re.search(r'__version__ = "(\d+)', files["__init__.py"].decode())
    version = int(version_text.group(1)) if version_text else 0
    built = [name for name in variants if name != "universal"]
    fields = {
        "name": PACKAGE.replace("_", "-"),
        "repo_id": repo_id,
        "version": version,
        "backends": ", ".join(f'"{name}"' for name in built or VARIANTS[:3]),
        "functions": ", ".join(f"`{name}`" for name in public_functions()),
        "id": f"_{PACKAGE}_<backend>_{unique}",
    }
    top = {"build.toml": BUILD.format(**fields), "flake.nix": FLAKE, "README.md": CARD.format(**fields)}
    write({name: text.encode() for name, text in top.items()} | {"LICENSE": (ROOT / "LICENSE").read_bytes()}, out)
    write(files, out / "torch-ext" / PACKAGE)
    for variant in variants:
        write(variant_files(files, variant, unique, version), out / "build" / f"torch-{variant}")
    return unique


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--repo-id", default="fastkd/fastkd-kernels", help="where it will be published, for the card")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:3])
    parser.add_argument("--unique", help="part of the operators' namespace; follows from the contents if not given")
    args = parser.parse_args(arguments)
    if args.unique and not re.fullmatch(r"[0-9A-Za-z]+", args.unique):
        parser.error(f"--unique takes letters and digits, got {args.unique!r}")
    unique = make(args.out, repo_id=args.repo_id, variants=args.variants, unique=args.unique)
    print(f"{args.out}: {', '.join(f'torch-{name}' for name in args.variants)}, unique name {unique}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
