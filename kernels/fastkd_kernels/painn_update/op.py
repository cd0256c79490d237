"""What PaiNN's update block computes beside its linear layers, as torch operators: one meaning, three backends, derivatives of every order.

Value, gradient and gradient of gradient of each of the two functions are one fused operator each. The third derivative is the automatic
one of the double backward written in plain torch (`reference`), so every order is there.

Example:
    >>> mixed = mix(vector)  # a linear layer without bias, [N, 3, F] → [N, 3, 2F]
    >>> d_scalar, d_vector = painn_update(perceptron(painn_context(scalar, mixed)), mixed)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import reference

Pair = tuple[Tensor, Tensor]
Quad = tuple[Tensor, Tensor, Tensor, Tensor]
Grads = tuple[Tensor | None, ...]


def painn_context(scalar: Tensor, mixed: Tensor, *, epsilon: float = 1e-8, backend: str | None = None) -> Tensor:
    """What the perceptron of PaiNN's update block sees: the scalars, and beside them the norms of vectors.

    With v the last F columns of ``mixed``, [scalar, √(v_x² + v_y² + v_z² + epsilon)].

    Args:
        scalar: scalar features, [N, F], any floating dtype.
        mixed: vector features after their linear layer, [N, 3, 2F] with U v before V v, of which V v is read; or V v alone, [N, 3, F].
        epsilon: under the root, so that the derivatives are finite at v = 0; a positive number.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [N, 2F]; invariant under rotations of x, y, z; differentiable to every order in both.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, epsilon is not positive, or the backend cannot run.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 9 and 10: the arguments of a(s, ‖V v‖); epsilon as in the authors' code.
    """
    nodes, width = _rows_of("painn_context", "scalar [N, F]", scalar, 1)
    if mixed.shape not in ((nodes, 3, 2 * width), (nodes, 3, width)) or mixed.dtype != scalar.dtype or mixed.device != scalar.device:
        raise ValueError(
            f"painn_context needs mixed [{nodes}, 3, {2 * width}] or [{nodes}, 3, {width}] of {scalar.dtype} on {scalar.device} as scalar is, "
            f"got {list(mixed.shape)} {mixed.dtype} on {mixed.device}"
        )
    if not epsilon > 0:
        raise ValueError(f"painn_context needs a positive epsilon, got {epsilon}")
    made: Tensor = context(scalar, mixed, float(epsilon), backends.resolve(backend, scalar))
    return made


def painn_update(
    gates: Tensor, mixed: Tensor, *, dot_scale: float = 1.0, scalar_scale: float = 1.0, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """What PaiNN's update block adds to scalars and vectors.

    With gates = [a, b, c] and mixed = [u, v]: Δscalar = scalar_scale · (a + b ∘ dot_scale · Σ_k u_k ∘ v_k) and Δvector_k = c ∘ u_k.

    Args:
        gates: what the perceptron makes of `painn_context`, in blocks (scalar, dot, vector), [N, 3F], any floating dtype.
        mixed: vector features after their linear layer, U v before V v, [N, 3, 2F].
        dot_scale: factor on the scalar products; 1 in the paper, 1/√F in the Open Catalyst Project.
        scalar_scale: factor on Δscalar; 1 in the paper, 1/√2 in the Open Catalyst Project.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        Δscalar [N, F], invariant under rotations, and Δvector [N, 3, F], which turns with them; differentiable to every order in both
        tensors. Other orders of the blocks are a permutation of the rows of the layers before.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the backend cannot run.

    Source: PaiNN, Schütt, Unke, Gastegger 2021, eq. 9 and 10. The paper's order of the gates is (vector, dot, scalar).
    """
    nodes, width = _rows_of("painn_update", "gates [N, 3F]", gates, 3)
    if mixed.shape != (nodes, 3, 2 * width) or mixed.dtype != gates.dtype or mixed.device != gates.device:
        raise ValueError(
            f"painn_update needs mixed [{nodes}, 3, {2 * width}] of {gates.dtype} on {gates.device} as gates are, "
            f"got {list(mixed.shape)} {mixed.dtype} on {mixed.device}"
        )
    scalar, vector = update(gates, mixed, float(dot_scale), float(scalar_scale), backends.resolve(backend, gates))
    return scalar, vector


def _rows_of(function: str, what: str, tensor: Tensor, blocks: int) -> tuple[int, int]:
    """Number of rows, and width of one of the ``blocks`` of columns."""
    if tensor.dim() != 2 or tensor.shape[1] % blocks or not tensor.is_floating_point():
        raise ValueError(f"{function} needs {what} of a floating dtype, got {list(tensor.shape)} {tensor.dtype}")
    return tensor.shape[0], tensor.shape[1] // blocks


# The operators. `needs` says which of the gradients are wanted, in the order of the outputs; the others come back empty. A cotangent or
# tangent that is None is zero: after the last block nothing may depend on the vectors.


def allocate(like: Tensor, shapes: Sequence[Sequence[int]], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """An output of each shape; without rows, but with as many dimensions, where it is not needed."""
    return tuple(like.new_empty(shape if need else (0,) * len(shape)) for shape, need in zip(shapes, needs, strict=True))


def context_shapes(grad: Tensor, mixed: Tensor) -> tuple[Sequence[int], ...]:
    """Of the scalars, and of the vectors as they are."""
    return (grad.shape[0], grad.shape[1] // 2), mixed.shape


def update_shapes(gates: Tensor) -> tuple[Sequence[int], ...]:
    """Of Δscalar, Δvector, gates and mixed."""
    nodes, width = gates.shape[0], gates.shape[1] // 3
    return (nodes, width), (nodes, 3, width), (nodes, 3 * width), (nodes, 3, 2 * width)


def _kept(grads: tuple[Tensor, ...], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(grad if need else grad.new_empty((0,) * grad.dim()) for grad, need in zip(grads, needs, strict=True))


def _launched(module: str, name: str) -> Callable[..., Any]:
    """The function of a launch module, imported when it first runs."""
    found: list[Callable[..., Any]] = []

    def run(*args: Any) -> Any:
        if not found:
            from importlib import import_module

            found.append(getattr(import_module(f".{module}", __package__), name))
        return found[0](*args)

    return run


def _define(name: str, schema: str, launcher: str, *, fake: Callable[..., Any], plain: Callable[..., Any]) -> backends.Operator:
    numba, triton = _launched("numba_launch", launcher), _launched("triton_launch", launcher)
    return backends.define_op(name, schema, fake=fake, reference=plain, numba=numba, triton=triton)


_SCALES = "float dot_scale, float scalar_scale"
_GRADS = "Tensor? grad_scalar, Tensor? grad_vector"

context = _define(
    "painn_context",
    "(Tensor scalar, Tensor mixed, float epsilon) -> Tensor",
    "context",
    fake=lambda scalar, *rest: scalar.new_empty(scalar.shape[0], 2 * scalar.shape[1]),
    plain=reference.painn_context,
)
context_backward = _define(
    "painn_context_backward",
    "(Tensor grad, Tensor mixed, float epsilon, bool[] needs) -> (Tensor, Tensor)",
    "context_backward",
    fake=lambda *args: allocate(args[0], context_shapes(*args[:2]), args[-1]),
    plain=lambda *args: _kept(reference.painn_context_backward(*args[:-1]), args[-1]),
)
context_double_backward = _define(
    "painn_context_double_backward",
    "(Tensor? tangent_scalar, Tensor? tangent_mixed, Tensor grad, Tensor mixed, float epsilon, bool[] needs) -> (Tensor, Tensor)",
    "context_double_backward",
    fake=lambda *args: allocate(args[2], (args[2].shape, args[3].shape), args[-1]),
    plain=lambda *args: _kept(reference.painn_context_double_backward(*args[:-1]), args[-1]),
)
update = _define(
    "painn_update",
    f"(Tensor gates, Tensor mixed, {_SCALES}) -> (Tensor, Tensor)",
    "update",
    fake=lambda gates, *rest: allocate(gates, update_shapes(gates)[:2], (True, True)),
    plain=reference.painn_update,
)
update_backward = _define(
    "painn_update_backward",
    f"({_GRADS}, Tensor gates, Tensor mixed, {_SCALES}, bool[] needs) -> (Tensor, Tensor)",
    "update_backward",
    fake=lambda *args: allocate(args[2], update_shapes(args[2])[2:], args[-1]),
    plain=lambda *args: _kept(reference.painn_update_backward(*args[:-1]), args[-1]),
)
update_double_backward = _define(
    "painn_update_double_backward",
    f"(Tensor? tangent_gates, Tensor? tangent_mixed, {_GRADS}, Tensor gates, Tensor mixed, {_SCALES}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "update_double_backward",
    fake=lambda *args: allocate(args[4], update_shapes(args[4]), args[-1]),
    plain=lambda *args: _kept(reference.painn_update_double_backward(*args[:-1]), args[-1]),
)


# Derivatives


def _setup(tensors: int, first: int = 0) -> Callable[..., None]:
    """Keep the leading ``tensors`` arguments (any may be None) from the ``first`` on, and the constants after them; the backend is last."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[first:tensors])
        ctx.rest, ctx.backend = inputs[tensors:-1], inputs[-1]
        ctx.set_materialize_grads(False)

    return setup


