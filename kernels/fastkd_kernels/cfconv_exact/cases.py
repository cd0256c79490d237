"""How to call this folder's function on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..cfconv.pairs import PairIndex
from ..graph import CSRGraph
from ..radial_specs import ACTIVATIONS, BASES, ENVELOPES, ActivationKind, BasisKind, BasisSpec, EnvelopeKind, EnvelopeSpec, FilterMLP
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .codes import slopes_of
from .op import cfconv_exact

CUTOFF = 4.0
OPERATORS = ("cfconv_exact", "cfconv_exact_backward", "cfconv_exact_double")

Extra = tuple[BasisSpec, EnvelopeSpec, ActivationKind, CSRGraph, PairIndex | None]


def _case(basis_kind: BasisKind, envelope_kind: EnvelopeKind, activation: ActivationKind, *, paired: bool) -> OpCase:
    basis, envelope = BasisSpec(basis_kind, 9, CUTOFF), EnvelopeSpec(envelope_kind, CUTOFF, 5)

    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        width, hidden = shape.width, shape.width + 2
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        count = graph.num_edges if pairs is None else pairs.num_pairs
        x = random_tensor(shape.nodes, width, dtype=dtype, generator=generator)
        # a tenth of them beyond the cutoff
        length = (0.3 + torch.rand(count, dtype=torch.float64, generator=generator) * 1.1 * CUTOFF).to(dtype)
        sizes = ((hidden, basis.size, basis.size), (hidden, 1, 1), (width, hidden, hidden), (width, 1, 1))
        network = [random_tensor(a, b, dtype=torch.float64, generator=generator).mul(c**-0.5).to(dtype) for a, b, c in sizes]
        w1, b1, w2, b2 = network
        return Sample((x, length, w1, b1.squeeze(1), w2, b2.squeeze(1)), (basis, envelope, activation, graph, pairs))

    name = f"cfconv_exact[{basis_kind}, {envelope_kind}, {activation}{', paired' if paired else ''}]"
    return OpCase(name, _function, _reference, make, OPERATORS)


def _function(x: Tensor, length: Tensor, *rest: Any, backend: str | None = None) -> Tensor:
    w1, b1, w2, b2, basis, envelope, activation, graph, pairs = rest
    return cfconv_exact(x, length, basis, FilterMLP(w1, b1, w2, b2, activation), envelope, graph, pairs=pairs, backend=backend)


def _reference(x: Tensor, length: Tensor, *rest: Any) -> Tensor:
    w1, b1, w2, b2, basis, envelope, activation, graph, pairs = rest
    mlp = FilterMLP(w1, b1, w2, b2, activation)
    return reference.cfconv_exact(x, length, basis, mlp, envelope, graph, None if pairs is None else pairs.pair)


CASES: tuple[OpCase, ...] = (
    _case("gaussian", "cosine", "shifted_softplus", paired=False),
    _case("gaussian", "polynomial", "shifted_softplus", paired=True),
    _case("bessel", "exponential", "silu", paired=False),
    _case("exp_normal", "none", "tanh", paired=True),
)


#: Arguments before the sizes, in order; those of float type are data, ``order`` and the like int64.
_NETWORK = ("length_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr")
_ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    # data, indices, outputs, sizes
    "reduce": (("a_ptr", "b_ptr", "u_ptr", *_NETWORK), ("other_ptr", "ptr_ptr", "order_ptr", "index_ptr"), ("out_ptr",), ("F", "H", "K")),
    "dots": (
        ("g_ptr", "a_ptr", "b_ptr", "u_ptr", *_NETWORK),
        ("src_ptr", "dst_ptr", "index_ptr"),
        ("out_ptr",),
        ("E", "F", "H", "K"),
    ),
    "second": (
        ("g_ptr", "a_ptr", "b_ptr", "u_ptr", *_NETWORK[:3]),
        ("src_ptr", "dst_ptr", "index_ptr"),
        ("weight_part_ptr", "bias_part_ptr"),
        ("E", "F", "H", "K", "edges_each"),
    ),
    "first": (
        ("g_ptr", "a_ptr", "b_ptr", "u_ptr", *_NETWORK[:4]),
        ("src_ptr", "dst_ptr", "index_ptr"),
        ("weight_part_ptr", "bias_part_ptr"),
        ("E", "F", "H", "K", "edges_each"),
    ),
}


def _kernel(name: str, dtype: str, low: int, order: int, kinds: tuple[int, int, int]) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"cfconv_exact_{name}_kernel")

    data, indices, outputs, sizes = _ARGUMENTS[name]
    accumulator, double = "fp64" if dtype == "fp64" else "fp32", dtype == "fp64"
    written = dtype if name == "reduce" else accumulator
    signature = dict.fromkeys(data, f"*{dtype}") | dict.fromkeys(indices, "*i64")
    signature |= dict.fromkeys(outputs, f"*{written}") | dict.fromkeys(sizes, "i32")
    basis, envelope, activation = kinds
    slopes = slopes_of(BasisSpec(BASES[basis], 50, CUTOFF))
    # the tiles of `triton_launch` for a width of 128, written out because that module needs triton
    widths = {"reduce": 64, "dots": 64, "second": 32, "first": 16}
    width = min(widths[name], {"second": 16}.get(name, 32)) if double else widths[name]
    constants: dict[str, Any] = {
        "LOW": low,
        "ORDER": order,
        "HAS_PAIRS": True,
        "ACT": activation,
        "ENVELOPE": envelope,
        "EXPONENT": 6,
        "REACH": CUTOFF,
        "BASIS": basis,
        "FIRST": slopes.first,
        "INVERSE": slopes.inverse,
        "SCALE": slopes.scale,
        "DECAY": slopes.decay,
        "BLOCK_E": 32 if name == "dots" and not double else 16,
        "BLOCK_F": width,
        "BLOCK_H": 16,
        "BLOCK_K": 16,
        "DOUBLE": double,
    }
    title = f"cfconv_exact_{name}[{BASES[basis]}, {ENVELOPES[envelope]}, {ACTIVATIONS[activation]}, {low} to {order}, {dtype}]"
    reason = "on gfx942 alone: the operands of a float64 product take two registers a number" if double and name != "dots" else ""
    return AotKernel(title, load, signature, constants, num_warps=8, spill_reason=reason)


def _kernels() -> Iterator[AotKernel]:
    usual = (0, 0, 0)
    for name, low, order in (
        ("reduce", 0, 0),
        ("reduce", 1, 1),
        ("reduce", 0, 1),
        ("dots", 1, 1),
        ("dots", 1, 2),
        ("second", 0, 0),
        ("second", 0, 1),
        ("first", 0, 0),
        ("first", 0, 1),
    ):
        yield _kernel(name, "fp32", low, order, usual)
    for kinds in ((1, 1, 1), (2, 2, 2), (0, 3, 1)):
        yield _kernel("reduce", "fp32", 0, 1, kinds)
        yield _kernel("dots", "fp32", 1, 2, kinds)
    for dtype in ("bf16", "fp64"):
        for name in _ARGUMENTS:
            yield _kernel(name, dtype, 1 if name == "dots" else 0, 1, usual)


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
