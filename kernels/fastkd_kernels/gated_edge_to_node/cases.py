"""How the checks call the gated sum on random input, and how its Triton kernels are specialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..graph import CSRGraph
from ..registry import AotKernel, OpCase, Sample, Shape, random_graph, random_tensor
from . import reference
from .op import gated_edge_to_node
from .tiles import tile


def _reference(edge: Tensor, basis: Tensor, weight: Tensor, graph: CSRGraph) -> Tensor:
    return reference.gated_edge_to_node(edge, basis, weight, graph.edge_dst, graph.num_nodes)


def _sample(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Sample:
    graph = random_graph(shape, generator)
    # GemNet's basis has 16 functions whatever the width; below and above a tile, and never a power of two
    rank = 3 if shape.width < 8 else 19
    edge = random_tensor(shape.edges, shape.width, dtype=dtype, generator=generator)
    basis = random_tensor(shape.edges, rank, dtype=dtype, generator=generator)
    weight = random_tensor(shape.width, rank, dtype=torch.float64, generator=generator).mul(rank**-0.5).to(dtype)
    return Sample((edge, basis, weight), (graph,))


CASES = (OpCase("gated_edge_to_node", gated_edge_to_node, _reference, _sample, ("gated_edge_to_node", "gated_edge_gradients")),)


def _load(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from . import triton_kernels

        return getattr(triton_kernels, name)

    return load


def _specialisations(width: int, rank: int, real: str) -> Iterator[AotKernel]:
    floats, blocks = f"*{real}", tile(width, rank, double=real == "fp64")
    # widths that are multiples of 16 let loads be wide
    sizes = {name: "i32:16" if size % 16 == 0 else "i32" for name, size in (("D", width), ("R", rank))}
    label = f"D{width}, R{rank}, {real}"

    def kernel(name: str, signature: dict[str, str], **flags: bool) -> AotKernel:
        constants = flags | {key: value for key, value in blocks.items() if key != "num_warps"}
        title = f"{name}[{''.join(f'{key.lower()}, ' for key, value in flags.items() if value)}{label}]"
        return AotKernel(title, _load(f"{name}_kernel"), signature, constants, blocks["num_warps"])

    inputs = dict.fromkeys(("m_ptr", "b_ptr", "w_ptr"), floats)
    yield kernel("gated_edge_to_node", inputs | {"ptr_ptr": "*i64", "order_ptr": "*i64", "out_ptr": floats} | sizes)
    edges = {"g_ptr": floats} | inputs | {"dst_ptr": "*i64", "by_m_ptr": floats, "by_b_ptr": floats, "E": "i32"} | sizes
    for by_m, by_b in ((True, True), (True, False), (False, True)):
        yield kernel("gated_edge", edges, BY_M=by_m, BY_B=by_b)
    parts = "*fp64" if real == "fp64" else "*fp32"
    weight = {"g_ptr": floats, "m_ptr": floats, "b_ptr": floats, "dst_ptr": "*i64", "part_ptr": parts, "E": "i32"} | sizes
    yield kernel("gated_weight", weight | {"edges_each": "i32"})


KERNELS: tuple[AotKernel, ...] = tuple(
    kernel
    for width, rank, real in ((5, 3, "fp32"), (128, 16, "fp32"), (512, 128, "fp32"), (128, 16, "fp64"), (128, 16, "bf16"))
    for kernel in _specialisations(width, rank, real)
)
