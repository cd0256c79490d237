"""Which modules may be replaced: those whose code is, line for line in meaning, one that was compared with its replacement.

A version number says too little: code changes within a version (a fork, an edited checkout) and stays over many. So the methods that a
replacement stands for are compared with what is known, by a digest of their syntax without annotations, docstrings and layout.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch import nn

from .scope import Scope


@dataclass(frozen=True)
class Rule:
    """How modules of one class are replaced."""

    class_name: str  #: with its module; subclasses may mean something else and do not match
    package: str  #: name of the distribution
    kernel: str
    known: Mapping[str, frozenset[str]]  #: method → digests of the versions that were compared
    make: Callable[[Scope], Callable[..., Any]]  #: the new forward, with the module as its first argument
    check: Callable[[nn.Module], str | None] = lambda module: None  #: why this instance cannot be replaced, if so
    inherited: tuple[str, ...] = ()  #: methods that the class must not define itself
    inside: str = ""  #: class of a model that must be around it
    around: Callable[[nn.Module], str | None] = lambda model: None  #: why not in this model, if so

    def refusal(self, module: nn.Module) -> str | None:
        """Why the module cannot be replaced exactly, if it cannot."""
        different = difference(module, self.known, self.package, self.inherited)
        if different is not None:
            return different
        redefined = [name for name in self.inherited if name in vars(type(module))]
        if redefined:
            return f"{type(module).__name__} of {describe(self.package)} defines {redefined[0]!r}, which is not known"
        return self.check(module)


def difference(module: nn.Module, known: Mapping[str, frozenset[str]], package: str, inherited: tuple[str, ...] = ()) -> str | None:
    """How the methods of a module differ from those that were compared, if they do."""
    for name in ("forward", *known, *inherited):
        if replaced(module, name):
            return f"something replaced {name!r} on this module before; undo that first"
    for method, digests in known.items():
        if digest(getattr(type(module), method, None)) not in digests:
            return f"{type(module).__name__}.{method} of {describe(package)} is none of the versions this was compared with"
    return None


def replaced(module: nn.Module, method: str) -> bool:
    """Whether the instance has a method of its own; a pickle of a patched model leaves the class's, which is none."""
    own = vars(module).get(method)
    return own is not None and getattr(own, "__func__", None) is not getattr(type(module), method, None)


def full_name(cls: type) -> str:
    """Module and name of a class; known classes are found by it, so that no package has to be imported to look."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_kind(module: nn.Module, class_name: str) -> bool:
    """Whether the module is of the class or one derived from it."""
    return any(full_name(base) == class_name for base in type(module).__mro__)


def describe(package: str) -> str:
    """Name and installed version of a distribution."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (version unknown)"


def digest(function: Any) -> str | None:
    """Of a function's syntax, without annotations, docstring, comments and layout; None if its source cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return hashlib.sha256(ast.unparse(_Bare().visit(tree)).encode()).hexdigest()[:16]


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant) and len(node.body) > 1:
            del node.body[0]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value is not None else None