def _first(operator: backends.Operator, *cotangents: Tensor | None, ctx: Any) -> Grads:
    """The gradient, by an operator that takes cotangents, inputs, constants and needs."""
    if all(cotangent is None for cotangent in cotangents):
        return (None,) * (3 + len(ctx.rest))
    needs = list(ctx.needs_input_grad[:2])
    grads = operator(*cotangents, *ctx.saved_tensors, *ctx.rest, needs, ctx.backend)
    return (*_wanted(grads, needs), *(None,) * (1 + len(ctx.rest)))


def _wanted(grads: Sequence[Tensor], needs: Sequence[bool]) -> Grads:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _second(operator: backends.Operator, *tangents: Tensor | None, ctx: Any) -> Grads:
    """The gradient of the gradient. What was not asked for is an empty tensor, and so is whatever may have been sent back through it."""
    *constants, given = ctx.rest
    count = len(ctx.saved_tensors)
    wanted = [tangent if was else None for tangent, was in zip(tangents, given, strict=True)]
    if all(tangent is None for tangent in wanted):
        return (None,) * (count + len(ctx.rest) + 1)
    needs = list(ctx.needs_input_grad[:count])
    grads = operator(*wanted, *ctx.saved_tensors, *constants, needs, ctx.backend)
    return (*_wanted(grads, needs), *(None,) * (len(ctx.rest) + 1))


