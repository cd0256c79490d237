"""Allocate, hand over arrays, say how much work there is; names as in ``op.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cpu import arrays
from . import numba_kernels as kernels
from .kinds import BASES, ENVELOPES

#: Operations a function of a distance takes, as `cpu.Kernel` counts work.
WORK = 20


def value(d: Tensor, p: Tensor, q: Tensor, *constants: Any) -> Tensor:
    """[E], [R], [R] → [E, R]."""
    out = torch.empty(d.shape[0], p.shape[0], dtype=d.dtype)
    inputs = arrays(d, p, q)
    kernels.value(*inputs, *_numbers(*constants), *arrays(out), work=WORK * out.numel())
    return out


def backward(g: Tensor, d: Tensor, p: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by d, p and q; empty where not needed."""
    *constants, (need_d, need_p, need_q) = rest
    inputs, numbers, work = arrays(g, d, p, q), _numbers(*constants), 2 * WORK * g.numel()
    by_d = torch.empty(d.shape[0] if need_d else 0, dtype=d.dtype)
    if need_d:
        kernels.by_length(*inputs, *numbers, *arrays(by_d), work=work)
    if not need_p and not need_q:
        return by_d, d.new_empty(0), d.new_empty(0)
    sums = _parts(d, p)
    kernels.by_parameters(*inputs, *numbers, *arrays(*sums), work=work)
    return by_d, *_totals(sums, d, need_p, need_q)


def double_backward(
    h: Tensor | None, a: Tensor | None, b: Tensor | None, g: Tensor, d: Tensor, p: Tensor, q: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by g, d, p and q of the contraction with h, a and b; empty where not needed."""
    *constants, (need_g, need_d, need_p, need_q) = rest
    inputs, numbers, work = arrays(g, d, p, q), _numbers(*constants), 3 * WORK * g.numel()
    tangents = [like.new_zeros(like.shape) if t is None else t for t, like in ((h, d), (a, p), (b, q))]
    by_g, by_d = torch.empty(g.shape, dtype=g.dtype), torch.empty(d.shape, dtype=d.dtype)
    if need_g or need_d:
        if a is None and b is None:
            kernels.tangent_of_length(*arrays(tangents[0]), *inputs, *numbers, *arrays(by_g, by_d), work=work)
        else:
            kernels.tangents(*arrays(*tangents), *inputs, *numbers, *arrays(by_g, by_d), work=work)
    by_g, by_d = by_g if need_g else g.new_empty(0, 0), by_d if need_d else d.new_empty(0)
    if not need_p and not need_q:
        return by_g, by_d, d.new_empty(0), d.new_empty(0)
    sums = _parts(d, p)
    kernels.tangents_by_parameters(*arrays(*tangents), *inputs, *numbers, *arrays(*sums), work=work)
    return by_g, by_d, *_totals(sums, d, need_p, need_q)


def envelope(d: Tensor, kind: str, cutoff: float, exponent: int, order: int) -> Tensor:
    """[E] → [E]."""
    out = torch.empty(d.shape[0], dtype=d.dtype)
    kernels.envelopes(*arrays(d), ENVELOPES.index(kind), cutoff, exponent, order, *arrays(out), work=WORK * d.numel())
    return out


def _numbers(kind: str, cutoff: float, alpha: float, start: float, envelope: str, exponent: int) -> tuple[Any, ...]:
    return BASES.index(kind), cutoff, alpha, start, ENVELOPES.index(envelope), exponent


def _parts(d: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    blocks = (d.shape[0] + kernels.BLOCK - 1) // kernels.BLOCK
    shape = (blocks, p.shape[0])
    return torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)


def _totals(sums: tuple[Tensor, Tensor], d: Tensor, need_p: bool, need_q: bool) -> tuple[Tensor, Tensor]:
    by_p, by_q = (total.sum(0).to(d.dtype) if need else d.new_empty(0) for total, need in zip(sums, (need_p, need_q), strict=True))
    return by_p, by_q
