"""Segment reductions as torch operators: one meaning, three backends, derivatives of every order.

Two closed pairs carry everything. ``fastkd::segment_sum`` and ``fastkd::segment_gather`` (and their means) are each other's adjoint;
so are ``fastkd::arg_scatter`` and ``fastkd::arg_gather``, which differentiate ``fastkd::segment_extremum``.

Rows are grouped by ``ptr`` alone where segments are contiguous, else also by ``order`` (sorted position → row) and ``index`` (row → segment).

Example:
    >>> energy = segment_reduce(atom_energy, atom_ptr)
    >>> degree = scatter_reduce(torch.ones(num_edges), edge_dst, num_nodes)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import backends
from ..graph import check_range, segments
from . import launch, reference

Reduce = Literal["sum", "mean", "max", "min"]
REDUCTIONS: tuple[Reduce, ...] = ("sum", "mean", "max", "min")
_SUMS = ("sum", "mean")


def segment_reduce(values: Tensor, ptr: Tensor, reduce: Reduce = "sum", *, backend: str | None = None) -> Tensor:
    """Reduce the rows ``ptr[s] … ptr[s + 1] − 1`` of ``values`` to row s; an empty segment gives 0.

    Among equal entries, max and min take the first in row order, and the whole gradient goes there (torch's ``amax`` splits it evenly).
    A NaN makes the result NaN, and the first NaN of a segment takes the gradient.

    Args:
        values: [n, …], any floating dtype, any number of trailing dimensions. Sums run in float32, or float64 for float64.
        ptr: first row of each segment, [m + 1] int64, rising from 0 to n.
        reduce: ``sum``, ``mean``, ``max`` or ``min``.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [m, …]; differentiable to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``reduce`` or ``backend`` is unknown, or, on a CPU, ``ptr`` does not
            rise from 0 to n (a GPU is not synchronised to look).
    """
    if ptr.dim() != 1 or ptr.shape[0] == 0 or ptr.dtype != torch.int64:
        raise ValueError(f"segment_reduce needs ptr [m + 1] int64, got {list(ptr.shape)} {ptr.dtype}")
    _check_values("segment_reduce", values, ptr, reduce)
    if reduce in _SUMS and backends.plain_is_faster(backend, values, values.numel()):
        return plain_sum(values, _checked_segment_index(ptr, values.shape[0]), ptr.shape[0] - 1, reduce == "mean")
    return _reduce(values, ptr, None, None, reduce, backends.resolve(backend, values))


def scatter_reduce(
    values: Tensor,
    index: Tensor,
    num_segments: int,
    reduce: Reduce = "sum",
    *,
    csr: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Reduce the rows of ``values`` that share an index; any order of rows, no atomics, so the same bits every time.

    The index is sorted (stably) once a call. Where it is used again, sort it once yourself: ``csr = graph.segments(index, num_segments)``.
    Ties, NaN and empty segments are as in `segment_reduce`.

    Args:
        values: [n, …], any floating dtype, any number of trailing dimensions.
        index: segment of each row, [n] int64, each in [0, num_segments).
        num_segments: m.
        reduce: ``sum``, ``mean``, ``max`` or ``min``.
        csr: (ptr [m + 1], order [n]) of this index from `fastkd_kernels.graph.segments`; taken on trust.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None.

    Returns:
        [m, …]; differentiable to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``reduce`` or ``backend`` is unknown, or, on a CPU and without
            ``csr``, an index is out of range.
    """
    if index.shape != values.shape[:1] or index.dtype != torch.int64:
        raise ValueError(
            f"scatter_reduce needs index [{values.shape[0] if values.dim() else 'n'}] int64, got {list(index.shape)} {index.dtype}"
        )
    _check_values("scatter_reduce", values, index, reduce)
    plain = reduce in _SUMS and backends.plain_is_faster(backend, values, values.numel())
    if plain and csr is None:
        try:
            return plain_sum(values, index, num_segments, reduce == "mean")
        except (IndexError, RuntimeError):
            check_range(index, num_segments)
            raise
    ptr, order = segments(index, num_segments) if csr is None else csr
    if ptr.shape != (num_segments + 1,) or order.shape != index.shape or ptr.device != index.device or order.device != index.device:
        raise ValueError(
            f"scatter_reduce needs csr = (ptr [{num_segments + 1}], order [{index.shape[0]}]) on {index.device}, "
            f"got {list(ptr.shape)} on {ptr.device} and {list(order.shape)} on {order.device}"
        )
    if plain:
        return plain_sum(values, index, num_segments, reduce == "mean")
    return _reduce(values, ptr, order, index, reduce, backends.resolve(backend, values))


def _checked_segment_index(ptr: Tensor, rows: int) -> Tensor:
    """As `reference.segment_index`; what torch does not refuse by itself is looked at here, as on small input every call counts."""
    try:
        index = torch.repeat_interleave(ptr[1:] - ptr[:-1], output_size=rows)
    except RuntimeError:
        launch.check_ptr(ptr, rows)
        raise
    if ptr[0].item():
        launch.check_ptr(ptr, rows)
    return index


def plain_sum(values: Tensor, index: Tensor, num_segments: int, mean: bool = False) -> Tensor:
    """The sum or mean by torch's own operators, for float32 and float64 where `backends.plain_is_faster`: [n, …] → [m, …]."""
    if mean:
        return reference.segment_sum(values, index, num_segments, True)
    return values.new_zeros(num_segments, *values.shape[1:]).index_add_(0, index, values)


def _check_values(function: str, values: Tensor, index: Tensor, reduce: str) -> None:
    if reduce not in REDUCTIONS:
        raise ValueError(f"{function} knows the reductions {', '.join(REDUCTIONS)}, got {reduce!r}")
    if values.dim() == 0 or not values.is_floating_point():
        raise ValueError(f"{function} needs values [n, …] of a floating dtype, got {list(values.shape)} {values.dtype}")
    if values.device != index.device:
        raise ValueError(f"{function} got values on {values.device}, segments on {index.device}")


def _reduce(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, reduce: str, backend: str) -> Tensor:
    if reduce in _SUMS:
        total: Tensor = segment_sum(values, ptr, order, index, reduce == "mean", backend)
        return total
    best: Tensor = segment_extremum(values, ptr, order, index, reduce == "max", backend)[0]
    return best


# The reference bodies take the grouping as the operators do.


def _row_index(ptr: Tensor, index: Tensor | None, rows: int) -> Tensor:
    if index is not None:
        return index
    if ptr.device.type == "cpu":
        launch.check_ptr(ptr, rows)
    return reference.segment_index(ptr, rows)


def _sum_reference(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, mean: bool) -> Tensor:
    return reference.segment_sum(values, _row_index(ptr, index, values.shape[0]), ptr.shape[0] - 1, mean)


def _gather_reference(rows: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, n: int, mean: bool) -> Tensor:
    return reference.segment_gather(rows, _row_index(ptr, index, n), mean)


def _extremum_reference(values: Tensor, ptr: Tensor, order: Tensor | None, index: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    return reference.segment_extremum(values, _row_index(ptr, index, values.shape[0]), ptr.shape[0] - 1, largest)


# The operators.

_GROUPS = "Tensor ptr, Tensor? order, Tensor? index"

segment_sum = backends.define_op(
    "segment_sum",
    f"(Tensor values, {_GROUPS}, bool mean) -> Tensor",
    fake=lambda values, ptr, order, index, mean: values.new_empty(ptr.shape[0] - 1, *values.shape[1:]),
    reference=_sum_reference,
    numba=launch.sum_numba,
    triton=launch.sum_triton,
)
segment_gather = backends.define_op(
    "segment_gather",
    f"(Tensor rows, {_GROUPS}, SymInt n, bool mean) -> Tensor",
    fake=lambda rows, ptr, order, index, n, mean: rows.new_empty(n, *rows.shape[1:]),
    reference=_gather_reference,
    numba=launch.gather_numba,
    triton=launch.gather_triton,
)
segment_extremum = backends.define_op(
    "segment_extremum",
    f"(Tensor values, {_GROUPS}, bool largest) -> (Tensor, Tensor)",
    fake=lambda values, ptr, order, index, largest: (
        values.new_empty(ptr.shape[0] - 1, *values.shape[1:]),
        values.new_empty(ptr.shape[0] - 1, *values.shape[1:], dtype=torch.int64),
    ),
    reference=_extremum_reference,
    numba=launch.extremum_numba,
    triton=launch.extremum_triton,
)
arg_gather = backends.define_op(
    "arg_gather",
    "(Tensor values, Tensor arg) -> Tensor",
    fake=lambda values, arg: values.new_empty(arg.shape),
    reference=reference.arg_gather,
    numba=launch.arg_gather_numba,
    triton=launch.arg_gather_triton,
)
arg_scatter = backends.define_op(
    "arg_scatter",
    "(Tensor grad, Tensor arg, SymInt n) -> Tensor",
    fake=lambda grad, arg, n: grad.new_empty(n, *grad.shape[1:]),
    reference=reference.arg_scatter,
    numba=launch.arg_scatter_numba,
    triton=launch.arg_scatter_triton,
)


# Derivatives: the sums, the gathers and their means are linear, so each one's gradient is its adjoint, at every order.


def _sum_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, ptr, order, index, ctx.mean, ctx.backend = inputs
    ctx.save_for_backward(ptr, order, index)
    ctx.rows = values.shape[0]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return segment_gather(grad, *ctx.saved_tensors, ctx.rows, ctx.mean, ctx.backend), None, None, None, None, None


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ptr, order, index, _, ctx.mean, ctx.backend = inputs
    ctx.save_for_backward(ptr, order, index)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return segment_sum(grad, *ctx.saved_tensors, ctx.mean, ctx.backend), None, None, None, None, None, None


def _extremum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.rows, ctx.backend = inputs[0].shape[0], inputs[-1]


def _extremum_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    return arg_scatter(grad, *ctx.saved_tensors, ctx.rows, ctx.backend), None, None, None, None, None


def _arg_gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rows, ctx.backend = inputs[0].shape[0], inputs[-1]


def _arg_gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return arg_scatter(grad, *ctx.saved_tensors, ctx.rows, ctx.backend), None, None


def _arg_scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.backend = inputs[-1]


def _arg_scatter_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return arg_gather(grad, *ctx.saved_tensors, ctx.backend), None, None, None


segment_sum.register_autograd(_sum_backward, setup_context=_sum_context)
segment_gather.register_autograd(_gather_backward, setup_context=_gather_context)
segment_extremum.register_autograd(_extremum_backward, setup_context=_extremum_context)
arg_gather.register_autograd(_arg_gather_backward, setup_context=_arg_gather_context)
arg_scatter.register_autograd(_arg_scatter_backward, setup_context=_arg_scatter_context)
