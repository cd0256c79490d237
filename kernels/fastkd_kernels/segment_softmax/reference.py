"""Softmax within segments in plain torch: the specification, on any device, differentiable to any order by autograd.

``index`` is the segment of each row, and rows of a segment need not be adjacent. Half precision is computed in float32.
"""

import torch
from torch import Tensor

from ..segment_reduce.reference import segment_index


def segment_softmax(values: Tensor, ptr: Tensor) -> Tensor:
    """Contiguous rows: values [n, …], ptr [m + 1] → [n, …]."""
    return softmax(values, segment_index(ptr, values.shape[0]), ptr.shape[0] - 1, False)


def segment_log_softmax(values: Tensor, ptr: Tensor) -> Tensor:
    """As `segment_softmax`, the logarithm."""
    return softmax(values, segment_index(ptr, values.shape[0]), ptr.shape[0] - 1, True)


def scatter_softmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Rows of equal index: values [n, …], index [n] → [n, …]."""
    return softmax(values, index, num_segments, False)


def scatter_log_softmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """As `scatter_softmax`, the logarithm."""
    return softmax(values, index, num_segments, True)


def softmax(values: Tensor, index: Tensor, num_segments: int, log: bool) -> Tensor:
    """exp(x) / Σ exp(x) over the rows of each segment, or its logarithm."""
    wide = _wide(values)
    spread = index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    top = wide.new_zeros(num_segments, *values.shape[1:])
    top = top.scatter_reduce(0, spread, wide.detach(), "amax", include_self=False)
    shifted = wide - top[index]
    total = _sum(shifted.exp(), index, num_segments)
    return (shifted - total.log() if log else shifted.exp() / total).to(values.dtype)


def softmax_backward(y: Tensor, g: Tensor, index: Tensor, num_segments: int, log: bool) -> Tensor:
    """The gradient y (g − Σ y g), or g − exp(y) Σ g for the logarithm."""
    wide, slope = _wide(y), _wide(g)
    if log:
        return (slope - wide.exp() * _sum(slope, index, num_segments)).to(y.dtype)
    return (wide * (slope - _sum(wide * slope, index, num_segments))).to(y.dtype)


def softmax_double_backward(y: Tensor, g: Tensor, h: Tensor, index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Gradients of ⟨h, y (g − Σ y g)⟩ by y and by g."""
    wide, slope, tangent = _wide(y), _wide(g), _wide(h)
    s, t = _sum(wide * slope, index, num_segments), _sum(wide * tangent, index, num_segments)
    return (tangent * (slope - s) - slope * t).to(y.dtype), (wide * (tangent - t)).to(y.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The sum of each row's segment, [n, …]."""
    return values.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, values)[index]
