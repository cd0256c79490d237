"""Parts of a model that are computed again in backward instead of remembered, with derivatives of every order.

`recomputed` is for parts that are cheap beside what they would keep: sums over triplets, whose results are many times as wide as the
messages that go in. `forgetting` is for a value that a linear layer keeps and that one elementwise function makes again.

Both keep the derivatives exact: what is made again are the same numbers, by the same operations.

Example:
    >>> y = recomputed(lambda a, b: (a * b).tanh(), first, second)  # keeps neither a · b nor its tanh
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fastkd_kernels.higher import through_reference
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

Body = Callable[..., Tensor]


def recomputed(body: Body, *tensors: Tensor, weight: Tensor | None = None) -> Tensor:
    """``body(*tensors)``, and a linear map of it if a ``weight`` [outputs, inputs] is given; only the tensors are kept for backward.

    Args:
        body: a function of its tensors alone: everything that needs a gradient must be among them. Plain torch or our operators.
        tensors: what it is called with.
        weight: of a linear layer after it, whose product is not made a second time in backward.
    """
    given = tensors if weight is None else (*tensors, weight)
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
        return _value(body, weight is not None, *given)[0]
    # a view stands between a weight and the function, so that backward can see whether its gradient is wanted
    apart = [t.view_as(t) if t.is_leaf and t.requires_grad else t for t in given]
    out: Tensor = _Recomputed.apply(partial(_value, body, weight is not None), partial(_pull, body, weight is not None), *apart)[0]
    return out


def forgetting(value: Tensor, remake: Callable[[], Tensor]) -> saved_tensors_hooks:
    """Context: operators inside that would keep ``value`` for backward keep ``remake`` instead, which has to return the same numbers.

    ``remake`` must hold no reference to ``value``, and only tensors that are kept anyway, detached.
    """
    address, shape = value.data_ptr(), value.shape

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        same = tensor.data_ptr() == address and tensor.shape == shape and tensor.is_contiguous()
        return remake if same else tensor

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        # only values are asked for: autograd puts them back into its graph
        with torch.no_grad():
            return kept()

    return saved_tensors_hooks(pack, unpack)


def _value(body: Body, has_weight: bool, *tensors: Tensor) -> tuple[Tensor]:
    if not has_weight:
        return (body(*tensors),)
    return (functional.linear(body(*tensors[:-1]), tensors[-1]),)


def _pull(body: Body, has_weight: bool, needs: list[bool], g: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of ⟨g, value⟩ by the tensors that are needed; differentiable where autograd records."""
    if not has_weight:
        return tuple(through_reference(lambda *args: (body(*args),), tensors, [g], needs))
    *inputs, weight = tensors
    by_weight: list[Tensor] = []
    if needs[-1]:
        # the value is linear in the weight: its gradient needs what the body makes, which is at hand while the others are computed
        def keep(*args: Tensor) -> tuple[Tensor]:
            made = body(*args)
            by_weight.append(made)
            return (made,)
    else:

        def keep(*args: Tensor) -> tuple[Tensor]:
            return (body(*args),)

    grads = through_reference(keep, inputs, [g @ weight], needs[:-1])
    if not needs[-1]:
        return (*grads, None)
    made = by_weight[0] if by_weight else body(*inputs)
    if not torch.is_grad_enabled():
        made = made.detach()
    return (*grads, g.t() @ made)


class _Recomputed(torch.autograd.Function):
    """A function whose derivative is a function of the same kind, so that at no order more than the arguments is kept."""

    @staticmethod
    def forward(ctx: Any, value: Any, pull: Any, *tensors: Tensor) -> Any:
        ctx.value, ctx.pull = value, pull
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return value(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        tensors = ctx.saved_tensors
        given = [c is not None for c in cotangents]
        needs = _wanted(ctx, len(tensors))
        if not any(given) or not any(needs):
            return (None, None, *[None] * len(tensors))
        present = [c for c in cotangents if c is not None]
        pull = partial(_pull_any, ctx.value, given, needs) if ctx.pull is None else partial(ctx.pull, needs)
        if not torch.is_grad_enabled():
            return (None, None, *pull(*present, *tensors))
        return (None, None, *_Recomputed.apply(pull, None, *present, *tensors))


def _pull_any(value: Any, given: list[bool], needs: list[bool], *tensors: Tensor) -> tuple[Tensor | None, ...]:
    """As `_pull`, of a function with several results, ``given`` says for which of them there is a cotangent."""
    count = sum(given)
    rest = iter(tensors[:count])
    return tuple(through_reference(value, tensors[count:], [next(rest) if have else None for have in given], needs))


def _wanted(ctx: Any, count: int) -> list[bool]:
    """Which gradients somebody waits for: a force is a gradient by positions alone, and weights would be in vain."""
    needs = list(ctx.needs_input_grad[2:])
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    nodes = [node for node, _ in ctx.next_functions]
    if ask is None or len(nodes) != count:
        return needs
    return [need and (node is None or _executed(ask, node)) for need, node in zip(needs, nodes, strict=True)]


def _executed(ask: Callable[[Any], bool], node: Any) -> bool:
    try:
        return ask(node)
    except RuntimeError:
        # a leaf that is asked for by itself, or is not: the engine does not say
        return True
