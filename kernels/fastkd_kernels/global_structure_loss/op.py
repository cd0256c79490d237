"""The global structure loss as torch operators: one meaning, three backends, derivatives of every order.

``fastkd::pair_rows`` and ``fastkd::pair_pull`` are a closed pair: multilinear in up to four features, each one's derivatives are the
other and itself. The loss and its gradient are the special case of equal features, ``fastkd::structure_rows`` and
``fastkd::structure_pull``, whose second derivative is the pair.

Example:
    >>> loss = global_structure_loss(student_nodes, teacher_nodes, atom_ptr)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..segment_reduce.op import segment_sum
from ..sums import total
from . import reference
from .reference import accumulator


def global_structure_loss(x: Tensor, y: Tensor, ptr: Tensor, *, backend: str | None = None) -> Tensor:
    """How differently two feature spaces place the atoms of an image; no tensor of pairs is made.

    With D_ij the mean over channels (and axes) of (f_i − f_j)², the loss is the mean over images of the mean over all ordered pairs
    of atoms, i = j among them, of (D_ij(x) − D_ij(y))². It sees distances only, so shifting, rotating or mirroring either side changes
    nothing, and the widths need not agree.

    Args:
        x: features of the student, [N, C], or vectors, [N, 3, C].
        y: features of the teacher, [N, D], or vectors, [N, 3, D]; a constant.
        ptr: first atom of each image, [B + 1] int64, rising from 0 to N. An image without atoms counts with a loss of 0.
        backend: ``triton``, ``numba`` or ``reference``; chosen by device and dtype if None. ``reference`` makes the differences of all
            pairs of an image.

    Returns:
        A scalar, in float64 for float64 input and in float32 otherwise; 0 without images. Differentiable by ``x`` to every order.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, ``y`` requires a gradient, ``backend`` is unknown, or, on a CPU,
            ``ptr`` does not rise from 0 to N (a GPU is not synchronised to look).

    Source: global structure preservation, Joshi et al., On representation knowledge distillation for graph neural networks, 2021, with
    the distances of Ekström Kelvinius et al., Accelerating molecular graph neural networks via knowledge distillation, NeurIPS 2023.
    """
    _check(x, y, ptr)
    chosen = backends.resolve(backend, x)
    images = ptr.shape[0] - 1
    # vectors: a mean over axes and channels is a mean over 3 C channels
    rows = structure_rows(x.flatten(1), y.flatten(1), ptr, chosen)
    by_image = segment_sum(rows, ptr, None, None, True, chosen) / ptr.diff().clamp(min=1)
    return total(by_image) / max(images, 1)


def _check(x: Tensor, y: Tensor, ptr: Tensor) -> None:
    axes = x.shape[1:-1]
    fits = x.dim() in (2, 3) and axes in ((), (3,)) and y.dim() == x.dim() and y.shape[:-1] == x.shape[:-1]
    same = x.is_floating_point() and y.dtype == x.dtype and y.device == x.device == ptr.device
    if not fits or not same or ptr.dim() != 1 or ptr.shape[0] == 0 or ptr.dtype != torch.int64:
        got = ", ".join(
            f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            for name, tensor in zip(("x", "y", "ptr"), (x, y, ptr), strict=True)
        )
        raise ValueError(
            f"global_structure_loss needs x [N, C] and y [N, D], or x [N, 3, C] and y [N, 3, D], of one floating dtype, and "
            f"ptr [B + 1] int64, all on one device, got {got}"
        )
    if y.requires_grad:
        raise ValueError(f"global_structure_loss takes the teacher's features as constants, but y {list(y.shape)} requires a gradient")


# The operators. D(a, b)_ij = (a_i − a_j) · (b_i − b_j) / C, and h has one number an atom. The teacher y is a constant in all of them.


def _rows_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=accumulator(x))


def _pull_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _numba(name: str) -> Any:
    def body(*args: Any) -> Tensor:
        from . import numba_launch

        made: Tensor = getattr(numba_launch, name)(*args)
        return made

    return body


def _triton(name: str) -> Any:
    def body(*args: Any) -> Tensor:
        from . import triton_launch

        made: Tensor = getattr(triton_launch, name)(*args)
        return made

    return body


#: Σ_j (D(x, x) − D(y, y))²_ij
structure_rows = backends.define_op(
    "structure_rows",
    "(Tensor x, Tensor y, Tensor ptr) -> Tensor",
    fake=_rows_fake,
    reference=reference.structure_rows,
    numba=_numba("structure_rows"),
    triton=_triton("structure_rows"),
)
#: Σ_j (h_i + h_j) (D(x, x) − D(y, y))_ij (x_i − x_j)
structure_pull = backends.define_op(
    "structure_pull",
    "(Tensor x, Tensor h, Tensor y, Tensor ptr) -> Tensor",
    fake=_pull_fake,
    reference=lambda x, h, y, ptr: reference.pair_pull(x, x, x, h, y, ptr),
    numba=_numba("structure_pull"),
    triton=_triton("structure_pull"),
)
#: Σ_j (D(a, b) − D(y, y))_ij D(c, d)_ij; without y, D(y, y) is 0
pair_rows = backends.define_op(
    "pair_rows",
    "(Tensor a, Tensor b, Tensor c, Tensor d, Tensor? y, Tensor ptr) -> Tensor",
    fake=_rows_fake,
    reference=reference.pair_rows,
    numba=_numba("pair_rows"),
    triton=_triton("pair_rows"),
)
#: Σ_j (h_i + h_j) (D(a, b) − D(y, y))_ij (c_i − c_j); without y, D(y, y) is 0
pair_pull = backends.define_op(
    "pair_pull",
    "(Tensor a, Tensor b, Tensor c, Tensor h, Tensor? y, Tensor ptr) -> Tensor",
    fake=_pull_fake,
    reference=reference.pair_pull,
    numba=_numba("pair_pull"),
    triton=_triton("pair_pull"),
)


# Derivatives, see the README. They are sums over all pairs, so each pair comes twice: hence h_i + h_j.


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _width(x: Tensor) -> int:
    return max(x.shape[1], 1)


def _structure_rows_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    x, y, ptr = ctx.saved_tensors
    return structure_pull(x, upstream * (4 / _width(x)), y, ptr, ctx.backend), None, None, None


def _structure_pull_backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    x, h, y, ptr = ctx.saved_tensors
    by_x = by_h = None
    if ctx.needs_input_grad[0]:
        by_x = pair_pull(x, v, x, 2 * h, None, ptr, ctx.backend) + pair_pull(x, x, v, h, y, ptr, ctx.backend)
    if ctx.needs_input_grad[1]:
        by_h = pair_rows(x, x, x, v, y, ptr, ctx.backend) * _width(x)
    return by_x, by_h, None, None, None


def _pair_rows_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    a, b, c, d, y, ptr = ctx.saved_tensors
    h, needs = upstream / _width(a), ctx.needs_input_grad
    return (
        pair_pull(c, d, b, h, None, ptr, ctx.backend) if needs[0] else None,
        pair_pull(c, d, a, h, None, ptr, ctx.backend) if needs[1] else None,
        pair_pull(a, b, d, h, y, ptr, ctx.backend) if needs[2] else None,
        pair_pull(a, b, c, h, y, ptr, ctx.backend) if needs[3] else None,
        *(None,) * 3,
    )


def _pair_pull_backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    a, b, c, h, y, ptr = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        pair_pull(c, v, b, h, None, ptr, ctx.backend) if needs[0] else None,
        pair_pull(c, v, a, h, None, ptr, ctx.backend) if needs[1] else None,
        pair_pull(a, b, v, h, y, ptr, ctx.backend) if needs[2] else None,
        pair_rows(a, b, c, v, y, ptr, ctx.backend) * _width(a) if needs[3] else None,
        *(None,) * 3,
    )


structure_rows.register_autograd(_structure_rows_backward, setup_context=_setup)
structure_pull.register_autograd(_structure_pull_backward, setup_context=_setup)
pair_rows.register_autograd(_pair_rows_backward, setup_context=_setup)
pair_pull.register_autograd(_pair_pull_backward, setup_context=_setup)
