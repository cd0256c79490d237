"""Launches the Triton kernels: grids and tiles follow from shapes alone, nothing waits for the GPU."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
from torch import Tensor

from ..edge_to_node_loss.projection_launch import ProjectionGradients
from ..projected_loss.kinds import accumulator
from . import triton_kernels as kernels
from .tiles import tiles


def nodes(v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float) -> Tensor:
    """ℓ [N], see `reference.node_losses`."""
    operands, sizes, options = _prepare(v, weight, target, mix, eps)
    (count, _, width), columns = sizes, triton.cdiv(sizes[2], options["BLOCK_D"])
    parts = v.new_empty(columns, count, dtype=accumulator(v))
    if count and width:
        grid = (columns * triton.cdiv(count, options["BLOCK_N"]),)
        kernels.geometric_nodes_fwd_kernel[grid](*operands, parts, *sizes, **options)
    return parts.sum(0)


def nodes_backward(
    v: Tensor, weight: Tensor, target: Tensor, upstream: Tensor, mix: float, eps: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i h_i ℓ_i by v, weight and target; what is not needed is empty."""
    operands, sizes, options = _prepare(v, weight, target, mix, eps)
    upstream, width, columns = upstream.contiguous(), sizes[2], triton.cdiv(sizes[2], options["BLOCK_D"])
    flags = {"NEED_PULL": needs[0] or needs[1], "NEED_TARGET": needs[2]}
    grad_target = v.new_empty(target.shape if needs[2] else (0,))
    # three rows a node; a range must not cut through them
    gradients = ProjectionGradients(operands[0].view(-1, v.shape[2]), operands[1], [needs[0], needs[1], False], group=3)
    for first, last in gradients.ranges():
        pull = v.new_empty(last - first if flags["NEED_PULL"] else 0, width, dtype=accumulator(v))
        grid = (columns * triton.cdiv((last - first) // 3, options["BLOCK_N"]),)
        kernels.geometric_nodes_pull_kernel[grid](*operands, upstream, pull, grad_target, *sizes, first // 3, last // 3, **flags, **options)
        if flags["NEED_PULL"]:
            gradients.add(first, last, pull)
    grad_x, grad_weight, _ = gradients.result()
    return grad_x.view(v.shape) if needs[0] else grad_x, grad_weight, grad_target


def _prepare(
    v: Tensor, weight: Tensor, target: Tensor, mix: float, eps: float
) -> tuple[tuple[Tensor, ...], tuple[int, int, int], dict[str, Any]]:
    options = {
        "MIX": mix,
        "EPS": eps,
        **tiles(double=v.dtype == torch.float64),
        "WIDEN": os.environ.get("TRITON_INTERPRET") == "1",
    }
    return (v.contiguous(), weight.contiguous(), target.contiguous()), (v.shape[0], v.shape[2], weight.shape[0]), options
