"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles


def _scalar_reference(edge: Tensor, graph: CSRGraph) -> Tensor:
    return reference.edge_to_node(edge, graph.edge_dst, graph.num_nodes)


def _vector_reference(edge: Tensor, direction: Tensor, graph: CSRGraph) -> Tensor:
    return reference.edge_to_node_vector(edge, direction, graph.edge_dst, graph.num_nodes)


def _both_reference(edge: Tensor, direction: Tensor, graph: CSRGraph) -> tuple[Tensor, Tensor]:
    return reference.edge_to_node_both(edge, direction, graph.edge_dst, graph.num_nodes)


def _scalar_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    return Sample((random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator),), (graph,))


def _vector_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    edge = random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator)
    return Sample((edge, random_tensor(shape.edges, 3, dtype=dtype, generator=generator)), (graph,))


_DERIVATIVES = ("node_to_edge", "node_dot_edge", "edge_to_node_backward")

CASES = (
    OpCase("edge_to_node", op.edge_to_node, _scalar_reference, _scalar_sample, ("segment_sum", "segment_gather")),
    OpCase("edge_to_node_vector", op.edge_to_node_vector, _vector_reference, _vector_sample, ("edge_to_node_vector", *_DERIVATIVES)),
    OpCase("edge_to_node_both", op.edge_to_node_both, _both_reference, _vector_sample, ("edge_to_node_both", *_DERIVATIVES)),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(width: int, real: str) -> Iterator[AotKernel]:
    floats = f"*{real}"
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = {"D": "i32:16" if width % 16 == 0 else "i32"}
    nodes = dict.fromkeys(("m_ptr", "r_ptr", "s_ptr", "v_ptr"), floats) | dict.fromkeys(("ptr_ptr", "order_ptr"), "*i64")
    edges = dict.fromkeys(("m_ptr", "r_ptr", "v_ptr", "g_ptr", "by_m_ptr", "by_r_ptr"), floats) | {"E": "i32"}
    edges |= dict.fromkeys(("dst_ptr", "order_ptr"), "*i64")

    def kernel(name: str, label: str, signature: dict[str, str], tile: dict[str, int], **flags: bool) -> AotKernel:
        constants = flags | {key: value for key, value in tile.items() if key != "num_warps"}
        return AotKernel(f"{name}[{label}, D{width}, {real}]", _load(f"{name}_kernel"), signature, constants, tile["num_warps"])

    for label, scalar in (("vector", False), ("both", True)):
        yield kernel("edge_to_node", label, nodes | size, tiles.node_tile(width), SCALAR=scalar)
    for label, by_m, by_r in (("by m", True, False), ("by r", False, True), ("both", True, True)):
        yield kernel("node_to_edge", label, edges | size, tiles.edge_tile(width), SCALAR=by_m, BY_M=by_m, BY_R=by_r)


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel for width, real in ((3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")) for kernel in _specialisations(width, real)
)
