"""Patching and unpatching: which modules of a model are replaced, and how the replacement is hung on them.

A replacement is an attribute ``forward`` of the module instance. Classes, parameters, buffers, hooks and the state dict stay what they
are; a deep copy is patched too, a pickled model loads unpatched and without this package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from types import MethodType
from typing import Any
from weakref import WeakSet

from torch import nn

from ... import backends
from . import fairchem, gemnet, pyg, schnetpack
from .gate import Rule, describe, full_name, is_kind, replaced
from .report import Left, PatchError, Replaced, Report
from .scope import Scope

RULES: dict[str, Rule] = {rule.class_name: rule for source in (pyg, schnetpack, fairchem, gemnet) for rule in source.RULES}
#: models in whose forward the sorted edges are shared
MODELS: tuple[str, ...] = (*pyg.MODELS, *schnetpack.MODELS, *fairchem.MODELS, *gemnet.MODELS)
#: classes that pass messages and for which there is no replacement → why
KNOWN_LEFT: dict[str, str] = {**pyg.LEFT, **schnetpack.LEFT, **fairchem.LEFT, **gemnet.LEFT}
KERNELS: frozenset[str] = frozenset(rule.kernel for rule in RULES.values())

Plan = dict[str, tuple[nn.Module, Rule]]  # name → module and how it is replaced

_MARK = "_fastkd_patch"
_patched: WeakSet[nn.Module] = WeakSet()  # so that a forward put over ours does not hide it


def patch(model: nn.Module, *, backend: str | None = None, kernels: Collection[str] | None = None) -> Report:
    """Replace what is known in a model by fused kernels, in place, all or nothing.

    Results are equal up to rounding (another order of sums), in energies, forces and all gradients, and deterministic. Call it before
    `torch.compile`, before or after moving the model to a device, before or after loading a checkpoint.

    Args:
        model: any module that contains SchNet or DimeNet(++) of torch_geometric, SchNet or PaiNN of schnetpack, PaiNN or GemNet-OC of
            fairchem-core 1.x, at any depth.
        backend: ``triton``, ``numba`` or ``reference`` for all of its kernels; chosen by device and dtype, call by call, if None.
        kernels: use only these, e.g. ``{"cfconv"}``; all if None. Modules that need others are left and listed.

    Returns:
        What was replaced, what was left and why; ``report.undo()`` or ``unpatch(model)`` restores the model.

    Raises:
        PatchError: (a `ValueError`) if there is nothing to patch, the model is patched already or compiled, or a known module differs
            from what was compared: another version of its code, another aggregation, a forward replaced by something else.
            The model is not touched then.
        ValueError: if ``backend`` or a name in ``kernels`` is unknown, or the backend not installed.
    """
    chosen = _check_arguments(backend, kernels)
    modules = list(model.named_modules())
    _check_model(modules)
    known = {name: module for name, module in modules if any(is_kind(module, kind) for kind in MODELS)}
    plan, left = _plan(modules, known, chosen)
    if not plan:
        seen = "".join(f"\n  left: {row.name or 'the model itself'} ({row.class_name}): {row.reason}" for row in left)
        raise PatchError(f"nothing to patch in {type(model).__name__}: no module of a known class{seen}")
    scoped = _scoped(model, known, plan)
    _check_scoped(scoped)
    scope = Scope(backend)
    functions = {module: rule.make(scope) for module, rule in plan.values()}
    functions |= {module: _opening(type(module).forward, scope) for module in scoped if module not in functions}
    for module, function in functions.items():
        _install(module, function)
    return Report(
        model_class=type(model).__name__,
        packages=tuple(sorted({describe(rule.package) for _, rule in plan.values()})),
        backend=backend,
        replaced=tuple(Replaced(name, type(module).__name__, rule.kernel) for name, (module, rule) in plan.items()),
        left=tuple(left),
        _undo=functools.partial(_restore, list(functions)),
    )


def unpatch(model: nn.Module) -> None:
    """Give every patched module in ``model`` its own forward again.

    Raises:
        PatchError: if none is patched, or something else replaced the forward of one since; nothing is changed then.
    """
    modules = [module for module in model.modules() if module in _patched or _is_ours(module)]
    if not modules:
        raise PatchError(f"{type(model).__name__} is not patched")
    _restore(modules)


def _check_arguments(backend: str | None, kernels: Collection[str] | None) -> frozenset[str]:
    if backend is not None and backend not in backends.BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(backends.BACKENDS)}")
    if backend is not None and not backends.installed(backend):
        raise ValueError(f"backend {backend!r} was asked for, but the package {backend!r} is not installed")
    if isinstance(kernels, str) or not KERNELS.issuperset(kernels or ()):
        raise ValueError(f"kernels must be some of {', '.join(sorted(KERNELS))}, got {kernels!r}")
    return KERNELS if kernels is None else frozenset(kernels)


def _check_model(modules: list[tuple[str, nn.Module]]) -> None:
    for name, module in modules:
        label = name or "the model itself"
        if module in _patched or _is_ours(module):
            raise PatchError(f"{label} ({type(module).__name__}) is patched already; unpatch the model first")
        if is_kind(module, "torch._dynamo.eval_frame.OptimizedModule") or getattr(module, "_compiled_call_impl", None) is not None:
            raise PatchError(f"{label} is compiled; patch the model first and compile it then")


def _plan(modules: list[tuple[str, nn.Module]], known: dict[str, nn.Module], chosen: frozenset[str]) -> tuple[Plan, list[Left]]:
    """What to replace and what not.

    Raises:
        PatchError: if a module of a known class is not what was compared.
    """
    plan: Plan = {}
    left, refusals = [], []
    for name, module in modules:
        rule, outer = RULES.get(full_name(type(module))), []
        if rule is None:
            left += [Left(name, type(module).__name__, reason) for reason in _why_left(module)]
        elif rule.kernel not in chosen:
            left.append(Left(name, type(module).__name__, f"kernel {rule.kernel!r} was not asked for"))
        elif rule.inside and not (outer := _around(name, rule, known)):
            left.append(Left(name, type(module).__name__, f"only inside a {rule.inside.rsplit('.', 1)[1]}, which prepares its input"))
        elif (reason := rule.refusal(module) or next(filter(None, map(rule.around, outer)), None)) is not None:
            refusals.append(f"{name or 'the model itself'} ({type(module).__name__}): {reason}")
        else:
            plan[name] = module, rule
    if refusals:
        raise PatchError("nothing was patched, because not everything can be patched exactly:\n  " + "\n  ".join(refusals))
    return plan, left


def _why_left(module: nn.Module) -> Iterator[str]:
    for base in type(module).__mro__:
        name = full_name(base)
        if name in RULES:
            yield f"derived from {base.__name__}, and may mean something else"
            return
        if name in KNOWN_LEFT:
            yield KNOWN_LEFT[name]
            return


def _scoped(model: nn.Module, known: dict[str, nn.Module], plan: Collection[str]) -> list[nn.Module]:
    """The known models that contain replaced modules; and the whole, if some are in none of them."""
    used = [outer for path, outer in known.items() if any(_contains(path, name) for name in plan)]
    everywhere = all(any(_contains(path, name) for path in known) for name in plan)
    return used if everywhere else [*used, model]


def _around(name: str, rule: Rule, known: dict[str, nn.Module]) -> list[nn.Module]:
    """The models of the class that the rule asks for which contain the module."""
    return [outer for path, outer in known.items() if is_kind(outer, rule.inside) and _contains(path, name)]


def _check_scoped(modules: list[nn.Module]) -> None:
    for module in modules:
        if replaced(module, "forward"):
            name = type(module).__name__
            raise PatchError(f"nothing was patched: something replaced the forward of this {name} before; undo that first")


def _contains(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(outer + ".")


def _opening(forward: Callable[..., Any], scope: Scope) -> Callable[..., Any]:
    @functools.wraps(forward)
    def shared(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with scope.opened():
            return forward(self, *args, **kwargs)

    return shared


def _install(module: nn.Module, function: Callable[..., Any]) -> None:
    # a bound method, because a deep copy binds it to the copy and a pickle looks the class's own one up
    replacement = functools.wraps(type(module).forward)(function)
    setattr(replacement, _MARK, True)
    vars(module)["forward"] = MethodType(replacement, module)
    _patched.add(module)


def _is_ours(module: nn.Module) -> bool:
    return hasattr(getattr(vars(module).get("forward"), "__func__", None), _MARK)


def _restore(modules: list[nn.Module]) -> None:
    for module in modules:
        if not _is_ours(module):
            what = "something else replaced its forward since" if "forward" in vars(module) else "it is not patched any more"
            raise PatchError(f"a {type(module).__name__} cannot be unpatched: {what}; nothing was changed")
    for module in modules:
        del vars(module)["forward"]
        _patched.discard(module)
