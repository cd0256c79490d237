"""The global structure loss in plain torch: the specification, on any device, differentiable to any order by autograd.

It does make the differences of all pairs of one image at a time, [n, n, C], and it reads ``ptr`` on the host; the kernels do neither.
Half-precision features are computed in float32, as in the kernels. Names and formulas are those of the README.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..segment_reduce.launch import check_ptr


def accumulator(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def global_structure_loss(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """The public function by definition."""
    # a sum over nothing keeps the result connected to x where there is no image
    total, images = x[:0].sum(dtype=accumulator(x)), ptr.shape[0] - 1
    y = y.to(total.dtype)
    for image in _images(ptr, x.shape[0]):
        difference = _distances(x[image], x[image]) - _distances(y[image], y[image])
        total = total + difference.square().sum() / max(difference.numel(), 1)
    return total / max(images, 1)


def structure_rows(x: Tensor, y: Tensor, ptr: Tensor) -> Tensor:
    """Σ_j (D(x, x) − D(y, y))²_ij over the atoms j of i's image, [N]."""
    out = x.new_empty(x.shape[0], dtype=accumulator(x))
    for image in _images(ptr, x.shape[0]):
        out[image] = (_distances(x[image], x[image]) - _distances(y[image], y[image])).square().sum(1)
    return out


def pair_rows(a: Tensor, b: Tensor, c: Tensor, d: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Σ_j (D(a, b) − D(y, y))_ij D(c, d)_ij over the atoms j of i's image, [N]; without y, D(y, y) is 0."""
    out = a.new_empty(a.shape[0], dtype=accumulator(a))
    for image in _images(ptr, a.shape[0]):
        first, second = _distances(a[image], b[image]), _distances(c[image], d[image])
        target = 0 if y is None else _distances(y[image], y[image])
        out[image] = ((first - target) * second).sum(1)
    return out


def pair_pull(a: Tensor, b: Tensor, c: Tensor, h: Tensor, y: Tensor | None, ptr: Tensor) -> Tensor:
    """Σ_j (h_i + h_j) (D(a, b) − D(y, y))_ij (c_i − c_j) over the atoms j of i's image, [N, C]; without y, D(y, y) is 0."""
    out = torch.empty_like(c, memory_format=torch.contiguous_format)
    for image in _images(ptr, a.shape[0]):
        weight = _distances(a[image], b[image]) - (0 if y is None else _distances(y[image], y[image]))
        weight = (h[image, None] + h[None, image]) * weight
        out[image] = (weight[:, :, None] * _differences(c[image])).sum(1).to(c.dtype)
    return out


def _images(ptr: Tensor, atoms: int) -> Iterator[slice]:
    check_ptr(ptr.cpu(), atoms)
    bounds = ptr.tolist()
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """D(a, b)_ij = Σ (a_i − a_j) · (b_i − b_j) / C over all trailing axes, [n, n]."""
    product = _differences(a) * _differences(b)
    return product.sum(2) / max(product.shape[2], 1)


def _differences(x: Tensor) -> Tensor:
    x = x.to(accumulator(x)).flatten(1)
    return x[:, None] - x[None]
