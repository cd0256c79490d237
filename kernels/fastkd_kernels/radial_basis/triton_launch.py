"""Launches of the Triton kernels; names as in ``op.py``. Nothing here depends on values or waits for the GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .kinds import BASES, ENVELOPES, accumulator
from .tiles import FLAT_TILE, MAX_PARTS, PER_PART, tile


def value(d: Tensor, p: Tensor, q: Tensor, *constants: Any) -> Tensor:
    """[E], [R], [R] → [E, R]."""
    out = torch.empty((d.shape[0], p.shape[0]), dtype=d.dtype, device=d.device)
    if out.numel():
        sizes = tile(p.shape[0], double=d.dtype == torch.float64)
        kernels.value_kernel[_grid(d, sizes)](*_contiguous(d, p, q), out, *out.shape, **_constants(*constants), **sizes)
    return out


def backward(g: Tensor, d: Tensor, p: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by d, p and q; empty where not needed."""
    *constants, (need_d, need_p, need_q) = rest
    inputs = _contiguous(d, d, d, g, d, p, q)
    flags = {"SECOND": False, "HAS_H": False, "HAS_P": False, "HAS_Q": False, **_constants(*constants)}
    by_d = _rows(inputs, g, d, flags, need_g=False)[1] if need_d else d.new_empty(0)
    return by_d, *_columns(inputs, d, p, flags, need_p, need_q)


def double_backward(
    h: Tensor | None, a: Tensor | None, b: Tensor | None, g: Tensor, d: Tensor, p: Tensor, q: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by g, d, p and q of the contraction with h, a and b; empty where not needed."""
    *constants, (need_g, need_d, need_p, need_q) = rest
    # a tangent that is not there is not read
    inputs = _contiguous(*(d if t is None else t for t in (h, a, b)), g, d, p, q)
    flags = {"SECOND": True, **{f"HAS_{name}": t is not None for name, t in (("H", h), ("P", a), ("Q", b))}, **_constants(*constants)}
    by_g, by_d = _rows(inputs, g, d, flags, need_g=need_g) if need_g or need_d else (g, d)
    by_g, by_d = by_g if need_g else g.new_empty(0, 0), by_d if need_d else d.new_empty(0)
    return by_g, by_d, *_columns(inputs, d, p, flags, need_p, need_q)


def envelope(d: Tensor, kind: str, cutoff: float, exponent: int, order: int) -> Tensor:
    """[E] → [E]."""
    d = d.contiguous()
    out = torch.empty(d.shape, dtype=d.dtype, device=d.device)
    if out.numel():
        options = {"CUTOFF": cutoff, "ENVELOPE": ENVELOPES.index(kind), "EXPONENT": exponent, "ORDER": order, "BLOCK_E": FLAT_TILE}
        kernels.envelope_kernel[(triton.cdiv(d.shape[0], FLAT_TILE),)](d, out, d.shape[0], **options)
    return out


def _rows(inputs: list[Tensor], g: Tensor, d: Tensor, flags: dict[str, Any], *, need_g: bool) -> tuple[Tensor, Tensor]:
    by_g = torch.empty(g.shape, dtype=g.dtype, device=g.device) if need_g else g
    # an empty sum over no functions is 0, and no kernel runs for it
    by_d = torch.empty(d.shape, dtype=d.dtype, device=d.device) if g.shape[1] else d.new_zeros(d.shape)
    if g.numel():
        sizes = tile(g.shape[1], double=d.dtype == torch.float64)
        kernels.rows_kernel[_grid(d, sizes)](*inputs, by_g, by_d, *g.shape, NEED_G=need_g, **flags, **sizes)
    return by_g, by_d


def _columns(inputs: list[Tensor], d: Tensor, p: Tensor, flags: dict[str, Any], need_p: bool, need_q: bool) -> tuple[Tensor, Tensor]:
    if not need_p and not need_q:
        return d.new_empty(0), d.new_empty(0)
    edges, size = d.shape[0], p.shape[0]
    sizes = tile(size, double=d.dtype == torch.float64)
    # a part is a whole number of tiles
    per_part = max(PER_PART, triton.cdiv(triton.cdiv(edges, MAX_PARTS), sizes["BLOCK_E"]) * sizes["BLOCK_E"])
    parts = triton.cdiv(edges, per_part)
    sums = [torch.empty((parts, size), dtype=accumulator(d.dtype), device=d.device) for _ in range(2)]
    if edges and size:
        grid = (parts, triton.cdiv(size, sizes["BLOCK_R"]))
        kernels.columns_kernel[grid](*inputs, *sums, edges, size, per_part, **flags, **sizes)
    by_p, by_q = (total.sum(0).to(d.dtype) if need else d.new_empty(0) for total, need in zip(sums, (need_p, need_q), strict=True))
    return by_p, by_q


def _grid(d: Tensor, sizes: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(d.shape[0], sizes["BLOCK_E"]),)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _constants(kind: str, cutoff: float, alpha: float, start: float, envelope: str, exponent: int) -> dict[str, Any]:
    return {
        "KIND": BASES.index(kind),
        "CUTOFF": cutoff,
        "ALPHA": alpha,
        "START": start,
        "ENVELOPE": ENVELOPES.index(envelope),
        "EXPONENT": exponent,
        "NORM": math.sqrt(2 / cutoff),
    }
