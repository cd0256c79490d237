"""Linear CKA in plain torch: the specification, on any device. Names and formulas are those of the README.

Half-precision input is computed in float32, as in the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..projected_loss.kinds import accumulator
from ..sums import total_of_squares

Grams = tuple[Tensor, Tensor, Tensor]


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """The public function by definition; autograd differentiates it to any order."""
    x, y = (centred(tensor.to(accumulator(tensor))) for tensor in (x, y))
    return alignment(x.T @ x, y.T @ y, x.T @ y).to(x.dtype)


def alignment(p: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """‖K‖² / (‖P‖ ‖Q‖) in float64, and 0 with derivative 0 where that is 0/0."""
    return quotient(*(total_of_squares(matrix.double().flatten()) for matrix in (p, q, k)))


def quotient(norm_p: Tensor, norm_q: Tensor, norm_k: Tensor) -> Tensor:
    """The similarity from ‖P‖², ‖Q‖² and ‖K‖², in float64."""
    size = norm_p * norm_q
    degenerate = size == 0
    # the square root of 1 instead of 0 keeps the derivatives finite; the numerator is cut off too, because its second one is not 0
    return torch.where(degenerate, 0.0, norm_k) / torch.where(degenerate, 1.0, size).sqrt()


def centred(x: Tensor) -> Tensor:
    """Features less the mean of each column, found in two passes: exactly 0 where a column is constant."""
    # two subtractions: the sum of both means would be rounded once more
    x = x - x.mean(0)
    return x - x.mean(0)


def grams(x: Tensor, y: Tensor) -> Grams:
    """P = XᵀX [C, C], Q = YᵀY [D, D] and K = XᵀY [C, D] of the centred features, in float64."""
    dtype = accumulator(x)
    x, y = centred(x.to(dtype)), centred(y.to(dtype))
    return (x.T @ x).double(), (y.T @ y).double(), (x.T @ y).double()


def gram_gradients(x: Tensor, y: Tensor, p: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ⟨p, P⟩ + ⟨q, Q⟩ + ⟨k, K⟩ by x and y, given cotangents p, q and k."""
    dtype = accumulator(x)
    left, right = centred(x.to(dtype)), centred(y.to(dtype))
    p, q, k = (p + p.T).to(dtype), (q + q.T).to(dtype), k.to(dtype)
    return (left @ p + right @ k.T).to(x.dtype), (right @ q + left @ k).to(x.dtype)


def cross_grams(x: Tensor, y: Tensor, dx: Tensor | None, dy: Tensor | None) -> Grams:
    """Derivatives of the Gram matrices of (x, y) along (dx, dy), in float64: ⟨(dx, dy), `gram_gradients`⟩ by p, q and k."""
    dtype = accumulator(x)
    x, y = centred(x.to(dtype)), centred(y.to(dtype))
    # only one factor of each product need be centred
    m = x.new_zeros(x.shape[1], x.shape[1]) if dx is None else x.T @ dx.to(dtype)
    n = y.new_zeros(y.shape[1], y.shape[1]) if dy is None else y.T @ dy.to(dtype)
    k = x.new_zeros(x.shape[1], y.shape[1]) if dx is None else dx.to(dtype).T @ y
    k = k if dy is None else k + x.T @ dy.to(dtype)
    return (m + m.T).double(), (n + n.T).double(), k.double()
