"""Launches the Triton kernels: grids and tiles follow from shapes alone, nothing waits for the GPU."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
from torch import Tensor

from ..projected_loss.kinds import KINDS, accumulator
from . import triton_kernels as kernels
from .projection_launch import ProjectionGradients
from .tiles import tiles


def rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    mean: bool,
    kind: str,
) -> Tensor:
    """ℓ, [N] or [3 N]: see `projected_loss.reference.row_losses`."""
    operands, sizes, options = _prepare(x, weight, bias, edge, direction, ptr, order, mean, kind)
    (count, _, width), columns = sizes, triton.cdiv(sizes[2], options["BLOCK_D"])
    parts = x.new_empty(columns, count, dtype=accumulator(x))
    if count and width:
        grid = (columns * triton.cdiv(count, options["BLOCK_N"]),)
        kernels.edge_to_node_rows_fwd_kernel[grid](*operands, parts, *sizes, **options)
    return parts.sum(0)


def rows_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    dst: Tensor,
    ptr: Tensor,
    order: Tensor,
    upstream: Tensor,
    mean: bool,
    kind: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ h ℓ by x, weight and bias; what is not needed is empty."""
    operands, sizes, options = _prepare(x, weight, bias, edge, direction, ptr, order, mean, kind)
    upstream, width, columns = upstream.contiguous(), sizes[2], triton.cdiv(sizes[2], options["BLOCK_D"])
    gradients = ProjectionGradients(operands[0], operands[1], needs)
    for first, last in gradients.ranges():
        pull = x.new_empty(last - first, width, dtype=accumulator(x))
        grid = (columns * triton.cdiv(last - first, options["BLOCK_N"]),)
        kernels.edge_to_node_rows_pull_kernel[grid](*operands, upstream, pull, *sizes, first, last, **options)
        gradients.add(first, last, pull)
    return gradients.result()


def _prepare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    edge: Tensor,
    direction: Tensor | None,
    ptr: Tensor,
    order: Tensor,
    mean: bool,
    kind: str,
) -> tuple[tuple[Tensor, ...], tuple[int, int, int], dict[str, Any]]:
    # what a flag turns off is not read
    given = (x, weight, x if bias is None else bias, edge, edge if direction is None else direction, ptr, order)
    operands = tuple(tensor.contiguous() for tensor in given)
    options = {
        "KIND": KINDS.index(kind),
        "HAS_BIAS": bias is not None,
        "MEAN": mean,
        "VECTOR": direction is not None,
        **tiles(double=x.dtype == torch.float64),
        "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
    }
    return operands, (x.shape[0], x.shape[1], weight.shape[0]), options
