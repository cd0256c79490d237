"""How to call this folder's function on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..cfconv.cases import random_pairs
from ..cfconv_exact.codes import slopes_of
from ..radial_specs import BASES, ENVELOPES, BasisKind, BasisSpec, EnvelopeKind, EnvelopeSpec, FilterLinear
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference, tiles
from .op import painn_message_exact

CUTOFF = 4.0
OPERATORS = ("painn_exact", "painn_exact_backward", "painn_exact_double_backward")


def _case(basis_kind: BasisKind, envelope_kind: EnvelopeKind, *, paired: bool = False, first: bool = False, smooth: bool = True) -> OpCase:
    basis, envelope = BasisSpec(basis_kind, 7, CUTOFF), EnvelopeSpec(envelope_kind, CUTOFF, 5)

    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        pairs, graph = random_pairs(shape, generator) if paired else (None, random_graph(shape, generator))
        units, nodes, width = graph.num_edges if pairs is None else pairs.num_pairs, shape.nodes, shape.width
        sizes = ((nodes, 3 * width), (nodes, 3, width), (units, 3), (3 * width, basis.size), (3 * width,))
        phi, vector, direction, weight, bias = (random_tensor(*size, dtype=dtype, generator=generator) for size in sizes)
        # some of them beyond the cutoff
        length = (0.3 + torch.rand(units, dtype=torch.float64, generator=generator) * 1.05 * CUTOFF).to(dtype)
        places = (length, direction, weight, bias)
        return Sample((phi, *places) if first else (phi, vector, *places), (basis, envelope, smooth, graph, pairs))

    def function(phi: Tensor, *rest: Any, backend: str | None = None) -> tuple[Tensor, Tensor]:
        vector, length, direction, weight, bias, basis, envelope, smooth, graph, pairs = (None, *rest) if first else rest
        linear = FilterLinear(weight, bias, smooth)
        return painn_message_exact(phi, vector, length, direction, basis, linear, envelope, graph, pairs=pairs, backend=backend)

    def definition(phi: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        vector, length, direction, weight, bias, basis, envelope, smooth, graph, pairs = (None, *rest) if first else rest
        linear = FilterLinear(weight, bias, smooth)
        edges = None if pairs is None else pairs.pair_edges
        return reference.painn_message_exact(phi, vector, length, direction, basis, linear, envelope, graph, edges)

    labels = [basis_kind, envelope_kind, *["first"] * first, *["pairs"] * paired, *["bias outside"] * (not smooth)]
    return OpCase(f"painn_exact[{', '.join(labels)}]", function, definition, make, OPERATORS)


CASES: tuple[OpCase, ...] = (
    _case("gaussian", "cosine"),
    _case("gaussian", "polynomial", paired=True),
    _case("bessel", "exponential", first=True),
    _case("exp_normal", "cosine", first=True, paired=True),
    _case("bessel", "polynomial", smooth=False),
    _case("gaussian", "none", paired=True, smooth=False),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"{name}_kernel")

    return load


# Triton's types of the arguments that are not floats of the input's dtype
_INDICES = dict.fromkeys(("ptr_ptr", "order_ptr", "other_ptr", "index_ptr", "dst_ptr", "to_ptr", "from_ptr"), "*i64")
_SIZES = dict.fromkeys(("U", "E", "K", "edges_each"), "i32")

_PRIMALS = "phi_ptr vector_ptr direction_ptr"
_EDGES = "ptr_ptr order_ptr other_ptr index_ptr dst_ptr"
_COTANGENTS = "grad_scalar_ptr grad_vector_ptr"
_TANGENTS = "t_phi_ptr t_vector_ptr rate_ptr t_direction_ptr"
_ARGUMENTS = {
    "message": f"{_PRIMALS} weight_ptr length_ptr {_EDGES} out_scalar_ptr out_vector_ptr F K",
    "backward": f"{_COTANGENTS} {_PRIMALS} weight_ptr length_ptr {_EDGES} by_phi_ptr by_vector_ptr partial_ptr U F K",
    "double_backward": f"{_TANGENTS} {_COTANGENTS} {_PRIMALS} weight_ptr length_ptr {_EDGES} "
    "by_grad_scalar_ptr by_grad_vector_ptr by_phi_ptr by_vector_ptr F K",
    "weight": f"{_TANGENTS} {_COTANGENTS} {_PRIMALS} length_ptr to_ptr from_ptr index_ptr dst_ptr part_ptr E F K edges_each",
}


def _kernel(name: str, label: str, spec: tuple[int, str, BasisKind, EnvelopeKind], **flags: Any) -> AotKernel:
    width, real, basis, envelope = spec
    double = real == "fp64"
    # a width of 128 is a multiple of 16, which lets loads be wide
    types = _INDICES | _SIZES | {"F": "i32:16" if width % 16 == 0 else "i32"}
    types |= dict.fromkeys(("partial_ptr", "part_ptr"), "*fp64" if double else "*fp32")
    signature = {argument: types.get(argument, f"*{real}") for argument in _ARGUMENTS[name].split()}
    slopes = slopes_of(BasisSpec(basis, 20, CUTOFF))
    constants: dict[str, Any] = {
        "SMOOTH": True,
        "ENVELOPE": ENVELOPES.index(envelope),
        "EXPONENT": 6,
        "REACH": CUTOFF,
        "BASIS": BASES.index(basis),
        "FIRST": slopes.first,
        "INVERSE": slopes.inverse,
        "SCALE": slopes.scale,
        "DECAY": slopes.decay,
        **tiles.tile(name, width, double),
    }
    title = f"painn_exact_{name}[{label}, {basis}, {envelope}, F{width}, {real}]"
    return AotKernel(title, _load(name), signature, flags | constants, tiles.WARPS[name])


def _kernels(width: int, real: str, basis: BasisKind, envelope: EnvelopeKind) -> Iterator[AotKernel]:
    shared = width, real, basis, envelope
    needs = dict.fromkeys(("NEEDS_PHI", "NEEDS_LENGTH", "NEEDS_DIRECTION"), True)
    given = dict.fromkeys(("HAS_T_PHI", "HAS_RATE", "HAS_T_DIRECTION"), True)
    nothing = dict.fromkeys((*given, "HAS_T_VECTOR"), False)
    for paired in (False, True):
        label = "pairs" if paired else "edges"
        yield _kernel("message", label, shared, HAS_VECTOR=True, PAIRED=paired)
        yield _kernel("backward", label, shared, HAS_VECTOR=True, PAIRED=paired, LOW=0, NEEDS_VECTOR=True, **needs)
        for walk, into, out_of in (("both", True, True),) if paired else (("into", True, False), ("out of", False, True)):
            flags = given | {"HAS_VECTOR": True, "HAS_T_VECTOR": True, "PAIRED": paired, "INTO": into, "OUT_OF": out_of}
            yield _kernel("double_backward", f"{walk} {label}", shared, **flags)
        for block in range(3):
            yield _kernel("weight", f"{label} {block}", shared, WHICH=block, TANGENT=False, PAIRED=paired, **nothing)
            flags = given | {"HAS_T_VECTOR": True, "TANGENT": True, "PAIRED": paired}
            yield _kernel("weight", f"second {label} {block}", shared, WHICH=block, **flags)
    # the second derivative by lengths: slope and curvature of the filter
    wanted = {"NEEDS_PHI": False, "NEEDS_VECTOR": False, "NEEDS_LENGTH": True, "NEEDS_DIRECTION": True}
    yield _kernel("backward", "curvature", shared, HAS_VECTOR=True, PAIRED=True, LOW=1, **wanted)


KERNELS: tuple[AotKernel, ...] = (
    *_kernels(128, "fp32", "gaussian", "cosine"),
    *_kernels(128, "fp64", "gaussian", "cosine"),
    *_kernels(128, "bf16", "bessel", "polynomial"),
    *_kernels(3, "fp32", "exp_normal", "exponential"),
)
