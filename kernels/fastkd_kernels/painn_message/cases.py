"""How to call the message on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import painn_message


def _make(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    nodes, edges, width = shape.nodes, shape.edges, shape.width
    sizes = ((nodes, 3 * width), (nodes, 3, width), (edges, 3 * width), (edges, 3))
    inputs = tuple(random_tensor(*size, dtype=dtype, generator=generator) for size in sizes)
    return Sample(inputs, (random_graph(shape, generator),))


def _make_first_layer(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    made = _make(shape, dtype, generator)
    phi, _, weight, direction = made.inputs
    return Sample((phi, weight, direction), made.extra)


def _reference(phi: Tensor, vector: Tensor | None, weight: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return reference.painn_message(phi, vector, weight, direction, graph.edge_src, graph.edge_dst)


def _first_layer(phi: Tensor, weight: Tensor, direction: Tensor, graph: CSRGraph, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    return painn_message(phi, None, weight, direction, graph, backend=backend)


def _first_layer_reference(phi: Tensor, weight: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return _reference(phi, None, weight, direction, graph)


_OPERATORS = ("painn_message", "painn_message_backward", "painn_message_double_backward")

CASES: tuple[OpCase, ...] = (
    OpCase("painn_message", painn_message, _reference, _make, _OPERATORS),
    OpCase("painn_message[first layer]", _first_layer, _first_layer_reference, _make_first_layer, _OPERATORS),
)

_TENSORS = ("phi_ptr", "vector_ptr", "weight_ptr", "direction_ptr")
_T_TENSORS = tuple(f"t_{name}" for name in _TENSORS)
_GRADS = ("grad_scalar_ptr", "grad_vector_ptr")
_BY = ("by_phi_ptr", "by_vector_ptr", "by_weight_ptr", "by_direction_ptr")
_FLAGS = ("PHI", "VECTOR", "WEIGHT", "DIRECTION")


def _kernel(name: str, dtype: str, first_layer: bool) -> AotKernel:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, f"{name}_kernel")

    over_sources = name in {"backward", "double_backward"}
    pointers: tuple[str, ...] = _TENSORS
    constants: dict[str, Any] = {"HAS_VECTOR": not first_layer, "BLOCK_E": 4, "BLOCK_F": 128}  # the tile of `triton_launch` for 128
    there = {flag: flag != "VECTOR" or not first_layer for flag in _FLAGS}
    if over_sources:
        pointers += _GRADS + _BY
        constants |= {f"NEEDS_{flag}": value for flag, value in there.items()}
    else:
        pointers += ("out_scalar_ptr", "out_vector_ptr") if name == "message" else ("by_grad_scalar_ptr", "by_grad_vector_ptr")
    if name in {"tangent", "double_backward"}:
        pointers += _T_TENSORS
        # forces come from edges alone there: phi depends on species, so that its gradient has no tangent
        constants |= {f"HAS_T_{flag}": value and not (first_layer and flag == "PHI") for flag, value in there.items()}
    indices = ("dst_ptr" if over_sources else "src_ptr", "ptr_ptr", "order_ptr")
    signature = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(indices, "*i64")
    signature |= dict.fromkeys(("E", "F") if over_sources else ("F",), "i32")
    title = f"painn_{name}[{dtype}{', first layer' if first_layer else ''}]"
    return AotKernel(title, load, signature, constants)


KERNELS: tuple[AotKernel, ...] = tuple(
    _kernel(name, dtype, first_layer)
    for dtype, first_layer in (("fp32", False), ("fp32", True), ("bf16", False), ("fp64", False))
    for name in ("message", "backward", "tangent", "double_backward")
)
