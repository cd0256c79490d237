"""Softmax within segments as torch operators: one meaning, three backends, derivatives of every order.

Value, gradient and gradient of gradient are one operator each. Beyond, everything is a sum of products with sums over segments, which
are the operators of `segment_reduce`.

Example:
    >>> attention = segment_softmax(scores[graph.edge_order], graph.edge_ptr)
    >>> attention = scatter_softmax(scores, graph.edge_dst, graph.num_nodes, csr=(graph.edge_ptr, graph.edge_order))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..graph import segments
from ..segment_reduce import launch as segment_launch
from ..segment_reduce.op import segment_gather, segment_sum
from ..segment_reduce.reference import segment_index
from . import reference

Pair = tuple[Tensor, Tensor]


def segment_softmax(values: Tensor, ptr: Tensor, *, backend: str | None = None) -> Tensor:
    """Softmax over the rows ``ptr[s] … ptr[s + 1] − 1`` of ``values``, for each segment s and each trailing entry by itself.

    The largest entry of a segment is subtracted first, so that nothing overflows. As in `torch.softmax`, an entry of −∞ gets 0 and no
    gradient; a segment of −∞ alone, or with +∞ or NaN in it, is NaN.

    Args:
        values: [n, …], any floating dtype, any number of trailing dimensions. Sums run in float32, or float64 for float64.
        ptr: first row of each segment, [m + 1] int64, rising from 0 to n; a segment may be empty.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n, …]; differentiable to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``backend`` is unknown, or, on a CPU, ``ptr`` does not rise from
            0 to n (a GPU is not synchronised to look).
    """
    return _segments("segment_softmax", values, ptr, False, backend)


def segment_log_softmax(values: Tensor, ptr: Tensor, *, backend: str | None = None) -> Tensor:
    """The logarithm of `segment_softmax`, exact where the softmax itself would be rounded to 0.

    Args:
        values: [n, …], any floating dtype.
        ptr: first row of each segment, [m + 1] int64, rising from 0 to n.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n, …], −∞ where ``values`` is; differentiable to every order.

    Raises:
        ValueError: as `segment_softmax`.
    """
    return _segments("segment_log_softmax", values, ptr, True, backend)


def scatter_softmax(
    values: Tensor, index: Tensor, num_segments: int, *, csr: tuple[Tensor, Tensor] | None = None, backend: str | None = None
) -> Tensor:
    """Softmax over the rows of ``values`` that share an index, in any order of rows; the same bits every time.

    The index is sorted (stably) once a call. Where it is used again, sort it once yourself: ``csr = graph.segments(index, num_segments)``;
    for edges that end in a node it is ``(graph.edge_ptr, graph.edge_order)``.

    Args:
        values: [n, …], any floating dtype, any number of trailing dimensions.
        index: segment of each row, [n] int64, each in [0, num_segments).
        num_segments: m.
        csr: (ptr [m + 1], order [n]) of this index from `fastkd_kernels.graph.segments`; taken on trust.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n, …] in the order of ``values``; differentiable to every order. Infinities and NaN as in `segment_softmax`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``backend`` is unknown, or, on a CPU and without ``csr``, an index
            is out of range.
    """
    return _scattered("scatter_softmax", values, index, num_segments, csr, False, backend)


def scatter_log_softmax(
    values: Tensor, index: Tensor, num_segments: int, *, csr: tuple[Tensor, Tensor] | None = None, backend: str | None = None
) -> Tensor:
    """The logarithm of `scatter_softmax`, exact where the softmax itself would be rounded to 0.

    Args:
        values: [n, …], any floating dtype.
        index: segment of each row, [n] int64, each in [0, num_segments).
        num_segments: m.
        csr: (ptr [m + 1], order [n]) of this index from `fastkd_kernels.graph.segments`; taken on trust.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [n, …] in the order of ``values``; differentiable to every order.

    Raises:
        ValueError: as `scatter_softmax`.
    """
    return _scattered("scatter_log_softmax", values, index, num_segments, csr, True, backend)


def _segments(function: str, values: Tensor, ptr: Tensor, log: bool, backend: str | None) -> Tensor:
    if ptr.dim() != 1 or ptr.shape[0] == 0 or ptr.dtype != torch.int64:
        raise ValueError(f"{function} needs ptr [m + 1] int64, got {list(ptr.shape)} {ptr.dtype}")
    _check_values(function, values, ptr)
    result: Tensor = softmax(values, ptr, None, None, log, backends.resolve(backend, values))
    return result


def _scattered(
    function: str, values: Tensor, index: Tensor, num_segments: int, csr: tuple[Tensor, Tensor] | None, log: bool, backend: str | None
) -> Tensor:
    if index.shape != values.shape[:1] or index.dtype != torch.int64:
        rows = values.shape[0] if values.dim() else "n"
        raise ValueError(f"{function} needs index [{rows}] int64, got {list(index.shape)} {index.dtype}")
    _check_values(function, values, index)
    ptr, order = segments(index, num_segments) if csr is None else csr
    if ptr.shape != (num_segments + 1,) or order.shape != index.shape or ptr.device != index.device or order.device != index.device:
        raise ValueError(
            f"{function} needs csr = (ptr [{num_segments + 1}], order [{index.shape[0]}]) on {index.device}, "
            f"got {list(ptr.shape)} on {ptr.device} and {list(order.shape)} on {order.device}"
        )
    result: Tensor = softmax(values, ptr, order, index, log, backends.resolve(backend, values))
    return result


def _check_values(function: str, values: Tensor, index: Tensor) -> None:
    if values.dim() == 0 or not values.is_floating_point():
        raise ValueError(f"{function} needs values [n, …] of a floating dtype, got {list(values.shape)} {values.dtype}")
    if values.device != index.device:
        raise ValueError(f"{function} got values on {values.device}, segments on {index.device}")


# The operators. Names: x in, y out (the logarithm if `log`), g the cotangent of y, h that of the gradient by x.


def _row_index(ptr: Tensor, index: Tensor | None, rows: int) -> Tensor:
    if index is not None:
        return index
    if ptr.device.type == "cpu":
        segment_launch.check_ptr(ptr, rows)
    return segment_index(ptr, rows)


def _softmax_reference(x: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    return reference.softmax(x, _row_index(ptr, index, x.shape[0]), ptr.shape[0] - 1, log)


def _backward_reference(y: Tensor, g: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, log: bool) -> Tensor:
    return reference.softmax_backward(y, g, _row_index(ptr, index, y.shape[0]), ptr.shape[0] - 1, log)


def _double_backward_reference(y: Tensor, g: Tensor, h: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None) -> Pair:
    return reference.softmax_double_backward(y, g, h, _row_index(ptr, index, y.shape[0]), ptr.shape[0] - 1)


def _softmax_numba(*args: Any) -> Tensor:
    from .numba_launch import softmax

    return softmax(*args)


def _backward_numba(*args: Any) -> Tensor:
    from .numba_launch import softmax_backward

    return softmax_backward(*args)


def _double_backward_numba(*args: Any) -> Pair:
    from .numba_launch import softmax_double_backward

    return softmax_double_backward(*args)


def _softmax_triton(*args: Any) -> Tensor:
    from .triton_launch import softmax

    return softmax(*args)


def _backward_triton(*args: Any) -> Tensor:
    from .triton_launch import softmax_backward

    return softmax_backward(*args)


def _double_backward_triton(*args: Any) -> Pair:
    from .triton_launch import softmax_double_backward

    return softmax_double_backward(*args)


_GROUPS = "Tensor ptr, Tensor? order, Tensor? index"

softmax = backends.define_op(
    "segment_softmax",
    f"(Tensor x, {_GROUPS}, bool log) -> Tensor",
    fake=lambda x, ptr, order, index, log: x.new_empty(x.shape),
    reference=_softmax_reference,
    numba=_softmax_numba,
    triton=_softmax_triton,
)
softmax_backward = backends.define_op(
    "segment_softmax_backward",
    f"(Tensor y, Tensor g, {_GROUPS}, bool log) -> Tensor",
    fake=lambda y, g, ptr, order, index, log: y.new_empty(y.shape),
    reference=_backward_reference,
    numba=_backward_numba,
    triton=_backward_triton,
)
softmax_double_backward = backends.define_op(
    "segment_softmax_double_backward",
    f"(Tensor y, Tensor g, Tensor h, {_GROUPS}) -> (Tensor, Tensor)",
    fake=lambda y, g, h, ptr, order, index: (y.new_empty(y.shape), y.new_empty(y.shape)),
    reference=_double_backward_reference,
    numba=_double_backward_numba,
    triton=_double_backward_triton,
)


# Derivatives


def _softmax_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ptr, order, index, ctx.log, ctx.backend = inputs
    ctx.save_for_backward(output, ptr, order, index)


def _softmax_autograd(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    y, *groups = ctx.saved_tensors
    return softmax_backward(y, g, *groups, ctx.log, ctx.backend), None, None, None, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, g, ptr, order, index, ctx.log, ctx.backend = inputs
    ctx.save_for_backward(y, g, ptr, order, index)


def _sums(ctx: Any, groups: list[Tensor | None], rows: int) -> Any:
    """The function that gives each row the sum over its segment."""
    return lambda values: segment_gather(segment_sum(values, *groups, False, ctx.backend), *groups, rows, False, ctx.backend)


def _backward_autograd(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    y, g, *groups = ctx.saved_tensors
    need_y, need_g = ctx.needs_input_grad[:2]
    none = (None,) * 5
    if ctx.log:
        total, softened = _sums(ctx, groups, y.shape[0]), y.exp()
        by_y = -h * softened * total(g) if need_y else None
        return by_y, h - total(softened * h) if need_g else None, *none
    if not need_y:
        # the operator is linear in g, and its own adjoint
        return None, softmax_backward(y, h, *groups, False, ctx.backend) if need_g else None, *none
    by_y, by_g = softmax_double_backward(y, g, h, *groups, ctx.backend)
    return by_y, by_g if need_g else None, *none


def _double_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _double_backward_autograd(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Any, ...]:
    """⟨a, h (g − Σ y g) − g Σ y h⟩ + ⟨b, y (h − Σ y h)⟩ by y, g and h."""
    y, g, h, *groups = ctx.saved_tensors
    total = _sums(ctx, groups, y.shape[0])
    by_y, by_g, by_h = [], [], []
    if a is not None:
        s_ah, s_ag = total(a * h), total(a * g)
        by_y.append(-g * s_ah - h * s_ag)
        by_g.append(a * (h - total(y * h)) - y * s_ah)
        by_h.append(a * (g - total(y * g)) - y * s_ag)
    if b is not None:
        s_by = total(b * y)
        by_y.append(b * (h - total(y * h)) - h * s_by)
        by_h.append(y * (b - s_by))
    return (*(sum(parts[1:], parts[0]) if parts else None for parts in (by_y, by_g, by_h)), None, None, None, None)


softmax.register_autograd(_softmax_autograd, setup_context=_softmax_setup)
softmax_backward.register_autograd(_backward_autograd, setup_context=_backward_setup)
softmax_double_backward.register_autograd(_double_backward_autograd, setup_context=_double_backward_setup)
