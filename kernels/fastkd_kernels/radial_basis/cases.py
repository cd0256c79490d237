"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles
from .kinds import BASES, ENVELOPES, BasisKind, Constants, EnvelopeKind

# calls of the public functions repeat the numbers: torch.compile takes a module's own variables for input and traces twice
CUTOFF, EXPONENT, START = 5.0, 5, 0.2


def _lengths(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    # from contact to beyond the cutoff
    return (1.15 * CUTOFF * torch.rand(shape.edges, dtype=torch.float64, generator=generator)).to(dtype)


def _of_graph(function: str, edge_length: Tensor, graph: CSRGraph) -> None:
    # lengths alone can have no wrong shape; in a model they are those of a graph's edges
    if edge_length.shape != (graph.num_edges,):
        raise ValueError(f"{function} needs edge_length [{graph.num_edges}], got {list(edge_length.shape)}")


def _basis_case(kind: BasisKind, envelope: EnvelopeKind | None) -> OpCase:
    names = ("frequencies",) if kind == "bessel" else ("centres", "gamma")

    def function(edge_length: Tensor, *rest: Any, backend: str | None = None) -> Tensor:
        *parameters, graph, size = rest
        _of_graph("radial_basis", edge_length, graph)
        given = dict(zip(names, parameters, strict=True))
        return op.radial_basis(edge_length, kind, 5.0, size, envelope=envelope, envelope_exponent=5, start=0.2, backend=backend, **given)

    def exact(edge_length: Tensor, *rest: Any) -> Tensor:
        *parameters, _, _ = rest
        constants = Constants(kind, CUTOFF, 5 / (CUTOFF - START), START, envelope or "none", EXPONENT)
        return reference.radial_basis(edge_length, parameters[0], parameters[-1], constants)

    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        graph, size = random_graph(shape, generator), shape.width
        usual = op.radial_parameters(kind, CUTOFF, max(2, size), start=START, dtype=torch.float64)
        # parameters in training: near the usual ones
        moved = [u[:size] * (1 + 0.05 * random_tensor(size, dtype=torch.float64, generator=generator)) for u in usual]
        parameters = tuple(tensor.to(dtype) for tensor in moved[: len(names)])
        return Sample((_lengths(shape, dtype, generator), *parameters), (graph, size))

    operators = ("radial_basis", "radial_basis_backward", "radial_basis_double_backward")
    return OpCase(f"radial_basis[{kind}, {envelope or 'none'}]", function, exact, make, operators)


def _envelope_case(kind: EnvelopeKind) -> OpCase:
    def function(edge_length: Tensor, graph: CSRGraph, *, backend: str | None = None) -> Tensor:
        _of_graph("radial_envelope", edge_length, graph)
        return op.radial_envelope(edge_length, kind, 5.0, 5, backend=backend)

    def make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
        return Sample((_lengths(shape, dtype, generator),), (random_graph(shape, generator),))

    def exact(edge_length: Tensor, graph: CSRGraph) -> Tensor:
        return reference.envelope(edge_length, kind, CUTOFF, EXPONENT)

    return OpCase(f"radial_envelope[{kind}]", function, exact, make, ("radial_envelope",))


_ENVELOPE_KINDS: tuple[EnvelopeKind, ...] = ("polynomial", "cosine", "exponential")

CASES: tuple[OpCase, ...] = (
    *(_basis_case(kind, None) for kind in BASES),
    _basis_case("gaussian", "cosine"),
    _basis_case("bessel", "polynomial"),
    _basis_case("exp_normal", "exponential"),
    *(_envelope_case(kind) for kind in _ENVELOPE_KINDS),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(kind: BasisKind, envelope: str, size: int, real: str) -> Iterator[AotKernel]:
    sums = "*fp64" if real == "fp64" else "*fp32"
    functions = {"d_ptr": f"*{real}", "p_ptr": f"*{real}", "q_ptr": f"*{real}"}
    tangents = dict.fromkeys(("h_ptr", "a_ptr", "b_ptr", "g_ptr"), f"*{real}")
    # a size of 64 is a multiple of 16, which lets loads be wide
    sizes = {"E": "i32", "R": "i32:16" if size % 16 == 0 else "i32"}
    tile = tiles.tile(size, double=real == "fp64")
    constants: dict[str, Any] = {
        "KIND": BASES.index(kind),
        "CUTOFF": CUTOFF,
        "ALPHA": 5 / CUTOFF,
        "START": 0.0,
        "ENVELOPE": ENVELOPES.index(envelope),
        "EXPONENT": EXPONENT,
        "NORM": math.sqrt(2 / CUTOFF),
        "BLOCK_E": tile["BLOCK_E"],
        "BLOCK_R": tile["BLOCK_R"],
    }

    def kernel(name: str, label: str, signature: dict[str, str], **flags: bool) -> AotKernel:
        title = f"radial_basis_{name}[{label}{kind}, {envelope}, R{size}, {real}]"
        return AotKernel(title, _load(f"{name}_kernel"), signature | sizes, constants | flags, tile["num_warps"])

    yield kernel("value", "", functions | {"out_ptr": f"*{real}"})
    rows, columns = functions | tangents, functions | tangents | {"by_p_ptr": sums, "by_q_ptr": sums, "per_part": "i32"}
    rows |= {"by_g_ptr": f"*{real}", "by_d_ptr": f"*{real}"}
    none = {"HAS_H": False, "HAS_P": False, "HAS_Q": False}
    two = kind != "bessel"
    yield kernel("rows", "first, ", rows, SECOND=False, NEED_G=False, **none)
    yield kernel("rows", "second, ", rows, SECOND=True, NEED_G=True, **none | {"HAS_H": True})
    yield kernel("rows", "all, ", rows, SECOND=True, NEED_G=True, HAS_H=True, HAS_P=True, HAS_Q=two)
    yield kernel("columns", "first, ", columns, SECOND=False, **none)
    yield kernel("columns", "all, ", columns, SECOND=True, HAS_H=True, HAS_P=True, HAS_Q=two)


def _kernels() -> Iterator[AotKernel]:
    usual: tuple[tuple[BasisKind, str, int], ...] = (
        ("gaussian", "cosine", 50),
        ("bessel", "polynomial", 8),
        ("exp_normal", "exponential", 64),
    )
    for kind, envelope, size in usual:
        yield from _specialisations(kind, envelope, size, "fp32")
    yield from _specialisations("bessel", "polynomial", 128, "fp32")
    yield from _specialisations("gaussian", "none", 128, "bf16")
    for kind, envelope, size in usual:
        yield from _specialisations(kind, envelope, size, "fp64")
    for envelope in ENVELOPES[1:]:
        for real in ("fp32", "fp64"):
            constants = {"CUTOFF": CUTOFF, "ENVELOPE": ENVELOPES.index(envelope), "EXPONENT": EXPONENT, "ORDER": 2}
            signature = {"d_ptr": f"*{real}", "out_ptr": f"*{real}", "E": "i32"}
            name = f"radial_envelope[{envelope}, {real}]"
            yield AotKernel(name, _load("envelope_kernel"), signature, constants | {"BLOCK_E": tiles.FLAT_TILE})


KERNELS: tuple[AotKernel, ...] = tuple(_kernels())
