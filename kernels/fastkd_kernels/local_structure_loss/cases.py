"""How the checks call this folder's functions, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..edge_to_node.tiles import edge_tile, node_tile
from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import op, reference, tiles


def _distance_reference(x: Tensor, graph: CSRGraph) -> Tensor:
    return reference.edge_distance(x, graph.edge_src, graph.edge_dst)


def _loss_reference(x: Tensor, y: Tensor, graph: CSRGraph) -> Tensor:
    return reference.local_structure_loss(x, y, graph)


def _distance_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    return Sample((random_tensor(shape.nodes, shape.width, dtype=dtype, generator=generator),), (graph,))


def _loss_sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    # distances of about 1 and 2: in wide features of unit variance the nearest node's probability is 0 to rounding
    x, y = (
        random_tensor(shape.nodes, width, dtype=torch.float64, generator=generator).mul(scale * width**-0.5).to(dtype)
        for width, scale in ((shape.width, 0.7), (shape.width + 2, 1.4))
    )
    return Sample((x,), (y, graph))


_DISTANCE = ("edge_distance", "edge_dot", "edge_laplacian")

CASES = (
    OpCase("edge_distance", op.edge_distance, _distance_reference, _distance_sample, _DISTANCE),
    OpCase(
        "local_structure_loss",
        op.local_structure_loss,
        _loss_reference,
        _loss_sample,
        (*_DISTANCE, "softmax_divergence", "softmax_divergence_backward"),
    ),
)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _kernel(name: str, label: str, signature: dict[str, str], tile: dict[str, int], **flags: bool) -> AotKernel:
    constants = flags | {key: value for key, value in tile.items() if key != "num_warps"}
    return AotKernel(f"{name}[{label}]", _load(f"{name}_kernel"), signature, constants, tile["num_warps"])


def _on_features(width: int, real: str) -> Iterator[AotKernel]:
    accumulator = "*fp64" if real == "fp64" else "*fp32"
    # a width of 128 is a multiple of 16, which lets loads be wide
    size = {"C": "i32:16" if width % 16 == 0 else "i32"}
    index = dict.fromkeys(("src_ptr", "dst_ptr"), "*i64")
    edges = {"a_ptr": f"*{real}", "b_ptr": f"*{real}"} | index | {"order_ptr": "*i64", "out_ptr": accumulator, "E": "i32"} | size
    for label, same in (("distance", True), ("dot", False)):
        yield _kernel("edge_dot", f"{label}, C{width}, {real}", edges, edge_tile(width), SAME=same, ROOT=same)
    sorts = dict.fromkeys(("in_ptr", "in_order_ptr", "out_edges_ptr", "out_order_ptr"), "*i64")
    nodes = {"w_ptr": accumulator, "x_ptr": f"*{real}"} | index | sorts | {"grad_ptr": f"*{real}"} | size
    yield _kernel("edge_laplacian", f"C{width}, {real}", nodes, node_tile(width))


def _on_edges(real: str) -> Iterator[AotKernel]:
    pointers = dict.fromkeys(("student_ptr", "teacher_ptr", "upstream_ptr", "out_ptr"), f"*{real}")
    pointers |= dict.fromkeys(("ptr_ptr", "order_ptr"), "*i64")
    for label, gradient in (("value", False), ("gradient", True)):
        yield _kernel("divergence", f"{label}, {real}", pointers, tiles.SEGMENT_TILE, GRADIENT=gradient)


KERNELS: tuple[AotKernel, ...] = (
    *(kernel for width, real in ((3, "fp32"), (128, "fp32"), (128, "fp64"), (128, "bf16")) for kernel in _on_features(width, real)),
    *_on_edges("fp32"),
    *_on_edges("fp64"),
)
