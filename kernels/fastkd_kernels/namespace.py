"""The namespace in `torch.ops` of this copy's operators; no two copies of the package in one process may share one.

The installed package registers ``fastkd::…``. A copy inside of another package, ``theirs.vendored.fastkd_kernels``, has another import name,
so it registers ``theirs_vendored_fastkd_kernels::…``. A copy built for a kernel hub has a module ``_ops`` that names its namespace.
"""

from __future__ import annotations

import importlib
import importlib.util

#: Import name of the package as it is installed, and its namespace.
INSTALLED = {"fastkd_kernels": "fastkd"}


def namespace_of(package: str) -> str:
    """The namespace of the copy that is imported as ``package``."""
    if importlib.util.find_spec(f"{package}._ops") is not None:
        prefixed: str = importlib.import_module(f"{package}._ops").add_op_namespace_prefix("")
        return prefixed.removesuffix("::")
    return INSTALLED.get(package, package.replace(".", "_"))


NAMESPACE = namespace_of(__package__ or __name__.rpartition(".")[0])