def _third(plain: Callable[..., tuple[Tensor, ...]], *cotangents: Tensor | None, ctx: Any) -> Grads:
    """The double backward again in plain torch, differentiated by autograd."""
    create_graph = torch.is_grad_enabled()
    *constants, given = ctx.rest
    needs = ctx.needs_input_grad[: len(ctx.saved_tensors)]
    none = (None,) * (len(ctx.rest) + 1)
    with torch.enable_grad():
        # views, so that an input that stands in two places is told apart
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        pairs = [
            (output, cotangent)
            for output, cotangent, was in zip(plain(*inputs, *constants), cotangents, given, strict=True)
            if was and cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return (*(None,) * len(inputs), *none)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        grads = torch.autograd.grad([o for o, _ in pairs], wanted, [c for _, c in pairs], create_graph=create_graph, allow_unused=True)
    found = iter(grads)
    return (*(next(found) if need else None for need in needs), *none)


# the scalars are not read again
context.register_autograd(lambda ctx, *g: _first(context_backward, *g, ctx=ctx), setup_context=_setup(2, first=1))
context_backward.register_autograd(lambda ctx, *g: _second(context_double_backward, *g, ctx=ctx), setup_context=_setup(2))
context_double_backward.register_autograd(
    lambda ctx, *g: _third(reference.painn_context_double_backward, *g, ctx=ctx), setup_context=_setup(4)
)
update.register_autograd(lambda ctx, *g: _first(update_backward, *g, ctx=ctx), setup_context=_setup(2))
update_backward.register_autograd(lambda ctx, *g: _second(update_double_backward, *g, ctx=ctx), setup_context=_setup(4))
update_double_backward.register_autograd(
    lambda ctx, *g: _third(reference.painn_update_double_backward, *g, ctx=ctx), setup_context=_setup(6)
)
